"""Photometric refinement on textures that are known everywhere, so that frames and tracks are exact."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from chrono_features import Tracks, soft_argmax_track
from chrono_features.config import SoftArgmax
from chrono_features.evaluation.baselines import PatchFeatures
from chrono_features.refine import RefineOptions, refine_photometric

SIDE, FRAMES = 128, 8
GRID = (SIDE // 4, SIDE // 4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(xy, seed=0, shortest=9.0):
    """Colours (..., 3) at places (..., 2): plane waves, the shortest some pixels long, alike nowhere near."""
    draws = generator(seed)
    angles = 2 * math.pi * torch.rand(2, 3, 20, generator=draws, dtype=torch.float64)
    lengths = shortest * 8 ** torch.rand(3, 20, generator=draws, dtype=torch.float64)
    waves = 2 * math.pi / lengths * torch.stack([angles[0].cos(), angles[0].sin()])  # (2, 3, 20)
    phases = torch.einsum("...p,pck->...ck", xy.double(), waves) + angles[1]
    return 0.5 + 0.09 * phases.sin().sum(-1).clamp(-5, 5)


def places(warps, size, step=1):
    """Which places (T, H, W, 2) of the texture are seen at the middle of every step x step pixels."""
    y, x = (step * (torch.arange(side // step, dtype=torch.float64) + 0.5) for side in size)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return torch.einsum("tij,thwj->thwi", torch.linalg.inv(warps[:, :, :2]), pixels - warps[:, None, None, :, 2])


def film(warps, size=(SIDE, SIDE), **options):
    """Frames (T, 3, H, W) of the texture under each warp (2, 3) from its places to pixels."""
    return texture(places(warps, size), **options).permute(0, 3, 1, 2).float()


def truth(warps, queries):
    """(1, N, T, 2): where warps take what the queries show."""
    t, xy = queries[0, :, 0].long(), queries[0, :, 1:].double()
    shown = torch.einsum("nij,nj->ni", torch.linalg.inv(warps[t, :, :2]), xy - warps[t, :, 2])
    return (torch.einsum("tij,nj->nti", warps[:, :, :2], shown) + warps[:, :, 2])[None]


def shifts(frames=FRAMES, step=(1.37, -0.81)):
    moved = torch.arange(frames, dtype=torch.float64)[:, None] * torch.tensor(step, dtype=torch.float64)
    return torch.cat([torch.eye(2, dtype=torch.float64).repeat(frames, 1, 1), moved[..., None]], dim=2)


def spins(frames, angle, zoom, centre=SIDE / 2):
    """Turned by `angle` radians and made larger by `zoom` every frame, about a point."""
    t = torch.arange(frames, dtype=torch.float64)
    cos, sin = (zoom**t * f(angle * t) for f in (torch.cos, torch.sin))
    turns = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    middle = torch.tensor([centre, centre], dtype=torch.float64)
    return torch.cat([turns, (middle - turns @ middle)[..., None]], dim=2)


def some_queries(count=12, frames=FRAMES, seed=1, margin=20.0):
    draws = generator(seed)
    xy = margin + (SIDE - 2 * margin) * torch.rand(1, count, 2, generator=draws)
    return torch.cat([torch.randint(frames, (1, count, 1), generator=draws).float(), xy], dim=2)


def noise_features(batch=1, frames=FRAMES, grid=GRID, seed=2, dtype=torch.float32):
    """Features that say nothing."""
    return F.normalize(torch.randn(batch, frames, 8, *grid, generator=generator(seed)), dim=2).to(dtype)


def place_features(warps):
    """Features that know which place of the texture they show, whatever is in front of it."""
    waves = torch.randn(64, 2, generator=generator(6), dtype=torch.float64) / 12
    phases = places(warps, (SIDE, SIDE), step=4) @ waves.T + torch.arange(64)
    return F.normalize(phases.sin(), dim=-1).permute(0, 3, 1, 2).float()[None]


def off_by(xy, queries, most=1.4, seed=3, dtype=torch.float32):
    """Estimates that miss by up to `most` pixels along each axis, but for the queries' own frames."""
    wrong = most * (2 * torch.rand(xy.shape, generator=generator(seed), dtype=torch.float64) - 1)
    own = torch.arange(xy.shape[2]) == queries[..., :1]
    estimates = torch.where(own[..., None], queries[:, :, None, 1:].double(), xy + wrong).to(dtype)
    return Tracks(estimates, torch.ones(xy.shape[:-1], dtype=dtype))


def misses(tracks, xy):
    return (tracks.xy.double() - xy).norm(dim=-1)


@pytest.fixture(scope="module")
def moving():
    """A clip that moves by fractions of a pixel, queries in all its frames, the truth, and estimates that miss it."""
    warps, queries = shifts(), some_queries()
    xy = truth(warps, queries)
    return film(warps)[None], queries, xy, off_by(xy, queries)


# --- What it is good for ----------------------------------------------------------------------------------------------


def test_finds_moves_by_fractions_of_a_pixel(moving):
    """Forwards and backwards from queries in the middle."""
    video, queries, xy, tracks = moving
    assert {0, FRAMES - 1} & set(queries[0, :, 0].tolist()) and len(queries[0, :, 0].unique()) > 4
    found = refine_photometric(video, noise_features(), queries, tracks)
    assert misses(tracks, xy).max() > 1.5 and misses(tracks, xy).mean() > 0.8
    assert misses(found, xy).max() < 0.1
    own = torch.arange(FRAMES) == queries[..., :1]
    assert own.sum() == queries.shape[1]
    assert torch.equal(found.xy[own], queries[0, :, 1:]) and (found.correlation[own] == 1).all()
    assert (found.correlation > 0.99).all() and (found.correlation <= 1).all()
    assert found.similarity is tracks.similarity and found.visible is None and found.confidence is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("angle", "zoom", "start", "shake"),
    [(0.1, 1.0, 0, 0), (-0.1, 1.0, 12, 0), (0.0, 1.035, 0, 0), (0.07, 0.97, 23, 0), (0.1, 1.0, 0, 12)],
)
def test_follows_what_turns_and_grows(angle, zoom, start, shake):
    """Features of raw pixels do not know what they see once it is turned or larger; from frame to frame, they do."""
    warps = spins(24, angle, zoom)
    warps[::2, 0, 2] += shake
    draws = generator(4)
    around = 2 * math.pi * torch.rand(10, generator=draws)
    xy = SIDE / 2 + (6 + 18 * torch.rand(10, generator=draws))[:, None] * torch.stack([around.cos(), around.sin()], 1)
    queries = F.pad(xy, (1, 0), value=start)[None]
    video, expected = film(warps)[None], truth(warps, queries)
    features = PatchFeatures(15, GRID)(video)
    plain = soft_argmax_track(features, queries, (SIDE, SIDE), radius=3.0)
    found = refine_photometric(video, features, queries, plain, soft_argmax=SoftArgmax(radius=3.0))
    assert misses(plain, expected).max() > 5 and misses(plain, expected).mean() > 1
    assert misses(found, expected).max() < 0.3


def test_gain_and_bias_do_not_matter(moving):
    video, queries, xy, tracks = moving
    gain, bias = torch.linspace(1, 0.3, FRAMES), torch.linspace(0, 0.4, FRAMES)
    lit = video * gain[:, None, None, None] + bias[:, None, None, None]
    found = refine_photometric(lit, noise_features(), queries, tracks)
    assert misses(found, xy).max() < 0.1 and found.correlation.min() > 0.99
    same = refine_photometric(video, noise_features(), queries, tracks)
    torch.testing.assert_close(found.xy, same.xy, rtol=0, atol=0.02)


@pytest.mark.parametrize("pattern", ["noise", "grey"])
def test_what_passes_in_front_does_not_drag_a_point_away(pattern):
    """A disc larger than the patch comes along, covers it in two frames, and goes on its own way."""
    warps, queries = shifts(10), torch.tensor([[[0.0, 60.0, 64.0], [9.0, 72.0, 58.0]]])
    xy, video = truth(warps, queries), film(warps)[None]
    side = torch.arange(SIDE)
    disc = (side - 64) ** 2 + (side[:, None] - 60) ** 2 < 18**2
    cover = torch.rand(SIDE, SIDE, generator=generator(5)) if pattern == "noise" else torch.full((SIDE, SIDE), 0.4)
    for t in range(10):
        move = (8 * (t - 4), 11 * (4 - t) + 3)
        here, shown = (torch.roll(v, move, (0, 1)) for v in (disc, cover))
        video[0, t][:, here] = shown[here].float()
    tracks = off_by(xy, queries)
    found = refine_photometric(video, place_features(warps), queries, tracks, options=RefineOptions(query_memory=False))
    assert torch.equal(found.xy[:, :, 4], tracks.xy[:, :, 4]) and (found.correlation[:, :, 4] < 0.5).all()
    assert misses(found, xy).max() < 5
    assert misses(found, xy)[..., [0, 1, 2, 7, 8, 9]].max() < 0.1


def test_a_query_is_remembered_where_pixels_fail(moving):
    """The query's own frame shows its feature badly, others show it well; the last frames are as dark as can be."""
    video, _, _, _ = moving
    video, dark = video.clone(), torch.tensor([6, 7])
    video[:, dark] = 0
    queries = some_queries()
    queries[..., 0] = 0
    xy, features = truth(shifts(), queries), place_features(shifts())
    features[:, 0] = F.normalize(
        features[:, 0] + 0.2 * torch.randn(features[:, 0].shape, generator=generator(9)), dim=1
    )
    plain = soft_argmax_track(features, queries, (SIDE, SIDE), radius=3.0)
    without, found = (
        refine_photometric(
            video, features, queries, plain, soft_argmax=SoftArgmax(radius=3.0), options=RefineOptions(query_memory=on)
        )
        for on in (False, True)
    )
    sure = without.correlation >= RefineOptions().sure_correlation
    assert sure[..., :6].all() and not sure[..., dark].any()
    assert torch.equal(found.xy[sure], without.xy[sure]) and torch.equal(
        without.xy[..., dark, :], plain.xy[..., dark, :]
    )
    assert misses(without, xy)[..., dark].mean() > 2 * misses(found, xy)[..., dark].mean()
    assert misses(found, xy)[..., dark].max() < 2


# --- Where it does nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_nothing_changes_where_nothing_is_to_be_seen(moving, value):
    _, queries, _, tracks = moving
    flat = torch.full((1, FRAMES, 3, SIDE, SIDE), value)
    found = refine_photometric(flat, noise_features(), queries, tracks)
    assert torch.equal(found.xy, tracks.xy) and found.correlation.isfinite().all()
    own = torch.arange(FRAMES) == queries[..., :1]
    assert found.correlation[~own].abs().max() < 0.5 and (found.correlation[own] == 1).all()


def test_black_frames_are_passed_by(moving):
    video, queries, xy, tracks = moving
    video, black = video.clone(), torch.tensor([2, 3])
    video[:, black] = 0
    found = refine_photometric(video, noise_features(), queries, tracks, options=RefineOptions(query_memory=False))
    assert found.xy.isfinite().all() and found.correlation.isfinite().all()
    assert torch.equal(found.xy[:, :, black], tracks.xy[:, :, black])
    seeing = ~torch.isin(queries[0, :, 0].long(), black)
    others = [t for t in range(FRAMES) if t not in black]
    assert seeing.any() and misses(found, xy)[0, seeing][:, others].max() < 0.1
    assert torch.equal(found.xy[0, ~seeing], tracks.xy[0, ~seeing])


def test_estimates_that_are_refused_stay_to_the_bit():
    """Other pictures in every frame; the size is such that positions there and back would be rounded."""
    frames = torch.cat([film(shifts(1), seed=s) for s in range(FRAMES)])
    video = F.interpolate(frames, (93, 117), mode="bilinear")[None]
    queries = some_queries() * torch.tensor([1, 117 / SIDE, 93 / SIDE])
    tracks = off_by(queries[:, :, None, 1:].double().expand(-1, -1, FRAMES, -1), queries)
    found = refine_photometric(video, noise_features(), queries, tracks, options=RefineOptions(query_memory=False))
    refused = found.correlation < 0.5
    assert 0.3 < refused.float().mean() < 0.7
    assert torch.equal(found.xy[refused], tracks.xy[refused])


def grey_patches(xy, **options):
    """(N, 441) grey values around points of the texture, weighted mean 0 and square 1, and the weights."""
    side = torch.arange(-10, 11, dtype=torch.float64)
    around = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    weights = torch.exp(-around.square().sum(-1) / (2 * 7.0**2))
    weights = weights / weights.sum()
    values = texture(xy[:, None] + around, **options) @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    values = values - values @ weights[:, None]
    return values / (values.square() @ weights[:, None]).sqrt(), weights


def test_correlation_is_that_of_the_weighted_patches():
    """Of the estimate where it stays, and better where it does not."""
    video = torch.cat([film(shifts(1), seed=s) for s in (0, 1)])[None]
    queries = some_queries(count=40, frames=1)
    tracks = off_by(queries[:, :, None, 1:].double().expand(-1, -1, 2, -1), queries, most=5.0)
    found = refine_photometric(video, noise_features(frames=2), queries, tracks)
    (own, weights), (there, _) = (grey_patches(tracks.xy[0, :, t], seed=t) for t in (0, 1))
    expected = (own * there) @ weights
    stays = (found.xy == tracks.xy).all(-1)[0, :, 1]
    assert 5 < stays.sum() < 35
    torch.testing.assert_close(found.correlation[0, stays, 1].double(), expected[stays], rtol=0, atol=0.02)
    assert (found.correlation[0, ~stays, 1] > expected[~stays] - 0.02).all()
    assert (found.correlation[0, stays, 1] < 0.5).any() and (found.correlation[0, ~stays, 1] >= 0.5).all()


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_from_minus_1_to_1(seed):
    """A still clip fits perfectly, its negative as badly as can be."""
    still = film(shifts(1), seed=seed)
    video, queries = torch.cat([still, still, 1 - still])[None], some_queries(count=40, frames=1, margin=0)
    tracks = Tracks(queries[:, :, None, 1:].repeat(1, 1, 3, 1), torch.ones(1, 40, 3))
    found = refine_photometric(
        video, noise_features(frames=3), queries, tracks, options=RefineOptions(query_memory=False)
    )
    assert (found.correlation.abs() <= 1).all()
    assert (found.correlation[..., 0] == 1).all() and found.correlation[..., 1].min() > 0.9999
    torch.testing.assert_close(found.xy[:, :, 1], tracks.xy[:, :, 1], rtol=0, atol=1e-3)
    assert found.correlation[..., 2].min() < -0.9 and torch.equal(found.xy[:, :, 0], tracks.xy[:, :, 0])


# --- Queries and clips apart ------------------------------------------------------------------------------------------


def test_queries_do_not_depend_on_each_other(moving):
    video, queries, _, tracks = moving
    features = PatchFeatures(grid=GRID)(video)
    together = refine_photometric(video, features, queries, tracks)
    for n in ([0], [5, 2], [11, 10, 9, 1]):
        alone = refine_photometric(video, features, queries[:, n], tracks[:, n])
        torch.testing.assert_close(alone.xy, together.xy[:, n], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.correlation, together.correlation[:, n], rtol=0, atol=1e-5)


def test_clips_do_not_depend_on_each_other(moving):
    video, queries, xy, tracks = moving
    warps = shifts(step=(-0.6, 1.1))
    video, features = torch.cat([video, film(warps, seed=7)[None]]), noise_features(batch=2)
    own = some_queries(seed=8)
    queries, xy = torch.cat([queries, own]), torch.cat([xy, truth(warps, own)])
    tracks = off_by(xy, queries)
    together = refine_photometric(video, features, queries, tracks)
    assert misses(together, xy).max() < 0.1
    for b in range(2):
        part = slice(b, b + 1)
        alone = refine_photometric(video[part], features[part], queries[part], tracks[part])
        assert torch.equal(alone.xy, together.xy[part]) and torch.equal(alone.correlation, together.correlation[part])


def test_one_set_of_queries_serves_all_clips(moving):
    video, queries, _, tracks = moving
    video, features = torch.cat([video, video.flip(1)]), noise_features(batch=2)
    both = Tracks(tracks.xy.repeat(2, 1, 1, 1), tracks.similarity.repeat(2, 1, 1))
    found = refine_photometric(video, features, queries, both)
    repeated = refine_photometric(video, features, queries.repeat(2, 1, 1), both)
    assert found.xy.shape == both.xy.shape and torch.equal(found.xy, repeated.xy)


# --- Any size and type ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((96, 144), (24, 36)), ((110, 190), (32, 32)), ((200, 120), (40, 20))])
def test_videos_of_any_size(size, grid):
    """Positions are in pixels of the video, however many of them a cell has."""
    warps, longest = shifts(), max(side / (4 * cells) for side, cells in zip(size, grid, strict=True))
    video = film(warps, size, shortest=9 * longest)[None]
    queries = some_queries() * torch.tensor([1, size[1] / SIDE, size[0] / SIDE])
    xy = truth(warps, queries)
    found = refine_photometric(video, noise_features(grid=grid), queries, off_by(xy, queries))
    assert misses(found, xy).max() < 0.1


def test_uint8_is_float_times_255(moving):
    video, queries, xy, tracks = moving
    whole = (255 * video).round().byte()
    found = refine_photometric(whole, noise_features(), queries, tracks)
    same = refine_photometric(whole.float() / 255, noise_features(), queries, tracks)
    torch.testing.assert_close(found.xy, same.xy, rtol=0, atol=0.01)
    assert misses(found, xy).max() < 0.1


@pytest.mark.parametrize("scale", [1, 255])
def test_what_is_fainter_than_noise_does_not_count(moving, scale):
    """Single pixels that are brighter by 1 of 255, in the same places in all frames."""
    _, queries, _, _ = moving
    faint = 100 + (torch.rand(1, 1, 1, SIDE, SIDE, generator=generator(5)) < 0.02).byte().repeat(1, FRAMES, 3, 1, 1)
    tracks = off_by(queries[:, :, None, 1:].double().expand(-1, -1, FRAMES, -1), queries)
    found = refine_photometric(faint if scale == 255 else faint / 255, noise_features(), queries, tracks)
    assert torch.equal(found.xy, tracks.xy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_and_videos_in_half_precision(moving, dtype):
    video, queries, xy, tracks = moving
    found = refine_photometric(video.to(dtype), noise_features(dtype=dtype), queries, tracks)
    assert found.xy.dtype == found.correlation.dtype == torch.float32
    assert misses(found, xy).max() < 0.1


def test_double_precision(moving):
    video, queries, xy, tracks = moving
    single = refine_photometric(video, noise_features(), queries, tracks)
    found = refine_photometric(
        video.double(), noise_features(dtype=torch.float64), queries.double(), tracks.to(torch.float64)
    )
    assert found.xy.dtype == found.correlation.dtype == torch.float64
    assert misses(found, xy).max() < 0.1
    torch.testing.assert_close(found.xy, single.xy.double(), rtol=0, atol=0.01)
    assert not torch.equal(found.xy.float().double(), found.xy)


@pytest.mark.slow
def test_autocast_does_not_round(moving):
    video, queries, _, tracks = moving
    features = PatchFeatures(grid=GRID)(video)
    expected = refine_photometric(video, features, queries, tracks)
    with torch.autocast("cpu", torch.bfloat16):
        found = refine_photometric(video, features, queries, tracks)
    assert torch.equal(found.xy, expected.xy) and found.correlation.dtype == torch.float32


@pytest.mark.parametrize("corner", [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE), (SIDE / 2, 0)])
def test_queries_on_the_border(moving, corner):
    video = moving[0]
    queries = torch.tensor([[[3.0, *corner]]])
    tracks = Tracks(queries[:, :, None, 1:].repeat(1, 1, FRAMES, 1), torch.ones(1, 1, FRAMES))
    found = refine_photometric(
        video, PatchFeatures(grid=GRID)(video), queries, tracks, options=RefineOptions(query_memory=False)
    )
    assert found.xy.isfinite().all() and found.correlation.isfinite().all()
    assert found.xy[0, 0, 3].tolist() == list(corner)
    assert (found.xy - tracks.xy).abs().max() < 20


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("frames", [1, 4])
def test_no_queries_and_one_frame(count, frames):
    video, queries = film(shifts(frames))[None], some_queries(count, frames)
    tracks = Tracks(queries[:, :, None, 1:].repeat(1, 1, frames, 1), torch.ones(1, count, frames))
    found = refine_photometric(video, noise_features(frames=frames), queries, tracks)
    assert found.xy.shape == (1, count, frames, 2) and found.correlation.shape == (1, count, frames)
    if frames == 1:
        assert torch.equal(found.xy, tracks.xy) and (found.correlation == 1).all()


def test_nothing_is_changed_in_place_and_no_gradients_are_kept(moving):
    video, queries, _, tracks = moving
    inputs = [video, noise_features().requires_grad_(), queries, tracks.xy]
    before = [v.detach().clone() for v in inputs]
    found = refine_photometric(*inputs[:3], tracks)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert not found.xy.requires_grad and not found.correlation.requires_grad


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(1, FRAMES, 1, SIDE, SIDE)}, r"video of shape"),
        ({"video": torch.full((1, FRAMES, 3, SIDE, SIDE), 2.0)}, r"video with values"),
        ({"features": torch.zeros(1, FRAMES, 8, 4)}, r"features of shape"),
        ({"features": torch.zeros(1, FRAMES - 1, 8, 4, 4)}, r"features of shape \(1, 7, 8, 4, 4\); expected"),
        ({"features": torch.zeros(2, FRAMES, 8, 4, 4)}, r"features of shape \(2, 8, 8, 4, 4\); expected"),
        ({"features": torch.zeros(1, FRAMES, 8, 4, 4, dtype=torch.int32)}, "features of type"),
        ({"queries": torch.zeros(1, 2)}, "queries of shape"),
        ({"queries": torch.tensor([[[FRAMES, 1.0, 1.0]]])}, r"queries\[0, 0\]"),
        ({"queries": torch.tensor([[[0, 1.0, SIDE + 1]]])}, r"queries\[0, 0\]"),
        ({"queries": torch.zeros(1, 3, 3)}, r"tracks\.xy of shape \(1, 12, 8, 2\); expected \(1, 3, 8, 2\)"),
        ({"soft_argmax": 3.0}, "soft_argmax=3.0; expected a SoftArgmax"),
        ({"options": {}}, "options={}; expected a RefineOptions"),
    ],
)
def test_errors_name_the_argument(moving, change, message):
    video, queries, _, tracks = moving
    arguments = {"video": video, "features": noise_features(), "queries": queries, "tracks": tracks, **change}
    with pytest.raises(ValueError, match=message):
        refine_photometric(**arguments)
