"""What holds for every result, whatever the sizes, types and settings: drawn at random, compared with itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing import check_features, check_tracks, examples
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import tiny

from chrono_features import ChronoBackbone, Tracks, grid_queries, soft_argmax_track
from chrono_features.labels import propagate_labels

pytestmark = pytest.mark.slow

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "token", "window": (2, 0)},
    {"mixer": "conv1d", "window": (0, 2), "neck": "x2"},
    {"mixer": "conv3d", "norm": "token", "stem": "conv"},
    {"adapter_blocks": "none"},
    {"adapter_stride": 2, "adapter_blocks": (0, 1), "pos_embed_resize": "dinov2", "input_size": (9, 15)},
]
MODELS = [tiny(**options).double() for options in VARIANTS]  # rounding hides nothing

models = st.sampled_from(MODELS)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 24)
grids = st.none() | st.tuples(st.integers(1, 6), st.integers(1, 6))
videos = st.tuples(st.integers(1, 3), st.integers(1, 7), st.just(3), sizes, sizes)
types = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
temperatures = st.floats(1e-3, 3e38)
radii = st.floats(1e-3, 1e6) | st.integers(1, 2**70)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed: int, batch: int, count: int, frames: int, size: tuple[int, int]) -> torch.Tensor:
    queries = draw(seed, batch, count, 3) * torch.tensor([frames - 1, size[1], size[0]])
    return torch.cat([queries[..., :1].round(), queries[..., 1:]], dim=-1)


def same(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def same_tracks(found: Tracks, expected: Tracks, tolerance: float = 1e-6) -> None:
    for name in ("xy", "similarity", "visible", "logits"):
        same(getattr(found, name), getattr(expected, name), tolerance)


@examples(40, 700)
@given(
    model=models,
    shape=videos,
    grid=grids,
    seed=seeds,
    step=st.integers(1, 9),
    dtype=st.sampled_from(["float", "uint8"]),
)
@torch.no_grad()
def test_features(model: ChronoBackbone, shape: tuple, grid: Any, seed: int, step: int, dtype: str) -> None:
    video = draw(seed, *shape)
    video = (255 * video).byte() if dtype == "uint8" else video
    features = model(video, grid)
    check_features(features)
    for b in range(len(video)):
        same(model(video[b : b + 1], grid), features[b : b + 1])
    same(model(video, grid, max_frames_in_memory=step), features)
    same(torch.cat(list(model.iter_features(video[0], grid, max_frames_in_memory=step)), dim=1), features[:1])


@examples(25, 400)
@given(model=models, shape=videos, grid=grids, seed=seeds, cuts=st.lists(st.integers(1, 4), min_size=7, max_size=7))
@torch.no_grad()
def test_streams(model: ChronoBackbone, shape: tuple, grid: Any, seed: int, cuts: list[int]) -> None:
    video = draw(seed, *shape)
    of_clip = any(adapter.norm_of_clip for adapter in model.adapters.values())
    stream = model.stream(model.clip_statistics(video, grid) if of_clip else None, grid=grid)
    out, start = [], 0
    for cut in cuts:
        if start < video.shape[1]:
            out.append(stream(video[:, start : start + cut]))
        start += cut
    same(torch.cat([*out, stream.flush()], dim=1), model(video, grid))


@examples(40, 700)
@given(
    model=models,
    shape=videos,
    count=st.integers(0, 6),
    seed=seeds,
    temperature=temperatures,
    radius=radii,
    budget=st.none() | st.integers(1, 10**6),
)
@torch.no_grad()
def test_tracks(
    model: ChronoBackbone, shape: tuple, count: int, seed: int, temperature: float, radius: float, budget: int | None
) -> None:
    video, size = draw(seed, *shape), (shape[3], shape[4])
    queries = points(seed + 1, shape[0], count, shape[1], size)
    options = {"temperature": temperature, "radius": radius, "memory_budget": budget}
    tracks = model.track(video, queries, **options)
    check_tracks(tracks, size, queries)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    same_tracks(model.track(video, queries[:, order], **options), tracks[:, order])
    for n in range(min(count, 2)):
        same_tracks(model.track(video, queries[:, n : n + 1], **options), tracks[:, n : n + 1])
    same_tracks(model.track(video[:1], queries[:1], **options), tracks[:1])
    same_tracks(model.track(video, queries, max_frames_in_memory=2, **options), tracks)


@examples(15, 200)
@given(shape=videos, count=st.integers(1, 4), seed=seeds, refine=st.sampled_from([None, "photometric"]))
@torch.no_grad()
def test_refined_and_sure_tracks(shape: tuple, count: int, seed: int, refine: str | None) -> None:
    video, size = draw(seed, *shape).float(), (shape[3], shape[4])
    queries = points(seed + 1, shape[0], count, shape[1], size)
    model = tiny()
    tracks = model.track(video, queries, refine=refine, confidence=True)
    check_tracks(tracks, (3 * size[0], 3 * size[1]) if refine else size)
    assert ((tracks.confidence >= 0) & (tracks.confidence <= 1)).all()


@examples(40, 700)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 5), sizes, sizes),
    scale=st.sampled_from([1.0, 1e-30, 1e-3, 1e6, 1e15]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    correlation=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    constant=st.booleans(),
    seed=seeds,
    temperature=temperatures,
    radius=radii,
)
def test_soft_argmax_of_any_features(
    shape: tuple,
    scale: float,
    dtype: Any,
    correlation: Any,
    constant: bool,
    seed: int,
    temperature: float,
    radius: float,
) -> None:
    features = (torch.ones(shape).double() if constant else draw(seed, *shape) - 0.5) * scale
    features = features.to(dtype)
    assume(features.isfinite().all() and ((dtype != torch.float16 and correlation != torch.float16) or scale < 10))
    if correlation.itemsize == 2:  # the product of the two is rounded to it
        temperature = min(temperature, 1e4)
    queries = points(seed + 1, shape[0], 3, shape[1], (16, 20))
    assume(not (correlation == torch.bfloat16 and scale > 1e6))
    tracks = soft_argmax_track(
        features, queries, (16, 20), temperature=temperature, radius=radius, correlation_dtype=correlation
    )
    check_tracks(tracks, (16, 20), queries)


@examples(25, 400)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 5), sizes, sizes),
    kinds=st.integers(1, 5),
    seed=seeds,
    context=st.integers(0, 2**70),
    neighbours=st.integers(1, 2**70),
    radius=st.none() | st.integers(0, 2**70),
    temperature=temperatures,
    colours=st.booleans(),
)
def test_labels(
    shape: tuple, kinds: int, seed: int, context: int, neighbours: int, radius: Any, temperature: float, colours: bool
) -> None:
    features = draw(seed, *shape) - 0.5
    labels = (kinds * draw(seed + 1, shape[0], 7, 9)).long()
    video = draw(seed + 2, shape[0], shape[1], 3, 7, 9) if colours else None
    options = {"context": context, "neighbours": neighbours, "radius": radius, "temperature": temperature}
    found = propagate_labels(features, labels, video=video, **options)
    assert ((found >= -1e-9) & (found <= 1 + 1e-9)).all()
    same(found.sum(2), torch.ones_like(found[:, :, 0]))  # every cell has its share of labels
    alone = propagate_labels(features[:1], labels[:1], video=None if video is None else video[:1], **options)
    kept = alone.shape[2]
    same(alone, found[:1, :, :kept])


@examples(25, 300)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), height=st.floats(1e-3, 2**24), width=st.floats(1e-3, 2**24))
def test_grids_of_queries(rows: int, columns: int, height: float, width: float) -> None:
    queries = grid_queries((rows, columns), (height, width), 2)
    assert queries.shape == (1, rows * columns, 3) and queries.isfinite().all()
    x, y = queries[0, :, 1:].unbind(-1)
    assert (x > 0).all() and (x < width).all() and (y > 0).all() and (y < height).all()
