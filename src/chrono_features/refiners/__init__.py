"""This library's features under other people's trackers: `swap_backbone`, and `FeatureProvider` for any tracker else.

Nothing of a tracker is imported or contained: `swap_backbone` works on the instance that it is given.
"""

from .coordinates import (
    from_cotracker,
    from_locotrack,
    from_tapir,
    to_cotracker,
    to_locotrack,
    to_tapir,
    txy_from_tyx,
    tyx_from_txy,
)
from .provider import FeatureProvider
from .swap import features_from, swap_backbone, trainable_report, unswap_backbone

__all__ = [
    "FeatureProvider",
    "features_from",
    "from_cotracker",
    "from_locotrack",
    "from_tapir",
    "swap_backbone",
    "to_cotracker",
    "to_locotrack",
    "to_tapir",
    "trainable_report",
    "txy_from_tyx",
    "tyx_from_txy",
    "unswap_backbone",
]
