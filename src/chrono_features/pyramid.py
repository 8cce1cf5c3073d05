"""Features at more than one stride, for refiners that look from coarse to fine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from einops import rearrange
from torch import Tensor

from .ops.dtypes import unit_length
from .vit import final_norm

if TYPE_CHECKING:
    from .backbone import ChronoBackbone


def forward_pyramid(
    model: ChronoBackbone,
    video: Tensor,  # (B, T, 3, H, W)
    grid: tuple[int, int] | None = None,
) -> list[Tensor]:
    """What `forward` returns, and with `neck="x2"` the ViT's tokens below the neck, at half the resolution.

    Args:
        model: The backbone.
        video: uint8 0 … 255 or floating 0 … 1.
        grid: Tokens per frame (rows, columns); None takes the configuration's.

    Returns:
        (B, T, C, h, w) for each entry of `feature_info`, of unit length along C. The first is what matching was trained
        on.

    Raises:
        ValueError: As `forward` does.
    """
    x, fine, grid = model.encode(video, grid, model.adapters)
    levels = [model.read_out(x, fine, grid)]
    if model.neck is not None:
        tokens = final_norm(model.vit)(model.patches(x, grid))
        levels.append(unit_length(rearrange(tokens, "b t h w c -> b t c h w")))
    return levels


def feature_info(model: ChronoBackbone) -> list[dict[str, Any]]:
    """`num_chs`, `reduction` (stride in pixels of a frame of patch size x grid) and `module` of each level."""
    stride, channels = max(model.patch_size), model.feature_shape((1, 1))[0]
    tokens = {"num_chs": model.vit.embed_dim, "reduction": stride, "module": "vit"}
    if model.neck is None:
        return [tokens if model.project is None else {**tokens, "num_chs": channels, "module": "project"}]
    return [{"num_chs": channels, "reduction": stride // 2, "module": "neck"}, tokens]
