"""What may be weights: which tensors, from which files, and whether they are a model's."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAX_NESTING = 100
MAX_PASSED = 2  # characters to functions for each byte of the pickle; short names are memoised, and come often
NESTING = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ"})  # what can be hashed
# Constructors that PyTorch allows, of any size: their memory is not in the file, nor set to anything.
ALLOCATING = re.compile(r"(__builtin__|builtins) bytearray|torch \w*Tensor|torch(\.storage)? UntypedStorage")
INITIALISING = frozenset({"add_", "clamp_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def checked_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Copies of the weights in the model's types; ValueError unless they are its weights and finite."""
    shared = expected.keys() & state.keys()
    problems = {
        "missing keys": sorted(expected.keys() - state.keys()),
        "unexpected keys": sorted(map(str, state.keys() - expected.keys())),
        "misshapen keys": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in shared and state[key].shape != value.shape
        ],
        "keys that are not dense floating-point tensors": [
            f"{key} {state[key].dtype}" for key in sorted(shared) if not is_dense(state[key])
        ],
    }
    if not any(problems.values()):
        copies = {key: state[key].to(value.dtype, copy=True).contiguous() for key, value in expected.items()}
        problems["keys with NaN or infinite values"] = [key for key, value in copies.items() if not _is_finite(value)]
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {_shorten(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model: {told}")
    return copies


def is_dense(value: object) -> bool:
    """Whether it is a tensor that weights can be: dense, floating-point, in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype in WEIGHT_DTYPES
        and not (value.is_quantized or value.is_meta or value.is_nested)
    )


def check_savable(state: Mapping[str, Tensor]) -> None:
    """ValueError unless `checked_state` will take these weights back."""
    for key, value in state.items():
        if not is_dense(value):
            expected = "dense float64, float32, float16 or bfloat16 in memory"
            raise ValueError(f"model holds {key} of {value.dtype} on {value.device}; expected {expected}")
        if not _is_finite(value):
            raise ValueError(f"model holds NaN or infinity in {key}; expected finite weights")


def load_plain(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    Raises:
        ValueError: It is damaged, or holds anything else.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("expected what torch.save writes since PyTorch 1.6")
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are larger than the file, so they overlap")
        _check_pickle(torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl"))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no checkpoint, or holds more than tensors and plain values: not loaded") from error
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{path} is a truncated or corrupt checkpoint: {error}") from error


def _check_pickle(data: bytes) -> None:
    """ValueError where values are nested so deeply that hashing them, as a key, overflows the C stack.

    Nor may the pickle make memory of its own, or call `_codecs.encode` again and again with one memoised text.
    """
    stack: list[tuple[int, int]] = []  # in the place of values: depth, and characters of text
    marks: list[int] = []
    memo: dict[int, tuple[int, int]] = {}
    passed = 0  # characters, to functions
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and ALLOCATING.fullmatch(argument):
            raise ValueError(f"it wants {argument}, which makes what the file does not hold")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "MARK":
            marks.append(len(stack))
        else:
            taken = opcode.stack_before
            if pickletools.markobject in taken:
                start = marks.pop() - taken.index(pickletools.markobject)
            else:
                start = len(stack) - len(taken)
            deepest = max((depth for depth, _ in stack[start:]), default=0) + (opcode.name in NESTING)
            if start < 0 or deepest > MAX_NESTING:
                raise ValueError(f"it is damaged, or nested deeper than {MAX_NESTING}")
            text = sum(size for _, size in stack[start:]) + (len(argument) if isinstance(argument, str) else 0)
            if opcode.name == "REDUCE":
                passed += text
                text = 0
            if passed > MAX_PASSED * len(data):
                raise ValueError("it passes more text to functions than it holds")
            stack[start:] = [(deepest, text)] * len(opcode.stack_after)


def _is_finite(value: Tensor) -> bool:
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())  # the sum is faster, but may overflow


def _shorten(keys: Sequence[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")


class UnwrittenWeights(TorchFunctionMode):
    """Skips what initialises tensors: where they have no memory it does nothing, and takes longer than all the rest."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in INITIALISING and args and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))
