"""The training loss: the paper's losses, the one that a network needs when it starts from nothing, and their total."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.matching import bilinear_corners
from .recipes import Stage

HUBER_DELTA = 4.0  # pixels at 256 x 256
FAR_PIXELS = 6.0  # likewise: a point further off than this is *far*


def total_loss(losses: dict[str, Tensor], stage: Stage, progress: float) -> Tensor:
    """The sum of these losses by the weights of a stage, `progress` (0 to 1) of the way through it."""
    start, end = stage.cross_entropy
    weights = {
        "huber": stage.huber,
        "visibility": stage.visibility,
        "cross_entropy": start + progress * (end - start),
    }
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def huber_loss(
    xy: Tensor,  # (..., 2) at 256 x 256
    target: Tensor,  # (..., 2)
    visible: Tensor,  # (...) bool
) -> Tensor:
    """Huber loss of the distance on visible points, as a mean over all points (Chrono)."""
    squared = (xy - target).square().sum(-1)
    distance = (squared + 1e-6).sqrt()  # the root's slope at zero is infinite
    loss = torch.where(distance < HUBER_DELTA, squared / 2, HUBER_DELTA * (distance - HUBER_DELTA / 2))
    return (loss * visible).mean()


def visibility_loss(
    logits: Tensor,  # (..., 2) occluded, far
    xy: Tensor,  # (..., 2) at 256 x 256
    target: Tensor,  # (..., 2)
    visible: Tensor,  # (...) bool
    balanced: bool = False,
) -> Tensor:
    """Cross-entropy of both logits; *far* is scored on visible points only.

    Args:
        logits, xy, target, visible: As above.
        balanced: Whether yes and no weigh the same however rare one of them is; else all points do (Chrono).

    Returns:
        The sum of the two means over all points, or, balanced, over those that are scored.
    """
    is_far = (xy.detach() - target).square().sum(-1) > FAR_PIXELS**2
    occluded, far = (
        F.binary_cross_entropy_with_logits(logits[..., i], truth.to(logits.dtype), reduction="none")
        for i, truth in enumerate((~visible, is_far))
    )
    if not balanced:
        return occluded.mean() + (far * visible).mean()
    everywhere = torch.ones_like(visible)
    return _balanced_mean(occluded, ~visible, everywhere) + _balanced_mean(far, is_far, visible)


def _balanced_mean(loss: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
    """The mean over the classes, of those that are there, of the mean within each."""
    members = torch.stack([scored & truth, scored & ~truth]).flatten(1)
    sizes = members.sum(dim=1)
    means = (loss.flatten() * members).sum(dim=1) / sizes.clamp(min=1)
    return means.sum() / (sizes > 0).sum().clamp(min=1)


def grid_cross_entropy(
    similarity: Tensor,  # (..., h, w)
    target_cells: Tensor,  # (..., 2) (x, y) in cells
    scored: Tensor,  # (...) bool
    temperature: Tensor,
) -> Tensor:
    """Cross-entropy over all cells of a frame against the four cells around the truth, weighted bilinearly.

    Unlike a loss on positions it pulls from any distance: without it nothing starts.

    Returns:
        The mean over the scored points; zero when there are none.
    """
    height, width = similarity.shape[-2:]
    similarity, cells = similarity[scored], target_cells[scored]
    log_probability = (similarity.flatten(1) * temperature).log_softmax(dim=-1)
    loss = log_probability.new_zeros(len(cells))
    for row, column, weight in bilinear_corners(cells, height, width):
        loss = loss - weight[:, 0] * log_probability.gather(1, (row * width + column)[:, None])[:, 0]
    return loss.sum() / max(len(cells), 1)
