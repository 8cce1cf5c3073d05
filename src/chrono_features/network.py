"""`ChronoNetwork`: a ViT with temporal adapters between its blocks (Chrono, arXiv 2501.12218)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapter import AttentionMixer, TemporalAdapter
from .checks import check_flag, check_video, refusal
from .config import ChronoConfig, check_grid
from .dtypes import l2_normalise
from .layers import ConvStem, FineFeatures, UpsampleNeck, VisibilityHead
from .ops.temporal_attention import check_backend
from .preprocess import prepare_frames
from .vit import create_vit, final_norm, first_tokens, rotary_tables

NO_ADAPTERS = nn.ModuleDict()


class ChronoNetwork(nn.Module):
    """The network alone: frames to features, without files, tracking or chunks.

    Args:
        config: What to build, a `ChronoConfig` or its dictionary.
        pretrained_vit: Whether timm fetches the ViT's own pretrained weights. Adapters are new: the identity.
        backend: What the adapters' attention runs on, see `backend`.

    Raises:
        ValueError: The ViT is of a class that is not supported, or does not fit the configuration.
    """

    def __init__(
        self,
        config: ChronoConfig | Mapping[str, Any],
        pretrained_vit: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_flag("pretrained_vit", pretrained_vit)
        check_backend(backend)
        if not isinstance(config, (ChronoConfig, Mapping)):
            raise refusal("config", config, "a ChronoConfig or its dictionary")
        self.config = config if isinstance(config, ChronoConfig) else ChronoConfig.from_dict(config)
        self.vit = create_vit(self.config.vit, self.config.vit_kwargs, pretrained_vit)
        dim = self.vit.embed_dim
        self.patch_size: tuple[int, int] = tuple(self.vit.patch_embed.patch_size)
        indices = self.config.adapter_indices(len(self.vit.blocks))
        self.adapters = nn.ModuleDict({str(i): self._new_adapter(dim) for i in indices})
        self.stem = self.fine = self.neck = self.project = None
        if self.config.stem == "conv":
            self.stem = ConvStem(dim, max(self.patch_size))
            self.vit.patch_embed = nn.Identity()
            self.vit.pos_embed = None
        out_channels = self.config.out_channels or dim
        if self.config.neck == "x2":
            self.fine = FineFeatures() if self.stem is None else None
            self.neck = UpsampleNeck(dim, out_channels)
        elif out_channels != dim:
            self.project = nn.Linear(dim, out_channels)
        self.visibility_head = VisibilityHead()
        self.grad_checkpointing = False
        self.backend = backend
        self.vit.requires_grad_(not self.config.freeze_vit)
        self.eval()

    def _new_adapter(self, dim: int) -> TemporalAdapter:
        c = self.config
        return TemporalAdapter(
            dim,
            c.adapter_channels,
            c.adapter_heads,
            c.adapter_stride,
            c.window,
            mixer=c.mixer,
            norm=c.norm,
        )

    # From frames to features

    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Computes the features of whole clips.

        Args:
            video: uint8 0 … 255 or floating 0 … 1; any H, W; never changed in place.
            grid: Tokens per frame (rows, columns); None takes the configuration's.

        Returns:
            (B, T, C, h, w), L2-normalised along C, h x w being the grid (twice the grid with `neck="x2"`).

        Raises:
            ValueError: The video's shape, type or values, or the grid, are not as above.
        """
        grid = self.check_input(video, grid)
        return self.read_out(*self.encode(video, grid, self.adapters), grid)

    def vit_features(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Computes features without adapters: what the ViT makes of single frames. Otherwise like `forward`."""
        grid = self.check_input(video, grid)
        return self.read_out(*self.encode(video, grid, NO_ADAPTERS), grid)

    def forward_pyramid(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """Computes features at every stride, finest first, for refiners that look from coarse to fine.

        Args:
            video: uint8 0 … 255 or floating 0 … 1.
            grid: Tokens per frame (rows, columns); None takes the configuration's.

        Returns:
            (B, T, C, h, w) for each entry of `feature_info`, L2-normalised along C. The first is what `forward`
            returns and matching was trained on; with `neck="x2"` the ViT's tokens follow, at half its resolution.

        Raises:
            ValueError: As `forward` does.
        """
        grid = self.check_input(video, grid)
        x, fine = self.encode(video, grid, self.adapters)
        levels = [self.read_out(x, fine, grid)]
        if self.neck is not None:
            tokens = final_norm(self.vit)(self.patches(x, grid))
            levels.append(l2_normalise(rearrange(tokens, "b t h w c -> b t c h w")))
        return levels

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Each level of `forward_pyramid`, as timm's models describe theirs.

        `num_chs`, `reduction` (stride in pixels of a frame of patch size x grid) and `module`.
        """
        stride = max(self.patch_size)
        channels = self.feature_shape((1, 1))[0]
        tokens = {"num_chs": self.vit.embed_dim, "reduction": stride, "module": "vit"}
        if self.neck is not None:
            return [{"num_chs": channels, "reduction": stride // 2, "module": "neck"}, tokens]
        if self.project is not None:
            return [{"num_chs": channels, "reduction": stride, "module": "project"}]
        return [tokens]

    def feature_shape(self, grid: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the features of a frame at a token grid."""
        rows, columns = check_grid(grid)
        scale = 2 if self.neck is not None else 1
        return self.config.out_channels or self.vit.embed_dim, scale * rows, scale * columns

    def check_input(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None,
    ) -> tuple[int, int]:
        """The grid to compute; ValueError unless the video and the grid are as `forward` takes them."""
        check_video(video, self.device)
        return self.config.grid if grid is None else check_grid(grid)

    def encode(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int],
        adapters: nn.ModuleDict,
    ) -> tuple[Tensor, Tensor | None]:
        """What the last block returns, (B, T, tokens, C), and fine features, for `read_out`."""
        x, fine = self.embed(video, grid)
        for i, rope in enumerate(rotary_tables(self.vit, grid)):
            x = self.run_block(i, x, rope)
            if (name := str(i)) in adapters:
                x = self.with_patches(x, self._run(adapters[name], self.patches(x, grid)))
        return x, fine

    def embed(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None]:
        """What the first block gets, (B, T, tokens, C), and fine features for a neck, (B, T, 64, H / 4, W / 4)."""
        frames = prepare_frames(video.flatten(0, 1), self.config, self.patch_size, grid, self.dtype)
        if self.stem is not None:
            x, fine = self.stem(frames)
            x = rearrange(x, "n c h w -> n (h w) c")
        else:
            x = self.vit.patch_embed(frames).flatten(1, 2)
            fine = None if self.fine is None else self.fine(frames)
        x = first_tokens(self.vit, x, grid, self.config.pos_embed_resize).unflatten(0, video.shape[:2])
        return x, None if fine is None or self.neck is None else fine.unflatten(0, video.shape[:2])

    def run_block(
        self,
        index: int,
        x: Tensor,  # (B, T, tokens, C)
        rope: Mapping[str, Tensor],
    ) -> Tensor:
        """One block of the ViT on every frame."""
        block = self.vit.blocks[index]
        return self._run(block, x.flatten(0, 1), **rope).unflatten(0, x.shape[:2])

    def read_out(
        self,
        x: Tensor,  # (B, T, tokens, C)
        fine: Tensor | None,  # (B, T, 64, H / 4, W / 4)
        grid: tuple[int, int],
    ) -> Tensor:
        """The features of what the last block returns, (B, T, C, h, w)."""
        x = final_norm(self.vit)(self.patches(x, grid))
        if self.neck is not None and fine is not None:
            tokens = rearrange(x, "b t h w c -> (b t) c h w")
            x = self.neck(tokens, fine.flatten(0, 1)).unflatten(0, x.shape[:2])
        else:
            x = rearrange(x if self.project is None else self.project(x), "b t h w c -> b t c h w")
        return l2_normalise(x)

    def patches(
        self,
        x: Tensor,  # (B, T, tokens, C)
        grid: tuple[int, int],
    ) -> Tensor:
        """A view of the patch tokens, (B, T, h, w, C), without class and register tokens."""
        return x[:, :, self.vit.num_prefix_tokens :].unflatten(2, grid)

    def with_patches(
        self,
        x: Tensor,  # (B, T, tokens, C)
        patches: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        """`x` with other patch tokens; class and register tokens pass by."""
        prefix = self.vit.num_prefix_tokens
        patches = patches.flatten(2, 3)
        return torch.cat([x[:, :, :prefix], patches], dim=2) if prefix else patches

    def _run(self, function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        # timm's own checkpointing lives in a method that walking the blocks bypasses.
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, **options)
        return function(*inputs, **options)

    # How it runs

    @property
    def device(self) -> torch.device:
        return self.visibility_head.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.visibility_head.linear.weight.dtype

    @property
    def backend(self) -> str:
        """What the adapters' attention runs on: "auto", "torch" or "triton", a fused CUDA kernel.

        "auto" takes the kernel only where it was measured to win. "triton" takes it or raises, in the call, with the
        reason. The environment variable CHRONO_FEATURES_BACKEND overrides it. `backend_info` says what is used.
        """
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        check_backend(backend)
        if backend == "triton" and self.config.mixer != "attention":
            raise ValueError(f"backend='triton' with mixer={self.config.mixer!r}; expected mixer='attention'")
        self._backend = backend
        for mixer in self._attention_mixers():
            mixer.backend = backend

    def backend_info(self) -> dict[str, str]:
        """What the adapters' attention runs on, on the model's device and in its type, and why."""
        mixers = self._attention_mixers()
        return {"temporal attention": mixers[0].backend_info() if mixers else "none: no adapters with attention"}

    def _attention_mixers(self) -> list[AttentionMixer]:
        return [a.mixer for a in self.adapters.values() if isinstance(a.mixer, AttentionMixer)]

    def train(self, mode: bool = True) -> ChronoNetwork:
        """Like `nn.Module.train`, but a frozen ViT stays in eval mode."""
        super().train(mode)
        if self.config.freeze_vit:
            self.vit.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks and adapters are computed again in the backward pass."""
        check_flag("enable", enable)
        self.grad_checkpointing = enable

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        """Compiles blocks and adapters one by one, in place, for any number of frames.

        Blocks share one compiled function and adapters another, so this starts sooner than compiling the whole model.
        In chunks and streams adapters run in pieces, which are not compiled.

        Args:
            options: Keyword arguments of `torch.compile`.
        """
        for module in (*self.vit.blocks, *self.adapters.values()):
            module.compile(**options)
