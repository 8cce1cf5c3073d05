"""Arguments that are refused by name, or that give the right value where they once gave NaN or a traceback."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chrono_features import ChronoConfig, Tracks, checks, grid_queries, soft_argmax_track
from chrono_features.adapter import TemporalAdapter
from chrono_features.confidence import fit, probability, track_signals
from chrono_features.labels import propagate_labels
from chrono_features.layers import VisibilityHead
from chrono_features.refine import refine_photometric

SIZE = (10, 12)
QUERIES = torch.tensor([[[0.0, 3.0, 4.0], [1.0, 12.0, 10.0]]])


@pytest.fixture
def features():
    drawn = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(drawn, dim=2)


UNUSUAL = {
    "sparse": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.flatten(0, -2).to_sparse_csr(),
    "quint8": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "meta": lambda x: x.to("meta"),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x > 0.5,
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[0]]),
    "ndarray": lambda x: x.numpy(),
    "NoneType": lambda x: None,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensors_are_named(small_model, clip, features, kind):
    model, unusual = small_model(), UNUSUAL[kind]
    calls = {
        "video": lambda: model(unusual(clip())),
        "queries": lambda: model.track(clip(), unusual(grid_queries(2, (32, 32)))),
        "features": lambda: soft_argmax_track(unusual(features), QUERIES, SIZE),
        "signals": lambda: probability(unusual(torch.rand(3, 2)), (0.0, 1.0, 1.0)),
        "statistics": lambda: VisibilityHead()(unusual(torch.rand(2, 3))),
        "x": lambda: TemporalAdapter(8, 4, 2)(unusual(torch.rand(1, 2, 4, 4, 8))),
    }
    if kind == "ndarray":  # which queries may be
        del calls["queries"]
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} .*{'' if kind == 'nested' else kind}.*; expected"):
            call()
    with pytest.raises(ValueError, match="stats"):
        model.stream(unusual(torch.rand(1, 2, 2)))


@pytest.mark.parametrize("name", ["temperature", "radius"])
@pytest.mark.parametrize(
    "value", ["20", None, True, 1e39, 10**400, 10**5000, 1j, torch.tensor(20.0), [20.0]], ids=checks.shown
)
def test_numbers_that_are_none(features, small_model, clip, name, value):
    options = {name: value}
    for call in (
        lambda: soft_argmax_track(features, QUERIES, SIZE, **options),
        *([] if value is None else [lambda: small_model().track(clip(), QUERIES, **options)]),  # the model's own
        lambda: ChronoConfig(**options),
        lambda: track_signals(
            features, QUERIES, Tracks(torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3)), SIZE, **options
        ),
    ):
        with pytest.raises(ValueError, match=rf"^{name}=.*; expected a finite number above 0"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_temperature_gives_the_best_cell(features, dtype):
    found = soft_argmax_track(features.to(dtype), QUERIES, SIZE, temperature=3e38).xy
    expected = soft_argmax_track(features.to(dtype), QUERIES, SIZE, radius=0.5).xy  # of one cell alone
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"temperature=3e\+38; expected .* correlation_dtype"):
        soft_argmax_track(features, QUERIES, SIZE, temperature=3e38, correlation_dtype=torch.float16)


def test_labels_and_signals_at_a_large_temperature(features):
    labels = torch.arange(30).view(1, 5, 6) % 3
    found = propagate_labels(features, labels, temperature=3e38)
    torch.testing.assert_close(found, propagate_labels(features, labels, neighbours=1))
    tracks = soft_argmax_track(features, QUERIES, SIZE)
    assert track_signals(features, QUERIES, tracks, SIZE, temperature=3e38)[..., 2].abs().max() == 0  # no entropy


@pytest.mark.parametrize("radius", [2**70, 1e30, 100])
def test_a_radius_beyond_the_grid_is_the_whole_grid(features, radius):
    expected = soft_argmax_track(features, QUERIES, SIZE, radius=20)
    found = soft_argmax_track(features, QUERIES, SIZE, radius=radius)
    assert torch.equal(found.xy, expected.xy)
    signals = [track_signals(features, QUERIES, expected, SIZE, radius=r) for r in (radius, 20)]
    assert torch.equal(*signals)
    if isinstance(radius, int):
        labels = torch.arange(30).view(1, 5, 6) % 3
        options = {"context": 2**70, "neighbours": 2**70, "radius": radius}
        assert torch.equal(
            propagate_labels(features, labels, **options),
            propagate_labels(features, labels, context=7, neighbours=1000, radius=None),
        )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (0, 2, 3, 4, 5)])
def test_values_that_are_not_finite_are_named(small_model, clip, features, value, place):
    broken, query_features, stats = features.clone(), torch.ones(1, 1, 4), torch.ones(1, 2, 2)
    broken[place] = query_features[0, 0, 1] = stats[0, 1, 1] = value
    tracks = soft_argmax_track(features, QUERIES, SIZE)
    video, labels = torch.rand(1, 3, 3, *SIZE), torch.rand(1, 2, 5, 6)
    lost = replace(tracks, xy=tracks.xy * value)
    for call in (
        lambda: soft_argmax_track(broken, QUERIES, SIZE),
        lambda: small_model().track(video, QUERIES, features=broken),
        lambda: propagate_labels(broken, labels),
        lambda: refine_photometric(video, broken, QUERIES, tracks),
        lambda: track_signals(broken, QUERIES, tracks, SIZE),
    ):
        with pytest.raises(ValueError, match="^features"):
            call()
    with pytest.raises(ValueError, match="^query_features"):
        soft_argmax_track(features, image_size=SIZE, query_features=query_features)
    for call in (
        lambda: refine_photometric(video, features, QUERIES, lost),
        lambda: track_signals(features, QUERIES, lost, SIZE),
    ):
        with pytest.raises(ValueError, match=r"^tracks\.xy holds NaN or infinity"):
            call()
    labels[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="^labels holds NaN or infinity"):
        propagate_labels(features, labels)
    with pytest.raises(ValueError, match="^stats"):
        small_model().stream(stats)
    with pytest.raises(ValueError, match="^signals"):
        fit(torch.full((4, 2), value), torch.arange(4) > 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_refinement_of_features_of_any_type(clip, features, dtype):
    video, queries = clip(1, 3, *SIZE), QUERIES
    tracks = soft_argmax_track(features, queries, SIZE)
    found = refine_photometric(video, features.to(dtype), queries, tracks)
    assert found.xy.dtype == torch.float32 and found.xy.isfinite().all()
    with pytest.raises(ValueError, match=r"tracks\.xy of type torch.float16; expected float32 or float64"):
        refine_photometric(video, features, queries, tracks.to(torch.float16))


def test_variances_below_0(small_model):
    with pytest.raises(ValueError, match="stats with variances below 0"):
        small_model().stream(torch.tensor([[[0.0, 1.0], [0.0, -1.0]]]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", torch.int32, torch.float8_e4m3fn, None, float])
def test_correlation_types(features, dtype):
    with pytest.raises(ValueError, match="correlation_dtype=.*; expected one of torch.float32"):
        soft_argmax_track(features, QUERIES, SIZE, correlation_dtype=dtype)


@pytest.mark.parametrize("size", [(2.5, 3), (2, 3, 4), "ab", None, True, (0, 2), 2.0, 2**40, (2**13, 2**13), [1, None]])
def test_grids_of_queries(size):
    with pytest.raises(ValueError, match="size=.*; expected a positive integer or two"):
        grid_queries(size, SIZE)


@pytest.mark.parametrize("t", [-1, 0.5, None, "0", 2**24 + 1, 2**70])
def test_frames_of_grids_of_queries(t):
    with pytest.raises(ValueError, match="t=.*; expected an integer from 0"):
        grid_queries(2, SIZE, t)


def test_numbers_of_numpy():
    assert grid_queries(np.int64(2), np.array([10, 12]), np.int32(1)).tolist() == grid_queries(2, (10, 12), 1).tolist()
    config = ChronoConfig(grid=(np.int64(8), np.int64(9)), temperature=np.float32(2.5))
    assert config.to_dict()["grid"] == [8, 9] and type(config.grid[0]) is int and type(config.temperature) is float


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type(features, dtype):
    labels = torch.arange(30).view(1, 5, 6) % 3
    assert torch.equal(propagate_labels(features, labels.to(dtype)), propagate_labels(features, labels))


@pytest.mark.parametrize("high", [2**16, 2**40])
def test_labels_that_would_take_too_many_masks(features, high):
    with pytest.raises(ValueError, match=f"labels from {high} to {high}; expected integers from 0 to 65535"):
        propagate_labels(features, torch.full((1, 5, 6), high))


def test_options_are_checked_before_the_work(small_model, clip, monkeypatch):
    model = small_model()
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("the work was done before the check"))
    for options in (
        {"memory_budget": 0},
        {"correlation_dtype": "float32"},
        {"visible_threshold": 3},
        {"confidence": 1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            model.track(clip(), QUERIES, **options)
    with pytest.raises(TypeError, match="'colour'"):
        model.track(clip(), QUERIES, colour=True)


def test_heads_that_return_something_else(features):
    with pytest.raises(ValueError, match=r"visibility_head returns \(1, 2, 3, 3\); expected \(1, 2, 3, 2\)"):
        soft_argmax_track(features, QUERIES, SIZE, visibility_head=torch.nn.Identity())


def test_videos_on_another_device(small_model, clip):
    with pytest.raises(ValueError, match=r"video on cpu; expected it where the model is: video.to\('meta'\)"):
        small_model().to("meta")(clip())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("heads", v) for v in (0, 3, 2.0, None)),
        *(("stride", v) for v in (0, -1, "4")),
        *(("window", v) for v in (3, (1,), (1, -1), (1.5, 2), None)),
        *(("mixer", v) for v in ("other", None, 3)),
        *(("norm", v) for v in ("layer", None, [1])),
    ],
)
def test_adapters(name, value):
    options = {"channels": 4, "heads": 2, name: value}
    with pytest.raises(ValueError, match=f"{name}=.*; expected"):
        TemporalAdapter(8, **options)


def test_values_in_messages():
    assert checks.shown([1, "a"]) == "[1, 'a']"
    assert checks.shown(10**5000) in ("<int>", f"{str(10**200)[:200]}…")
    assert checks.shown("x" * 1000).endswith("…") and len(checks.shown("x" * 1000)) == checks.SHOWN + 1
    assert "\n" not in checks.shown(torch.zeros(2, 2))


# --- Files of tracks --------------------------------------------------------------------------------------------------

ARRAYS = {
    "xy": np.zeros((1, 2, 3, 2), np.float32),
    "similarity": np.zeros((1, 2, 3), np.float32),
    "visible": np.zeros((1, 2, 3), bool),
    "logits": np.zeros((1, 2, 3, 2), np.float32),
    "correlation": np.zeros((1, 2, 3), np.float32),
    "confidence": np.zeros((1, 2, 3), np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[..., :1],
        lambda a: a[0],
        lambda a: a[None],
        lambda a: a[..., 0],
        lambda a: a.astype(np.int32),
        lambda a: a.astype(np.uint16),
        lambda a: a.astype(np.complex64),
        lambda a: a.astype("U3"),
        lambda a: np.array(1.0),
        lambda a: np.zeros(0),
        lambda a: np.full(a.shape, np.nan),
        lambda a: np.full(a.shape, -np.inf),
    ],
)
def test_files_that_hold_other_arrays(tmp_path, name, change):
    path = tmp_path / "tracks.npz"
    np.savez(path, **ARRAYS)
    Tracks.load(path)
    np.savez(path, **{**ARRAYS, name: change(ARRAYS[name])})
    with pytest.raises(ValueError, match=r"tracks\.npz"):
        Tracks.load(path)


def test_half_precision_is_saved(tmp_path):
    tracks = Tracks(torch.rand(1, 2, 3, 2), torch.rand(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool))
    for dtype in (torch.float16, torch.bfloat16):
        moved = tracks.to(dtype)
        moved.save(tmp_path / "tracks.npz")
        loaded = Tracks.load(tmp_path / "tracks.npz")
        assert torch.equal(loaded.xy.to(dtype), moved.xy) and torch.equal(loaded.visible, tracks.visible)


@pytest.mark.parametrize("path", [None, 3, "", b"tracks.npz", "a\0b"])
def test_paths_of_tracks(path):
    tracks = Tracks(torch.rand(1, 2, 3, 2), torch.rand(1, 2, 3))
    for call in (tracks.save, Tracks.load):
        with pytest.raises(ValueError, match="path=.*; expected a path"):
            call(path)
