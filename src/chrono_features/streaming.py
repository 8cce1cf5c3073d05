"""The same network for clips that do not fit: frames flow through it in chunks.

Frames meet in adapters only, in two ways. An adapter's window asks for a few frames before and after, which a `_Stage`
holds back. The moments of a norm over the clip ask for all frames: before such an adapter the stream of tokens is
stored as a whole, unless the moments are known. Everything else is frame by frame, so the features are those of the
whole clip.
"""

from __future__ import annotations

import copy
import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import (
    FLOATING,
    LARGEST_WHOLE,
    check_finite,
    check_flag,
    check_integer,
    check_path,
    check_tensor,
    check_video,
    is_folder,
    refusal,
)
from .config import check_grid
from .ops.clip_norm import Moments, clip_moments, frame_moments
from .ops.dtypes import wide_dtype
from .vit import rotary_tables

if TYPE_CHECKING:
    from .backbone import ChronoBackbone

LARGEST_MOMENT = 1e9  # of a clip's tokens; features would overflow long before
STORED_TOGETHER = 16  # chunks, of at most as many frames, in one piece of memory where a video's length is not known


class FeatureStream:
    """Frames in, features out, as they come: `features = stream(frames)`, and `stream.flush()` for the last ones.

    A frame's features come `delay` frames later, when the frames after it in the windows of all adapters are known.
    They are the features of the whole clip: exactly with `norm="token"`, and with `norm="clip"` if `stats` are the
    clip's own. A call that raises, or is interrupted, leaves the stream as it was: it can be made again.

    Args:
        model: The model.
        stats: What `model.calibrate` returned for a clip like those to come, for `norm="clip"`.
        grid: Tokens per frame; None takes the configuration's.
        causal: Whether to answer at once, without the frames after. Exact for models trained so (`window=(n, 0)`).
        force: Whether to do so with other models too, whose weights have never seen it.

    Attributes:
        delay: Frames between a frame and its features.

    Raises:
        ValueError: `stats` are missing, too many or misshapen, or `causal` is refused.
    """

    def __init__(
        self,
        model: ChronoBackbone,
        stats: Tensor | None = None,  # (B or 1, adapters, 2)
        *,
        grid: tuple[int, int] | None = None,
        causal: bool = False,
        force: bool = False,
    ) -> None:
        config = model.config
        check_flag("causal", causal)
        check_flag("force", force)
        self._grid = config.grid if grid is None else check_grid(grid)
        self._model, self._moments = model, _check_stats(model, stats)
        before, after = config.window
        if causal and after and not force:
            raise ValueError(
                f"causal=True with window={config.window}: this model's frames see {after} frames after them; expected "
                f"a model trained with window=({before}, 0), or force=True to run it without what it was trained to see"
            )
        # Cutting the window off is not enough: frames that come together must not see each other's future either.
        self._one_by_one = bool(causal and after)
        self._after = 0 if causal else after
        self.delay = len(model.adapters) * self._after
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: the next one starts another clip."""
        self._stages = {
            name: _Stage(self._model, name, self._grid, moments, self._after)
            for name, moments in zip(self._model.adapters, self._moments, strict=True)
        }
        self._fine = _FrameQueue()
        several = [len(moments.mean) for moments in self._moments if moments and len(moments.mean) > 1]
        self._batch: int | None = several[0] if several else None

    @torch.no_grad()
    def __call__(
        self,
        frames: Tensor,  # (B, n, 3, H, W)
    ) -> Tensor:
        """Takes the next frames, any number of them; returns the features that are ready, (B, m, C, h, w), m >= 0.

        Raises:
            ValueError: The frames are not as `ChronoBackbone.forward` takes them, or the batch size changes.
        """
        check_video(frames)
        if self._batch not in (None, len(frames)):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)}; expected B={self._batch}, as of earlier frames or stats"
            )
        with self._all_or_nothing():
            self._batch = len(frames)
            parts = frames.to(self._model.device).split(1 if self._one_by_one else frames.shape[1], dim=1)
            ready = [self._advance(*self._model.embed(part, self._grid)) for part in parts]
            return ready[0] if len(ready) == 1 else torch.cat(ready, dim=1)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the clip: returns the features of the frames held back, (B, delay, C, h, w) or fewer, and resets."""
        model = self._model
        tokens = model.vit.num_prefix_tokens + self._grid[0] * self._grid[1]
        nothing = torch.empty(self._batch or 1, 0, tokens, model.vit.embed_dim, device=model.device, dtype=model.dtype)
        with self._all_or_nothing():
            features = self._advance(nothing, None, last=True)
        self.reset()
        return features

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undoes what a call did before it failed: some stages would have its frames, and others not."""
        before = {name: stage.copy() for name, stage in self._stages.items()}, self._fine.copy(), self._batch
        try:
            yield
        except BaseException:
            self._stages, self._fine, self._batch = before
            raise

    def _advance(self, x: Tensor, fine: Tensor | None, last: bool = False) -> Tensor:
        if fine is not None:
            self._fine.append(fine)
        for i, rope in enumerate(rotary_tables(self._model.vit, self._grid)):
            x = self._model.run_block(i, x, rope) if x.shape[1] else x
            if (name := str(i)) in self._stages:
                x = self._stages[name].push(x, last)
        if not x.shape[1]:
            return x.new_empty(len(x), 0, *self._model.feature_shape(self._grid))
        return self._model.read_out(x, _fine_of(x, self._model, self._fine), self._grid)


def features(
    model: ChronoBackbone,
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int] | None,
    max_frames_in_memory: int | None,
    offload: str | os.PathLike[str] | None,
) -> Tensor:
    """What `ChronoBackbone.forward` returns for a clip that does not fit. See there."""
    check_video(video)
    grid = model.config.grid if grid is None else check_grid(grid)
    step = _check_step(max_frames_in_memory, len(video))
    _check_offload(offload)
    channels, height, width = model.feature_shape(grid)
    # Channels last, as the network makes them: writing them is then a plain copy.
    shape = (*video.shape[:2], height, width, channels)
    out = _empty(shape, model.dtype, model.device, offload).permute(0, 1, 4, 2, 3)
    done = 0
    for chunk in _run(model, video.split(step, dim=1), grid, step, offload, video.shape[1]):
        out[:, done : done + chunk.shape[1]] = chunk
        done += chunk.shape[1]
    return out


def iter_features(
    model: ChronoBackbone,
    frames: Iterable[Tensor],  # (3, H, W) each
    grid: tuple[int, int] | None = None,
    max_frames_in_memory: int = 64,
    offload: str | os.PathLike[str] | None = None,
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
    _check_offload(offload)
    if isinstance(frames, Tensor):
        check_tensor("frames", frames, "(T, 3, H, W)", (torch.uint8, *FLOATING), "uint8 0 … 255 or floating 0 … 1")
    if not isinstance(frames, Iterable) or (isinstance(frames, Tensor) and not frames.ndim):
        raise ValueError(f"frames of type {type(frames).__name__}; expected an iterable of frames (3, H, W)")
    return _run(model, _batched(frames, step), grid, step, offload)


def calibrate(
    model: ChronoBackbone,
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int] | None = None,
    max_frames_in_memory: int | None = None,
    offload: str | os.PathLike[str] | None = None,
) -> Tensor:
    """The mean and variance that each adapter's norm has over a clip, for `FeatureStream`.

    Returns:
        (B, adapters, 2), in float32 (float64 for a model in float64).

    Raises:
        ValueError: The model has no norm over clips, or an argument is not as `ChronoBackbone.forward` takes it.
    """
    if not _has_clip_norm(model):
        raise ValueError(
            f"norm={model.config.norm!r}, or no adapters: there is nothing to calibrate, stream() needs none"
        )
    check_video(video)
    grid = model.config.grid if grid is None else check_grid(grid)
    step = video.shape[1] if max_frames_in_memory is None else _check_step(max_frames_in_memory, len(video))
    found: list[Moments] = []
    _check_offload(offload)
    for _ in _run(model, video.split(step, dim=1), grid, step, offload, video.shape[1], found):
        break  # the last adapter's moments are known before the first features
    return torch.stack([torch.stack(tuple(moments), dim=-1) for moments in found], dim=1)


class _Stage:
    """One adapter in a stream of tokens: frames go in as they come, and out once those after them are known."""

    def __init__(
        self, model: ChronoBackbone, name: str, grid: tuple[int, int], moments: Moments | None, after: int
    ) -> None:
        self._model, self._grid, self._moments = model, grid, moments
        self._adapter: Any = model.adapters[name]
        self._before, self._after = model.config.window[0], after
        self._waiting = _FrameQueue()  # tokens of the frames that have not come out
        self._coarse: Tensor | None = None  # of the last frames that are still in a window
        self._first = self._next = self._end = 0  # frame of `_coarse[:, 0]`; frame to come out; frame to come in

    def copy(self) -> _Stage:
        """The same frames in a stage of its own; tensors are shared, as none is changed in place."""
        other = copy.copy(self)
        other._waiting = self._waiting.copy()
        return other

    def push(
        self,
        x: Tensor,  # (B, n, tokens, C)
        last: bool = False,
    ) -> Tensor:
        """Takes n frames; returns those that are ready, (B, m, tokens, C). `last`: there are none after them."""
        if x.shape[1]:
            self._nothing = x.new_empty(x.shape[0], 0, *x.shape[2:])
            moments = self._moments and Moments(*(m.expand(len(x)) for m in self._moments))
            coarse = self._adapter.down(self._model.patches(x, self._grid), moments)
            self._coarse = coarse if self._coarse is None else torch.cat([self._coarse, coarse], dim=1)
            self._waiting.append(x)
            self._end += x.shape[1]
        ready = self._end if last else self._end - self._after
        if ready <= self._next or self._coarse is None:
            return x[:, :0]
        seen = self._coarse[:, : min(ready + self._after, self._end) - self._first]
        mixed = self._adapter.mixer(seen)[:, self._next - self._first : ready - self._first]
        x = self._waiting.take(ready - self._next)
        x = self._model.with_patches(x, self._adapter.up(mixed, self._model.patches(x, self._grid)))
        self._next = ready
        keep = max(ready - self._before, 0)
        self._coarse = self._coarse[:, max(keep - self._first, 0) :].clone()  # a view would hold the whole
        self._first = max(keep, self._first)
        return x

    def through(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """All chunks of a clip, through this stage.

        Here and below chunks pass without a name: a name would keep one in every stage while the last one works.
        """
        yield from filter(_any_frames, map(self.push, chunks))
        if self._end:
            yield from filter(_any_frames, map(self.push, [self._nothing], [True]))


class _FrameQueue:
    """Frames in the order in which they came: appended at one end and taken at the other."""

    def __init__(self) -> None:
        self._chunks: deque[Tensor] = deque()

    def copy(self) -> _FrameQueue:
        other = _FrameQueue()
        other._chunks = self._chunks.copy()
        return other

    def append(self, chunk: Tensor) -> None:  # (B, n, ...)
        self._chunks.append(chunk)

    def take(self, count: int) -> Tensor:  # (B, count, ...)
        """Removes and returns the first `count` frames."""
        taken = []
        while count:
            chunk = self._chunks.popleft()
            if chunk.shape[1] > count:
                self._chunks.appendleft(chunk[:, count:].clone())  # a view would hold the whole
                chunk = chunk[:, :count]
            taken.append(chunk)
            count -= chunk.shape[1]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


class _FrameStore:
    """A whole stream of frames, where `offload` says: written and read again and again, in place.

    It is allocated in few large pieces, never frame by frame: those would end up between the network's own tensors,
    and the memory that these leave could not be given back.
    """

    def __init__(self, piece: int, offload: str | os.PathLike[str] | None) -> None:
        self._piece, self._offload = piece, offload  # frames in a piece
        self._pieces: list[Tensor] = []  # (B, piece, ...)
        self._device: torch.device | None = None
        self._read = self._written = 0

    def append(self, chunk: Tensor) -> None:  # (B, n, ...)
        """Writes the next frames, never beyond what was read before."""
        self._device = chunk.device
        while self._written + chunk.shape[1] > self._piece * len(self._pieces):
            shape = (chunk.shape[0], self._piece, *chunk.shape[2:])
            self._pieces.append(_empty(shape, chunk.dtype, chunk.device, self._offload))
        done = 0
        for part in self._parts(self._written, chunk.shape[1]):
            part.copy_(chunk[:, done : done + part.shape[1]])
            done += part.shape[1]
        self._written += done

    def take(self, count: int) -> Tensor:  # (B, count, ...)
        """A copy of the next `count` frames."""
        chunk = torch.cat([part.to(self._device) for part in self._parts(self._read, count)], dim=1)
        self._read += count
        return chunk

    def _parts(self, start: int, count: int) -> Iterator[Tensor]:
        """Views of the stored frames from `start` on."""
        while count:
            piece, at = divmod(start, self._piece)
            part = self._pieces[piece][:, at : at + count]
            yield part
            start, count = start + part.shape[1], count - part.shape[1]

    def drain(self, step: int) -> Iterator[Tensor]:
        """Yields all frames from the first on, `step` at a time. What is written meanwhile takes their place."""
        total, self._read, self._written = self._written, 0, 0
        for start in range(0, total, step):
            yield self.take(min(step, total - start))


@torch.no_grad()
def _run(
    model: ChronoBackbone,
    chunks: Iterable[Tensor],  # (B, step, 3, H, W) each
    grid: tuple[int, int],
    step: int,
    offload: str | os.PathLike[str] | None,
    frames: int | None = None,
    found: list[Moments] | None = None,
) -> Iterator[Tensor]:
    """The network as a chain of generators. Yields (B, n, C, h, w); adds each adapter's moments to `found`."""
    piece = frames or STORED_TOGETHER * min(step, STORED_TOGETHER)
    store = _FrameStore(piece, offload)
    fine = _FrameStore(piece, offload) if _has_clip_norm(model) else _FrameQueue()
    x = _embedded(model, chunks, grid, fine)
    ropes = rotary_tables(model.vit, grid)
    done = 0
    for name, adapter in model.adapters.items():
        last = int(name) + 1
        x = _through_blocks(model, x, range(done, last), ropes)
        done, moments = last, None
        if adapter.norm_of_clip:
            moments = _stored(model, x, grid, store)
            x = store.drain(step)
            if found is not None:
                found.append(moments)
        x = _Stage(model, name, grid, moments, model.config.window[1]).through(x)
    x = _through_blocks(model, x, range(done, len(ropes)), ropes)

    def read_out(chunk: Tensor) -> Tensor:
        return model.read_out(chunk, _fine_of(chunk, model, fine), grid)

    yield from map(read_out, x)


def _embedded(
    model: ChronoBackbone, chunks: Iterable[Tensor], grid: tuple[int, int], fine: _FrameStore | _FrameQueue
) -> Iterator[Tensor]:
    def embed(chunk: Tensor) -> Tensor:
        x, of_frames = model.embed(chunk.to(model.device), grid)
        if of_frames is not None:
            fine.append(of_frames)
        return x

    return map(embed, chunks)


def _fine_of(chunk: Tensor, model: ChronoBackbone, fine: _FrameStore | _FrameQueue) -> Tensor | None:
    return fine.take(chunk.shape[1]) if model.neck is not None else None


def _through_blocks(
    model: ChronoBackbone, chunks: Iterable[Tensor], blocks: Iterable[int], ropes: list[dict[str, Tensor]]
) -> Iterator[Tensor]:
    def run(x: Tensor) -> Tensor:
        for i in blocks:
            x = model.run_block(i, x, ropes[i])
        return x

    return map(run, chunks)


def _any_frames(x: Tensor) -> bool:
    return x.shape[1] > 0


def _stored(model: ChronoBackbone, chunks: Iterable[Tensor], grid: tuple[int, int], store: _FrameStore) -> Moments:
    """Runs everything so far on all frames and stores them; returns their moments."""
    # One pair of tensors that grows: many small ones, which stay while large ones come and go, would break up the heap.
    frames = Moments(*torch.empty(2, 0))
    for x in chunks:
        new = frame_moments(model.patches(x, grid))
        frames = Moments(*(torch.cat(v, dim=1) for v in zip(frames, new, strict=True))) if len(frames.mean) else new
        store.append(x)
        del x
    return clip_moments(frames)


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


def _empty(
    shape: Iterable[int], dtype: torch.dtype, device: torch.device, offload: str | os.PathLike[str] | None
) -> Tensor:
    """An uninitialised tensor on `device`, on the host or in a temporary file that vanishes with it.

    On the host it is a map of its own: large tensors that come and go between small ones would leave gaps in a heap.
    """
    shape = tuple(shape)
    if offload is None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if offload in (None, "cpu"):
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        memory = mmap.mmap(-1, size, **private)  # shared with forked processes it would change under one's hands
    else:
        with tempfile.TemporaryFile(dir=offload) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash on writing
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _has_clip_norm(model: ChronoBackbone) -> bool:
    return any(adapter.norm_of_clip for adapter in model.adapters.values())


def _check_step(max_frames_in_memory: int | None, batch: int) -> int:
    """Frames of each clip at a time."""
    value = check_integer("max_frames_in_memory", max_frames_in_memory, 1, unit=" of frames")
    return min(max(1, value // batch), LARGEST_WHOLE)


def _check_offload(offload: str | os.PathLike[str] | None) -> None:
    known = offload is None or (isinstance(offload, str) and offload == "cpu")
    if not known and not is_folder(check_path("offload", offload)):
        raise refusal("offload", offload, "None, 'cpu' or an existing folder")


def _check_stats(model: ChronoBackbone, stats: Tensor | None) -> list[Moments | None]:
    """One item for every adapter."""
    count = len(model.adapters)
    if not _has_clip_norm(model):
        if stats is not None:
            raise ValueError("stats given; expected None, as this model has no norm over clips")
        return [None] * count
    expected = f"what model.calibrate(video) returns, (B or 1, {count}, 2)"
    if stats is None:
        raise refusal("stats", stats, f"{expected}, as norm='clip' takes its mean and variance over a whole clip")
    check_tensor("stats", stats, f"(B or 1, {count}, 2), as model.calibrate(video) returns it")
    if stats.ndim != 3 or stats.shape[1:] != (count, 2) or not len(stats):
        raise ValueError(f"stats of shape {tuple(stats.shape)}; expected {expected}")
    check_finite("stats", stats)
    if (stats[..., 1] < 0).any() or stats.abs().max() > LARGEST_MOMENT:
        raise ValueError(f"stats with variances below 0 or values above {LARGEST_MOMENT:g}; expected {expected}")
    stats = stats.to(model.device, wide_dtype(stats.dtype, model.dtype))
    return [Moments(*stats[:, i].unbind(-1)) for i in range(count)]
