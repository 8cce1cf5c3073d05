from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from chrono_features import ChronoConfig, Tracks, soft_argmax_track
from chrono_features import confidence as module
from chrono_features.confidence import SIGNALS, confidence_weights, fit, probability, track_signals, with_confidence

SIZE, GRID = (60, 96), (6, 8)  # (height, width) in pixels and in cells: cells of 12 x 10 pixels
OPTIONS = {"temperature": 9.0, "radius": 2.5}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed=0, batch=2, frames=4, count=5, grid=GRID, size=SIZE, dtype=torch.float64):
    """Features, queries in several frames, and tracks anywhere, a little outside of the frame too."""
    draws = generator(seed)
    features = F.normalize(torch.randn(batch, frames, 6, *grid, generator=draws, dtype=torch.float64), dim=2)
    pixels = torch.tensor(size[::-1], dtype=torch.float64)
    t = torch.randint(frames, (batch, count, 1), generator=draws).double()
    t[:, :2] = torch.tensor([[0.0], [frames - 1]])
    xy = pixels * torch.rand(batch, count, 2, generator=draws, dtype=torch.float64)
    found = pixels * (1.2 * torch.rand(batch, count, frames, 2, generator=draws, dtype=torch.float64) - 0.1)
    similarity = torch.rand(batch, count, frames, generator=draws)
    return features.to(dtype), torch.cat([t, xy], dim=2), Tracks(found.to(dtype), similarity)


# --- A twin in plain Python -------------------------------------------------------------------------------------------


def at(frame, x, y):
    """A frame's feature (C, h, w) at (x, y) in cells, between the four nearest centres."""
    rows, columns = frame.shape[-2:]
    x, y = min(max(x - 0.5, 0), columns - 1), min(max(y - 0.5, 0), rows - 1)
    total = 0
    for row in range(rows):
        for column in range(columns):
            weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
            total = total + weight * frame[:, row, column]
    return total


def apart(x, y, row, column):
    return math.hypot(column + 0.5 - x, row + 0.5 - y)


def soft_argmax(similarities, temperature, radius):
    """(x, y) in cells: the mean of the cells around the best one, by their softmax."""
    cells = [divmod(i, similarities.shape[1]) for i in range(similarities.numel())]
    top, left = cells[similarities.argmax()]
    near = [(r, c) for r, c in cells if math.hypot(r - top, c - left) < radius]
    weights = torch.tensor([similarities[r, c] for r, c in near]).mul(temperature).softmax(0).tolist()
    x, y = (sum(w * (cell[axis] + 0.5) for w, cell in zip(weights, near, strict=True)) for axis in (1, 0))
    return x, y


def signals_of(features, query, place, t, size, temperature, radius):
    """The four signals of one query at one place in frame t; all of one clip, in float64."""
    rows, columns = features.shape[-2:]
    wide, high = size[1] / columns, size[0] / rows
    own = at(features[int(query[0])], query[1] / wide, query[2] / high)
    here = place[0] / wide, place[1] / high
    seen = at(features[t], *here)
    similarities = torch.einsum("c,chw->hw", own, features[t])
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    rivals = [similarities[r, c].item() for r, c in cells if apart(*here, r, c) >= radius]
    similarity = (own @ seen).item()
    p = (temperature * similarities).flatten().softmax(0)
    entropy = -(p * p.log()).sum().item() / math.log(rows * columns)
    x, y = soft_argmax(torch.einsum("c,chw->hw", seen, features[int(query[0])]), temperature, radius)
    error = math.hypot((x * wide - query[1]) * 256 / size[1], (y * high - query[2]) * 256 / size[0])
    margin = similarity - max(rivals) if rivals else 0.0
    return [similarity, margin, entropy, math.log(1 + min(error, 32) / 4)]


@pytest.mark.parametrize(
    "options", [OPTIONS, {"temperature": 20.0, "radius": 5.0}, {"temperature": 3.0, "radius": 1.0}]
)
def test_signals_equal_a_twin(options):
    features, queries, tracks = draw()
    found = track_signals(features, queries, tracks, SIZE, **options)
    assert found.shape == (2, 5, 4, len(SIGNALS)) and found.dtype == torch.float32
    for b in range(2):
        for n in range(5):
            for t in range(4):
                place = tracks.xy[b, n, t].tolist()
                expected = signals_of(features[b], queries[b, n].tolist(), place, t, SIZE, **options)
                assert found[b, n, t].tolist() == pytest.approx(expected, abs=1e-5), (b, n, t)


def test_defaults_are_those_of_soft_argmax():
    features, queries, tracks = draw()
    expected = track_signals(features, queries, tracks, SIZE, temperature=20.0, radius=5.0)
    assert torch.equal(track_signals(features, queries, tracks, SIZE), expected)


def test_a_disc_that_covers_everything_leaves_no_margin():
    features, queries, tracks = draw()
    found = track_signals(features, queries, tracks, SIZE, radius=100.0)
    assert (found[..., SIGNALS.index("margin")] == 0).all() and found.isfinite().all()


def test_perfect_tracks_come_back_and_lost_ones_do_not():
    """Every cell has a feature of its own."""
    features = torch.eye(48).reshape(1, 1, 48, *GRID).repeat(1, 3, 1, 1, 1)
    queries = torch.tensor([[[1.0, 30.0, 25.0], [0.0, 90.0, 55.0]]])  # centres of cells
    good = Tracks(queries[:, :, None, 1:].repeat(1, 1, 3, 1), torch.ones(1, 2, 3))
    lost = Tracks(good.xy.flip(1), good.similarity)
    options = {"temperature": 50.0, "radius": 1.0}
    expected = {"similarity": (1, 0), "margin": (1, -1), "entropy": (0, 0), "cycle error": (0, math.log(9))}
    for n, tracks in enumerate((good, lost)):
        signals = track_signals(features, queries, tracks, SIZE, **options)
        for name, values in expected.items():
            torch.testing.assert_close(
                signals[..., SIGNALS.index(name)], torch.full((1, 2, 3), float(values[n])), rtol=0, atol=1e-3
            )


def test_cells_that_are_all_alike_have_entropy_1():
    features, queries, tracks = draw(dtype=torch.float32)
    signals = track_signals(torch.ones_like(features), queries, tracks, SIZE)
    torch.testing.assert_close(signals[..., SIGNALS.index("entropy")], torch.ones(2, 5, 4), rtol=0, atol=1e-5)
    one = track_signals(features[..., :1, :1], queries, tracks, SIZE)
    assert one.isfinite().all() and (one[..., SIGNALS.index("entropy")] == 0).all()


def test_the_correlation_of_refined_tracks_is_a_fifth_signal():
    features, queries, tracks = draw()
    correlation = torch.rand(2, 5, 4, generator=generator(1)) * 2 - 1
    found = track_signals(features, queries, Tracks(tracks.xy, tracks.similarity, correlation=correlation), SIZE)
    assert torch.equal(found[..., :4], track_signals(features, queries, tracks, SIZE))
    torch.testing.assert_close(found[..., 4], correlation)


def test_queries_clips_and_chunks_do_not_show(monkeypatch):
    features, queries, tracks = draw(dtype=torch.float32)
    together = track_signals(features, queries, tracks, SIZE, **OPTIONS)
    for b in range(2):
        part = slice(b, b + 1)
        alone = track_signals(features[part], queries[part, 2:4], tracks[part, 2:4], SIZE, **OPTIONS)
        torch.testing.assert_close(alone, together[part, 2:4], rtol=0, atol=1e-5)
    monkeypatch.setattr(module, "default_budget", lambda device: 1)
    torch.testing.assert_close(track_signals(features, queries, tracks, SIZE, **OPTIONS), together, rtol=0, atol=1e-5)


def test_one_set_of_queries_serves_all_clips():
    features, queries, tracks = draw()
    found = track_signals(features, queries[:1], tracks, SIZE)
    assert torch.equal(found, track_signals(features, queries[:1].repeat(2, 1, 1), tracks, SIZE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision(dtype):
    """They are rounded, but nothing else is."""
    features, queries, tracks = draw(dtype=torch.float32)
    found = track_signals(features.to(dtype), queries, tracks, SIZE, **OPTIONS)
    expected = track_signals(features.to(dtype).float(), queries, tracks, SIZE, **OPTIONS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_autocast_does_not_round():
    features, queries, tracks = draw(dtype=torch.float32)
    expected = track_signals(features, queries, tracks, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        found = track_signals(features, queries, tracks, SIZE)
        sure = probability(found, (0.1, 1.7, -3.0, 2.1, 0.3))
    assert torch.equal(found, expected) and torch.equal(sure, probability(expected, (0.1, 1.7, -3.0, 2.1, 0.3)))


@pytest.mark.parametrize(("count", "frames"), [(0, 4), (0, 1), (3, 1)])
def test_no_queries_and_one_frame(count, frames):
    features, queries, tracks = (v[:, :count] if i else v for i, v in enumerate(draw(frames=frames)))
    assert track_signals(features, queries, tracks, SIZE).shape == (2, count, frames, 4)
    sure = with_confidence(tracks, features, queries, SIZE, (0.0, 1.0, 1.0, 1.0, 1.0))
    assert sure.confidence.shape == sure.visible.shape == (2, count, frames)


def test_no_gradients_are_kept_and_nothing_is_changed_in_place():
    features, queries, tracks = draw(dtype=torch.float32)
    before = features.clone(), queries.clone(), tracks.xy.clone()
    assert not track_signals(features.requires_grad_(), queries, tracks, SIZE).requires_grad
    assert all(torch.equal(a, b) for a, b in zip((features, queries, tracks.xy), before, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 4, 6, 8)}, "features of shape"),
        ({"features": torch.zeros(2, 3, 6, *GRID)}, r"queries\[0, 1\]"),
        ({"features": torch.zeros(2, 5, 6, *GRID)}, r"tracks\.xy of shape \(2, 5, 4, 2\); expected \(2, 5, 5, 2\)"),
        ({"queries": torch.zeros(2, 3, 3)}, r"tracks\.xy of shape \(2, 5, 4, 2\); expected \(2, 3, 4, 2\)"),
        ({"queries": torch.zeros(3, 5, 3)}, "queries of shape"),
        ({"image_size": 60}, "image_size=60"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"radius": math.nan}, "radius=nan"),
    ],
)
def test_errors_name_the_argument(change, message):
    features, queries, tracks = draw()
    arguments = {"features": features, "queries": queries, "tracks": tracks, "image_size": SIZE, **change}
    with pytest.raises(ValueError, match=message):
        track_signals(**arguments)


# --- The model of a confidence ----------------------------------------------------------------------------------------


def test_probability_is_the_logistic_function_of_a_weighted_sum():
    signals = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    expected = [1 / (1 + math.exp(-(0.5 + 2 * a - 3 * b))) for a, b in signals.tolist()]
    assert probability(signals, (0.5, 2, -3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert probability(signals[None, None], (0.5, 2, -3)).shape == (1, 1, 3)


def test_fit_finds_the_weights_that_data_were_drawn_with():
    weights = (-1.0, 3.0, 0.0, -2.0, 0.7)
    signals = torch.randn(100_000, 4, generator=generator(0))
    good = torch.rand(100_000, generator=generator(1)) < probability(signals, weights)
    found = fit(signals, good)
    assert all(type(w) is float for w in found)
    assert found == pytest.approx(weights, abs=0.06)
    assert fit(signals, ~good) == pytest.approx([-w for w in found], abs=1e-3)


def test_fit_makes_what_happened_most_likely():
    """No weights close by explain small data better."""
    signals = torch.randn(60, 2, generator=generator(2), dtype=torch.float64)
    good = torch.rand(60, generator=generator(3)) < probability(signals, (0.3, 1.0, -1.0))

    def loss(weights):
        return F.binary_cross_entropy(probability(signals, weights), good.double()).item()

    found = fit(signals, good)
    for i in range(3):
        for step in (-0.05, 0.05):
            assert loss([w + step * (i == j) for j, w in enumerate(found)]) > loss(found)


def test_fit_of_data_that_come_apart_is_finite():
    signals = torch.linspace(-1, 1, 100)[:, None]
    found = fit(signals, signals[:, 0] > 0.1)
    assert all(map(math.isfinite, found)) and found[1] > 10
    assert ((probability(signals, found) > 0.5) == (signals[:, 0] > 0.1)).all()


@pytest.mark.parametrize("value", [True, False])
def test_fit_refuses_what_is_all_alike(value):
    with pytest.raises(ValueError, match=f"good is {value} for all 7 points"):
        fit(torch.randn(7, 4), torch.full((7,), value))


def test_visible_follows_from_confidence():
    features, queries, tracks = draw(count=40)
    weights = (-0.8, 1.0, 2.0, -0.5, -0.3)
    tracks = Tracks(tracks.xy, tracks.similarity, torch.ones(2, 40, 4, dtype=torch.bool), torch.zeros(2, 40, 4, 2))
    found = with_confidence(tracks, features, queries, SIZE, weights, 0.3, **OPTIONS)
    signals = track_signals(features, queries, tracks, SIZE, **OPTIONS)
    torch.testing.assert_close(found.confidence, probability(signals, weights))
    assert torch.equal(found.visible, found.confidence >= 0.3) and 0 < found.visible.sum() < found.visible.numel()
    assert found.xy is tracks.xy and found.similarity is tracks.similarity and found.logits is tracks.logits
    assert tracks.confidence is None


def test_calibrated_confidence_is_high_where_tracks_are_right():
    """Fitted to some tracks of noisy features, on others."""

    def sample(seed):
        draws = generator(seed)
        still = F.normalize(torch.randn(1, 1, 16, 12, 12, generator=draws), dim=2)
        noise = torch.linspace(0.3, 5, 12)[:, None, None, None] * torch.randn(1, 12, 16, 12, 12, generator=draws) / 4
        features = F.normalize(still + noise, dim=2)
        queries = F.pad(10 + 76 * torch.rand(1, 60, 2, generator=draws), (1, 0))
        tracks = soft_argmax_track(features, queries, (96, 96), radius=2.0)
        signals = track_signals(features, queries, tracks, (96, 96), radius=2.0)
        return signals, (tracks.xy - queries[:, :, None, 1:]).norm(dim=-1) < 4

    signals, good = sample(0)
    weights = fit(signals.flatten(0, -2), good.flatten())
    signals, good = sample(1)
    confidence = probability(signals, weights)
    assert 0.1 < good.float().mean() < 0.9
    assert confidence[good].mean() > confidence[~good].mean() + 0.2
    assert abs(confidence.mean() - good.float().mean()) < 0.05


def test_weights_are_those_of_the_configuration():
    config = ChronoConfig(confidence=(1, 2, 3, 4, 5), refined_confidence=(1, 2, 3, 4, 5, 6))
    assert confidence_weights(config, refined=False) == (1, 2, 3, 4, 5)
    assert confidence_weights(config, refined=True) == (1, 2, 3, 4, 5, 6)
    with pytest.raises(ValueError, match="whose confidence is None; expected a calibrated one"):
        confidence_weights(config.replace(confidence=None), refined=False)
    with pytest.raises(ValueError, match="whose refined_confidence is None"):
        confidence_weights(config.replace(refined_confidence=None), refined=True)
