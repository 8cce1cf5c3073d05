"""`PointTracker`: frames in, positions out. Tracks points in a video while it is read, from a camera for instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import (
    FLOATING,
    WHOLE,
    check_choice,
    check_flag,
    check_image_size,
    check_probability,
    check_queries,
    check_tensor,
    refusal,
)
from .confidence import FrameConfidence, confidence_weights
from .config import SoftArgmax
from .dtypes import wide_dtype
from .frame_refine import FrameRefiner
from .frame_store import FrameQueue
from .network import ChronoNetwork
from .ops.alignment import grey_frames
from .ops.matching import sample_features
from .records import joined, rows
from .refine import Refine, RefineOptions
from .streaming import FeatureStream, part_of
from .tracking import find_tracks

MAX_FRAMES = 2**31  # of a video
GREY_PIXELS = RefineOptions().pixels_per_cell


@dataclass(frozen=True)
class TrackedFrame:
    """Where the points are in one frame: a row of each tensor for a point, in the order of `ids`.

    Attributes:
        index: Which frame, from 0.
        ids: (N,) of the points, as `PointTracker.add` returned them.
        xy: (N, 2) positions in pixels, raster: the first pixel's centre is (0.5, 0.5).
        similarity: (N,) maximum of the point's cosine similarity map, -1 to 1.
        visible: (N,) bool.
        correlation: (N,) of the pixels around the position with those around the query, -1 to 1, where positions are
            refined with them.
        confidence: (N,) probability of being seen and within 4 px (at 256 x 256) of the truth, where it was asked for.
    """

    index: int
    ids: Tensor
    xy: Tensor
    similarity: Tensor
    visible: Tensor
    correlation: Tensor | None = None
    confidence: Tensor | None = None


class _Points(NamedTuple):
    """The points that are tracked, in the order of their ids."""

    ids: Tensor  # (N,)
    frames: Tensor  # (N,) their query frames
    queries: Tensor  # (N, 2) pixels
    features: Tensor  # (N, C)


class PointTracker:
    """Tracks points in frames as they come, in constant memory.

    A frame's positions come `delay` frames later, when the future frames in the windows of all adapters are known. They
    are those of `model.track` on the whole video, from each point's query frame on: exactly with `norm="token"`, and
    with `norm="clip"` if `stats` are the video's own. Without future frames in its windows a model has no delay:
    `ChronoBackbone.from_pretrained("chrono-tiny", window=(0, 0))`.

    A call that raises, or is interrupted, leaves the tracker as it was: it can be made again.

    Args:
        model: The model.
        queries: Points that are known beforehand, (N, 3) or (1, N, 3) as (t, x, y); their ids are 0 … N - 1.
        image_size: (height, width) of the frames.
        stats, grid, causal, force: As in `FeatureStream`.
        refine: "photometric" aligns positions with the pixels. Only past frames are used, so positions differ from
            those of `model.track`, whose query memory looks at future frames, too.
        confidence: Whether to tell how sure each position is; `visible` then follows from it.
        temperature, radius, visible_threshold: As in `model.track`; None takes the configuration's.

    Attributes:
        delay: Frames between a frame and its positions.

    Raises:
        ValueError: An argument is not as above, or the model's confidence was not fitted.
    """

    def __init__(
        self,
        model: ChronoNetwork,
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
    ) -> None:
        config = model.config
        check_choice("refine", refine, (None, "photometric"))
        check_flag("confidence", confidence)
        self.image_size = check_image_size(image_size)
        temperature = config.temperature if temperature is None else temperature
        self._soft_argmax = SoftArgmax(temperature, config.radius if radius is None else radius)
        if visible_threshold is None:
            visible_threshold = config.refined_visible_threshold if refine else config.visible_threshold
        self._visible_threshold = check_probability("visible_threshold", visible_threshold)
        self._weights = confidence_weights(config, refine is not None) if confidence else None
        self._options = RefineOptions() if refine else None
        self._model = model
        self._stream = FeatureStream(model, stats, grid=grid, causal=causal, force=force)
        self.delay = self._stream.delay
        _, *cells = model.feature_shape(config.grid if grid is None else grid)
        height, width = self.image_size
        self._cell = torch.tensor([width / cells[1], height / cells[0]], dtype=torch.float64)  # its size in pixels
        self._grey_size = (GREY_PIXELS * cells[0], GREY_PIXELS * cells[1])
        self._scale = GREY_PIXELS / self._cell  # from pixels of a frame to those of the refiner's
        self.reset()
        if queries is not None:
            queries = self._checked(queries, "queries", "t, x, y")
            self._wait(check_queries(queries[None], 1, MAX_FRAMES, self.image_size)[0])

    def reset(self) -> None:
        """Forgets all points and frames: the next frame is the first one of another video."""
        like = torch.empty(0, dtype=wide_dtype(self._model.dtype), device=self._model.device)
        self._stream.reset()
        self._received = 0  # frames that came in
        self._next = 0  # frame whose positions come out next
        self._next_id = 0
        self._ids = torch.empty_like(like, dtype=torch.long)  # of the points that wait for their query frame
        self._waiting = like.new_empty(0, 3)  # their queries (t, x, y)
        self._points: _Points | None = None  # those that are tracked; None before the first frame
        self._refiner: FrameRefiner | None = None
        if self._options is not None:
            self._refiner = FrameRefiner(self._grey_size, self._soft_argmax, self._options, like)
        self._judge: FrameConfidence | None = None
        if self._weights is not None:
            self._judge = FrameConfidence(self._weights, self.image_size, self._soft_argmax)
        self._grey = FrameQueue()  # frames whose features are not known yet, (1, n, 1, h, w), for the refiner

    def add(
        self,
        points: Tensor,  # (N, 2) (x, y)
    ) -> Tensor:
        """Adds points on the next frame.

        Args:
            points: Positions in pixels of the frame that is given next.

        Returns:
            (N,) integer ids, which `TrackedFrame.ids` shows.

        Raises:
            ValueError: Wrong shape, not finite, or outside the frame.
        """
        points = self._checked(points, "points", "x, y")
        queries = torch.cat([torch.full_like(points[:, :1], self._received), points], dim=1)
        check_queries(queries[None], 1, MAX_FRAMES, self.image_size)
        return self._wait(queries)

    def drop(
        self,
        ids: Tensor | Sequence[int],  # (N,)
    ) -> None:
        """Stops tracking points.

        Raises:
            ValueError: An id is of no point that is tracked.
        """
        ids = torch.as_tensor(ids, device=self._ids.device).reshape(-1)
        known = self._ids if self._points is None else torch.cat([self._points.ids, self._ids])
        strange = ids[~torch.isin(ids, known)]
        if len(strange):
            raise refusal("ids", strange.tolist(), "ids of points that are tracked, as add returned them")
        kept = ~torch.isin(self._ids, ids)
        self._ids, self._waiting = self._ids[kept], self._waiting[kept]
        if self._points is not None:
            self._keep(self._points, ~torch.isin(self._points.ids, ids))

    @torch.no_grad()
    def __call__(
        self,
        frame: Tensor,  # (3, H, W)
    ) -> TrackedFrame | None:
        """Takes the next frame, uint8 0 … 255 or floating 0 … 1.

        Returns:
            The positions in the frame that is complete now, `delay` frames ago; None for the first `delay` frames.

        Raises:
            ValueError: The frame is not as above, or its size is not `image_size`.
        """
        check_tensor("frame", frame, "(3, H, W)", (torch.uint8, *FLOATING), "uint8 0 … 255 or floating 0 … 1")
        if frame.shape != (3, *self.image_size):
            expected = (3, *self.image_size)
            raise ValueError(f"frame of shape {tuple(frame.shape)}; expected {expected}, as image_size says")
        with self._all_or_nothing():
            ready = self._stream(frame[None, None])
            if self._refiner is not None:
                self._grey.append(grey_frames(frame[None], self._grey_size, self._waiting)[None])
            self._received += 1
            return self._tracked(ready) if ready.shape[1] else None

    @torch.no_grad()
    def flush(self) -> list[TrackedFrame]:
        """Ends the video: returns the positions in the frames held back, `delay` or fewer, and resets."""
        with self._all_or_nothing():
            found = [self._tracked(features[None]) for features in self._stream.flush().unbind(1)]
        self.reset()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """All that the tracker remembers, as tensors; a tracker of the same model and options resumes from it."""
        state = {"counts": torch.tensor([self._received, self._next, self._next_id])}
        state |= {"ids": self._ids, "waiting": self._waiting}
        state |= {f"stream.{key}": value for key, value in self._stream.state_dict().items()}
        if self._points is not None:
            state |= {f"points.{key}": value for key, value in self._points._asdict().items()}
        if self._refiner is not None:
            state |= {f"refiner.{key}": value for key, value in self._refiner.state_dict().items()}
            state |= {f"grey.{key}": value for key, value in self._grey.state_dict().items()}
        if self._judge is not None:
            state |= {f"query_frames.{t}": value for t, value in self._judge.query_frames.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resumes from what `state_dict` returned.

        Raises:
            KeyError: Something is missing: the state is of another model, or of other options.
        """
        self.reset()
        self._stream.load_state_dict(part_of(state, "stream."))
        self._received, self._next, self._next_id = state["counts"].tolist()
        self._ids = state["ids"]
        self._waiting = state["waiting"]
        if self._next:
            self._points = _Points(*(state[f"points.{key}"] for key in _Points._fields))
        if self._refiner is not None:
            self._refiner.load_state_dict(part_of(state, "refiner."))
            self._grey.load_state_dict(part_of(state, "grey."))
        if self._judge is not None:
            self._judge.query_frames = {int(t): value for t, value in part_of(state, "query_frames.").items()}

    # How points come in

    def _checked(self, points: Any, name: str, columns: str) -> Tensor:  # (N, 2 or 3)
        shape = f"(N, {len(columns.split())}) as ({columns})"
        check_tensor(name, points, shape, (*FLOATING, *WHOLE), "real numbers")
        points = points[0] if points.ndim == 3 and len(points) == 1 else points
        if points.ndim != 2 or points.shape[1] != len(columns.split()):
            raise ValueError(f"{name} of shape {tuple(points.shape)}; expected {shape}")
        return points.to(self._waiting)

    def _wait(self, queries: Tensor) -> Tensor:  # (N, 3) -> (N,) ids
        ids = torch.arange(self._next_id, self._next_id + len(queries), device=self._ids.device)
        self._next_id += len(queries)
        self._ids = torch.cat([self._ids, ids])
        self._waiting = torch.cat([self._waiting, queries])
        return ids

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undoes what a call did before it failed. No tensor of the state is changed in place."""
        parts = {"_grey": self._grey, "_refiner": self._refiner, "_judge": self._judge}
        before = vars(self) | {name: part and part.copy() for name, part in parts.items()}
        with self._stream.all_or_nothing():
            try:
                yield
            except BaseException:
                vars(self).update(before)
                raise

    # What happens to a frame when its features are known

    def _tracked(
        self,
        features: Tensor,  # (1, 1, C, h, w)
    ) -> TrackedFrame:
        with torch.autocast(features.device.type, enabled=False):  # which would round similarities to half precision
            grey = self._grey.take(1)[0, 0] if self._refiner is not None else features.new_empty(0)
            points = self._with_new_points(features, grey)
            tracks = find_tracks(
                features,
                None,
                self.image_size,
                self._soft_argmax,
                points.features[None],
                self._model.visibility_head,
                self._visible_threshold,
            )[0, :, 0]
            visible: Any = tracks.visible
            correlation = confidence = None
            old = points.frames < self._next
            xy = torch.where(old[:, None], tracks.xy, points.queries)
            if self._refiner is not None:
                scale = self._scale.to(xy)
                refined, correlation = self._refiner.refine(grey, features, xy * scale, old)
                xy = torch.where(old[:, None], refined / scale, points.queries)
                visible = visible | (correlation >= self._refiner.options.sure_correlation)
            if self._judge is not None:
                own = (points.features, points.frames, points.queries)
                confidence = self._judge.judge(features[0, 0], *own, xy, correlation)
                visible = confidence >= self._visible_threshold
        self._next += 1
        return TrackedFrame(self._next - 1, points.ids, xy, tracks.similarity, visible, correlation, confidence)

    def _with_new_points(
        self,
        features: Tensor,  # (1, 1, C, h, w)
        grey: Tensor,  # (1, h, w)
    ) -> _Points:
        """All points, with those whose query frame this is."""
        starts = self._waiting[:, 0] == self._next
        queries = self._waiting[starts, 1:]
        first = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        own = sample_features(features[0], first, queries / self._cell.to(queries), wide_dtype(features.dtype))
        points = _Points(self._ids[starts], first + self._next, queries, own)
        points = points if self._points is None else joined(self._points, points)
        if self._refiner is not None:
            self._refiner.start(grey, queries * self._scale.to(queries), own)
        if self._judge is not None and len(queries):
            self._judge.query_frames[self._next] = features[0, 0]
        self._ids, self._waiting = self._ids[~starts], self._waiting[~starts]
        return self._keep(points, points.ids.argsort())

    def _keep(self, points: _Points, n: Tensor) -> _Points:
        """Goes on with these points, by indices or a mask."""
        self._points = rows(points, n)
        if self._refiner is not None:
            self._refiner.keep(n)
        return self._points
