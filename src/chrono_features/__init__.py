"""Dense video features that know about time, and point tracks from them."""

from .adapter import TemporalAdapter
from .backbone import ChronoBackbone
from .config import ChronoConfig
from .labels import propagate_labels
from .queries import grid_queries
from .tracking import soft_argmax_track
from .tracks import Tracks
from .visibility import VisibilityHead

__version__ = "0.4.0"

__all__ = [
    "ChronoBackbone",
    "ChronoConfig",
    "TemporalAdapter",
    "Tracks",
    "VisibilityHead",
    "grid_queries",
    "propagate_labels",
    "soft_argmax_track",
]
