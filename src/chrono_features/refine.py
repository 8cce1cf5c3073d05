"""Photometric refinement: the patch around a query, aligned with every frame by a few Gauss-Newton steps.

Soft-argmax finds a point by its looks to a fraction of a cell; the pixels around it know better. In each frame the
patch starts from the soft-argmax estimate, and from where the frame before leads to: the feature under the last
position, tracked one frame on. The better of the two, by correlation with the query's own patch, is kept: so a track
follows a point that turns or grows, does not drift, and can be lost and found again. Nothing is trained.

Where alignment is sure, the feature shows the query's point again. Those features and the query's own are averaged
(`query_memory`), and frames in which alignment was not sure are searched and aligned once more with the average.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    check_features,
    check_finite,
    check_flag,
    check_queries,
    check_soft_argmax,
    check_tracks,
    check_video,
)
from .ops.matching import default_budget, match, sample_features
from .query_memory import remember
from .tracks import Tracks

PIXELS_PER_CELL = 4  # frames are resized to this, so that an estimate is off by a few pixels at most
HALF = 10  # patches are 21 x 21 pixels
SHIFT_STEPS, AFFINE_STEPS = 2, 8
LONGEST_STEP = 2.0  # pixels
REACH = 4.0  # pixels that an alignment may lead away from its start
LEAST = 0.5  # correlation below which the soft-argmax estimate stands
SURE = 0.85  # correlation from which on the patch's turn and scale are carried on, and its feature is remembered
CARRIED = 0.7  # correlation that the start carried over from the frame before needs to be taken
LARGEST_ZOOM = 8.0  # in area
FLAT = 2e-3  # standard deviation of the grey values of a patch below which it counts as noise
GREY = (0.299, 0.587, 0.114)
FRAMES_TOGETHER = 16
QUERIES_TOGETHER = 2048  # their patches and solvers take 23 kB each


@torch.no_grad()
def refine_photometric(
    video: Tensor,  # (B, T, 3, H, W)
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    tracks: Tracks,
    *,
    temperature: float = 20.0,
    radius: float = 5.0,
    query_memory: bool = True,
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
        temperature, radius: Of soft-argmax, where points are sought again.
        query_memory: Whether to search a second time, with the query's feature averaged along its track, on both sides
            of its own frame up to the first frame below 0.85. False keeps the estimates of `tracks`.

    Returns:
        `tracks` with other positions, and with `correlation`, -1 to 1, of the patch there with the query's own. Where
        it is 0.85 or more a point is visible, whatever a visibility head thought.

    Raises:
        ValueError: An argument has the wrong shape, type or range.
    """
    check_video(video)
    check_features(features, video)
    check_finite("features", features)
    temperature, radius = check_soft_argmax(temperature, radius)
    check_flag("query_memory", query_memory)
    batch, frames, _, height, width = video.shape
    queries = check_queries(queries, batch, frames, (height, width))
    check_tracks(tracks, queries, frames)
    queries = queries.to(tracks.xy.device)
    rows, columns = features.shape[-2:]
    size = (PIXELS_PER_CELL * rows, PIXELS_PER_CELL * columns)
    scale = torch.tensor([size[1] / width, size[0] / height], device=tracks.xy.device, dtype=tracks.xy.dtype)
    places, correlations = [], []
    with torch.autocast(scale.device.type, enabled=False):  # which would round steps to half precision
        for b, clip in enumerate(video):
            own = torch.cat([queries[b, :, :1], queries[b, :, 1:] * scale], dim=1).to(scale)
            grey = _grey_frames(clip, size, scale)
            seek = _Seeker(features[b : b + 1], size, temperature, radius)
            together = zip(own.split(QUERIES_TOGETHER), (tracks.xy[b] * scale).split(QUERIES_TOGETHER), strict=True)
            parts = [_refined(_Patches(grey, some), seek, estimates, query_memory) for some, estimates in together]
            xy, correlation, moved = (torch.cat(part) for part in zip(*parts, strict=True))
            places.append(torch.where(moved[..., None], xy / scale, tracks.xy[b]))
            correlations.append(correlation.clamp(-1, 1))  # against rounding
    correlation = torch.stack(correlations)
    visible = None if tracks.visible is None else tracks.visible | (correlation >= SURE)
    return replace(tracks, xy=torch.stack(places), correlation=correlation, visible=visible)


def _refined(
    patches: _Patches,
    seek: _Seeker,
    estimates: Tensor,  # (N, T, 2)
    query_memory: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, T, 2) positions, (N, T) correlations, (N, T) whether positions are other ones
    path = _aligned(patches, seek, estimates, _Path.start(estimates))
    if not query_memory:
        return path.xy, path.correlation, path.accepted
    memory = remember(seek.features[0], patches.frames, seek.cells(path.xy), path.sure)
    own = torch.arange(estimates.shape[1], device=estimates.device) == patches.frames[:, None]
    again = (memory.count > 0) & ~path.sure & ~own  # (N, T) where queries are sought a second time
    n = again.any(dim=1).nonzero()[:, 0]
    estimates = estimates.clone()
    estimates[n] = torch.where(again[n, :, None], seek.everywhere(memory.features()[n]).to(estimates), estimates[n])
    path = _aligned(patches, seek, estimates, path._replace(sure=~again))
    return path.xy, path.correlation, path.accepted | again


class _Path(NamedTuple):
    """What alignment found of each query in each frame."""

    xy: Tensor  # (N, T, 2)
    correlation: Tensor  # (N, T)
    warp: Tensor  # (N, T, 2, 2)
    accepted: Tensor  # (N, T) bool: whether the position is that of an alignment
    sure: Tensor  # (N, T) bool: whether it is so good that neighbouring frames may build on it

    @staticmethod
    def start(estimates: Tensor) -> _Path:
        """Before any alignment."""
        no = torch.zeros_like(estimates[..., 0], dtype=torch.bool)
        warp = torch.eye(2).to(estimates).repeat(*no.shape, 1, 1)
        return _Path(estimates, torch.ones_like(estimates[..., 0]), warp, no, no)


def _aligned(
    patches: _Patches,
    seek: _Seeker,
    estimates: Tensor,  # (N, T, 2)
    before: _Path,
) -> _Path:
    """Goes from each query's frame forwards, and again backwards, one frame at a time. What was sure before stands."""
    path = _Path(*(field.clone() for field in before))
    frames = estimates.shape[1]
    for step in (1, -1):
        warp = torch.eye(2).to(estimates).repeat(len(estimates), 1, 1)
        last = patches.centres.clone()  # where each point was in the frame before
        trusted = torch.ones_like(last[:, 0], dtype=torch.bool)  # whether that came from an alignment
        for t in range(frames)[::step]:
            n = ((t - patches.frames) * step > 0).nonzero()[:, 0]
            stands = n[before.sure[n, t]]
            last[stands], warp[stands], trusted[stands] = path.xy[stands, t], path.warp[stands, t], True
            n = n[~before.sure[n, t]]
            if not len(n):
                continue
            estimate, turned = estimates[n, t], warp[n]
            carried = seek.next(last[n], t - step, t)
            found, plain = patches.align(t, n, torch.stack([estimate, carried], dim=1), turned)
            best, other = found.start(0), found.start(1)
            wins = trusted[n] & (other.correlation > CARRIED) & (other.correlation > best.correlation)
            best, plain = best.where(~wins, other), plain[:, 0]
            accepted = (best.correlation >= LEAST) & (best.correlation >= plain)
            size = torch.linalg.det(best.warp)
            sure = accepted & (best.correlation >= SURE) & (size > 1 / LARGEST_ZOOM) & (size < LARGEST_ZOOM)
            last[n] = torch.where(accepted[:, None], best.xy, estimate)
            warp[n] = torch.where(sure[:, None, None], best.warp, turned)
            trusted[n] = sure | (trusted[n] & accepted)
            path.xy[n, t], path.warp[n, t] = last[n], warp[n]
            path.correlation[n, t] = torch.where(accepted, best.correlation, plain)
            path.accepted[n, t], path.sure[n, t] = accepted, sure
    return path


class _Seeker:
    """Soft-argmax in pixels of the patches."""

    def __init__(self, features: Tensor, size: tuple[int, int], temperature: float, radius: float) -> None:
        self.features, self.size, self.temperature, self.radius = features, size, temperature, radius

    def next(
        self,
        xy: Tensor,  # (N, 2)
        before: int,
        after: int,
    ) -> Tensor:  # (N, 2)
        """From positions in one frame to another: where the features that are there are found."""
        frame = torch.full_like(xy[:, 0], before, dtype=torch.long)
        own = sample_features(self.features[0], frame, self.cells(xy), xy.dtype)
        return self._found(self.features[:, after : after + 1], own)[:, 0].to(xy)

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
        settings = (self.temperature, self.radius, torch.float32, default_budget(own.device))
        cells = match(there, own[None], None, None, *settings).cells[0]
        return cells * self._cell(cells)


class _Alignment(NamedTuple):
    """Where patches came to lie, turned and scaled how, and how well they fit."""

    xy: Tensor  # (..., 2)
    warp: Tensor  # (..., 2, 2)
    correlation: Tensor  # (...) -1 to 1

    def where(self, kept: Tensor, other: _Alignment) -> _Alignment:
        """These where `kept`, else the others."""
        return _Alignment(
            torch.where(kept[..., None], self.xy, other.xy),
            torch.where(kept[..., None, None], self.warp, other.warp),
            torch.where(kept, self.correlation, other.correlation),
        )

    def start(self, s: int) -> _Alignment:
        """Those from one of several starts, the second dimension."""
        return _Alignment(self.xy[:, s], self.warp[:, s], self.correlation[:, s])


class _Patches:
    """The patch around each query in its own frame, ready to be aligned with any other.

    A patch is weighted by a Gaussian, its mean removed, its standard deviation 1: gain and bias do not matter.
    """

    def __init__(
        self,
        grey: Tensor,  # (T, 1, H, W)
        queries: Tensor,  # (N, 3) (t, x, y) in its pixels
    ) -> None:
        self.grey, self.frames, self.centres = grey, queries[:, 0].long(), queries[:, 1:]
        side = torch.arange(-HALF, HALF + 1).to(grey)
        across, down = (part.flatten() for part in torch.meshgrid(side, side, indexing="xy"))
        self.cells = torch.stack([across, down])  # (2, P)
        weights = torch.exp(-(across.square() + down.square()) / (2 * (0.7 * HALF) ** 2))
        self.weights = weights / weights.sum()
        x, y = grey.new_tensor([0.5, 0.0]), grey.new_tensor([0.0, 0.5])
        self.values, spread = self._normalised(self._in_own_frames(self.centres))
        slope_x = (self._in_own_frames(self.centres + x) - self._in_own_frames(self.centres - x)) / spread
        slope_y = (self._in_own_frames(self.centres + y) - self._in_own_frames(self.centres - y)) / spread
        shift, light = [slope_x, slope_y], [self.values, torch.ones_like(self.values)]
        affine = [slope_x * across, slope_x * down, slope_y * across, slope_y * down]
        self.shift_solver = self._solver([*shift, *light], [1e-2] * 2 + [1e-3] * 2)
        self.affine_solver = self._solver([*shift, *affine, *light], [1e-2] * 2 + [1.0] * 4 + [1e-3] * 2)

    def align(
        self,
        t: int,
        n: Tensor,  # (n,)
        starts: Tensor,  # (n, S, 2)
        warp: Tensor,  # (n, 2, 2)
    ) -> tuple[_Alignment, Tensor]:
        """Patches `n` in frame t, from each of S starts and a warp: the best fit on the way, and the fit at the starts.

        One that is led far away from its start has lost its hold: correlation -1.
        """
        own, solvers = self.values[n, None], (self.shift_solver[n], self.affine_solver[n])
        xy, warp = starts, warp[:, None].expand(*starts.shape, 2)
        error, plain = self._compare(t, own, xy, warp)
        best = _Alignment(xy, warp, plain)
        for step in range(SHIFT_STEPS + AFFINE_STEPS):
            # no matrix product: that rounds one query alone otherwise than many together
            change = (error[:, :, None] * solvers[step >= SHIFT_STEPS][:, None]).sum(-1)
            if step >= SHIFT_STEPS:
                warp = _undone(warp, change[..., 2:6].unflatten(-1, (2, 2)).clamp(-0.2, 0.2))
            xy = xy - (warp @ change[..., :2, None].clamp(-LONGEST_STEP, LONGEST_STEP))[..., 0]
            error, fit = self._compare(t, own, xy, warp)
            best = best.where(best.correlation >= fit, _Alignment(xy, warp, fit))
        held = (best.xy - starts).norm(dim=-1) <= REACH
        return best._replace(correlation=best.correlation.where(held, -torch.ones_like(fit))), plain

    def _compare(
        self,
        t: int,
        own: Tensor,  # (n, 1, P)
        xy: Tensor,  # (n, S, 2)
        warp: Tensor,  # (n, S, 2, 2)
    ) -> tuple[Tensor, Tensor]:
        """Differences (n, S, P) from a query's patch, and correlations (n, S) with it."""
        values, _ = self._normalised(self._sample(t, xy.flatten(0, 1), warp.flatten(0, 1)).unflatten(0, xy.shape[:2]))
        return values - own, (values * own * self.weights).sum(-1)

    def _in_own_frames(self, xy: Tensor) -> Tensor:  # (N, 2) -> (N, P)
        values = xy.new_empty(len(xy), self.cells.shape[1])
        for t in self.frames.unique().tolist():
            n = (self.frames == t).nonzero()[:, 0]
            values[n] = self._sample(t, xy[n], torch.eye(2).to(xy).expand(len(n), 2, 2))
        return values

    def _sample(
        self,
        t: int,
        xy: Tensor,  # (n, 2)
        warp: Tensor,  # (n, 2, 2)
    ) -> Tensor:  # (n, P)
        height, width = self.grey.shape[-2:]
        scale = xy.new_tensor([2 / width, 2 / height])
        middle = (xy * scale - 1).flatten()[:, None]  # not part of the product, which may be in TF32
        places = torch.addmm(middle, (warp * scale[:, None]).flatten(0, 1), self.cells)  # one product for all patches
        places = places.unflatten(0, (len(xy), 2)).transpose(1, 2)
        return F.grid_sample(self.grey[t][None], places[None], padding_mode="border", align_corners=False)[0, 0]

    def _normalised(self, values: Tensor) -> tuple[Tensor, Tensor]:  # (..., P) -> (..., P), (..., 1)
        centred = values - (values * self.weights).sum(-1, keepdim=True)
        spread = (centred.square() * self.weights).sum(-1, keepdim=True).sqrt().clamp(min=FLAT)
        return centred / spread, spread

    def _solver(self, columns: list[Tensor], damping: list[float]) -> Tensor:  # (N, k, P)
        """What takes a difference of patches to the change of parameters that explains it best."""
        jacobian = torch.stack(columns, dim=-1)
        weighted = jacobian * self.weights[:, None]
        normal = jacobian.transpose(1, 2) @ weighted + torch.diag(jacobian.new_tensor(damping))
        return torch.linalg.solve(normal, weighted.transpose(1, 2))


def _undone(
    warp: Tensor,  # (..., 2, 2)
    turn: Tensor,  # (..., 2, 2), by how much it differs from the identity
) -> Tensor:
    """warp @ inverse(1 + turn); in closed form, for the general inverse makes a GPU wait at every step."""
    a, b, c, d = (turn + torch.eye(2).to(turn)).flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return warp @ (adjugate / (a * d - b * c)[..., None, None])


def _grey_frames(
    frames: Tensor,  # (T, 3, H, W)
    size: tuple[int, int],
    like: Tensor,
) -> Tensor:  # (T, 1, h, w) 0 to 1, of the type of `like` and where that is
    weights = like.new_tensor(GREY)[:, None, None]
    resized = []
    for chunk in frames.split(FRAMES_TOGETHER):
        grey = (chunk.to(like) * weights).sum(1, keepdim=True)
        grey = grey / 255 if frames.dtype == torch.uint8 else grey
        resized.append(F.interpolate(grey, size, mode="bilinear", align_corners=False, antialias=True))
    return torch.cat(resized)
