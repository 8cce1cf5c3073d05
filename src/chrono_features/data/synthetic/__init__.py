"""Endless synthetic clips with exact point tracks and visibility, in plain PyTorch."""

from .scene import VALIDATION_SEED, make_clip
from .textures import load_textures, procedural_textures
from .variety import Variety

__all__ = ["VALIDATION_SEED", "Variety", "load_textures", "make_clip", "procedural_textures"]
