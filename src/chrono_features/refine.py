"""Photometric refinement: the patch around a query, aligned with every frame by a few Gauss-Newton steps.

Soft-argmax finds a point by its looks to a fraction of a cell; the pixels around it know better. In each frame the
patch starts from the soft-argmax estimate, and from where the frame before leads to: the feature under the last
position, tracked one frame on. The better of the two, by correlation with the query's own patch, is kept: so a track
follows a point that turns or grows, does not drift, and can be lost and found again. Nothing is trained.

Where alignment is sure, the feature shows the query's point again. Those features and the query's own are averaged
(`query_memory`), and frames in which alignment was not sure are searched and aligned once more with the average.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .checks import check_features, check_finite, check_queries, check_tracks, check_video, refusal
from .config import SoftArgmax
from .ops.alignment import Aligner, AlignmentOptions, Patches, grey_frames
from .ops.matching import match, sample_features
from .query_memory import remember
from .records import rows
from .tracks import Tracks

Refine = Literal["photometric"] | None  # how a tracker refines positions

QUERIES_TOGETHER = 2048  # their patches and solvers take 23 kB each


@dataclass(frozen=True)
class RefineOptions:
    """How tracks are refined. The defaults were chosen on synthetic clips and on warps of photographs.

    Attributes:
        query_memory: Whether to search a second time, with the query's feature averaged along its track, on both sides
            of the query frame up to the first frame in which alignment is not sure. False keeps the estimates.
        pixels_per_cell: Frames are resized to so many pixels a feature cell: an estimate is off by a few at most.
        min_correlation: Below it the soft-argmax estimate stands.
        sure_correlation: From it on the patch's turn and scale are carried on, and its feature is remembered.
        carried_correlation: What the start that is carried over from the frame before needs to be taken.
        max_zoom: Change in area beyond which turn and scale are not carried on.
        alignment: How patches are aligned.
    """

    query_memory: bool = True
    pixels_per_cell: int = 4
    min_correlation: float = 0.5
    sure_correlation: float = 0.85
    carried_correlation: float = 0.7
    max_zoom: float = 8.0
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)


DEFAULT_OPTIONS = RefineOptions()
DEFAULT_SOFT_ARGMAX = SoftArgmax()


def refine_photometric(
    video: Tensor,  # (B, T, 3, H, W)
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    tracks: Tracks,
    *,
    soft_argmax: SoftArgmax = DEFAULT_SOFT_ARGMAX,
    options: RefineOptions = DEFAULT_OPTIONS,
) -> Tracks:
    """Refine tracks so that positions agree with the pixels of the video, not only with its features.

    Each query's patch is aligned by inverse-compositional Gauss-Newton steps (Baker and Matthews, IJCV 2004): shift,
    then affine, with gain and bias. An alignment is taken where its correlation with the query's patch is above that at
    the soft-argmax estimate and reaches 0.5. Frames in which it stays below 0.85 are searched and aligned a second time
    with the query memory. Queries do not depend on each other.

    Args:
        video: The frames that were tracked.
        features: Their features.
        queries: The points that were tracked.
        tracks: What soft-argmax found for them.
        soft_argmax: How positions are read from similarity maps where points are sought again.
        options: See `RefineOptions`.

    Returns:
        `tracks` with other positions, and with `correlation`, -1 to 1, of the patch there with the query's own. Where
        it is 0.85 or more a point is visible, whatever a visibility head says.

    Raises:
        ValueError: An argument has the wrong shape, type or range.
    """
    check_video(video)
    check_features(features, video)
    check_finite("features", features)
    for name, value, kind in (("soft_argmax", soft_argmax, SoftArgmax), ("options", options, RefineOptions)):
        if not isinstance(value, kind):
            raise refusal(name, value, f"a {kind.__name__}")
    batch, frames, _, height, width = video.shape
    queries = check_queries(queries, batch, frames, (height, width))
    check_tracks(tracks, queries, frames)
    return refine_tracks(video, features, queries, tracks, soft_argmax, options)


@torch.no_grad()
def refine_tracks(
    video: Tensor,  # (B, T, 3, H, W)
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    tracks: Tracks,
    soft_argmax: SoftArgmax,
    options: RefineOptions,
) -> Tracks:
    """`refine_photometric` for arguments that were checked; see there."""
    queries = queries.to(tracks.xy.device)
    height, width = video.shape[-2:]
    rows, columns = features.shape[-2:]
    size = (options.pixels_per_cell * rows, options.pixels_per_cell * columns)
    scale = torch.tensor([size[1] / width, size[0] / height], device=tracks.xy.device, dtype=tracks.xy.dtype)
    positions, correlations = [], []
    with torch.autocast(scale.device.type, enabled=False):  # which would round steps to half precision
        for b, clip in enumerate(video):
            grey = grey_frames(clip, size, scale)
            seek = Seeker(features[b : b + 1], size, soft_argmax)
            frames = queries[b, :, 0].long().split(QUERIES_TOGETHER)
            centres = (queries[b, :, 1:] * scale).to(scale).split(QUERIES_TOGETHER)
            estimates = (tracks.xy[b] * scale).split(QUERIES_TOGETHER)
            parts = [_refined(grey, seek, *part, options) for part in zip(frames, centres, estimates, strict=True)]
            xy, correlation, moved = (torch.cat(part) for part in zip(*parts, strict=True))
            positions.append(torch.where(moved[..., None], xy / scale, tracks.xy[b]))
            correlations.append(correlation.clamp(-1, 1))  # against rounding
    correlation = torch.stack(correlations)
    visible = None if tracks.visible is None else tracks.visible | (correlation >= options.sure_correlation)
    return replace(tracks, xy=torch.stack(positions), correlation=correlation, visible=visible)


def _refined(
    grey: Tensor,  # (T, 1, H, W)
    seek: Seeker,
    frames: Tensor,  # (N,)
    centres: Tensor,  # (N, 2)
    estimates: Tensor,  # (N, T, 2)
    options: RefineOptions,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, T, 2) positions, (N, T) correlations, (N, T) whether positions are other ones
    aligner = Aligner(options.alignment, grey)
    patches = aligner.patches(grey, frames, centres)

    def aligned(estimates: Tensor, before: Path) -> Path:
        """Goes from each query's frame forwards, and again backwards. What was sure before stands."""
        path = Path(*(field.clone() for field in before))
        for step in (1, -1):
            trail = Trail.start(centres)
            for t in range(len(grey))[::step]:
                n = ((t - frames) * step > 0).nonzero()[:, 0]
                stands = n[before.sure[n, t]]
                trail.xy[stands], trail.warp[stands], trail.trusted[stands] = (
                    path.xy[stands, t],
                    path.warp[stands, t],
                    True,
                )
                n = n[~before.sure[n, t]]
                if not len(n):
                    continue
                carried = seek.next(trail.xy[n], t - step, t)
                found, handed_on = align_from(
                    aligner, grey[t], rows(patches, n), estimates[n, t], carried, rows(trail, n), options
                )
                for whole, part in zip(path, found, strict=True):
                    whole[n, t] = part
                for whole, part in zip(trail, handed_on, strict=True):
                    whole[n] = part
        return path

    path = aligned(estimates, Path.start(estimates))
    if not options.query_memory:
        return path.xy, path.correlation, path.accepted
    memory = remember(seek.features[0], frames, seek.cells(path.xy), path.sure)
    own = torch.arange(len(grey), device=estimates.device) == frames[:, None]
    again = (memory.added > 0) & ~path.sure & ~own  # (N, T) where queries are sought a second time
    n = again.any(dim=1).nonzero()[:, 0]
    estimates = estimates.clone()
    estimates[n] = torch.where(again[n, :, None], seek.everywhere(memory.features()[n]).to(estimates), estimates[n])
    path = aligned(estimates, path._replace(sure=~again))
    return path.xy, path.correlation, path.accepted | again


class Path(NamedTuple):
    """What alignment found of each query, in one frame or, with another dimension, in each."""

    xy: Tensor  # (N, [T,] 2)
    correlation: Tensor  # (N, [T])
    warp: Tensor  # (N, [T,] 2, 2)
    accepted: Tensor  # (N, [T]) bool: whether the position is that of an alignment
    sure: Tensor  # (N, [T]) bool: whether it is so good that neighbouring frames may build on it

    @staticmethod
    def start(estimates: Tensor) -> Path:
        """Before any alignment."""
        no = torch.zeros_like(estimates[..., 0], dtype=torch.bool)
        warp = torch.eye(2).to(estimates).repeat(*no.shape, 1, 1)
        return Path(estimates, torch.ones_like(estimates[..., 0]), warp, no, no)


class Trail(NamedTuple):
    """What a frame hands on to the next one."""

    xy: Tensor  # (N, 2) where each point was
    warp: Tensor  # (N, 2, 2) how its patch was turned and scaled
    trusted: Tensor  # (N,) bool: whether the position came from an alignment

    @staticmethod
    def start(centres: Tensor) -> Trail:
        """In the queries' own frames."""
        warp = torch.eye(2).to(centres).repeat(len(centres), 1, 1)
        return Trail(centres.clone(), warp, torch.ones_like(centres[:, 0], dtype=torch.bool))


def align_from(
    aligner: Aligner,
    grey: Tensor,  # (1, H, W)
    patches: Patches,
    estimates: Tensor,  # (N, 2)
    carried: Tensor,  # (N, 2)
    trail: Trail,
    options: RefineOptions,
) -> tuple[Path, Trail]:
    """Aligns patches with one frame, from soft-argmax estimates and from positions carried over from the last frame."""
    found, plain = aligner.align(grey, patches, torch.stack([estimates, carried], dim=1), trail.warp)
    best, other = found.start(0), found.start(1)
    carries = other.correlation > options.carried_correlation
    wins = trail.trusted & carries & (other.correlation > best.correlation)
    best = best.where(~wins, other)
    plain = plain[:, 0]
    accepted = (best.correlation >= options.min_correlation) & (best.correlation >= plain)
    area = torch.linalg.det(best.warp)
    usual_area = (area > 1 / options.max_zoom) & (area < options.max_zoom)
    sure = accepted & (best.correlation >= options.sure_correlation) & usual_area
    xy = torch.where(accepted[:, None], best.xy, estimates)
    warp = torch.where(sure[:, None, None], best.warp, trail.warp)
    path = Path(xy, torch.where(accepted, best.correlation, plain), warp, accepted, sure)
    return path, Trail(xy, warp, sure | (trail.trusted & accepted))


class Seeker:
    """Soft-argmax in pixels of the patches."""

    def __init__(
        self,
        features: Tensor,  # (1, T, C, h, w)
        size: tuple[int, int],
        soft_argmax: SoftArgmax,
    ) -> None:
        self.features = features
        self.size = size
        self.soft_argmax = soft_argmax

    def next(
        self,
        xy: Tensor,  # (N, 2)
        before: int,
        after: int,
    ) -> Tensor:  # (N, 2)
        """From positions in one frame to another: where the features that are there are found."""
        frame = torch.full_like(xy[:, 0], before, dtype=torch.long)
        own = sample_features(self.features[0], frame, self.cells(xy), xy.dtype)
        return self.find(after, own).to(xy)

    def find(
        self,
        frame: int,
        own: Tensor,  # (N, C)
    ) -> Tensor:  # (N, 2)
        """Where features are found in one frame."""
        return self._found(self.features[:, frame : frame + 1], own)[:, 0]

    def everywhere(
        self,
        own: Tensor,  # (N, C)
    ) -> Tensor:  # (N, T, 2)
        """Where features are found in every frame."""
        return self._found(self.features, own)

    def cells(self, xy: Tensor) -> Tensor:  # (..., 2) -> (..., 2)
        return xy / self._cell(xy)

    def _cell(self, like: Tensor) -> Tensor:  # (2,) its size in pixels
        rows, columns = self.features.shape[-2:]
        return like.new_tensor([self.size[1] / columns, self.size[0] / rows])

    def _found(self, there: Tensor, own: Tensor) -> Tensor:
        cells = match(there, own[None], None, None, self.soft_argmax).cells[0]
        return cells * self._cell(cells)
