"""<delta_avg that others have published for TAP-Vid, in percent, without a refiner."""

from __future__ import annotations

from collections.abc import Mapping

# Kim, Cho et al., CVPR 2025; DAVIS strided, DAVIS first, Kinetics strided, Kinetics first, RGB-Stacking strided
_COLUMNS = (
    ("davis", "strided"),
    ("davis", "first"),
    ("kinetics", "strided"),
    ("kinetics", "first"),
    ("rgb-stacking", "strided"),
)
_ROWS: Mapping[str, tuple[float | None, ...]] = {
    "chrono-vitb14": (70.1, 65.6, 68.5, 61.6, 86.0),
    "chrono-vits14": (68.0, 63.0, 66.8, 59.5, 84.3),
    "dinov2-vitb14": (54.4, 50.3, 46.6, 41.9, 46.6),
    "dinov2-vits14": (50.4, 46.3, 44.5, 39.8, None),
    "timm:resnet18": (53.3, 49.8, 56.3, 50.3, 73.9),
}


def published_delta(tracker: str, kind: str, mode: str) -> float | None:
    """<delta_avg that is published for a model on a kind of data set; None where we know of none."""
    values = dict(zip(_COLUMNS, _ROWS.get(tracker, ()), strict=False))
    return values.get((kind, mode))
