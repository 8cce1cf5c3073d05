"""Training on synthetic clips. Needs the train extra."""

from .loop import train
from .recipes import RECIPES, Recipe, Stage

__all__ = ["RECIPES", "Recipe", "Stage", "train"]
