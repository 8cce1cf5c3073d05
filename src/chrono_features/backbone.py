"""`ChronoBackbone`: a ViT with temporal adapters between its blocks (Chrono, arXiv 2501.12218)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapter import TemporalAdapter
from .config import ChronoConfig, check_grid
from .neck import UpsampleNeck
from .ops.matching import wide_dtype
from .stem import ConvStem, FineFeatures
from .tracking import Tracks, VisibilityHead, check_queries, soft_argmax_track
from .vit import create_vit, final_norm, position_table, rotary_tables

VALUE_RANGE = (-0.0501, 1.0501)  # resizing overshoots [0, 1] a little: 0.05, and rounding
PREPARED_TOGETHER = 16  # frames: a wide copy of a whole high-resolution clip would not fit


class ChronoBackbone(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="chrono-features",
    tags=["point-tracking", "video", "feature-extraction"],
):
    """Dense features that know about time: a ViT whose patch tokens pass a temporal adapter between blocks.

    Args:
        config: What to build, a `ChronoConfig` or its dictionary.
        pretrained_vit: Whether timm fetches the ViT's own pretrained weights. Adapters are new: the identity.

    Raises:
        ValueError: The ViT is of a class that is not supported, or does not fit the configuration.
    """

    def __init__(self, config: ChronoConfig | Mapping[str, Any], pretrained_vit: bool = False) -> None:
        super().__init__()
        self.config = config if isinstance(config, ChronoConfig) else ChronoConfig.from_dict(config)
        self.vit = create_vit(self.config.vit, self.config.vit_kwargs, pretrained_vit)
        dim, patch = self.vit.embed_dim, self.vit.patch_embed.patch_size
        self.patch_size: tuple[int, int] = tuple(patch)
        indices = self.config.adapter_indices(len(self.vit.blocks))
        self.adapters = nn.ModuleDict({str(i): self._new_adapter(dim) for i in indices})
        self.stem = self.fine = self.neck = self.project = None
        if self.config.stem == "conv":
            self.stem = ConvStem(dim, max(patch))
            self.vit.patch_embed, self.vit.pos_embed = nn.Identity(), None
        out_channels = self.config.out_channels or dim
        if self.config.neck == "x2":
            self.fine = FineFeatures() if self.stem is None else None
            self.neck = UpsampleNeck(dim, out_channels)
        elif out_channels != dim:
            self.project = nn.Linear(dim, out_channels)
        self.visibility_head = VisibilityHead()
        self.grad_checkpointing = False
        self.vit.requires_grad_(not self.config.freeze_vit)
        self.eval()

    def _new_adapter(self, dim: int) -> TemporalAdapter:
        c = self.config
        return TemporalAdapter(
            dim, c.adapter_channels, c.adapter_heads, c.adapter_stride, c.window, mixer=c.mixer, norm=c.norm
        )

    @property
    def device(self) -> torch.device:
        return self.visibility_head.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.visibility_head.linear.weight.dtype

    def train(self, mode: bool = True) -> ChronoBackbone:
        """Like `nn.Module.train`, but a frozen ViT stays in eval mode."""
        super().train(mode)
        if self.config.freeze_vit:
            self.vit.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks and adapters are computed again in the backward pass."""
        self.grad_checkpointing = enable

    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Computes features.

        Args:
            video: uint8 0 … 255 or floating 0 … 1; any H, W; never changed in place.
            grid: Tokens per frame (rows, columns); None takes the configuration's.

        Returns:
            (B, T, C, h, w), of unit length along C, h x w being the grid (twice the grid with `neck="x2"`).

        Raises:
            ValueError: The video's shape, type or values, or the grid, are not as above.
        """
        return self._features(video, grid, self.adapters)

    def vit_features(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Like `forward` with every adapter switched off: the features that the ViT has of single frames."""
        return self._features(video, grid, nn.ModuleDict())

    @torch.no_grad()
    def track(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        queries: Tensor,  # (B, N, 3) (t, x, y)
        grid: tuple[int, int] | None = None,
        **options: Any,
    ) -> Tracks:
        """Tracks points through a video, without gradients.

        Args:
            video: See `forward`.
            queries: A whole frame index, and x, y in pixels of `video`, for each point.
            grid: See `forward`.
            options: Further keyword arguments of `soft_argmax_track`, whose temperature and radius come from the
                configuration.

        Returns:
            `Tracks` in pixels of `video`.

        Raises:
            ValueError: The video or the queries are not as expected; the message says what is.
        """
        _check_video(video)
        image_size = (video.shape[-2], video.shape[-1])
        queries = check_queries(queries, video.shape[0], video.shape[1], image_size)
        c = self.config
        options = {"temperature": c.temperature, "radius": c.radius, "visibility_head": self.visibility_head, **options}
        return soft_argmax_track(self(video, grid), queries, image_size, **options)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> ChronoBackbone:  # type: ignore[override]
        """Loads a model by name. See `chrono_features.pretrained.load`, which says what `name` and `options` may be."""
        from .pretrained import load

        return load(name, **options)

    def save_pretrained(self, save_directory: Any, *, adapters_only: bool = False, **options: Any) -> str | None:  # type: ignore[override]
        """Writes config.json and model.safetensors. See `chrono_features.pretrained.save`."""
        from .pretrained import save

        return save(self, save_directory, adapters_only=adapters_only, **options)

    def _features(self, video: Tensor, grid: tuple[int, int] | None, adapters: nn.ModuleDict) -> Tensor:
        _check_video(video)
        grid = self.config.grid if grid is None else check_grid(grid)
        batch, count = video.shape[:2]
        frames = self._prepare(video.flatten(0, 1), grid)
        x, fine = self._embed(frames, grid)
        for i, (block, rope) in enumerate(zip(self.vit.blocks, rotary_tables(self.vit, grid), strict=True)):
            x = self._run(block, x, **rope)
            if (name := str(i)) in adapters:
                x = self._adapt(adapters[name], x, (batch, count, *grid))
        x = final_norm(self.vit)(x[:, self.vit.num_prefix_tokens :])
        if self.neck is not None:
            tokens = rearrange(x, "n (h w) c -> n c h w", h=grid[0])
            x = rearrange(self.neck(tokens, fine), "(b t) c h w -> b t c h w", b=batch)
        else:
            x = x if self.project is None else self.project(x)
            x = rearrange(x, "(b t) (h w) c -> b t c h w", b=batch, h=grid[0])
        wide = x.to(wide_dtype(x.dtype))
        return (wide / wide.square().sum(dim=2, keepdim=True).clamp(min=1e-6).sqrt()).to(x.dtype)

    def _prepare(self, frames: Tensor, grid: tuple[int, int]) -> Tensor:
        """Frames (N, 3, H, W) resized to patch size x grid, normalised, in the model's type."""
        sizes = [self.config.input_size, (self.patch_size[0] * grid[0], self.patch_size[1] * grid[1])]
        mean, std = (
            torch.tensor(v, device=frames.device).view(1, 3, 1, 1) for v in (self.config.mean, self.config.std)
        )
        prepared = []
        for chunk in frames.split(PREPARED_TOGETHER):
            chunk = chunk.to(wide_dtype(chunk.dtype, self.dtype))
            if frames.dtype == torch.uint8:
                chunk = chunk / 255
            for size in sizes:
                if size is not None and size != tuple(chunk.shape[-2:]):
                    antialias = self.config.antialias
                    chunk = F.interpolate(chunk, size, mode="bilinear", align_corners=False, antialias=antialias)
            prepared.append(((chunk - mean) / std).to(self.dtype))
        return torch.cat(prepared)

    def _embed(self, frames: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Prefix and patch tokens with their positions, (N, tokens, C), and stride-4 features for the neck."""
        vit = self.vit
        if self.stem is not None:
            x, fine = self.stem(frames)
            x = rearrange(x, "n c h w -> n (h w) c")
        else:
            x = vit.patch_embed(frames).flatten(1, 2)
            fine = None if self.fine is None else self.fine(frames)
        prefix = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
        position = position_table(vit, grid, self.config.pos_embed_resize)
        if position is not None and vit.no_embed_class:
            x = x + position
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if position is not None and not vit.no_embed_class:
            x = x + position
        return vit.norm_pre(vit.pos_drop(x)), fine

    def _adapt(self, adapter: nn.Module, x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Applies an adapter to the patch tokens; class and register tokens pass by."""
        prefix = self.vit.num_prefix_tokens
        patches = self._run(adapter, x[:, prefix:].reshape(*shape, -1)).flatten(2, 3).flatten(0, 1)
        return torch.cat([x[:, :prefix], patches], dim=1) if prefix else patches

    def _run(self, module: nn.Module, x: Tensor, **options: Any) -> Tensor:
        # timm's own checkpointing lives in a method that walking the blocks bypasses.
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, x, use_reentrant=False, **options)
        return module(x, **options)


def _check_video(video: Tensor) -> None:
    if not isinstance(video, Tensor):
        raise ValueError(f"video of type {type(video).__name__}; expected a torch.Tensor (B, T, 3, H, W)")
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise ValueError(f"video of shape {tuple(video.shape)}; expected (B, T, 3, H, W), none of them 0")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise ValueError(f"video of type {video.dtype}; expected uint8 0 … 255 or floating 0 … 1")
    if video.is_floating_point() and not torch.compiler.is_compiling():
        low, high = (v.item() for v in torch.aminmax(video))
        if low != low or high != high:
            raise ValueError("video holds NaN; expected values from 0 to 1")
        if low < VALUE_RANGE[0] or high > VALUE_RANGE[1]:
            raise ValueError(f"video with values from {low:.4g} to {high:.4g}; expected 0 … 1 (or uint8 0 … 255)")
