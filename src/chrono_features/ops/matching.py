"""Soft-argmax matching that never holds the similarity volume (queries x frames x cells).

Only the best cell and the cells of its disc decide a position: the denominator of a softmax over the whole grid
cancels. So similarities are computed in chunks of queries and frames, reduced, and dropped; the backward pass computes
each chunk again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..config import SoftArgmax
from ..dtypes import HALF_PRECISION, wide_dtype


class Match(NamedTuple):
    """What `match` finds for every query in every frame, in float32 or float64."""

    cells: Tensor  # (B, N, T, 2) expected (x, y) in cells; the centre of the first cell is (0.5, 0.5)
    maximum: Tensor  # (B, N, T) of the similarity map
    mean: Tensor  # (B, N, T), no gradients
    minimum: Tensor  # (B, N, T), no gradients


def match(
    features: Tensor,  # (B, T, C, h, w)
    query_features: Tensor | None,  # (B, N, C)
    query_frames: Tensor | None,  # (B, N) integers
    query_cells: Tensor | None,  # (B, N, 2) (x, y) in cells
    soft_argmax: SoftArgmax,
    correlation_dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
) -> Match:
    """Finds every query in every frame.

    A query is given by its feature, or by frame and position, where its feature is then sampled bilinearly.

    Args:
        features: Dense features. They come to the queries' device chunk by chunk.
        query_features: The queries' features; or None, and then:
        query_frames, query_cells: where to sample them.
        soft_argmax: How positions are read from similarity maps.
        correlation_dtype: A half type rounds similarities to it; another type is widened to the features' own.
        memory_budget: Bytes that one chunk of similarities may take; None takes `default_budget`.
    """
    place = query_features if query_cells is None else query_cells
    assert place is not None
    budget = default_budget(place.device) if memory_budget is None else memory_budget
    settings = (soft_argmax.temperature, soft_argmax.radius, correlation_dtype, budget)
    with torch.autocast(place.device.type, enabled=False):  # which would round similarities to half precision
        return Match(*_Match.apply(features, query_features, query_frames, query_cells, *settings))


def default_budget(device: torch.device) -> int:
    """Bytes for one chunk of similarities: near what the caches of a CPU hold; on a GPU, enough to keep it busy."""
    return (48 if device.type == "cpu" else 256) * 2**20


def bilinear_corners(
    cells: Tensor,  # (N, 2) (x, y) in cells
    height: int,
    width: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four cells around each position as (row, column, weight), positions clamped to the outer cell centres."""
    x = (cells[:, 0] - 0.5).clamp(0, width - 1)
    y = (cells[:, 1] - 0.5).clamp(0, height - 1)
    left, top = x.floor(), y.floor()
    for row, row_weight in ((top, top + 1 - y), ((top + 1).clamp(max=height - 1), y - top)):
        for column, column_weight in ((left, left + 1 - x), ((left + 1).clamp(max=width - 1), x - left)):
            yield row.long(), column.long(), (row_weight * column_weight)[:, None]


def disc_offsets(
    radius: float,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Tensor:  # (K, 2) whole (x, y)
    """Offsets strictly shorter than `radius`, row by row, none longer than the grid."""
    radius = min(radius, math.hypot(height, width))  # of which the square is no problem
    reach = min(math.ceil(radius) - 1, max(height, width) - 1)
    steps = torch.arange(-reach, reach + 1, device=device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
    return offsets[offsets.square().sum(-1) < radius**2]


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        features: Tensor,
        query_features: Tensor | None,
        query_frames: Tensor | None,
        query_cells: Tensor | None,
        temperature: float,
        radius: float,
        correlation_dtype: torch.dtype,
        memory_budget: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, frames, _, height, width = features.shape
        wide = wide_dtype(features.dtype, correlation_dtype)
        if query_features is None:
            assert query_frames is not None and query_cells is not None
            samples = [sample_features(features[b], query_frames[b], query_cells[b], wide) for b in range(batch)]
            queries = torch.stack(samples)
        else:
            queries = query_features.to(wide)
        count = queries.shape[1]
        cells = queries.new_empty(batch, count, frames, 2)
        maximum, mean, minimum = (queries.new_empty(batch, count, frames) for _ in range(3))
        best = torch.empty(batch, count, frames, dtype=torch.long, device=queries.device)
        offsets = disc_offsets(radius, height, width, queries.device)

        frame_step, query_step = _steps(features, count, len(offsets), wide, memory_budget)
        for b, t in _slices(batch, frames, frame_step):
            chunk = _chunk(features[b, t], queries)
            for n in _pieces(count, query_step):
                maps = _similarity(queries[b, n], chunk, correlation_dtype)
                top, index = _maximum(maps)
                disc = _disc(maps, index, offsets, temperature)
                cells[b, n, t] = disc.expected.transpose(0, 1)
                maximum[b, n, t], best[b, n, t] = top.T.to(wide), index.T
                mean[b, n, t], minimum[b, n, t] = (v.T.to(wide) for v in (maps.mean((-2, -1)), maps.amin((-2, -1))))

        ctx.save_for_backward(features, query_features, query_frames, query_cells, queries, best)
        ctx.settings = (temperature, offsets, correlation_dtype, memory_budget)
        ctx.mark_non_differentiable(mean, minimum)
        return cells, maximum, mean, minimum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cells: Tensor, grad_maximum: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.autocast(grad_cells.device.type, enabled=False):
            return _Match._backward(ctx, grad_cells, grad_maximum)

    @staticmethod
    def _backward(ctx: Any, grad_cells: Tensor, grad_maximum: Tensor) -> tuple[Tensor | None, ...]:
        features, query_features, query_frames, query_cells, queries, best = ctx.saved_tensors
        temperature, offsets, correlation_dtype, memory_budget = ctx.settings
        (batch, frames, _, height, width), count, wide = features.shape, queries.shape[1], queries.dtype
        grad_features = None
        if ctx.needs_input_grad[0]:
            grad_features = torch.zeros(features.shape, dtype=wide, device=queries.device)
        grad_queries = torch.zeros_like(queries)

        frame_step, query_step = _steps(features, count, len(offsets), wide, memory_budget)
        for b, t in _slices(batch, frames, frame_step):
            chunk = _chunk(features[b, t], queries)
            for n in _pieces(count, query_step):
                maps = _similarity(queries[b, n], chunk, correlation_dtype)
                index = best[b, n, t].T
                disc = _disc(maps, index, offsets, temperature)
                outer = grad_cells[b, n, t].transpose(0, 1)[..., None, :]
                along = ((disc.positions - disc.expected[..., None, :]) * outer).sum(-1)
                # The gradient of a map is zero but for its disc and its best cell. It takes the map's own memory.
                grad_maps = maps.zero_() if maps.dtype == wide else torch.zeros_like(maps, dtype=wide)
                flat = grad_maps.flatten(2)
                flat.scatter_add_(-1, disc.flat, temperature * disc.weights * along)
                flat.scatter_add_(-1, index[..., None], grad_maximum[b, n, t].T[..., None].to(wide))
                grad_queries[b, n] += torch.bmm(flat, chunk.flatten(2).transpose(1, 2)).sum(0)
                if grad_features is not None:
                    grad_features[b, t] += _product(queries[b, n].T, grad_maps)

        if query_features is None and grad_features is not None:
            for b in range(batch):
                rows_last = grad_features[b].permute(0, 2, 3, 1)
                for row, column, weight in bilinear_corners(query_cells[b].to(wide), height, width):
                    rows_last.index_put_((query_frames[b], row, column), weight * grad_queries[b], accumulate=True)
        return (
            None if grad_features is None else grad_features.to(features.device, features.dtype),
            grad_queries.to(query_features.dtype) if ctx.needs_input_grad[1] else None,
            *(None,) * 6,
        )


class _Disc(NamedTuple):
    """The cells around the best one that take part in a position."""

    flat: Tensor  # (t, n, K) indices into the flattened map; out-of-grid cells point at the nearest one and weigh 0
    positions: Tensor  # (t, n, K, 2) (x, y) of the cells' centres
    weights: Tensor  # (t, n, K) softmax
    expected: Tensor  # (t, n, 2)


def _disc(
    maps: Tensor,  # (t, n, h, w)
    best: Tensor,  # (t, n)
    offsets: Tensor,  # (K, 2)
    temperature: float,
) -> _Disc:
    height, width = maps.shape[-2:]
    wide = wide_dtype(maps.dtype)
    x = (best % width)[..., None] + offsets[:, 0]
    y = (best // width)[..., None] + offsets[:, 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    near = maps.flatten(2).gather(-1, index)
    if maps.dtype == wide:
        near = near - maps.flatten(2).gather(-1, best[..., None])  # differences stay small, whatever the temperature
    logits = (near * temperature).to(wide)  # half precision rounds after the product, as the authors' code
    weights = logits.masked_fill(~inside, -math.inf).softmax(dim=-1)
    positions = torch.stack([x, y], dim=-1).to(wide) + 0.5
    return _Disc(index, positions, weights, torch.einsum("tnk,tnkc->tnc", weights, positions))


def _chunk(
    features: Tensor,  # (t, C, h, w)
    queries: Tensor,  # (..., C)
) -> Tensor:  # (t, C, h, w)
    """Features where the queries are and in their type."""
    chunk = features.to(queries.device).to(queries.dtype)  # half precision travels as it is
    return chunk.contiguous() if chunk.device.type == "cpu" else chunk


def _similarity(
    queries: Tensor,  # (n, C)
    chunk: Tensor,  # (t, C, h, w)
    correlation_dtype: torch.dtype,
) -> Tensor:  # (t, n, h, w), in the queries' type or rounded to a half type
    dtype = correlation_dtype if correlation_dtype in HALF_PRECISION else queries.dtype
    return _product(queries.to(dtype), chunk.to(dtype))


def _product(
    matrix: Tensor,  # (n, C)
    maps: Tensor,  # (t, C, h, w)
) -> Tensor:  # (t, n, h, w)
    """The matrix times the channels of every cell."""
    if maps.device.type == "cpu" and maps.dtype == torch.float32:
        # oneDNN's convolutions are up to twice as fast as the matrix products of PyTorch's BLAS on CPUs.
        return F.conv2d(maps, matrix[:, :, None, None])
    product = torch.bmm(matrix.expand(len(maps), -1, -1), maps.flatten(2))
    return product.unflatten(2, maps.shape[-2:])


def _maximum(
    maps: Tensor,  # (t, n, h, w)
) -> tuple[Tensor, Tensor]:
    """Each map's maximum and its first index: by rows, as a reduction without indices is much faster on CPUs."""
    top, row = maps.amax(dim=-1).max(dim=-1)
    column = maps.take_along_dim(row[..., None, None], dim=2).argmax(dim=-1)[..., 0]
    return top, row * maps.shape[-1] + column


def sample_features(
    features: Tensor,  # (T, C, h, w)
    frames: Tensor,  # (N,)
    cells: Tensor,  # (N, 2)
    dtype: torch.dtype,
) -> Tensor:  # (N, C), where the cells are
    """Features at positions, bilinear."""
    height, width = features.shape[-2:]
    rows_last = features.permute(0, 2, 3, 1)
    total = torch.zeros(len(frames), features.shape[1], dtype=dtype, device=cells.device)
    for row, column, weight in bilinear_corners(cells.to(dtype), height, width):
        where = (v.to(features.device) for v in (frames, row, column))
        total += rows_last[tuple(where)].to(total) * weight
    return total


def _steps(features: Tensor, count: int, disc: int, dtype: torch.dtype, memory_budget: int) -> tuple[int, int]:
    """Frames and queries at a time: one half of the budget for their features, the other for maps and discs."""
    frames, channels, height, width = features.shape[1:]
    item, cells = dtype.itemsize, height * width
    pair_bytes = cells * item + disc * (4 * 8 + 8 * item)  # a map, and what is gathered around its best cell
    frame_bytes = 2 * channels * cells * item  # features, and their gradient or a copy in another layout
    pairs = max(1, memory_budget // 2 // pair_bytes)
    pieces = math.ceil(count / pairs)
    query_step = math.ceil(count / max(1, pieces))
    frame_step = min(frames, pairs // max(1, query_step), memory_budget // 2 // frame_bytes)
    return max(1, frame_step), max(1, query_step)


def _slices(batch: int, frames: int, step: int) -> Iterator[tuple[int, slice]]:
    return ((b, t) for b in range(batch) for t in _pieces(frames, step))


def _pieces(size: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, size, step))
