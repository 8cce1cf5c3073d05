"""The configuration of a Chrono backbone: everything that is needed to rebuild it, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(value))
        if not isinstance(self.vit, str) or not self.vit:
            raise _error("vit", self.vit, "the name of a timm model")
        if not isinstance(self.vit_kwargs, Mapping):
            raise _error("vit_kwargs", self.vit_kwargs, "a mapping of keyword arguments")
        object.__setattr__(self, "vit_kwargs", dict(self.vit_kwargs))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _error(name, getattr(self, name), f"one of {', '.join(map(repr, choices))}")
        for name in ("adapter_channels", "adapter_heads", "adapter_stride"):
            if not _is_int(getattr(self, name), at_least=1):
                raise _error(name, getattr(self, name), "a positive whole number")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 3 and all(_is_number(v) for v in value)):
                raise _error(name, value, "three numbers")
        if min(self.std) <= 0:
            raise _error("std", self.std, "three numbers above 0")
        check_grid(self.grid)
        if self.input_size is not None and not _is_int_pair(self.input_size, at_least=1):
            raise _error("input_size", self.input_size, "None or two positive whole numbers (height, width)")
        if not _is_int_pair(self.window, at_least=0):
            raise _error("window", self.window, "two whole numbers (frames before, frames after), 0 or more")
        if self.out_channels is not None and not _is_int(self.out_channels, at_least=1):
            raise _error("out_channels", self.out_channels, "None or a positive whole number")
        if self.adapter_channels % self.adapter_heads:
            raise _error("adapter_heads", self.adapter_heads, f"a divisor of adapter_channels={self.adapter_channels}")
        for name in ("temperature", "radius"):
            if not _is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise _error(name, getattr(self, name), "a number above 0")
        for name, count in (("confidence", 5), ("refined_confidence", 6)):
            value = getattr(self, name)
            numbers = isinstance(value, tuple) and len(value) == count and all(map(_is_number, value))
            if value is not None and not numbers:
                raise _error(name, value, f"None or {count} numbers")
        for name in ("antialias", "freeze_vit"):
            if not isinstance(getattr(self, name), bool):
                raise _error(name, getattr(self, name), "True or False")
        self._check_adapter_blocks()

    def _check_adapter_blocks(self) -> None:
        blocks = self.adapter_blocks
        if isinstance(blocks, tuple):
            valid = all(_is_int(b, at_least=0) for b in blocks) and len(set(blocks)) == len(blocks)
        else:
            valid = blocks in _PLACEMENTS
        if not valid:
            raise _error(
                "adapter_blocks", blocks, f"one of {', '.join(_PLACEMENTS)}, or a tuple of distinct block indices"
            )

    def adapter_indices(self, depth: int) -> tuple[int, ...]:
        """The blocks of a ViT of `depth` blocks that an adapter follows, in order.

        Raises:
            ValueError: `adapter_blocks` names a block that is not there.
        """
        if isinstance(self.adapter_blocks, tuple):
            if self.adapter_blocks and max(self.adapter_blocks) >= depth:
                raise _error("adapter_blocks", self.adapter_blocks, f"indices below the ViT's {depth} blocks")
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
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown config keys {unknown}; expected keys out of {sorted(known)}")
        return cls(**values)

    def replace(self, **changes: Any) -> ChronoConfig:
        """A copy with some fields changed, checked like a new one."""
        return self.from_dict({**vars(self), **changes})


def check_grid(grid: Any) -> tuple[int, int]:
    """`grid` as a tuple; ValueError unless it is two positive whole numbers."""
    grid = tuple(grid) if isinstance(grid, list) else grid
    if not _is_int_pair(grid, at_least=1):
        raise _error("grid", grid, "two positive whole numbers (rows, columns)")
    return grid


def _error(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r}; expected {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_int_pair(value: Any, at_least: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_int(v, at_least) for v in value)
