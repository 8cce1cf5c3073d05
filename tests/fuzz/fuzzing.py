"""What the fuzz tests share: values that no argument expects, and which outcomes are right.

`CHRONO_FEATURES_FUZZ=long pytest tests/fuzz` runs them for long, with other draws each time.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import chrono_features

LONG = os.environ.get("CHRONO_FEATURES_FUZZ", "") == "long"
PACKAGE = str(Path(chrono_features.__file__).parent)


def examples(few: int, many: int) -> settings:
    """So many examples in the normal run, always the same; and in the long one, drawn anew."""
    count = many if LONG else few
    silenced = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=count, derandomize=not LONG, deadline=None, database=None, suppress_health_check=silenced
    )


# Built when they are drawn: a test may change them in place.
TENSORS: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "sparse video": lambda: torch.rand(1, 3, 3, 16, 16).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.rand(1, 3, 3, 16, 16), 0.1, 0, torch.quint8),
    "meta": lambda: torch.empty(1, 3, 3, 16, 16, device="meta"),
    "meta queries": lambda: torch.zeros(1, 2, 3, device="meta"),
    "float8": lambda: torch.rand(1, 3, 3, 16, 16).to(torch.float8_e4m3fn),
    "complex": lambda: torch.zeros(1, 3, 3, 16, 16, dtype=torch.complex64),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)]),
    "bool": lambda: torch.ones(1, 3, 3, 16, 16, dtype=torch.bool),
    "uint16": lambda: torch.ones(1, 16, 16, dtype=torch.uint16),
    "uint64": lambda: torch.ones(1, 16, 16, dtype=torch.uint64),
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.zeros(0),
    "no queries": lambda: torch.zeros(1, 0, 3),
    "no frames": lambda: torch.zeros(1, 0, 3, 16, 16),
    "video of NaN": lambda: torch.full((1, 3, 3, 16, 16), float("nan")),
    "one NaN": lambda: torch.rand(1, 3, 3, 16, 16).index_put_((torch.tensor(0),) * 5, torch.tensor(float("nan"))),
    "video of inf": lambda: torch.full((1, 3, 3, 16, 16), float("inf")),
    "huge": lambda: torch.full((1, 3, 3, 16, 16), 1e38),
    "subnormal": lambda: torch.full((1, 3, 3, 16, 16), 1e-40),
    "float16": lambda: torch.rand(1, 3, 3, 16, 16).half(),
    "bfloat16": lambda: torch.rand(1, 3, 3, 16, 16).bfloat16(),
    "float64": lambda: torch.rand(1, 3, 3, 16, 16).double(),
    "integers": lambda: torch.randint(256, (1, 3, 3, 16, 16)),
    "frames": lambda: torch.rand(3, 3, 16, 16),
    "a view": lambda: torch.rand(1, 1, 3, 1, 16).expand(1, 3, 3, 16, 16),
    "transposed": lambda: torch.rand(16, 16, 3, 3, 1).permute(4, 3, 2, 1, 0),
    "needs gradient": lambda: torch.rand(1, 3, 3, 16, 16).requires_grad_(),
    "queries": lambda: torch.tensor([[[0.0, 1.0, 2.0], [2.0, 16.0, 0.0]]]),
    "queries of NaN": lambda: torch.full((1, 2, 3), float("nan")),
    "queries of integers": lambda: torch.tensor([[[1, 3, 5]]], dtype=torch.int16),
    "labels": lambda: torch.randint(3, (1, 16, 16)),
    "labels up to 2**40": lambda: torch.full((1, 16, 16), 2**40),
    "mask": lambda: torch.rand(1, 2, 16, 16) > 0.5,
    "NumPy video": lambda: np.zeros((1, 3, 3, 16, 16), np.float32),
    "NumPy objects": lambda: np.array([None, "a"], dtype=object),
    "parameter": lambda: torch.nn.Parameter(torch.rand(1, 3, 3, 16, 16)),
}
# A tensor that is nearly as it should be
CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "no first dimension": lambda x: x[0],
    "one more dimension": lambda x: x[None],
    "turned": lambda x: x.transpose(0, -1),
    "not contiguous": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "twice": lambda x: torch.cat([x, x]),
    "twice as long": lambda x: torch.cat([x, x], dim=1),
    "less of it": lambda x: x[..., :-1],
    "every other": lambda x: x[..., ::2],
    "nothing": lambda x: x[..., :0],
    "no second dimension": lambda x: x[:, :0],
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "double": lambda x: x.double(),
    "integers": lambda x: x.long(),
    "unsigned": lambda x: x.to(torch.uint16),
    "bool": lambda x: x > 0,
    "negative": lambda x: -x.float(),
    "one is NaN": lambda x: x.double().flatten().index_fill(0, torch.tensor([1]), float("nan")).view(x.shape),
    "one is infinite": lambda x: x.float().flatten().index_fill(0, torch.tensor([-1]), -float("inf")).view(x.shape),
    "one is huge": lambda x: x.float().flatten().index_fill(0, torch.tensor([0]), 3e38).view(x.shape),
    "huge": lambda x: x.float() * 1e30,
    "tiny": lambda x: x.float() * 1e-30,
    "zero": lambda x: x * 0,
    "constant": lambda x: x * 0 + 1,
    "fractions": lambda x: x + 0.25,
    "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "float8": lambda x: x.to(torch.float8_e5m2),
    "conjugate": lambda x: torch.complex(x.float(), x.float()).conj(),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "gradient": lambda x: x.float().requires_grad_(),
}
PLAIN: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**70, -(2**70), 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 2.5, -1.5, 20.0, 1e-300, 1e39, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "20", "cpu", "clip", "triton", "bfloat16", "chrono-tiny", "\0", "\ud800", "/", "x" * 300, "a\nb", b"bytes"),
    *((), [], {}, (1,), (2, 3), [4, 4], (2.5, 3), (0, 0), (-1, 4), ("a", "b"), (None, None), (2**40, 2), (4, 4, 4)),
    *((True, True), (float("nan"), 4.0), [[1, 2], [3]], {"a": 1}, {1: 2}, {"grid": (4, 4)}, set(), frozenset({1})),
    *(np.float32(3), np.float64(0.5), np.int64(4), np.bool_(True), np.array([4, 4]), np.zeros(0)),
    *(Fraction(1, 2), 1j, object(), int, len, range(3), Ellipsis, slice(1), Path("nowhere"), NotImplemented),
    *(torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.device("cpu"), torch.nn.Identity()),
]

plain = st.sampled_from(PLAIN)
tensors = st.sampled_from(sorted(TENSORS)).map(lambda name: TENSORS[name]())
anything = st.one_of(plain, tensors, st.integers(-300, 300), st.floats(), st.text(max_size=5))


def instead_of(value: Any) -> st.SearchStrategy[Any]:
    """What may come in the place of an argument that is right."""
    if not isinstance(value, torch.Tensor):
        return anything
    return st.one_of(st.sampled_from(sorted(CHANGES)).map(lambda name: changed(value, name)), anything)


def changed(value: torch.Tensor, name: str) -> Any:
    """`value` after the change of that name, where its shape and type allow it."""
    try:
        return CHANGES[name](value)
    except (IndexError, RuntimeError):
        return value


class Wrong(AssertionError):
    """An outcome that is neither a right result nor an error that helps."""


def outcome(call: Callable[[], Any], names: Iterable[str]) -> Any:
    """What a call returns, or the error that it raises; fails unless that is one of ours and has one of these names."""
    try:
        return call()
    except (ValueError, TypeError, OSError, IndexError) as error:
        names = list(names)
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        kind = not isinstance(error, IndexError) or "index" in names  # as sequences have to raise it
        named = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names)
        of_a_file = isinstance(error, OSError) and error.filename is not None
        if not (kind and named and last.startswith(PACKAGE)) and not of_a_file:
            raise Wrong(f"{type(error).__name__} from {last} names none of {names}: {error}") from error
        return error
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {error}") from error


def check_features(features: torch.Tensor) -> None:
    """Finite, and no longer than 1 along the channels."""
    assert features.ndim == 5 and features.isfinite().all()
    tolerance = 0.02 if features.dtype in (torch.float16, torch.bfloat16) else 1e-3
    assert (features.double().square().sum(2).sqrt() <= 1 + tolerance).all()


def check_tracks(tracks: Any, size: tuple[float, float], queries: torch.Tensor | None = None) -> None:
    """Finite, inside of the frame, and at the query in the query's own frame."""
    height, width = size
    for name in ("xy", "similarity", "logits", "correlation", "confidence"):
        value = getattr(tracks, name)
        assert value is None or value.isfinite().all(), name
    slack = 1e-4 * max(size)
    x, y = tracks.xy.double().unbind(-1)
    assert ((x >= -slack) & (x <= width + slack) & (y >= -slack) & (y <= height + slack)).all()
    if queries is not None and queries.shape[1]:
        b, n = torch.meshgrid(*(torch.arange(k) for k in tracks.xy.shape[:2]), indexing="ij")
        queries = torch.as_tensor(queries)
        own = tracks.xy[b, n, queries[..., 0].long().expand(b.shape)]
        torch.testing.assert_close(own.double(), queries[..., 1:].double().expand(own.shape), rtol=0, atol=1e-3)
