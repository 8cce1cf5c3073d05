"""`ChronoBackbone`: the network with all that users do with it. Features, tracks, streams, loading and saving."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from . import __version__, checkpoints, chunking
from .building import build
from .checks import check_choice, check_features, check_flag, check_matching, check_queries, check_video
from .confidence import add_confidence, confidence_weights
from .config import SoftArgmax
from .frame_store import Offload
from .network import ChronoNetwork
from .ops.temporal_attention import check_backend
from .point_tracker import PointTracker
from .refine import Refine, RefineOptions, refine_tracks
from .streaming import FeatureStream
from .tracking import find_tracks
from .tracks import Tracks


class ChronoBackbone(
    ChronoNetwork,
    PyTorchModelHubMixin,
    library_name="chrono-features",
    tags=["point-tracking", "video", "feature-extraction"],
):
    """Dense, temporally-aware video features: a ViT whose patch tokens pass a temporal adapter between blocks.

    Args:
        config: What to build, a `ChronoConfig` or its dictionary.
        pretrained_vit: Whether timm fetches the ViT's own pretrained weights. Adapters are new: the identity.
        backend: What the adapters' attention runs on, see `backend`.

    Raises:
        ValueError: The ViT is of a class that is not supported, or does not fit the configuration.
    """

    name_or_path = ""  # that `from_pretrained` was given

    def forward(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int | None = None,
        offload: Offload = None,
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
            (B, T, C, h, w), L2-normalised along C, h x w being the grid (twice the grid with `neck="x2"`).

        Raises:
            ValueError: The video's shape, type or values, or another argument, are not as above.
        """
        if max_frames_in_memory is None and offload is None:
            grid = self.check_input(video, grid)
            return self.read_out(*self.encode(video, grid, self.adapters), grid)
        return chunking.chunked_features(self, video, grid, max_frames_in_memory, offload)

    def iter_features(
        self,
        frames: Iterable[Tensor],  # (3, H, W) each
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int = 64,
        offload: Offload = None,
    ) -> Iterator[Tensor]:
        """Computes the features of a video while it is read, such as `video.iter_frames` gives it.

        With `norm="clip"` nothing comes out before the last frame is read, because all frames share the norms'
        statistics; with `norm="token"` features follow the frames.

        Args:
            frames: Frames (3, H, W), uint8 or floating 0 … 1. Read once, in order.
            grid: Tokens per frame (rows, columns); None takes the configuration's.
            max_frames_in_memory: Frames in the network at a time.
            offload: Where the stream of tokens is stored: None (the model's device), "cpu", or a folder for
                memory-mapped files.

        Returns:
            An iterator over the features of consecutive frames, (1, n, C, h, w), n <= `max_frames_in_memory`.

        Raises:
            ValueError: An argument or a frame is not as described.
        """
        return chunking.iter_features(self, frames, grid, max_frames_in_memory, offload)

    def clip_statistics(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        grid: tuple[int, int] | None = None,
        *,
        max_frames_in_memory: int | None = None,
        offload: Offload = None,
    ) -> Tensor:
        """Measures the mean and variance that each adapter's norm has over a clip, for `stream`.

        Args:
            video: uint8 0 … 255 or floating 0 … 1: a clip like those to come.
            grid, max_frames_in_memory, offload: As in `forward`.

        Returns:
            (B, adapters, 2), in float32 (float64 for a model in float64).

        Raises:
            ValueError: The model has no norm over clips (`norm="token"`), or an argument is not as above.
        """
        return chunking.clip_statistics(self, video, grid, max_frames_in_memory, offload)

    def calibrate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Deprecated name of `clip_statistics`."""
        warnings.warn("calibrate is now called clip_statistics", DeprecationWarning, stacklevel=2)
        return self.clip_statistics(*args, **kwargs)

    def stream(
        self,
        stats: Tensor | None = None,  # (B or 1, adapters, 2)
        *,
        grid: tuple[int, int] | None = None,
        causal: bool = False,
        force: bool = False,
    ) -> FeatureStream:
        """Starts a stream: frames in, features out, as they come.

        Args:
            stats: What `clip_statistics` returned for a clip like those to come; needed with `norm="clip"`.
            grid: Tokens per frame (rows, columns); None takes the configuration's.
            causal: Whether to answer at once, without future frames. Exact for models trained so (`window=(n, 0)`).
            force: Whether to do so with other models too, whose weights have never seen it.

        Returns:
            A `FeatureStream`: call it with frames (B, n, 3, H, W), and `flush()` at the end.

        Raises:
            ValueError: `stats` are missing, too many or misshapen, or `causal` is refused.
        """
        return FeatureStream(self, stats, grid=grid, causal=causal, force=force)

    def point_tracker(
        self,
        queries: Tensor | None = None,  # (N, 3) or (1, N, 3) (t, x, y)
        *,
        image_size: Sequence[float],
        stats: Tensor | None = None,  # (1, adapters, 2)
        grid: tuple[int, int] | None = None,
        causal: bool = False,
        force: bool = False,
        refine: Refine = None,
        confidence: bool = False,
        temperature: float | None = None,
        radius: float | None = None,
        visible_threshold: float | None = None,
    ) -> PointTracker:
        """Starts a tracker for frames as they come, such as a camera's: `tracker.add(points)`, then `tracker(frame)`.

        Args:
            queries: Points that are known beforehand, (t, x, y) in pixels; their ids are 0 … N - 1.
            image_size: (height, width) of the frames.
            stats, grid, causal, force: As in `stream`.
            refine, confidence, temperature, radius, visible_threshold: As in `track`. Refinement uses past frames only.

        Returns:
            A `PointTracker`.

        Raises:
            ValueError: An argument is not as above, or the model's confidence was not fitted.
        """
        return PointTracker(
            self,
            queries,
            image_size=image_size,
            stats=stats,
            grid=grid,
            causal=causal,
            force=force,
            refine=refine,
            confidence=confidence,
            temperature=temperature,
            radius=radius,
            visible_threshold=visible_threshold,
        )

    @torch.no_grad()
    def track(
        self,
        video: Tensor,  # (B, T, 3, H, W)
        queries: Tensor,  # (B, N, 3) (t, x, y)
        grid: tuple[int, int] | None = None,
        *,
        features: Tensor | None = None,  # (B, T, C, h, w)
        refine: Refine = None,
        confidence: bool = False,
        temperature: float | None = None,
        radius: float | None = None,
        visible_threshold: float | None = None,
        correlation_dtype: torch.dtype = torch.float32,
        memory_budget: int | None = None,
        max_frames_in_memory: int | None = None,
        offload: Offload = None,
    ) -> Tracks:
        """Tracks points through a video, without gradients.

        Args:
            video: uint8 0 … 255 or floating 0 … 1; any H, W.
            queries: An integer frame index, and x, y in pixels of `video`, for each point.
            grid, max_frames_in_memory, offload: As in `forward`; unused where `features` are given.
            features: Precomputed features of `video`; computed if None.
            refine: "photometric" aligns positions with the pixels, see `chrono_features.refine`.
            confidence: Whether to tell how sure each position is, see `chrono_features.confidence`; `visible` then
                follows from it. Needs a model whose confidence was fitted.
            temperature, radius, visible_threshold, correlation_dtype, memory_budget: As in `soft_argmax_track`; None
                takes the configuration's.

        Returns:
            `Tracks` in pixels of `video`.

        Raises:
            ValueError: An argument is not as above, or the model's confidence was not fitted.
        """
        check_video(video, values=features is not None)  # otherwise `forward` looks at them
        check_choice("refine", refine, (None, "photometric"))
        check_flag("confidence", confidence)
        image_size = (video.shape[-2], video.shape[-1])
        queries = check_queries(queries, video.shape[0], video.shape[1], image_size).to(self.device)
        c = self.config
        temperature = c.temperature if temperature is None else temperature
        soft_argmax = SoftArgmax(temperature, c.radius if radius is None else radius)
        if visible_threshold is None:
            visible_threshold = c.visible_threshold if refine is None else c.refined_visible_threshold
        matching = (self.visibility_head, visible_threshold, correlation_dtype, memory_budget)
        check_matching(*matching)
        weights = confidence_weights(c, refine is not None) if confidence else ()
        if features is None:
            features = self(video, grid, max_frames_in_memory=max_frames_in_memory, offload=offload)
        else:
            check_features(features, video)
        tracks = find_tracks(features, queries, image_size, soft_argmax, None, *matching)
        tracks = replace(tracks, info=self._about(image_size))
        if refine is not None:
            tracks = refine_tracks(video, features, queries, tracks, soft_argmax, RefineOptions())
        if confidence:
            tracks = add_confidence(tracks, features, queries, image_size, weights, visible_threshold, soft_argmax)
        return tracks

    def _about(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """What tracks tell of where they come from."""
        return {"image_size": list(image_size), "model": self.name_or_path, "version": __version__}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | os.PathLike[str],
        *,
        backend: str = "auto",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        num_heads: int | None = None,
        **config_overrides: Any,
    ) -> ChronoBackbone:
        """Loads a model, in eval mode, on the CPU, in float32.

        Args:
            name: "chrono-tiny" (bundled); "chrono-vits14" or "chrono-vitb14" (the authors', fetched once);
                "dinov2-vits14" or "dinov2-vitb14" (no adapters unless `adapter_blocks` says so); a folder that
                `save_pretrained` wrote; an authors' `.ckpt`; or a hub id "user/model". Built-in names come first.
            backend: What the adapters' attention runs on, see `ChronoBackbone.backend`.
            revision, cache_dir, token, force_download, local_files_only: As in huggingface_hub, for hub ids and the
                authors' weights. What timm fetches follows the environment (HF_HOME, HF_HUB_OFFLINE).
            num_heads: Attention heads of the ViT of a `.ckpt`; None means width / 64.
            config_overrides: Fields of `ChronoConfig` to change.

        Raises:
            ValueError: Unknown name or config key, or weights that do not fit; the message names the keys.
            OSError: Weights are missing and cannot be fetched; the message says how to supply them.
        """
        check_backend(backend)
        checkpoint = checkpoints.load(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
            num_heads=num_heads,
            **config_overrides,
        )
        model = build(cls, checkpoint)
        model.backend = backend
        model.name_or_path = os.fspath(name)
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        adapters_only: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: Any = None,
        **push_options: Any,
    ) -> str | None:
        """Writes config.json, model.safetensors and a model card; an old folder survives a failure.

        Args:
            save_directory: Where; other files in it are kept.
            adapters_only: Store what was trained and the name of the ViT, whose weights timm then supplies on loading.
            push_to_hub, repo_id, push_options: As in huggingface_hub.
            config, model_card_kwargs: Unused: huggingface_hub passes them; the model's own configuration is saved.

        Returns:
            The address of the commit with `push_to_hub`, else None.

        Raises:
            ValueError: `adapters_only` for a model whose ViT was trained, or weights that could not be loaded again.
            OSError: There is no space, or the like.
        """
        check_flag("adapters_only", adapters_only)
        check_flag("push_to_hub", push_to_hub)
        checkpoints.save(self.config, self.state_dict(), save_directory, adapters_only=adapters_only)
        return checkpoints.push(save_directory, repo_id, **push_options) if push_to_hub else None
