"""The configuration of a Chrono backbone: everything that is needed to rebuild it, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .checks import check_number, is_integer, is_number, refusal, suggestion

# Sizes beyond which a mistake is more likely than a network, and memory would run out
WIDEST = 2**16  # channels, and frames of a window
LONGEST_STRIDE = 2**8
LARGEST_GRID = 2**12  # tokens along a side
LARGEST_SIDE = 2**16  # pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PLACEMENTS = ("all", "early", "late", "alternate", "none")

# What a configuration that is read from a file may hold: the fields of `ChronoConfig`, and of timm's keyword arguments
# those that describe a network. None of them names a file, an address, a device or code.
VIT_KWARGS = frozenset(
    {
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "num_kv_heads", "mlp_ratio", "qkv_bias", "qkv_fused", "qk_norm", "scale_attn_norm", "scale_mlp_norm",
        "scale_mlp", "scale_attn_inner", "proj_bias", "attn_type", "attn_layer", "init_values",
        "attn_only_layer_scale", "class_token", "reg_tokens", "num_reg_tokens", "pos_embed", "no_embed_class",
        "pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "use_post_norm", "use_pre_transformer_norm",
        "use_post_transformer_norm", "use_fc_norm", "norm_layer", "embed_norm_layer", "act_layer", "swiglu_mlp",
        "swiglu_align_to", "use_abs_pos_emb", "use_rot_pos_emb", "rope_type", "rope_grid_offset",
        "rope_grid_indexing", "rope_temperature", "rope_rotate_half", "rope_shift_coords", "rope_jitter_coords",
        "rope_rescale_coords", "rope_mrope_section", "ref_feat_shape", "attn_pool_num_heads",
        "attn_pool_mlp_ratio", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate",
        "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init",
        "head_init_scale",
    }
)  # fmt: skip
WEIGHT_SOURCES = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})  # timm's
MAX_DEPTH = 1000  # blocks of a ViT from a file
MAX_NUMBER = 2**31 - 1  # in vit_kwargs from a file


@dataclass(frozen=True)
class SoftArgmax:
    """How a position is read from a similarity map (Chrono, section 3).

    Attributes:
        temperature: Factor on similarities before the softmax.
        radius: Cells strictly nearer than this to the best cell take part.

    Raises:
        ValueError: A field is no finite number above 0.
    """

    temperature: float = 20.0
    radius: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, check_number(name, value))


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
        visible_threshold, refined_visible_threshold: Minimum probability, by the visibility head or by the confidence
            where that is asked for, for a plain and for a refined point to count as visible in `track`.
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
    visible_threshold: float = 0.5
    refined_visible_threshold: float = 0.5
    confidence: tuple[float, ...] | None = None
    refined_confidence: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))
            check_field(name, getattr(self, name))
        object.__setattr__(self, "vit_kwargs", dict(self.vit_kwargs))
        try:
            json.dumps(self.vit_kwargs)
        except (TypeError, ValueError, RecursionError) as error:
            raise refusal("vit_kwargs", self.vit_kwargs, f"plain JSON values ({error})") from error
        if self.adapter_channels % self.adapter_heads:
            raise refusal("adapter_heads", self.adapter_heads, f"a divisor of adapter_channels={self.adapter_channels}")

    @property
    def soft_argmax(self) -> SoftArgmax:
        """How `track` reads positions."""
        return SoftArgmax(self.temperature, self.radius)

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
            expected = f"keys out of {sorted(known)}{suggestion(unknown[0], known)}"
            raise ValueError(f"unknown config keys {unknown}; expected {expected}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> ChronoConfig:
        """Reads a configuration that a stranger may have written.

        Raises:
            ValueError: It is no JSON, or holds what a file may not, see `VIT_KWARGS`.
        """
        try:
            values = json.loads(text, object_pairs_hook=distinct)
            if not isinstance(values, dict):
                raise ValueError(f"holds a {type(values).__name__}; expected an object")
            config = cls.from_dict(values)
        except RecursionError as error:
            raise ValueError("nested too deeply; expected an object of plain values") from error
        if ":" in config.vit or "/" in config.vit:
            raise refusal("vit", config.vit, "a plain model name of timm, as it comes from a file")
        if unknown := sorted(config.vit_kwargs.keys() - VIT_KWARGS):
            raise refusal("vit_kwargs", unknown, "only keys of chrono_features.config.VIT_KWARGS, as in any file")
        for key, value in config.vit_kwargs.items():
            if not all(_is_plain(v) for v in (value if isinstance(value, list) else [value])):
                raise refusal(f"vit_kwargs[{key!r}]", value, "a text, a finite number, a truth value, null, or a list")
        if not is_integer(depth := config.vit_kwargs.get("depth", 1), 1, MAX_DEPTH):
            raise refusal("vit_kwargs['depth']", depth, f"1 to {MAX_DEPTH}")
        return config

    def to_json(self) -> str:
        """The inverse of `from_json`. Where timm finds pretrained weights is left out: the saved model has its own.

        Raises:
            ValueError: `vit_kwargs` has what `from_json` refuses.
        """
        kwargs = {key: value for key, value in self.vit_kwargs.items() if key not in WEIGHT_SOURCES}
        try:
            text = json.dumps(self.replace(vit_kwargs=kwargs).to_dict(), indent=2) + "\n"
            self.from_json(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"this configuration cannot be saved: {error}") from error
        return text

    def replace(self, **changes: Any) -> ChronoConfig:
        """A copy with some fields changed, checked like a new one."""
        return self.from_dict({**vars(self), **changes})


def check_grid(grid: Any) -> tuple[int, int]:
    """`grid` as a tuple; ValueError unless it is two positive integers."""
    grid = tuple(grid) if isinstance(grid, list) else grid
    check_field("grid", grid)
    return grid


def check_field(field: str, value: Any, name: str = "") -> None:
    """ValueError unless `value` is what this field of a configuration may be; `name` is what its user calls it."""
    valid, expected = _RULES[field]
    if not valid(value):
        raise refusal(name or field, value, expected)


def _plain(value: Any) -> Any:
    """Python's own numbers instead of NumPy's, and tuples for lists, which is what JSON makes of them."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `json.loads` makes of an object; ValueError where a key comes twice, of which it would take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key comes twice; expected each once")
    return values


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool)) or (is_number(value) and abs(value) <= MAX_NUMBER)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(map(is_number, value))


def _are_blocks(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(is_integer(b, 0) for b in value) and len(set(value)) == len(value)
    return isinstance(value, str) and value in _PLACEMENTS


Rule = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what is expected


def _integer(maximum: int) -> Rule:
    return lambda v: is_integer(v, 1, maximum), f"a positive integer from 1 to {maximum}"


def _pair(minimum: int, maximum: int, expected: str) -> Rule:
    return lambda v: isinstance(v, tuple) and len(v) == 2 and all(is_integer(n, minimum, maximum) for n in v), expected


def _choice(*words: str | None) -> Rule:
    listed = " or ".join(map(repr, words)) if len(words) == 2 else f"one of {', '.join(map(repr, words))}"
    return lambda v: (v is None or isinstance(v, str)) and v in words, listed


def _optional(rule: Rule) -> Rule:
    valid, expected = rule
    return lambda v: v is None or valid(v), f"None or {expected}"


_FLAG: Rule = lambda v: isinstance(v, bool), "True or False"
_PROBABILITY: Rule = lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"
_POSITIVE: Rule = lambda v: is_number(v) and v > 0, "a finite number above 0"
_RULES: dict[str, Rule] = {
    "vit": (lambda v: isinstance(v, str) and v != "", "the name of a timm model"),
    "vit_kwargs": (
        lambda v: isinstance(v, Mapping) and all(isinstance(key, str) for key in v),
        "a mapping of keyword arguments",
    ),
    "mean": (lambda v: _are_numbers(v, 3), "three numbers"),
    "std": (lambda v: _are_numbers(v, 3) and min(v) > 0, "three numbers above 0"),
    "pos_embed_resize": _choice("dinov2", "timm"),
    "grid": _pair(1, LARGEST_GRID, f"two positive integers (rows, columns) up to {LARGEST_GRID}"),
    "input_size": _optional(_pair(1, LARGEST_SIDE, f"two positive integers (height, width) up to {LARGEST_SIDE}")),
    "antialias": _FLAG,
    "adapter_blocks": (_are_blocks, f"one of {', '.join(_PLACEMENTS)}, or a tuple of distinct block indices"),
    "adapter_channels": _integer(WIDEST),
    "adapter_heads": _integer(WIDEST),
    "adapter_stride": _integer(LONGEST_STRIDE),
    "window": _pair(0, WIDEST, f"two integers (frames before, frames after) from 0 to {WIDEST}"),
    "mixer": _choice("attention", "conv1d", "conv3d"),
    "norm": _choice("clip", "token"),
    "stem": _choice("patch", "conv"),
    "neck": _choice(None, "x2"),
    "out_channels": _optional(_integer(WIDEST)),
    "freeze_vit": _FLAG,
    "temperature": _POSITIVE,
    "radius": _POSITIVE,
    "visible_threshold": _PROBABILITY,
    "refined_visible_threshold": _PROBABILITY,
    "confidence": _optional((lambda v: _are_numbers(v, 5), "5 numbers")),
    "refined_confidence": _optional((lambda v: _are_numbers(v, 6), "6 numbers")),
}
