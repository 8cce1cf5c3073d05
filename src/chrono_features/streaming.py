"""The same network for frames as they come: `FeatureStream`.

Frames meet in adapters only, in two ways. An adapter's window asks for a few past and future frames, which an
`AdapterStage` holds back. The moments of a norm over the clip ask for all frames: a stream takes those of another clip.
Everything else is frame by frame, so the features are those of the whole clip.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_flag, check_tensor, check_video, refusal
from .config import check_grid
from .dtypes import wide_dtype
from .frame_store import FrameQueue, FrameStore
from .network import ChronoNetwork
from .ops.clip_norm import Moments
from .vit import rotary_tables

LARGEST_MOMENT = 1e9  # of a clip's tokens; features would overflow long before


class FeatureStream:
    """Frames in, features out, as they come: `features = stream(frames)`, and `stream.flush()` for the last ones.

    A frame's features come `delay` frames later, when the frames after it in the windows of all adapters are known.
    They are the features of the whole clip: exactly with `norm="token"`, and with `norm="clip"` if `stats` are the
    clip's own. A call that raises, or is interrupted, leaves the stream as it was: it can be made again.

    Args:
        model: The model.
        stats: What `model.clip_statistics` returned for a clip like those to come, for `norm="clip"`.
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
        model: ChronoNetwork,
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
            name: AdapterStage(self._model, name, self._grid, moments, self._after)
            for name, moments in zip(self._model.adapters, self._moments, strict=True)
        }
        self._fine = FrameQueue()
        several = [len(moments.mean) for moments in self._moments if moments and len(moments.mean) > 1]
        self._batch: int | None = several[0] if several else None

    @torch.no_grad()
    def __call__(
        self,
        frames: Tensor,  # (B, n, 3, H, W)
    ) -> Tensor:
        """Takes the next frames, any number of them; returns the features that are ready, (B, m, C, h, w), m >= 0.

        Raises:
            ValueError: The frames are not as `ChronoNetwork.forward` takes them, or the batch size changes.
        """
        check_video(frames)
        if self._batch not in (None, len(frames)):
            raise ValueError(
                f"frames of shape {tuple(frames.shape)}; expected B={self._batch}, as of earlier frames or stats"
            )
        with self.all_or_nothing():
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
        with self.all_or_nothing():
            features = self._advance(nothing, None, last=True)
        self.reset()
        return features

    def state_dict(self) -> dict[str, Tensor]:
        """All that the stream holds back, as tensors.

        A stream of the same model with the same options resumes from it: see `load_state_dict`.
        """
        state = {
            f"stages.{name}.{key}": v for name, stage in self._stages.items() for key, v in stage.state_dict().items()
        }
        state |= {f"fine.{key}": v for key, v in self._fine.state_dict().items()}
        return state | {"batch": torch.tensor(self._batch or 0)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resumes from what `state_dict` returned.

        Raises:
            KeyError: Something is missing: the state is of another model.
        """
        self.reset()
        for name, stage in self._stages.items():
            stage.load_state_dict(part_of(state, f"stages.{name}."))
        self._fine.load_state_dict(part_of(state, "fine."))
        self._batch = int(state["batch"]) or self._batch

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
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
        return self._model.read_out(x, next_fine(x, self._model, self._fine), self._grid)


class AdapterStage:
    """One adapter in a stream of tokens: frames go in as they come, and out once those after them are known."""

    def __init__(
        self, model: ChronoNetwork, name: str, grid: tuple[int, int], moments: Moments | None, after: int
    ) -> None:
        self._model, self._grid, self._moments = model, grid, moments
        self._adapter: Any = model.adapters[name]
        self._before, self._after = model.config.window[0], after
        self._waiting = FrameQueue()  # tokens of the frames that have not come out
        self._coarse: Tensor | None = None  # of the last frames that are still in a window
        self._first = self._next = self._end = 0  # frame of `_coarse[:, 0]`; frame to come out; frame to come in

    def copy(self) -> AdapterStage:
        """The same frames in a stage of its own; tensors are shared, as none is changed in place."""
        other = copy.copy(self)
        other._waiting = self._waiting.copy()
        return other

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"waiting.{key}": v for key, v in self._waiting.state_dict().items()}
        state["counts"] = torch.tensor([self._first, self._next, self._end])
        return state if self._coarse is None else state | {"coarse": self._coarse}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._first, self._next, self._end = state["counts"].tolist()
        self._coarse = state.get("coarse")
        self._waiting.load_state_dict(part_of(state, "waiting."))

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
        yield from filter(any_frames, map(self.push, chunks))
        if self._end:
            yield from filter(any_frames, map(self.push, [self._nothing], [True]))


def next_fine(
    x: Tensor,  # (B, n, tokens, C)
    model: ChronoNetwork,
    fine: FrameStore | FrameQueue,
) -> Tensor | None:
    """The fine features of the next frames, for models with a neck."""
    return fine.take(x.shape[1]) if model.neck is not None else None


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def any_frames(x: Tensor) -> bool:
    return x.shape[1] > 0


def has_clip_norm(model: ChronoNetwork) -> bool:
    return any(adapter.norm_of_clip for adapter in model.adapters.values())


def _check_stats(model: ChronoNetwork, stats: Tensor | None) -> list[Moments | None]:
    """One item for every adapter."""
    count = len(model.adapters)
    if not has_clip_norm(model):
        if stats is not None:
            raise ValueError("stats given; expected None, as this model has no norm over clips")
        return [None] * count
    expected = f"what model.clip_statistics(video) returns, (B or 1, {count}, 2)"
    if stats is None:
        raise refusal("stats", stats, f"{expected}, as norm='clip' takes its mean and variance over a whole clip")
    check_tensor("stats", stats, f"(B or 1, {count}, 2), as model.clip_statistics(video) returns it")
    if stats.ndim != 3 or stats.shape[1:] != (count, 2) or not len(stats):
        raise ValueError(f"stats of shape {tuple(stats.shape)}; expected {expected}")
    check_finite("stats", stats)
    if (stats[..., 1] < 0).any() or stats.abs().max() > LARGEST_MOMENT:
        raise ValueError(f"stats with variances below 0 or values above {LARGEST_MOMENT:g}; expected {expected}")
    stats = stats.to(model.device, wide_dtype(stats.dtype, model.dtype))
    return [Moments(*stats[:, i].unbind(-1)) for i in range(count)]
