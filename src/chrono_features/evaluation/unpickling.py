"""Pickles from strangers. Loading one with `pickle` runs what it says; here it builds NumPy arrays and plain values."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np

KINDS = "biufSU"  # of dtypes: booleans, numbers, bytes and text; no objects


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds: dicts, lists, text, numbers and NumPy arrays of those.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It asks for anything else, is truncated, or is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _ArraysOnly(file).load()
        except _Refused as error:
            raise ValueError(f"{os.fspath(path)}: refused, {error}; expected only arrays and plain values") from error
        except Exception as error:  # a damaged pickle raises anything
            ends_early = isinstance(error, EOFError) or "truncated" in str(error)
            what = "truncated" if ends_early else "not a readable pickle"
            raise ValueError(f"{os.fspath(path)}: {what} ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle wants what it may not have."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(f"it wants {module}.{name}") from None


class _Dtype:
    """Stands in for `numpy.dtype`, which believes a pickled state, even one that makes it read stray memory."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in KINDS:
            raise _Refused(f"it holds an array of dtype {dtype}")
        return dtype.newbyteorder(self.order)  # type: ignore[arg-type]


class _Array(np.ndarray):
    """An array whose pickled state is checked before NumPy sees it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, data = state
        checked = _frombuffer(data, dtype, shape, "C")
        super().__setstate__((1, checked.shape, checked.dtype, bool(fortran), data))  # type: ignore[arg-type]


def _reconstruct(*_: object) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any, axes: Any = None) -> np.ndarray:
    array = np.frombuffer(data, dtype.numpy())
    return array.reshape(shape).transpose(axes) if order == "K" else array.reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return _frombuffer(data, dtype, (), "C")[()]


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as protocols 0 to 2 use it, for bytes; the real one knows codecs that unpack archives."""
    if encoding != "latin1":
        raise _Refused(f"it wants the codec {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct, which makes nothing else
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _frombuffer
