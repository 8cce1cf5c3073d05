"""Dense video features that know about time, and point tracks from them."""

from .adapter import TemporalAdapter
from .backbone import ChronoBackbone
from .config import ChronoConfig
from .tracking import VisibilityHead, grid_queries, soft_argmax_track
from .tracks import Tracks

__version__ = "0.1.0"

__all__ = [
    "ChronoBackbone",
    "ChronoConfig",
    "TemporalAdapter",
    "Tracks",
    "VisibilityHead",
    "grid_queries",
    "soft_argmax_track",
]
