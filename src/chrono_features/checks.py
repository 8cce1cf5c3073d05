"""What is asked of arguments: once, at the public door, before any work.

A message names the argument, what was received and what is expected. What tensors hold is not looked at while PyTorch
compiles or exports, which cannot follow a question to their values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dtypes import HALF_PRECISION

VALUE_RANGE = (-0.0501, 1.0501)  # resizing overshoots [0, 1] a little: 0.05, and rounding
FLOATING = (torch.float32, torch.float64, *HALF_PRECISION)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)
LARGEST = 3.4e38  # that float32 holds
LARGEST_WHOLE = 2**24  # up to which float32, in which frames and pixels are counted, leaves out no integer
SMALLEST_SIZE = 1e-3  # of an image, in whatever unit its positions have
SHOWN = 200  # characters of a value in a message


def refusal(name: str, value: Any, expected: str) -> ValueError:
    """The error for an argument that is not as it should be."""
    return ValueError(f"{name}={shown(value)}; expected {expected}")


def shown(value: Any) -> str:
    """A value in a message: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of too many digits, or a type whose text fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def suggestion(value: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that it may be meant for, if any is near."""
    nearest = get_close_matches(value, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def printable(text: str) -> str:
    """A text of others' making as a terminal may get it: what would control the terminal is escaped."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number that float32 can hold."""
    known = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return known and -LARGEST <= value <= LARGEST


def is_integer(value: Any, minimum: int, maximum: float = math.inf) -> bool:
    known = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return known and minimum <= value <= maximum


def check_number(name: str, value: Any, expected: str = "a finite number above 0") -> float:
    """`value` as a float; ValueError unless it is a number above 0 that float32 can hold."""
    if not (is_number(value) and value > 0):
        raise refusal(name, value, expected)
    return float(value)


def check_probability(name: str, value: Any) -> float:
    """`value` as a float; ValueError unless it is a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise refusal(name, value, "a number from 0 to 1")
    return float(value)


def check_integer(name: str, value: Any, minimum: int = 0, maximum: int | None = None, unit: str = "") -> int:
    """`value` as an int; ValueError unless it is an integer from `minimum` to `maximum`."""
    if not is_integer(value, minimum, math.inf if maximum is None else maximum):
        kind = "a positive integer" if minimum == 1 else "an integer"
        span = f" from {minimum} to {maximum}" if maximum is not None else ", 0 or more" if minimum == 0 else ""
        raise refusal(name, value, f"{kind}{unit}{span}")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise refusal(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """ValueError unless `value` is one of these words, or None where that is one of them."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        words = list(map(repr, choices))
        raise refusal(name, value, " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}")


def check_path(name: str, value: Any, expected: str = "a path, as text or a pathlib.Path") -> Path:
    """`value` as a path; ValueError unless it is text that can name a file, or stands for such a text."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    try:
        possible = isinstance(text, str) and bool(text) and "\0" not in text and bool(os.fsencode(text))
    except UnicodeEncodeError:  # lone surrogates
        possible = False
    if not possible:
        raise refusal(name, value, expected)
    return Path(os.fspath(value))


def is_folder(path: Path) -> bool:
    """`Path.is_dir`, and False for a name that is too long for one."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_matching(
    visibility_head: Any,
    visible_threshold: Any,
    correlation_dtype: Any,
    memory_budget: Any,
) -> None:
    """ValueError unless these are as `soft_argmax_track` takes them."""
    if visibility_head is not None and not callable(visibility_head):
        expected = "None or a module that maps (..., 3) statistics to two logits"
        raise refusal("visibility_head", visibility_head, expected)
    check_probability("visible_threshold", visible_threshold)
    if not isinstance(correlation_dtype, torch.dtype) or correlation_dtype not in FLOATING:
        raise refusal("correlation_dtype", correlation_dtype, f"one of {', '.join(map(str, FLOATING))}")
    if memory_budget is not None and not is_integer(memory_budget, 1):
        raise refusal("memory_budget", memory_budget, "None or a positive integer of bytes")


def check_tensor(
    name: str,
    value: Any,
    shape: str,
    dtypes: Sequence[torch.dtype] = FLOATING,
    kind: str = "a floating type",
    meta: bool = False,
) -> None:
    """ValueError unless `value` is a dense tensor of these types that holds values; `shape` and `kind` tell which."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} of type {type(value).__name__}; expected a torch.Tensor {shape}")
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"{name} in the layout {layout}; expected a dense tensor {shape}")
    if value.dtype not in dtypes:
        raise ValueError(f"{name} of type {value.dtype}; expected {kind}")
    if value.is_meta and not meta and not torch.compiler.is_compiling():
        raise ValueError(f"{name} on the device meta, without values; expected a tensor {shape} that holds some")


def as_tensor(name: str, value: Any) -> Any:
    """Lists of numbers and NumPy arrays as tensors; others as they are."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        return value
    try:
        array = np.asarray(value)
        double = isinstance(value, np.ndarray) and value.dtype == np.float64
        return torch.from_numpy(array.astype(np.float64 if double else np.float32))
    except (TypeError, ValueError) as error:
        raise refusal(name, value, f"numbers, in rows of the same length ({error})") from error


def check_finite(name: str, value: Tensor) -> None:
    """ValueError if a floating tensor holds NaN or infinity. Reads it once, and waits for its device."""
    if torch.compiler.is_compiling() or not value.numel() or not value.is_floating_point():
        return
    if not torch.stack(torch.aminmax(value)).isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")


def check_video(video: Any, device: torch.device | None = None, values: bool = True) -> None:
    """ValueError unless `video` is (B, T, 3, H, W), uint8 or floating 0 … 1, and on `device` where that is given.

    Args:
        video: What a user passed in.
        device: Where it has to be; None is anywhere.
        values: Whether floating values are looked at, all of them, for which a GPU is waited.
    """
    if not isinstance(video, Tensor):
        got = type(video).__name__
        raise ValueError(f"video of type {got}; expected a torch.Tensor (B, T, 3, H, W), which as_video(frames) makes")
    check_tensor("video", video, "(B, T, 3, H, W)", (torch.uint8, *FLOATING), "uint8 0 … 255 or floating 0 … 1")
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        expected = "(B, T, 3, H, W), none of them 0; as_video makes it of other layouts"
        raise ValueError(f"video of shape {tuple(video.shape)}; expected {expected}")
    if device is not None and video.device != device:
        raise ValueError(f"video on {video.device}; expected it where the model is: video.to({str(device)!r})")
    if values and video.is_floating_point() and not torch.compiler.is_compiling():
        low, high = torch.stack(torch.aminmax(video)).tolist()
        if low != low or high != high:
            raise ValueError("video holds NaN; expected values from 0 to 1")
        if low < VALUE_RANGE[0] or high > VALUE_RANGE[1]:
            expected = "0 … 1 (or uint8 0 … 255), as as_video(frames, range=(0, 255)) gives it"
            raise ValueError(f"video with values from {low:.4g} to {high:.4g}; expected {expected}")


def check_queries(
    queries: Any,  # (B, N, 3) or (N, 3)
    batch: int,
    frames: int,
    image_size: tuple[float, float],
) -> Tensor:
    """Queries in float32 or float64.

    Raises:
        ValueError: Wrong shape, not finite, a time outside the clip or no integer, a position outside the frame.
    """
    queries = as_tensor("queries", queries)
    check_tensor("queries", queries, "(B, N, 3)", (*FLOATING, *WHOLE), "real numbers")
    queries = queries[None] if queries.ndim == 2 else queries
    if queries.ndim == 3 and len(queries) == 1:
        queries = queries.expand(batch, -1, -1)  # one set for all videos, as `grid_queries` gives it
    if queries.ndim != 3 or queries.shape[0] != batch or queries.shape[-1] != 3:
        raise ValueError(f"queries of shape {tuple(queries.shape)}; expected (B, N, 3) as (t, x, y) with B={batch}")
    if not queries.is_floating_point() or queries.dtype in HALF_PRECISION:
        queries = queries.float()  # bfloat16 cannot count past 256
    if torch.compiler.is_compiling() or not queries.numel():
        return queries
    t, x, y = queries.unbind(-1)
    height, width = image_size
    rules = {
        "finite numbers": ~queries.isfinite().all(-1),
        "an integer frame index t": t != t.round(),
        f"a frame index t from 0 to {frames - 1}": (t < 0) | (t > frames - 1),
        f"x from 0 to {width} and y from 0 to {height}": (x < 0) | (x > width) | (y < 0) | (y > height),
    }
    if torch.stack(list(rules.values())).any():  # one question, as each makes a GPU wait
        expected, broken = next((text, rule) for text, rule in rules.items() if rule.any())
        b, n = broken.nonzero()[0].tolist()
        raise ValueError(f"queries[{b}, {n}] = {queries[b, n].tolist()}; expected (t, x, y) with {expected}")
    return queries


def check_tracks(tracks: Any, queries: Tensor, frames: int) -> None:
    """ValueError unless `tracks` has finite positions of these queries in so many frames."""
    xy: Any = getattr(tracks, "xy", None)
    correlation: Any = getattr(tracks, "correlation", None)
    check_tensor("tracks.xy", xy, "(B, N, T, 2)", FLOATING[:2], "float32 or float64")
    expected = (*queries.shape[:2], frames)
    if xy.shape != (*expected, 2):
        raise ValueError(f"tracks.xy of shape {tuple(xy.shape)}; expected {(*expected, 2)}")
    if correlation is not None and correlation.shape != expected:
        raise ValueError(f"tracks.correlation of shape {tuple(correlation.shape)}; expected {expected}")
    check_finite("tracks.xy", xy)


def check_features(features: Any, video: Tensor | None = None) -> None:
    """ValueError unless `features` are floating (B, T, C, h, w), with the B and T of `video`."""
    check_tensor("features", features, "(B, T, C, h, w)")
    if features.ndim != 5 or 0 in features.shape:
        raise ValueError(f"features of shape {tuple(features.shape)}; expected (B, T, C, h, w), none of them 0")
    if video is not None and features.shape[:2] != video.shape[:2]:
        expected = f"(B, T, C, h, w) with the video's B={video.shape[0]}, T={video.shape[1]}"
        raise ValueError(f"features of shape {tuple(features.shape)}; expected {expected}")


def check_image_size(image_size: Any) -> tuple[float, float]:
    """`image_size` as (height, width); ValueError unless it is two positive numbers."""
    try:
        height, width = image_size
        sizes = all(is_number(v) and SMALLEST_SIZE <= v <= LARGEST_WHOLE for v in (height, width))
    except (TypeError, ValueError):
        sizes = False
    if not sizes:
        expected = f"two positive numbers (height, width), from {SMALLEST_SIZE:g} to {LARGEST_WHOLE}"
        raise refusal("image_size", image_size, expected)
    return height, width
