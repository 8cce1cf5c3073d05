"""The configuration of a Chrono backbone: everything that is needed to rebuild it, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .checks import check_choice, check_flag, check_integer, check_number, is_integer, is_number, refusal

# Sizes beyond which a mistake is more likely than a network, and memory would run out
WIDEST = 2**16  # channels, and frames of a window
LONGEST_STRIDE = 2**8
LARGEST_GRID = 2**12  # tokens along a side
LARGEST_SIDE = 2**16  # pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CHOICES: dict[str, tuple[Any, ...]] = {
    "pos_embed_resize": ("dinov2", "timm"),
    "mixer": ("attention", "conv1d", "conv3d"),
    "norm": ("clip", "token"),
    "stem": ("patch", "conv"),
    "neck": (None, "x2"),
}
_PLACEMENTS = ("all", "early", "late", "alternate", "none")


@dataclass(frozen=True)
class ChronoConfig:
    """Describes a `ChronoBackbone`. JSON-serialisable through `to_dict` and `from_dict`.

    Attributes:
        vit: Name of a timm `VisionTransformer` or `Eva` model.
        vit_kwargs: Plain JSON values passed on to `timm.create_model`.
        mean, std: Statistics that frames in [0, 1] are normalised with.
        pos_embed_resize: How the position table is resampled to another grid: "dinov2" (DINOv2's own rule) or "timm".
        grid: Tokens per frame, (rows, columns). `neck="x2"` returns features at twice this grid.
        input_size: (height, width) to which frames are resized before the resize to patch size x grid, or None.
        antialias: Whether these resizes are antialiased.
        adapter_blocks: Blocks followed by a temporal adapter: "all" (but the last), "early" (the first half of those),
            "late" (the rest), "alternate" (even indices), "none", or a tuple of block indices.
        adapter_channels, adapter_heads, adapter_stride: Width, attention heads and spatial stride inside an adapter.
        window: Frames (before, after) that a frame sees in one adapter.
        mixer: What mixes time inside an adapter: "attention", "conv1d" or "conv3d".
        norm: First norm of an adapter: "clip" (statistics of the whole clip, as published) or "token" (LayerNorm).
        stem: "patch" (the ViT's own) or "conv" (convolutions, positions from a depthwise convolution).
        neck: None, or "x2" (learned upsampling, joined with stride-4 convolutional features of the frame).
        out_channels: Channels of the features; None keeps the ViT's width.
        freeze_vit: Whether the ViT takes no gradients and stays in eval mode.
        temperature, radius: Softmax temperature and disc radius (in feature cells) that `track` uses.
        confidence, refined_confidence: Weights of the confidence of plain and of refined tracks (a bias and one for
            each signal, see `chrono_features.confidence`), or None where it was not calibrated.

    Raises:
        ValueError: A field is outside its range; the message names it.
    """

    vit: str = "vit_small_patch14_dinov2.lvd142m"
    vit_kwargs: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pos_embed_resize: str = "timm"
    grid: tuple[int, int] = (64, 64)
    input_size: tuple[int, int] | None = None
    antialias: bool = True
    adapter_blocks: str | tuple[int, ...] = "all"
    adapter_channels: int = 128
    adapter_heads: int = 4
    adapter_stride: int = 4
    window: tuple[int, int] = (6, 6)
    mixer: str = "attention"
    norm: str = "clip"
    stem: str = "patch"
    neck: str | None = None
    out_channels: int | None = None
    freeze_vit: bool = True
    temperature: float = 20.0
    radius: float = 5.0
    confidence: tuple[float, ...] | None = None
    refined_confidence: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))
        if not isinstance(self.vit, str) or not self.vit:
            raise refusal("vit", self.vit, "the name of a timm model")
        if not isinstance(self.vit_kwargs, Mapping) or not all(isinstance(key, str) for key in self.vit_kwargs):
            raise refusal("vit_kwargs", self.vit_kwargs, "a mapping of keyword arguments")
        object.__setattr__(self, "vit_kwargs", dict(self.vit_kwargs))
        try:
            json.dumps(self.vit_kwargs)
        except (TypeError, ValueError, RecursionError) as error:
            raise refusal("vit_kwargs", self.vit_kwargs, f"plain JSON values ({error})") from error
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, most in (("adapter_channels", WIDEST), ("adapter_heads", WIDEST), ("adapter_stride", LONGEST_STRIDE)):
            check_integer(name, getattr(self, name), 1, most)
        for name in ("mean", "std"):
            if not _are_numbers(getattr(self, name), 3):
                raise refusal(name, getattr(self, name), "three numbers")
        if min(self.std) <= 0:
            raise refusal("std", self.std, "three numbers above 0")
        check_grid(self.grid)
        if self.input_size is not None and not _is_int_pair(self.input_size, 1, LARGEST_SIDE):
            expected = f"None or two positive integers (height, width) up to {LARGEST_SIDE}"
            raise refusal("input_size", self.input_size, expected)
        if not _is_int_pair(self.window, 0, WIDEST):
            raise refusal("window", self.window, f"two integers (frames before, frames after) from 0 to {WIDEST}")
        if self.out_channels is not None:
            check_integer("out_channels", self.out_channels, 1, WIDEST)
        if self.adapter_channels % self.adapter_heads:
            raise refusal("adapter_heads", self.adapter_heads, f"a divisor of adapter_channels={self.adapter_channels}")
        for name in ("temperature", "radius"):
            check_number(name, getattr(self, name))
        for name, count in (("confidence", 5), ("refined_confidence", 6)):
            value = getattr(self, name)
            if value is not None and not _are_numbers(value, count):
                raise refusal(name, value, f"None or {count} numbers")
        for name in ("antialias", "freeze_vit"):
            check_flag(name, getattr(self, name))
        self._check_adapter_blocks()

    def _check_adapter_blocks(self) -> None:
        blocks = self.adapter_blocks
        if isinstance(blocks, tuple):
            valid = all(is_integer(b, 0) for b in blocks) and len(set(blocks)) == len(blocks)
        else:
            valid = isinstance(blocks, str) and blocks in _PLACEMENTS
        if not valid:
            expected = f"one of {', '.join(_PLACEMENTS)}, or a tuple of distinct block indices"
            raise refusal("adapter_blocks", blocks, expected)

    def adapter_indices(self, depth: int) -> tuple[int, ...]:
        """The blocks of a ViT of `depth` blocks that an adapter follows, in order.

        Raises:
            ValueError: `adapter_blocks` names a block that is not there.
        """
        if isinstance(self.adapter_blocks, tuple):
            if self.adapter_blocks and max(self.adapter_blocks) >= depth:
                raise refusal("adapter_blocks", self.adapter_blocks, f"indices below the ViT's {depth} blocks")
            return tuple(sorted(self.adapter_blocks))
        candidates = tuple(range(depth - 1))  # none after the last block: nothing follows that could use it
        first_half = math.ceil(len(candidates) / 2)
        return {
            "all": candidates,
            "early": candidates[:first_half],
            "late": candidates[first_half:],
            "alternate": candidates[::2],
            "none": (),
        }[self.adapter_blocks]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChronoConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: A key is unknown or a value outside its range.
        """
        if not isinstance(values, Mapping):
            raise refusal("values", values, "a mapping of configuration keys to values")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise ValueError(f"unknown config keys {unknown}; expected keys out of {sorted(known)}")
        return cls(**values)

    def replace(self, **changes: Any) -> ChronoConfig:
        """A copy with some fields changed, checked like a new one."""
        return self.from_dict({**vars(self), **changes})


def check_grid(grid: Any) -> tuple[int, int]:
    """`grid` as a tuple; ValueError unless it is two positive integers."""
    grid = tuple(grid) if isinstance(grid, list) else grid
    if not _is_int_pair(grid, 1, LARGEST_GRID):
        raise refusal("grid", grid, f"two positive integers (rows, columns) up to {LARGEST_GRID}")
    return grid


def _plain(value: Any) -> Any:
    """Python's own numbers in the place of NumPy's, and tuples for lists, which is what JSON makes of them."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(is_number, value))


def _is_int_pair(value: Any, least: int, most: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_integer(v, least, most) for v in value)
