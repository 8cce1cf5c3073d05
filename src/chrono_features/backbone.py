"""`ChronoBackbone`: a ViT with temporal adapters between its blocks (Chrono, arXiv 2501.12218)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import pyramid
from . import streaming as long_video
from .adapter import AttentionMixer, TemporalAdapter
from .checks import check_choice, check_features, check_flag, check_queries, check_soft_argmax, check_video, refusal
from .confidence import confidence_weights, with_confidence
from .config import ChronoConfig, check_grid
from .neck import UpsampleNeck
from .ops.dtypes import unit_length
from .ops.spatial_attention import describe_spatial_attention
from .ops.temporal_attention import check_backend
from .preprocess import prepare_frames
from .refine import refine_photometric
from .stem import ConvStem, FineFeatures
from .tracking import soft_argmax_track
from .tracks import Tracks
from .visibility import VisibilityHead
from .vit import create_vit, final_norm, first_tokens, rotary_tables, run_block


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
        backend: What the adapters' attention runs on, see `backend`.

    Raises:
        ValueError: The ViT is of a class that is not supported, or does not fit the configuration.
    """

    def __init__(
        self, config: ChronoConfig | Mapping[str, Any], pretrained_vit: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        check_flag("pretrained_vit", pretrained_vit)
        check_backend(backend)
        if not isinstance(config, (ChronoConfig, Mapping)):
            raise refusal("config", config, "a ChronoConfig or its dictionary")
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
        self.backend = backend
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

    def feature_shape(self, grid: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the features of a frame at a token grid."""
        grid = check_grid(grid)
        times = 2 if self.neck is not None else 1
        return self.config.out_channels or self.vit.embed_dim, times * grid[0], times * grid[1]

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
        """What the operations that have a choice use on the model's device and in its type, and why."""
        mixers = self._attention_mixers()
        temporal = mixers[0].backend_info() if mixers else "none: no adapters with attention"
        return {"spatial attention": describe_spatial_attention(self.device), "temporal attention": temporal}

    def _attention_mixers(self) -> list[AttentionMixer]:
        return [a.mixer for a in self.adapters.values() if isinstance(a.mixer, AttentionMixer)]

    def train(self, mode: bool = True) -> ChronoBackbone:
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

    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int | None = None,
        offload: str | os.PathLike[str] | None = None,
    ) -> Tensor:
        """Computes features.

        Without `torch.inference_mode()` or `torch.no_grad()` the graph for gradients is kept with them.

        Args:
            video: uint8 0 … 255 or floating 0 … 1; any H, W; never changed in place.
            grid: Tokens per frame (rows, columns); None takes the configuration's.
            max_frames_in_memory: For clips that do not fit: how many frames (of all clips of the batch together) are
                in the network at a time. The features are the same; there are no gradients; the video may live on
                another device than the model.
            offload: Where the token stream and the features of such a clip are kept: None (the model's device), "cpu",
                or a folder for memory-mapped files, which vanish with the tensor.

        Returns:
            (B, T, C, h, w), of unit length along C, h x w being the grid (twice the grid with `neck="x2"`).

        Raises:
            ValueError: The video's shape, type or values, or another argument, are not as above.
        """
        if max_frames_in_memory is None and offload is None:
            return self._features(video, grid, self.adapters)
        return long_video.features(self, video, grid, max_frames_in_memory, offload)

    def vit_features(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Like `forward` with every adapter switched off: the features that the ViT has of single frames."""
        return self._features(video, grid, nn.ModuleDict())

    def forward_pyramid(self, video: Tensor, grid: tuple[int, int] | None = None) -> list[Tensor]:
        """Features at every stride, finest first. See `chrono_features.pyramid.forward_pyramid`."""
        return pyramid.forward_pyramid(self, video, grid)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and stride of each level of `forward_pyramid`, as timm's models give them."""
        return pyramid.feature_info(self)

    def iter_features(
        self,
        frames: Iterable[Tensor],  # (3, H, W) each
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int = 64,
        offload: str | os.PathLike[str] | None = None,
    ) -> Iterator[Tensor]:
        """Features of a video that is read while it is processed. See `chrono_features.streaming.iter_features`."""
        return long_video.iter_features(self, frames, grid, max_frames_in_memory, offload)

    def calibrate(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int | None = None,
        offload: str | os.PathLike[str] | None = None,
    ) -> Tensor:
        """The adapters' statistics over a clip, for `stream`. See `chrono_features.streaming.calibrate`."""
        return long_video.calibrate(self, video, grid, max_frames_in_memory, offload)

    def stream(self, stats: Tensor | None = None, **options: Any) -> long_video.FeatureStream:
        """Frames in, features out. See `chrono_features.streaming.FeatureStream`."""
        return long_video.FeatureStream(self, stats, **options)

    @torch.no_grad()
    def track(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        queries: Tensor,  # (B, N, 3) (t, x, y)
        grid: tuple[int, int] | None = None,
        *,
        features: Tensor | None = None,
        refine: str | None = None,
        confidence: bool = False,
        max_frames_in_memory: int | None = None,
        offload: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Tracks:
        """Tracks points through a video, without gradients.

        Args:
            video: See `forward`.
            queries: A whole frame index, and x, y in pixels of `video`, for each point.
            grid, max_frames_in_memory, offload: See `forward`; without meaning where `features` are given.
            features: Features of `video`, where there are some already.
            confidence: Whether to tell how sure each position is, see `chrono_features.confidence`; `visible` then
                follows from it. Needs a calibrated model.
            refine: "photometric" aligns positions with the pixels, see `chrono_features.refine`; None does not, and
                pulls positions near the border of the image inwards by up to half a cell.
            options: Further keyword arguments of `soft_argmax_track`. Temperature, radius and `visible_threshold` come
                from the configuration otherwise.

        Returns:
            `Tracks` in pixels of `video`.

        Raises:
            ValueError: An argument is not as above, or the model is not calibrated for a confidence.
        """
        check_video(video)
        check_choice("refine", refine, (None, "photometric"))
        check_flag("confidence", confidence)
        image_size = (video.shape[-2], video.shape[-1])
        queries = check_queries(queries, video.shape[0], video.shape[1], image_size).to(self.device)
        c = self.config
        weights = confidence_weights(c, refine is not None) if confidence else ()
        defaults = {
            "temperature": c.temperature,
            "radius": c.radius,
            "visibility_head": self.visibility_head,
            "visible_threshold": c.visible_threshold if refine is None else c.refined_visible_threshold,
        }
        options = {**defaults, **options}
        temperature, radius = check_soft_argmax(**options)
        if features is not None:
            check_features(features, video)
        else:
            features = self(video, grid, max_frames_in_memory=max_frames_in_memory, offload=offload)
        tracks = soft_argmax_track(features, queries, image_size, **options)
        if refine is not None:
            tracks = refine_photometric(video, features, queries, tracks, temperature=temperature, radius=radius)
        if confidence:
            threshold = options["visible_threshold"]
            disc = {"temperature": temperature, "radius": radius}
            tracks = with_confidence(tracks, features, queries, image_size, weights, threshold, **disc)
        return tracks

    @classmethod
    def from_pretrained(cls, name: str, *, backend: str = "auto", **options: Any) -> ChronoBackbone:  # type: ignore[override]
        """Loads a model by name. See `chrono_features.pretrained.load`, which says what `name` and `options` may be."""
        from .pretrained import load

        check_backend(backend)
        model = load(name, **options)
        model.backend = backend
        return model

    def save_pretrained(self, save_directory: Any, *, adapters_only: bool = False, **options: Any) -> str | None:  # type: ignore[override]
        """Writes config.json and model.safetensors. See `chrono_features.pretrained.save`."""
        from .pretrained import save

        return save(self, save_directory, adapters_only=adapters_only, **options)

    def _features(self, video: Tensor, grid: tuple[int, int] | None, adapters: nn.ModuleDict) -> Tensor:
        return self.read_out(*self.encode(video, grid, adapters))

    def encode(
        self, video: Tensor, grid: tuple[int, int] | None, adapters: nn.ModuleDict
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """What `read_out` takes: what the last block returns, (B, T, tokens, C), fine features, and the grid."""
        check_video(video, self.device)
        grid = self.config.grid if grid is None else check_grid(grid)
        x, fine = self.embed(video, grid)
        for i, rope in enumerate(rotary_tables(self.vit, grid)):
            x = self.run_block(i, x, rope)
            if (name := str(i)) in adapters:
                x = self.with_patches(x, self._run(adapters[name], self.patches(x, grid)))
        return x, fine, grid

    def run_block(
        self,
        index: int,
        x: Tensor,  # (B, T, tokens, C)
        rope: Mapping[str, Tensor],
    ) -> Tensor:
        """One block of the ViT on every frame."""
        return self._run(run_block, self.vit.blocks[index], x.flatten(0, 1), **rope).unflatten(0, x.shape[:2])

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
        prefix, patches = self.vit.num_prefix_tokens, patches.flatten(2, 3)
        return torch.cat([x[:, :, :prefix], patches], dim=2) if prefix else patches

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
        return unit_length(x)

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

    def _run(self, function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
        # timm's own checkpointing lives in a method that walking the blocks bypasses.
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, **options)
        return function(*inputs, **options)
