"""Soft-argmax matching against the formula written out, and its promises on memory and precision."""

import random

import pytest
import torch
import torch.nn.functional as F

from chrono_features import soft_argmax_track
from chrono_features.ops.matching import bilinear_corners, disc_offsets


def literal(features, queries, image_size, query_features=None, temperature=20.0, radius=5.0):
    """The paper's formula with the full volume: similarity, softmax over all cells, disc mask, expected position."""
    _, frames, _, h, w = features.shape
    height, width = image_size
    if query_features is None:
        clips = []
        for clip, points in zip(features, queries, strict=True):
            where = torch.stack([2 * points[:, 1] / width - 1, 2 * points[:, 2] / height - 1], dim=-1).to(clip)
            samples = [
                F.grid_sample(clip[int(t)][None], xy.view(1, 1, 1, 2), align_corners=False, padding_mode="border")
                for t, xy in zip(points[:, 0], where, strict=True)
            ]
            clips.append(torch.stack(samples)[:, 0, :, 0, 0])
        query_features = torch.stack(clips)
    maps = torch.einsum("bnc,btchw->bnthw", query_features, features).flatten(3)
    probability = (maps * temperature).softmax(-1)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    cells = torch.stack([x, y], dim=-1).reshape(-1, 2).to(features) + 0.5
    near = (cells - cells[maps.argmax(-1)][..., None, :]).square().sum(-1) < radius**2
    masked = probability * near
    xy = (masked[..., None] * cells).sum(-2) / masked.sum(-1, keepdim=True)
    xy = xy * torch.tensor([width / w, height / h], dtype=features.dtype)
    if queries is not None:
        own = torch.arange(frames) == queries[..., :1]
        xy = torch.where(own[..., None], queries[:, :, None, 1:].to(xy), xy)
    return xy, maps.amax(-1)


def draw(seed, batch=None, count=None, frames=None, size=None):
    """Random unit-length features, queries at any frame, some on edges and corners of the image."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    batch, count, frames = batch or r.randint(1, 2), count or r.randint(1, 9), frames or r.randint(1, 6)
    h, w = size or (r.randint(1, 11), r.randint(1, 11))
    image_size = (r.uniform(10, 50), r.uniform(10, 50))
    features = F.normalize(torch.randn(batch, frames, r.randint(2, 9), h, w, dtype=torch.float64), dim=2)
    queries = torch.rand(batch, count, 3, dtype=torch.float64)
    queries[:, ::3, 1:].round_()
    queries *= torch.tensor([1.0, image_size[1], image_size[0]], dtype=torch.float64)
    queries[..., 0] = torch.randint(frames, (batch, count))
    return features, queries, image_size


def grads(tracks_or_pair, inputs, seed=0):
    xy, similarity = (
        tracks_or_pair if isinstance(tracks_or_pair, tuple) else (tracks_or_pair.xy, tracks_or_pair.similarity)
    )
    generator = torch.Generator().manual_seed(seed)
    total = sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64)).sum() for v in (xy, similarity))
    return torch.autograd.grad(total, inputs)


def close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_formula(seed):
    features, queries, image_size = draw(seed)
    features.requires_grad_()
    options = {"radius": (1.0, 2.5, 5.0, 40.0)[seed % 4], "temperature": (20.0, 3.0)[seed % 2]}
    expected = literal(features, queries, image_size, **options)
    tracks = soft_argmax_track(features, queries, image_size, **options)
    close(tracks.xy, expected[0], 1e-9)
    close(tracks.similarity, expected[1], 1e-9)
    close(grads(tracks, features)[0], grads(expected, features)[0], 1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_query_features_equal_the_formula(seed):
    """The caller's features are used as they are, and no frame is a query's own."""
    features, queries, image_size = draw(seed)
    wanted = torch.randn(*queries.shape[:2], features.shape[2], dtype=torch.float64).requires_grad_()
    features.requires_grad_()
    tracks = soft_argmax_track(features, None, image_size, query_features=wanted)
    expected = literal(features, None, image_size, wanted)
    close(tracks.xy, expected[0], 1e-9)
    close(tracks.similarity, expected[1], 1e-9)
    for ours, theirs in zip(grads(tracks, (features, wanted)), grads(expected, (features, wanted)), strict=True):
        close(ours, theirs, 1e-7)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_gradcheck(needs):
    features, _, image_size = draw(3, batch=1, frames=2, size=(3, 4))
    wanted = torch.randn(1, 2, features.shape[2], dtype=torch.float64)
    features, wanted = 0.1 * features.requires_grad_(needs[0]), wanted.requires_grad_(needs[1])
    assert torch.autograd.gradcheck(
        lambda f, q: soft_argmax_track(f, None, image_size, query_features=q, radius=2.5).xy, (features, wanted)
    )


def test_gradcheck_through_sampling():
    features, queries, image_size = draw(5, batch=2, count=2, frames=2, size=(3, 3))
    features = (0.1 * features).requires_grad_()

    def run(f):
        tracks = soft_argmax_track(f, queries, image_size)
        return tracks.xy, tracks.similarity

    assert torch.autograd.gradcheck(run, (features,), fast_mode=True)


LAYOUTS = {
    "channels last": (lambda f: f.permute(0, 1, 3, 4, 2), lambda f: f.permute(0, 1, 4, 2, 3)),
    "columns first": (lambda f: f.transpose(3, 4), lambda f: f.transpose(3, 4)),
    "frames last": (lambda f: f.permute(0, 2, 3, 4, 1), lambda f: f.permute(0, 4, 1, 2, 3)),
    "a crop": (lambda f: F.pad(f, (1, 2, 0, 3)), lambda f: f[..., : f.shape[3] - 3, 1:-2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_changes_nothing(layout):
    store, view = LAYOUTS[layout]
    features, queries, image_size = draw(7, batch=2, count=5, frames=3, size=(5, 6))
    plain = features.clone().requires_grad_()
    stored = store(features).contiguous().requires_grad_()
    expected, tracks = (soft_argmax_track(f, queries, image_size) for f in (plain, view(stored)))
    close(tracks.xy, expected.xy, 1e-12)
    close(view(grads(tracks, stored)[0]), grads(expected, plain)[0], 1e-10)


def test_the_same_features_for_all_frames_may_be_expanded():
    features, queries, image_size = draw(8, batch=1, count=4, frames=1, size=(5, 6))
    one = features.requires_grad_()
    ours = soft_argmax_track(one.expand(-1, 3, -1, -1, -1), queries, image_size)
    expected = literal(one.expand(-1, 3, -1, -1, -1), queries, image_size)
    close(grads(ours, one)[0], grads(expected, one)[0], 1e-7)


@pytest.mark.parametrize("budget", [1, 1000, 20_000, 10**9])
def test_the_budget_changes_nothing(budget):
    features, queries, image_size = draw(11, batch=2, count=9, frames=6, size=(7, 8))
    features.requires_grad_()
    expected = soft_argmax_track(features, queries, image_size)
    tracks = soft_argmax_track(features, queries, image_size, memory_budget=budget)
    close(tracks.xy, expected.xy, 1e-12)
    close(tracks.similarity, expected.similarity, 1e-12)
    close(grads(tracks, features)[0], grads(expected, features)[0], 1e-10)


def test_a_query_does_not_depend_on_the_others_or_their_order():
    features, queries, image_size = draw(12, batch=1, count=7, frames=5, size=(6, 6))
    every = soft_argmax_track(features, queries, image_size)
    order = torch.randperm(7)
    close(soft_argmax_track(features, queries[:, order], image_size).xy, every.xy[:, order], 1e-12)
    for n in range(7):
        close(soft_argmax_track(features, queries[:, n : n + 1], image_size).xy, every.xy[:, n : n + 1], 1e-12)


def test_the_query_is_returned_on_its_own_frame():
    features, queries, image_size = draw(13, batch=2, count=8, frames=4, size=(6, 6))
    tracks = soft_argmax_track(features, queries, image_size)
    own = tracks.xy.gather(2, queries[..., :1, None].long().expand(-1, -1, -1, 2))[:, :, 0]
    assert torch.equal(own, queries[..., 1:])


def test_coordinates_are_raster():
    """A feature found in one cell alone is tracked to the centre of that cell."""
    features = torch.zeros(1, 2, 2, 4, 8)
    features[0, :, 0, 1, 6] = 1
    tracks = soft_argmax_track(features, torch.tensor([[[0, 6.5 * 2, 1.5 * 3]]]), (12, 16), radius=1.0)
    assert tracks.xy[0, 0, 1].tolist() == [6.5 * 2, 1.5 * 3]


@pytest.mark.parametrize("winners", [[(2, 3), (4, 1)], [(0, 5), (1, 0), (4, 4)]])
def test_ties_go_to_the_first_cell(winners):
    features = torch.zeros(1, 1, 1, 5, 6)
    for row, column in winners:
        features[0, 0, 0, row, column] = 1
    tracks = soft_argmax_track(features, None, (5, 6), query_features=torch.ones(1, 1, 1), radius=1.0)
    row, column = min(winners)
    assert tracks.xy[0, 0, 0].tolist() == [column + 0.5, row + 0.5]


@pytest.mark.parametrize(("radius", "cells"), [(1.0, 1), (1.001, 5), (5.0, 69), (5.001, 81)])
def test_the_disc_is_strict(radius, cells):
    offsets = disc_offsets(radius, 64, 64)
    assert len(offsets) == cells and len(set(map(tuple, offsets.tolist()))) == cells
    assert (offsets.square().sum(-1) < radius**2).all()


def test_corners_weigh_one_in_total_and_stay_inside():
    cells = torch.rand(200, 2, dtype=torch.float64) * torch.tensor([7.0, 5.0])
    corners = list(bilinear_corners(cells, 5, 7))
    close(sum(weight for *_, weight in corners), torch.ones(200, 1, dtype=torch.float64), 1e-12)
    assert all(
        (row >= 0).all() and (row < 5).all() and (column >= 0).all() and (column < 7).all()
        for row, column, _ in corners
    )


# --- Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_accumulate_in_float32(dtype):
    """The result is that of the same rounded numbers in float32."""
    features, queries, image_size = draw(20, batch=1, count=9, frames=4, size=(9, 9))
    half = features.to(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    tracks, expected = (soft_argmax_track(f, queries, image_size) for f in (half, wide))
    assert tracks.xy.dtype == tracks.similarity.dtype == torch.float32
    close(tracks.xy, expected.xy, 1e-4)
    close(tracks.similarity, expected.similarity, 1e-6)
    gradient = grads(tracks, half)[0]
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), grads(expected, wide)[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_correlation_dtype_rounds_similarities(dtype):
    features, queries, image_size = draw(21, batch=1, count=9, frames=6, size=(11, 11))
    features = features.float()
    tracks = soft_argmax_track(features, queries, image_size, correlation_dtype=dtype)
    exact = soft_argmax_track(features, queries, image_size)
    assert torch.equal(tracks.similarity, tracks.similarity.to(dtype).float())
    assert not torch.equal(exact.similarity, tracks.similarity)
    assert tracks.xy.dtype == torch.float32
    torch.testing.assert_close(tracks.similarity, exact.similarity, rtol=0, atol=0.02)


def test_rounding_to_bfloat16_moves_the_argmax():
    """Two cells that bfloat16 cannot tell apart: the first wins, although the second is better."""
    features = torch.tensor([1.0, 1.001]).view(1, 1, 1, 1, 2)
    wanted = torch.ones(1, 1, 1)
    options = {"query_features": wanted, "radius": 1.0}
    assert soft_argmax_track(features, None, (1, 2), **options).xy[..., 0].item() == 1.5
    rounded = soft_argmax_track(features, None, (1, 2), **options, correlation_dtype=torch.bfloat16)
    assert rounded.xy[..., 0].item() == 0.5


def test_autocast_does_not_round_similarities():
    features, queries, image_size = draw(22, batch=1, count=9, frames=6, size=(11, 11))
    features = features.float().requires_grad_()
    expected = soft_argmax_track(features, queries, image_size)
    expected_grad = grads(expected, features)[0]
    with torch.autocast("cpu", torch.bfloat16):
        tracks = soft_argmax_track(features, queries, image_size)
        gradient = grads(tracks, features)[0]
    close(tracks.similarity, expected.similarity, 1e-6)
    close(tracks.xy, expected.xy, 1e-4)
    close(gradient, expected_grad, 1e-4)


def test_float64_stays_float64():
    features, queries, image_size = draw(23)
    assert soft_argmax_track(features, queries, image_size).xy.dtype == torch.float64
    assert soft_argmax_track(features.float(), queries, image_size).xy.dtype == torch.float32
    wider = soft_argmax_track(features.float(), queries, image_size, correlation_dtype=torch.float64)
    assert wider.similarity.dtype == torch.float64


def test_frame_indices_beyond_256_in_bfloat16_features():
    features = torch.zeros(1, 300, 2, 2, 2, dtype=torch.bfloat16)
    queries = torch.tensor([[[299.0, 0.3, 0.7]]])
    xy = soft_argmax_track(features, queries, (2, 2)).xy[0, 0]
    close(xy[299], torch.tensor([0.3, 0.7]), 0)
    assert not torch.equal(xy[298], xy[299])


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_allocations_sees_what_is_held(allocations):
    assert 8000 <= allocations(lambda: torch.zeros(1000).add(1)) < 8100


@pytest.mark.parametrize("count", [100, 400])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_memory_stays_within_the_budget(allocations, count, layout):
    """The volume of 100 queries would take 3.3 MB, that of 400 four times as much; a chunk may take 0.5 MB."""
    frames, channels, side, budget = 8, 8, 32, 2**19
    features = torch.randn(1, frames, channels, side, side)
    if layout == "channels last":
        features = features.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    features.requires_grad_()
    queries = torch.rand(1, count, 3) * 16
    queries[..., 0] = 0
    outputs = count * frames * (2 + 1 + 1 + 1 + 2) * 4  # positions, the map's statistics, the best cell
    results = []

    def forward():
        results.append(soft_argmax_track(features, queries, (side, side), memory_budget=budget))

    assert allocations(forward) < 2.5 * budget + 3 * outputs
    tracks = results[0]
    loss = tracks.xy.sum() + tracks.similarity.sum()
    gradient = features.numel() * 4
    assert allocations(lambda: torch.autograd.grad(loss, features)) < 2.5 * budget + gradient + 3 * outputs


def test_few_queries_on_half_precision_features_need_little_memory_too(allocations):
    """Features are widened chunk by chunk, not as a whole."""
    features = torch.randn(1, 64, 64, 16, 16, dtype=torch.bfloat16)
    queries = torch.rand(1, 2, 3).round()
    peak = allocations(lambda: soft_argmax_track(features, queries, (16, 16), memory_budget=2**18))
    assert peak < 2**20 < features.numel() * 4
