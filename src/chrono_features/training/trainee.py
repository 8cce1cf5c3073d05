"""What is trained: a backbone and the temperature that it learns. One forward pass gives the losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..adapter import AttentionMixer
from ..backbone import ChronoBackbone
from ..evaluation.protocol import THRESHOLDS
from ..ops.matching import bilinear_corners
from ..tracking import soft_argmax_track
from .batches import Batch
from .losses import grid_cross_entropy, huber_loss, total_loss, visibility_loss
from .recipes import Stage


class Trainee(nn.Module):
    """A backbone, the temperature it learns, and the losses of a stage."""

    def __init__(self, backbone: ChronoBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):  # tokens are channels-last; a quarter faster on CPU
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.log_temperature = nn.Parameter(torch.tensor(math.log(backbone.config.temperature)))

    def forward(self, batch: Batch, stage: Stage, progress: float = 1.0) -> dict[str, Tensor]:
        """Returns the losses, their weighted `total`, and `delta`: the share of visible points within 1 … 16 px.

        Args:
            batch: Clips with tracks.
            stage: Which losses, at what weights.
            progress: How far the stage is, 0 to 1.
        """
        model = self.backbone
        compute = model if stage.adapters else model.vit_features
        features = compute(batch.video, stage.grid)
        temperature = self.log_temperature.exp()
        tracks = soft_argmax_track(
            features,
            batch.queries,
            stage.size,
            temperature=float(temperature.detach()),
            radius=model.config.radius,
            visibility_head=model.visibility_head,
        )
        assert tracks.logits is not None
        height, width = stage.size
        to_256 = features.new_tensor([256 / width, 256 / height], dtype=torch.float32)
        xy = tracks.xy * to_256
        target = batch.tracks * to_256
        losses = {
            "huber": huber_loss(xy, target, batch.visible),
            "visibility": visibility_loss(tracks.logits, xy, target, batch.visible, stage.balanced),
        }
        time = torch.arange(features.shape[1], device=features.device)
        scored = batch.visible & (time != batch.queries[..., :1])  # the query frame teaches nothing
        if any(stage.cross_entropy):
            similarity = _similarity(features, batch.queries, stage.size)
            rows, columns = features.shape[-2:]
            cells = batch.tracks * features.new_tensor([columns / width, rows / height], dtype=torch.float32)
            losses["cross_entropy"] = grid_cross_entropy(similarity, cells, scored, temperature)
        distance = (xy.detach() - target).norm(dim=-1)[scored]
        within = torch.stack([(distance < threshold).float().sum() for threshold in THRESHOLDS])
        return {
            **losses,
            "total": total_loss(losses, stage, progress),
            "delta": within.mean() / max(len(distance), 1),
            "temperature": temperature.detach(),
        }

    def train_for(self, stage: Stage) -> None:
        """Lets the parameters of a stage train, and no others."""
        self.requires_grad_(True)
        self.backbone.vit.requires_grad_(not self.backbone.config.freeze_vit)
        self.backbone.adapters.requires_grad_(stage.adapters)
        self.log_temperature.requires_grad_(any(stage.cross_entropy))

    def compile_blocks(self) -> None:
        """Compiles the ViT's blocks, but no adapters: every change of their window would compile them anew."""
        for block in self.backbone.vit.blocks:
            block.compile()

    def look_ahead(self, frames: int | None) -> None:
        """Sets how many future frames the adapters' attention sees; None takes the configuration's."""
        before, after = self.backbone.config.window
        for adapter in self.backbone.adapters.values():
            if isinstance(adapter.mixer, AttentionMixer):
                adapter.mixer.window = (before, after if frames is None else frames)


def _similarity(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3)
    size: tuple[int, int],
) -> Tensor:  # (B, N, T, h, w): the whole volume, which small training grids can afford
    batch, frames, _, rows, columns = features.shape
    cells = queries[..., 1:] * queries.new_tensor([columns / size[1], rows / size[0]])
    frame = torch.arange(batch, device=queries.device)[:, None] * frames + queries[..., 0].long()
    last = features.permute(0, 1, 3, 4, 2).flatten(0, 1)
    corners = bilinear_corners(cells.flatten(0, 1), rows, columns)
    sampled = torch.stack([last[frame.flatten(), y, x] * weight for y, x, weight in corners]).sum(0)
    with torch.autocast(features.device.type, enabled=False):  # half precision rounds what the softmax looks at
        return torch.einsum("bnc,btchw->bnthw", sampled.float().unflatten(0, (batch, -1)), features.float())
