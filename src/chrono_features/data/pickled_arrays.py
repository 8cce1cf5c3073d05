"""What a pickle of arrays may name: the globals of `GLOBALS`, as functions of our own that make arrays of bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = "biufSU"  # of dtypes: booleans, numbers, bytes and text; no objects


class Refused(Exception):
    """The pickle wants what it may not have."""


class Budget:
    """What may be made of a pickle of `size` bytes: of a kind no more bytes than it has, as NumPy writes each once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._spent: Counter[str] = Counter()

    def spend(self, kind: str, count: int) -> None:
        self._spent[kind] += count
        if self._spent[kind] > self.size:
            raise Refused(f"it unpacks to more {kind} than its {self.size} bytes")


@dataclass
class PickledDtype:
    """A `numpy.dtype`, which itself would believe a pickled state, even one that makes it read stray memory."""

    code: str
    order: str | None = None

    def build(self, state: Any) -> None:
        if self.order is not None or not isinstance(state, tuple) or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a state that is no dtype's")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or not re.fullmatch(r"[A-Za-z?]\d{0,9}", self.code):
            raise Refused(f"it holds an array of dtype {self.code!r}")
        dtype = np.dtype(self.code)
        if dtype.kind not in KINDS:
            raise Refused(f"it holds an array of dtype {dtype}")
        return dtype.newbyteorder(self.order or "=")  # type: ignore[arg-type]


@dataclass
class UnbuiltArray:
    """An array between REDUCE and BUILD, and where the memo holds it."""

    memo: list[int] = field(default_factory=list)
    is_built: bool = False

    def build(self, budget: Budget, state: Any) -> np.ndarray[Any, Any]:
        if self.is_built:
            raise Refused("it sets the state of an array twice")
        self.is_built = True
        _, shape, dtype, fortran, data = state
        array = _array(budget, data, dtype, shape, "F" if fortran else "C")
        if not array.dtype.isnative:
            budget.spend("swapped bytes", array.nbytes)
            array = array.astype(array.dtype.newbyteorder("="))
        return array


def _array(
    budget: Budget,
    data: Any,
    dtype: Any,
    shape: Any,
    order: Any,
    axes: Any = None,
) -> np.ndarray[Any, Any]:
    """What `numpy._core.numeric._frombuffer` makes, of `bytes` only."""
    if not isinstance(dtype, PickledDtype):
        raise ValueError("an array without a dtype")
    of = dtype.numpy()
    if not isinstance(data, bytes):
        raise ValueError(f"an array of {type(data).__name__}; expected bytes")
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("an array whose shape is none")
    if order not in ("C", "F", "K"):
        raise ValueError("an array in no order")
    budget.spend("arrays", len(data))
    array = np.frombuffer(data, of)
    if of.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise Refused("it holds booleans other than 0 and 1")  # which NumPy miscounts when it takes them for a mask
    return array.reshape(shape).transpose(axes) if order == "K" else array.reshape(shape, order=order)


def _reconstruct(budget: Budget, *_: Any) -> UnbuiltArray:
    return UnbuiltArray()


def _dtype(budget: Budget, code: Any, *_: Any) -> PickledDtype:
    return PickledDtype(code)


def _frombuffer(budget: Budget, *arguments: Any) -> np.ndarray[Any, Any]:
    return _array(budget, *arguments)


def _scalar(budget: Budget, dtype: Any, data: Any) -> Any:
    return _array(budget, data, dtype, (), "C")[()]


def _latin1(budget: Budget, text: Any, encoding: Any) -> bytes:
    """`_codecs.encode` as protocols 0 to 2 use it, for bytes; the real one knows codecs that unpack archives."""
    if encoding != "latin1":
        raise Refused(f"it wants the codec {encoding!r}")
    budget.spend("encoded text", len(text))
    return text.encode("latin1")


def _no_bytes(budget: Budget) -> bytes:
    return b""


# Every global that a pickle may name.
GLOBALS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy.core before NumPy 2, numpy._core since
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
}
