"""Dense, temporally-aware video features, and point tracks from them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from .config import ChronoConfig
from .inputs import as_video
from .queries import grid_queries
from .tracking import soft_argmax_track
from .tracks import Tracks

__version__ = "0.4.0"

__all__ = ["ChronoBackbone", "ChronoConfig", "Tracks", "as_video", "grid_queries", "soft_argmax_track"]

# Names that were here until version 0.4, and their modules
_MOVED = {"TemporalAdapter": "adapter", "VisibilityHead": "layers", "propagate_labels": "labels"}


def __getattr__(name: str) -> Any:
    """Imports `ChronoBackbone` when it is asked for (PEP 562): timm and huggingface_hub take longer than PyTorch."""
    if name == "ChronoBackbone":
        return importlib.import_module(f"{__name__}.backbone").ChronoBackbone
    if name in _MOVED:
        module = f"{__name__}.{_MOVED[name]}"
        warnings.warn(f"{name} moved: from {module} import {name}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
