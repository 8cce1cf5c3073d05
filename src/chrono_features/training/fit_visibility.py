"""Fits the visibility head by Newton's method: a logistic regression has one optimum, which needs no gradient steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..backbone import ChronoBackbone
from ..confidence import fit
from ..tracking import soft_argmax_track
from .batches import Batch
from .losses import FAR_PIXELS
from .recipes import Stage


@torch.no_grad()
def fit_visibility(backbone: ChronoBackbone, batches: Iterable[Batch], stage: Stage) -> None:
    """Set the visibility head to the minimum of `visibility_loss`, not balanced, over some clips (Newton's method).

    Args:
        backbone: The model, in eval mode; only the head changes.
        batches: Clips with tracks, on any device.
        stage: Their size and token grid.

    Raises:
        ValueError: No point, or every point, is hidden, or off by more than 6 px at 256 x 256.
    """
    statistics: list[Tensor] = []
    hidden: list[Tensor] = []
    far: list[Tensor] = []
    hook = backbone.visibility_head.register_forward_pre_hook(lambda _, inputs: statistics.append(inputs[0]))
    config = backbone.config
    height, width = stage.size
    for batch in batches:
        batch = batch.to(backbone.device)
        tracks = soft_argmax_track(
            backbone(batch.video, stage.grid),
            batch.queries,
            stage.size,
            temperature=config.temperature,
            radius=config.radius,
            visibility_head=backbone.visibility_head,
        )
        scored = torch.arange(batch.video.shape[1], device=backbone.device) != batch.queries[..., :1]
        off = (tracks.xy - batch.tracks) * tracks.xy.new_tensor([256 / width, 256 / height])
        statistics[-1] = statistics[-1][scored].cpu()
        hidden.append(~batch.visible[scored].cpu())
        far.append((off.square().sum(-1) > FAR_PIXELS**2)[scored].cpu())
    hook.remove()
    inputs = torch.cat(statistics)
    is_hidden = torch.cat(hidden)
    is_far = torch.cat(far)
    weights = torch.tensor([fit(inputs, is_hidden), fit(inputs[~is_hidden], is_far[~is_hidden])])
    head = backbone.visibility_head.linear
    head.bias.copy_(weights[:, 0])
    head.weight.copy_(weights[:, 1:])
