"""Alignment of image patches by inverse-compositional Gauss-Newton steps (Baker and Matthews, IJCV 2004).

The patch around each query is aligned with any frame: first by shifts, then affinely, with gain and bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue
FLAT = 2e-3  # standard deviation of the grey values of a patch below which it counts as noise
FRAMES_TOGETHER = 16  # resized at a time


@dataclass(frozen=True)
class AlignmentOptions:
    """How patches are aligned.

    Attributes:
        patch_radius: Pixels between a patch's centre and its sides: 10 makes patches of 21 x 21.
        shift_steps, affine_steps: Gauss-Newton steps by shifts alone, and affine ones after them.
        max_step: Pixels that one step may move a patch along each axis.
        max_shift: Pixels that an alignment may lead away from its start.
    """

    patch_radius: int = 10
    shift_steps: int = 2
    affine_steps: int = 8
    max_step: float = 2.0
    max_shift: float = 4.0


class Alignment(NamedTuple):
    """Where patches came to lie, turned and scaled how, and how well they fit."""

    xy: Tensor  # (..., 2)
    warp: Tensor  # (..., 2, 2)
    correlation: Tensor  # (...) -1 to 1

    def where(self, kept: Tensor, other: Alignment) -> Alignment:
        """These where `kept`, else the others."""
        return Alignment(
            torch.where(kept[..., None], self.xy, other.xy),
            torch.where(kept[..., None, None], self.warp, other.warp),
            torch.where(kept, self.correlation, other.correlation),
        )

    def start(self, s: int) -> Alignment:
        """Those from one of several starts, the second dimension."""
        return Alignment(self.xy[:, s], self.warp[:, s], self.correlation[:, s])


class Patches(NamedTuple):
    """The patch around each of N queries in its own frame, ready to be aligned with any frame."""

    values: Tensor  # (N, P) weighted mean 0 and standard deviation 1: gain and bias do not matter
    shift_solver: Tensor  # (N, 4, P)
    affine_solver: Tensor  # (N, 8, P)


class Aligner:
    """Cuts patches out of frames and aligns them with others. A patch is weighted by a Gaussian."""

    def __init__(self, options: AlignmentOptions, like: Tensor) -> None:
        self.options = options
        radius = options.patch_radius
        side = torch.arange(-radius, radius + 1).to(like)
        across, down = (part.flatten() for part in torch.meshgrid(side, side, indexing="xy"))
        self.cells = torch.stack([across, down])  # (2, P)
        weights = torch.exp(-(across.square() + down.square()) / (2 * (0.7 * radius) ** 2))
        self.weights = weights / weights.sum()

    def patches(
        self,
        grey: Tensor,  # (T, 1, H, W)
        frames: Tensor,  # (N,)
        centres: Tensor,  # (N, 2) in its pixels
    ) -> Patches:
        x, y = grey.new_tensor([0.5, 0.0]), grey.new_tensor([0.0, 0.5])
        values, spread = self._normalised(self._cut(grey, frames, centres))
        slope_x = (self._cut(grey, frames, centres + x) - self._cut(grey, frames, centres - x)) / spread
        slope_y = (self._cut(grey, frames, centres + y) - self._cut(grey, frames, centres - y)) / spread
        across, down = self.cells
        shift, light = [slope_x, slope_y], [values, torch.ones_like(values)]
        affine = [slope_x * across, slope_x * down, slope_y * across, slope_y * down]
        shift_solver = self._solver([*shift, *light], [1e-2] * 2 + [1e-3] * 2)
        affine_solver = self._solver([*shift, *affine, *light], [1e-2] * 2 + [1.0] * 4 + [1e-3] * 2)
        return Patches(values, shift_solver, affine_solver)

    def align(
        self,
        grey: Tensor,  # (1, H, W)
        patches: Patches,  # of n queries
        starts: Tensor,  # (n, S, 2)
        warp: Tensor,  # (n, 2, 2)
    ) -> tuple[Alignment, Tensor]:
        """Patches in a frame, from each of S starts and a warp: the best fit on the way, and the fit at the starts.

        One that is led far away from its start has lost its hold: correlation -1.
        """
        options = self.options
        own = patches.values[:, None]
        xy = starts
        warp = warp[:, None].expand(*starts.shape, 2)
        error, plain = self._compare(grey, own, xy, warp)
        best = Alignment(xy, warp, plain)
        for step in range(options.shift_steps + options.affine_steps):
            affine = step >= options.shift_steps
            solver = patches.affine_solver if affine else patches.shift_solver
            # no matrix product: that rounds one query alone otherwise than many together
            change = (error[:, :, None] * solver[:, None]).sum(-1)
            if affine:
                warp = _undone(warp, change[..., 2:6].unflatten(-1, (2, 2)).clamp(-0.2, 0.2))
            xy = xy - (warp @ change[..., :2, None].clamp(-options.max_step, options.max_step))[..., 0]
            error, fit = self._compare(grey, own, xy, warp)
            best = best.where(best.correlation >= fit, Alignment(xy, warp, fit))
        held = (best.xy - starts).norm(dim=-1) <= options.max_shift
        return best._replace(correlation=best.correlation.where(held, -torch.ones_like(fit))), plain

    def _compare(
        self,
        grey: Tensor,  # (1, H, W)
        own: Tensor,  # (n, 1, P)
        xy: Tensor,  # (n, S, 2)
        warp: Tensor,  # (n, S, 2, 2)
    ) -> tuple[Tensor, Tensor]:
        """Differences (n, S, P) from a query's patch, and correlations (n, S) with it."""
        sampled = self._sample(grey, xy.flatten(0, 1), warp.flatten(0, 1)).unflatten(0, xy.shape[:2])
        values, _ = self._normalised(sampled)
        return values - own, (values * own * self.weights).sum(-1)

    def _cut(
        self,
        grey: Tensor,  # (T, 1, H, W)
        frames: Tensor,  # (N,)
        xy: Tensor,  # (N, 2)
    ) -> Tensor:  # (N, P)
        values = xy.new_empty(len(xy), self.cells.shape[1])
        for t in frames.unique().tolist():
            n = (frames == t).nonzero()[:, 0]
            values[n] = self._sample(grey[t], xy[n], torch.eye(2).to(xy).expand(len(n), 2, 2))
        return values

    def _sample(
        self,
        grey: Tensor,  # (1, H, W)
        xy: Tensor,  # (n, 2)
        warp: Tensor,  # (n, 2, 2)
    ) -> Tensor:  # (n, P)
        height, width = grey.shape[-2:]
        scale = xy.new_tensor([2 / width, 2 / height])
        middle = (xy * scale - 1).flatten()[:, None]  # not part of the product, which may be in TF32
        places = torch.addmm(middle, (warp * scale[:, None]).flatten(0, 1), self.cells)  # one product for all patches
        places = places.unflatten(0, (len(xy), 2)).transpose(1, 2)
        return F.grid_sample(grey[None], places[None], padding_mode="border", align_corners=False)[0, 0]

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


def grey_frames(
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
