"""`Tracks`: what tracking finds, in memory and in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import track_files
from .checks import check_finite, check_path, check_tensor, refusal, shown
from .extras import require

OF_POINTS = ("similarity", "visible", "correlation", "confidence")  # (B, N, T)
TENSORS = ("xy", *OF_POINTS, "logits", "queries")
INDICES = (int, np.integer, slice, list, np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point tracks. Indexing (`tracks[0]`, `tracks[:, 3:5]`) goes over the leading dimensions of all fields alike.

    Attributes:
        xy: (B, N, T, 2) positions in pixels of the video, x and y, raster: the first pixel's centre is (0.5, 0.5).
        similarity: (B, N, T) maximum of the query's cosine similarity map in the frame, -1 to 1.
        visible: (B, N, T) bool, or None without a visibility head.
        logits: (B, N, T, 2) of *occluded* and *far from the truth*, or None without a visibility head.
        correlation: (B, N, T) of the pixels around the position with those around the query, -1 to 1, or None unless
            positions were refined with them.
        confidence: (B, N, T) probability of being seen and within 4 px (at 256 x 256) of the truth, or None unless it
            was asked for.
        queries: (B, N, 3) what was tracked, (t, x, y), or None where that is not known.
        columns: What else is known of each of the N points, by name: lists of N values, such as names.
        info: What else is known of all: "image_size", "model", "version"; from the command line also "fps", "start" and
            "every". Plain JSON values.
    """

    xy: Tensor
    similarity: Tensor
    visible: Tensor | None = None
    logits: Tensor | None = None
    correlation: Tensor | None = None
    confidence: Tensor | None = None
    queries: Tensor | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensor("xy", self.xy, "(B, N, T, 2)", meta=True)
        for name in ("columns", "info"):
            if not isinstance(getattr(self, name), Mapping):
                raise refusal(name, getattr(self, name), "a mapping of names to values")
        points = tuple(self.xy.shape[:-1])
        shapes = {"xy": (*points, 2), "logits": (*points, 2), "queries": (*points[:-1], 3)}
        letters = {"xy": "(B, N, T, 2)", "logits": "(B, N, T, 2)", "queries": "(B, N, 3)"}
        for name, value in self._tensors().items():
            if name == "visible":
                check_tensor(name, value, "(B, N, T)", (torch.bool,), "torch.bool", meta=True)
            else:
                check_tensor(name, value, letters.get(name, "(B, N, T)"), meta=True)
            expected = shapes.get(name, points)
            if value.shape != expected:
                raise ValueError(f"{name} of shape {tuple(value.shape)}; expected {expected}, as xy is (B, N, T, 2)")
        for name, values in self.columns.items():
            count = points[-2] if len(points) > 1 else 0
            if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
                raise refusal(f"columns[{name!r}]", values, f"{count} values, one for each point")

    def _tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors. `xy` and `similarity` are there, whatever they are."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: v for name, v in named.items() if v is not None or name in ("xy", "similarity")}

    def _with(self, tensors: Mapping[str, Tensor], columns: Mapping[str, Sequence[Any]]) -> Tracks:
        named: dict[str, Any] = dict(tensors)
        return Tracks(**named, columns=columns, info=self.info)

    def __repr__(self) -> str:
        names = ("videos", "points", "frames")[3 - self.similarity.ndim :]
        facts = [f"{size} {name}" for size, name in zip(self.similarity.shape, names, strict=True)]
        if self.visible is not None and self.visible.numel() and not self.visible.is_meta:
            facts.append(f"{self.visible.double().mean().item():.0%} visible")
        facts += [name for name in ("correlation", "confidence") if getattr(self, name) is not None]
        return f"Tracks({', '.join(facts)}, {str(self.xy.dtype)[6:]} on {self.xy.device})"

    def __getitem__(self, index: Any) -> Tracks:
        used = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(i, INDICES) for i in used) or len(used) > self.similarity.ndim:
            expected = f"at most {self.similarity.ndim} integers, slices, lists or tensors, no ellipsis or None"
            raise IndexError(f"index {shown(index)}; expected {expected}")
        points = self.similarity.ndim - 2  # the dimension of points
        try:
            tensors = tuple(_as_index(i) for i in used)
            found = {name: v[tensors] for name, v in self._tensors().items() if name != "queries"}
            of_point = used[points] if 0 <= points < len(used) else slice(None)
            frame = used[points + 1] if points + 1 < len(used) else slice(None)
            if not any(isinstance(i, (int, np.integer)) for i in (of_point, frame)):  # else a dimension is lost
                columns = {name: _values(values, of_point) for name, values in self.columns.items()}
            else:
                columns = {}
            if self.queries is not None and not isinstance(frame, (int, np.integer)):
                found["queries"] = self.queries[tensors[: points + 1]]
            return self._with(found, columns)
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise IndexError(f"index {shown(index)}: {error}") from error

    def map(self, function: Callable[[Tensor], Tensor]) -> Tracks:
        """The same tracks with a function of every tensor."""
        return self._with({name: function(value) for name, value in self._tensors().items()}, self.columns)

    def to(self, *args: Any, **kwargs: Any) -> Tracks:
        """`torch.Tensor.to` on every field; a floating dtype leaves `visible` a mask."""

        def moved(v: Tensor) -> Tensor:
            other = v.to(*args, **kwargs)
            return other.bool() if v.dtype == torch.bool else other

        return self.map(moved)

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """The fields that are tensors, as NumPy arrays by name; bfloat16 becomes float32, which loses nothing."""
        tensors = {name: value.detach().cpu() for name, value in self._tensors().items()}
        return {n: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for n, v in tensors.items()}

    def to_dataframe(self) -> Any:
        """A row for each point and frame, as a pandas DataFrame.

        Columns: `video` (where there is a batch of several), `point`, those of `columns`, `t`, `x`, `y`, `similarity`,
        and `visible`, `correlation`, `confidence` where they are known.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = require("pandas", "eval")
        return pandas.DataFrame(track_files.long_form(self._whole(), self.columns))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tracks. An existing file survives a failure.

        The suffix says how: `.csv` as in `to_dataframe`; `.json` with a list of points; any other a NumPy `.npz` that
        `load` reads, with one array per field that is not None, `columns` and `info`.

        Raises:
            ValueError: A field holds NaN or infinity, which `load` refuses, or no values at all.
        """
        path = check_path("path", path)
        for name, value in self._tensors().items():
            if value.is_meta:
                raise ValueError(f"{name} is on the meta device; expected values, which load can read")
            check_finite(name, value)
        if path.suffix.lower() == ".csv":
            track_files.write_csv(path, track_files.long_form(self._whole(), self.columns))
        elif path.suffix.lower() == ".json":
            track_files.write_json(path, self._whole(), self.columns, self.info)
        else:
            track_files.write_npz(path, self.numpy(), self.columns, self.info)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tracks:
        """Reads the `.npz` that `save` wrote, of this or an earlier version.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file does not hold tracks: other arrays, shapes or types, or values that are not finite.
        """
        path = check_path("path", path)
        arrays, about = track_files.read_npz(path, TENSORS)
        try:
            tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
            for name, value in tensors.items():
                check_finite(name, value)
            return cls(**tensors, **about)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _whole(self) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays (B, N, T, ...), where there are these dimensions."""
        if self.similarity.ndim not in (2, 3):
            raise refusal("tracks", self, "(B, N, T) or (N, T)")
        return self.numpy() if self.similarity.ndim == 3 else self.map(lambda v: v[None]).numpy()


def _as_index(index: Any) -> Any:
    """A list or array as a tensor: of lists, PyTorch takes some for tuples."""
    if not isinstance(index, (list, np.ndarray)):
        return index
    return torch.as_tensor(index) if len(index) else torch.zeros(0, dtype=torch.long)


def _values(values: Sequence[Any], index: Any) -> list[Any]:
    numbers = torch.arange(len(values))[_as_index(index)]
    return [values[n] for n in numbers.flatten().tolist()]
