"""The same network for clips that do not fit: frames flow through it in chunks.

Adapters' windows are served as in a stream (`streaming.AdapterStage`). Where a norm takes its moments over the clip,
the stream of tokens is stored as a whole before the adapter, and read again once the moments are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .checks import FLOATING, LARGEST_WHOLE, check_integer, check_tensor, check_video
from .config import check_grid
from .frame_store import FrameQueue, FrameStore, Offload, check_offload, empty
from .network import ChronoNetwork
from .ops.clip_norm import Moments, clip_moments, frame_moments
from .streaming import AdapterStage, has_clip_norm, next_fine
from .vit import rotary_tables

STORED_TOGETHER = 16  # chunks, of at most as many frames, in one piece of memory where a video's length is not known


def chunked_features(
    model: ChronoNetwork,
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int] | None,
    max_frames_in_memory: int | None,
    offload: Offload,
) -> Tensor:
    """What `ChronoNetwork.forward` returns for a clip that does not fit. See there."""
    check_video(video)
    grid = model.config.grid if grid is None else check_grid(grid)
    step = _check_step(max_frames_in_memory, len(video))
    check_offload(offload)
    channels, height, width = model.feature_shape(grid)
    # Channels last, as the network makes them: writing them is then a plain copy.
    shape = (*video.shape[:2], height, width, channels)
    out = empty(shape, model.dtype, model.device, offload).permute(0, 1, 4, 2, 3)
    done = 0
    chunked = _ChunkedPass(model, grid, step, offload, video.shape[1])
    for chunk in chunked.features(video.split(step, dim=1)):
        out[:, done : done + chunk.shape[1]] = chunk
        done += chunk.shape[1]
    return out


def iter_features(
    model: ChronoNetwork,
    frames: Iterable[Tensor],  # (3, H, W) each
    grid: tuple[int, int] | None = None,
    max_frames_in_memory: int = 64,
    offload: Offload = None,
) -> Iterator[Tensor]:
    """Features of a video that is read while it is processed, such as `video.iter_frames` gives it.

    With `norm="clip"` nothing comes out before the last frame is read, because all frames share the norms' statistics;
    with `norm="token"` features follow the frames.

    Args:
        model: The model.
        frames: Frames (3, H, W), uint8 or floating 0 … 1. Read once, in order.
        grid: Tokens per frame; None takes the configuration's.
        max_frames_in_memory: Frames in the network at a time.
        offload: Where the stream of tokens is stored: None (the model's device), "cpu", or a folder for
            memory-mapped files.

    Returns:
        An iterator over the features of consecutive frames, (1, n, C, h, w), n <= `max_frames_in_memory`.

    Raises:
        ValueError: An argument or a frame is not as described.
    """
    grid = model.config.grid if grid is None else check_grid(grid)
    step = _check_step(max_frames_in_memory, 1)
    check_offload(offload)
    if isinstance(frames, Tensor):
        check_tensor("frames", frames, "(T, 3, H, W)", (torch.uint8, *FLOATING), "uint8 0 … 255 or floating 0 … 1")
    if not isinstance(frames, Iterable) or (isinstance(frames, Tensor) and not frames.ndim):
        raise ValueError(f"frames of type {type(frames).__name__}; expected an iterable of frames (3, H, W)")
    return _ChunkedPass(model, grid, step, offload).features(_batched(frames, step))


def clip_statistics(
    model: ChronoNetwork,
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int] | None = None,
    max_frames_in_memory: int | None = None,
    offload: Offload = None,
) -> Tensor:
    """The mean and variance that each adapter's norm has over a clip, for `FeatureStream`.

    Returns:
        (B, adapters, 2), in float32 (float64 for a model in float64).

    Raises:
        ValueError: The model has no norm over clips, or an argument is not as `ChronoNetwork.forward` takes it.
    """
    if not has_clip_norm(model):
        raise ValueError(
            f"norm={model.config.norm!r}, or no adapters: there are no statistics of clips, and stream() needs none"
        )
    check_video(video)
    grid = model.config.grid if grid is None else check_grid(grid)
    step = video.shape[1] if max_frames_in_memory is None else _check_step(max_frames_in_memory, len(video))
    check_offload(offload)
    chunked = _ChunkedPass(model, grid, step, offload, video.shape[1])
    next(chunked.features(video.split(step, dim=1)))
    return torch.stack([torch.stack(tuple(moments), dim=-1) for moments in chunked.moments], dim=1)


class _ChunkedPass:
    """The network on one clip, in chunks, as a chain of generators.

    Attributes:
        moments: Of each adapter's norm over the clip; all are known before the first features.
    """

    def __init__(
        self,
        model: ChronoNetwork,
        grid: tuple[int, int],
        step: int,
        offload: Offload,
        frames: int | None = None,
    ) -> None:
        self.moments: list[Moments] = []
        self._model = model
        self._grid = grid
        self._step = step
        piece = frames or STORED_TOGETHER * min(step, STORED_TOGETHER)
        self._tokens = FrameStore(piece, offload)
        self._fine = FrameStore(piece, offload) if has_clip_norm(model) else FrameQueue()

    @torch.no_grad()
    def features(
        self,
        chunks: Iterable[Tensor],  # (B, step, 3, H, W) each
    ) -> Iterator[Tensor]:
        """Yields (B, n, C, h, w)."""
        model = self._model
        x: Iterator[Tensor] = map(self._embed, chunks)
        ropes = rotary_tables(model.vit, self._grid)
        done = 0
        for name, adapter in model.adapters.items():
            last = int(name) + 1
            x = _through_blocks(model, x, range(done, last), ropes)
            done = last
            moments = None
            if adapter.norm_of_clip:
                moments = self._store(x)
                self.moments.append(moments)
                x = self._tokens.drain(self._step)
            x = AdapterStage(model, name, self._grid, moments, model.config.window[1]).through(x)
        x = _through_blocks(model, x, range(done, len(ropes)), ropes)
        yield from map(self._read_out, x)

    def _embed(self, chunk: Tensor) -> Tensor:
        x, fine = self._model.embed(chunk.to(self._model.device), self._grid)
        if fine is not None:
            self._fine.append(fine)
        return x

    def _store(self, chunks: Iterable[Tensor]) -> Moments:
        """Runs everything so far on all frames and stores them; returns their moments."""
        # One pair of tensors that grows: many small ones, which stay while large ones come and go, would break up the
        # heap.
        frames = Moments(*torch.empty(2, 0))
        for x in chunks:
            new = frame_moments(self._model.patches(x, self._grid))
            if len(frames.mean):
                new = Moments(*(torch.cat(v, dim=1) for v in zip(frames, new, strict=True)))
            frames = new
            self._tokens.append(x)
            del x
        return clip_moments(frames)

    def _read_out(self, x: Tensor) -> Tensor:
        return self._model.read_out(x, next_fine(x, self._model, self._fine), self._grid)


def _through_blocks(
    model: ChronoNetwork, chunks: Iterable[Tensor], blocks: Iterable[int], ropes: list[dict[str, Tensor]]
) -> Iterator[Tensor]:
    def run(x: Tensor) -> Tensor:
        for i in blocks:
            x = model.run_block(i, x, ropes[i])
        return x

    return map(run, chunks)


def _batched(frames: Iterable[Tensor], step: int) -> Iterator[Tensor]:
    """(1, n, 3, H, W) each."""
    waiting: list[Tensor] = []
    count = 0
    for count, frame in enumerate(frames, 1):
        if not isinstance(frame, Tensor) or frame.ndim != 3:
            got = tuple(frame.shape) if isinstance(frame, Tensor) else type(frame).__name__
            raise ValueError(f"frame {count - 1} is {got}; expected a torch.Tensor (3, H, W)")
        if waiting and (frame.shape, frame.dtype) != (waiting[0].shape, waiting[0].dtype):
            one, other = (f"{f.dtype} of {tuple(f.shape)}" for f in (frame, waiting[0]))
            raise ValueError(f"frame {count - 1} is {one}; expected {other} like the one before it")
        waiting.append(frame)
        if len(waiting) == step:
            yield _video(waiting)
            waiting = []
    if waiting:
        yield _video(waiting)
    if not count:
        raise ValueError("frames holds no frame; expected at least one")


def _video(frames: list[Tensor]) -> Tensor:
    video = torch.stack(frames)[None]
    check_video(video)
    return video


def _check_step(max_frames_in_memory: int | None, batch: int) -> int:
    """Frames of each clip at a time."""
    if max_frames_in_memory is None:
        raise ValueError("max_frames_in_memory=None with an offload; expected a positive integer of frames as well")
    value = check_integer("max_frames_in_memory", max_frames_in_memory, 1, unit=" of frames")
    return min(max(1, value // batch), LARGEST_WHOLE)
