"""Videos as people have them in memory: `as_video` makes the tensor that models take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .checks import FLOATING, VALUE_RANGE, check_flag, is_number, refusal, shown

Layout = Literal["THWC", "TCHW", "THW"]
CHANNELS = (1, 3, 4)  # grey, colours, colours with alpha
WHITE = {torch.uint8: 255, torch.uint16: 65535}


def as_video(
    frames: Any,
    *,
    layout: Layout | None = None,
    range: tuple[float, float] | None = None,
    bgr: bool = False,
) -> Tensor:
    """Makes a video (1, T, 3, H, W), as models take it, of what other libraries give.

    Args:
        frames: NumPy or torch, (T, H, W, C), (T, C, H, W) or (T, H, W), C being 1 (grey), 3 or 4 (alpha is dropped); a
            batch has another dimension before. Or a list of frames: PIL images, or arrays as above without T.
        layout: "THWC", "TCHW" or "THW", where the shape does not tell.
        range: The values of black and white. None is (0, 255) for uint8, (0, 65535) for uint16 and (0, 1) for floating
            values; other integers need it.
        bgr: Whether colours are blue, green, red, as OpenCV has them.

    Returns:
        (1, T, 3, H, W) or (B, T, 3, H, W): uint8 for uint8 without a range, otherwise floating 0 … 1.

    Raises:
        ValueError: An argument is not as above, frames differ in shape, or values lie outside the range.
    """
    check_flag("bgr", bgr)
    if layout not in (None, "THWC", "TCHW", "THW"):
        raise refusal("layout", layout, "None, 'THWC', 'TCHW' or 'THW'")
    tensor = _stacked(frames) if isinstance(frames, (list, tuple)) else _tensor(frames, "frames")
    batch = len(tensor) if tensor.ndim == 5 else 1
    video = _channels_first(tensor.flatten(0, 1) if tensor.ndim == 5 else tensor, layout)
    colours = video[:, :3].flip(1) if bgr else video[:, :3]
    return _in_range(colours, range).expand(-1, 3, -1, -1).unflatten(0, (batch, -1)).contiguous()


def _tensor(value: Any, name: str) -> Tensor:
    """An array, a tensor or a PIL image as a tensor of its own type."""
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "convert") and hasattr(value, "mode"):
        value = np.asarray(value if value.mode.startswith(("I", "F")) else value.convert("RGB"))  # these are wider
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "uif":
        got = f"{value.dtype} values" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} of type {got}; expected a NumPy array, a torch.Tensor or a list of images")
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))


def _stacked(frames: Sequence[Any]) -> Tensor:
    if not frames:
        raise ValueError("frames=[]; expected at least one frame")
    tensors = [_tensor(frame, f"frames[{t}]") for t, frame in enumerate(frames)]
    first = tensors[0]
    for t, tensor in enumerate(tensors):
        if tensor.ndim not in (2, 3) or (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            expected = f"{first.dtype} of {tuple(first.shape)} as frames[0]" if t else "(H, W, C), (C, H, W) or (H, W)"
            raise ValueError(f"frames[{t}] is {tensor.dtype} of {tuple(tensor.shape)}; expected {expected}")
    return torch.stack(tensors)


def _channels_first(frames: Tensor, layout: str | None) -> Tensor:  # (T, C, H, W)
    shape = tuple(frames.shape)
    layout = _layout_of(shape) if layout is None else layout
    if len(shape) != len(layout) or 0 in shape:
        raise ValueError(f"frames of shape {shape}; expected {len(layout)} dimensions as in {layout!r}, none of them 0")
    if layout == "THW":
        return frames[:, None]
    frames = frames.movedim(-1, 1) if layout == "THWC" else frames
    if frames.shape[1] not in CHANNELS:
        raise ValueError(f"frames of shape {shape}; expected 1, 3 or 4 channels, as layout={layout!r} says")
    return frames


def _layout_of(shape: tuple[int, ...]) -> str:
    """ValueError where there are several, or none. Three dimensions may also be a single image."""
    fits = {
        "THW": len(shape) == 3 and shape[-1] not in (3, 4) and shape[0] != 3,
        "THWC": len(shape) == 4 and shape[-1] in CHANNELS,
        "TCHW": len(shape) == 4 and shape[1] in CHANNELS,
    }
    found = [name for name, fit in fits.items() if fit]
    if len(found) != 1:
        cure = "layout= says which" if found or len(shape) == 3 else "C being 1, 3 or 4"
        raise ValueError(f"frames of shape {shape}; expected (T, H, W, C), (T, C, H, W) or (T, H, W), {cure}")
    return found[0]


def _in_range(frames: Tensor, range: tuple[float, float] | None) -> Tensor:
    """uint8, or floating 0 … 1."""
    if range is None and frames.dtype == torch.uint8:
        return frames
    if range is None:
        if frames.dtype not in (*WHITE, *FLOATING):
            raise ValueError(f"frames of type {frames.dtype}; expected range=(black, white) with them")
        range = (0, WHITE.get(frames.dtype, 1))
    pair = isinstance(range, (tuple, list)) and len(range) == 2 and all(map(is_number, range))
    if not pair or range[0] >= range[1]:
        raise refusal("range", range, "None or two numbers (black, white)")
    black, white = range
    frames = frames if frames.dtype in FLOATING else frames.float()
    scaled = (frames - black) / (white - black)
    lowest = scaled.min().item()
    highest = scaled.max().item()
    if not VALUE_RANGE[0] <= lowest <= highest <= VALUE_RANGE[1]:  # nor NaN
        got = f"frames with values from {frames.min().item():.4g} to {frames.max().item():.4g}"
        raise ValueError(f"{got}; expected {shown(range)}, or another range=(black, white), such as range=(0, 255)")
    return scaled
