import numpy as np
import pytest

from chrono_features.evaluation.protocol import MODES, THRESHOLDS, sample_queries, tapvid_metrics, track_deltas

NAMES = {f"{kind}_{t}" for kind in ("pts_within", "jaccard") for t in THRESHOLDS}
NAMES |= {"occlusion_accuracy", "average_pts_within_thresh", "average_jaccard"}


@pytest.fixture(params=MODES)
def case(request, data):
    """The arguments of `tapvid_metrics`, and what TAP-Vid's own code returned for them."""
    with np.load(data / "tapvid_metrics.npz") as file:
        arrays = {k.removeprefix(f"{request.param}/"): file[k] for k in file.files if k.startswith(f"{request.param}/")}
    arguments = {
        "query_frames": arrays["query_points"][0][:, 0],
        "true_xy": arrays["target_points"][0],
        "true_occluded": arrays["occluded"][0],
        "xy": arrays["pred_tracks"][0],
        "occluded": arrays["pred_occluded"][0],
        "mode": request.param,
    }
    return arguments, {k.removeprefix("metric/"): v[0] for k, v in arrays.items() if k.startswith("metric/")}


def random_case(mode, seed=0, points=30, frames=12):
    rng = np.random.default_rng(seed)
    true_xy = rng.uniform(0, 256, (points, frames, 2))
    return {
        "query_frames": rng.integers(0, frames - 1, points),
        "true_xy": true_xy,
        "true_occluded": rng.random((points, frames)) < 0.3,
        "xy": true_xy + rng.normal(0, 5, true_xy.shape),
        "occluded": rng.random((points, frames)) < 0.3,
        "mode": mode,
    }


def test_equals_tapvids_own_numbers(case):
    arguments, expected = case
    metrics = tapvid_metrics(**arguments)
    assert metrics.keys() == expected.keys() == NAMES
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=0, abs=1e-12), name


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_points_does_not_matter(mode):
    arguments = random_case(mode)
    order = np.random.default_rng(1).permutation(30)
    shuffled = {k: v if k == "mode" else v[order] for k, v in arguments.items()}
    assert tapvid_metrics(**shuffled) == pytest.approx(tapvid_metrics(**arguments), abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_prediction_scores_one(mode):
    arguments = random_case(mode)
    arguments |= {"xy": arguments["true_xy"], "occluded": arguments["true_occluded"]}
    assert set(tapvid_metrics(**arguments).values()) == {1.0}


@pytest.mark.parametrize("mode", MODES)
def test_three_pixels_off_empties_two_thresholds(mode):
    arguments = random_case(mode)
    arguments |= {"xy": arguments["true_xy"] + [3.0, 0.0], "occluded": arguments["true_occluded"]}
    metrics = tapvid_metrics(**arguments)
    for kind in ("pts_within", "jaccard"):
        assert [metrics[f"{kind}_{t}"] for t in THRESHOLDS] == [0, 0, 1, 1, 1]
    assert metrics["average_pts_within_thresh"] == metrics["average_jaccard"] == pytest.approx(0.6)


@pytest.mark.parametrize(("mode", "scored"), [("first", {3, 4}), ("strided", {0, 1, 3, 4})])
def test_which_frames_count(mode, scored):
    """One point, query frame 2: an error in a frame shows if, and only if, that frame counts."""
    for frame in range(5):
        arguments = random_case(mode, points=1, frames=5)
        arguments |= {
            "query_frames": np.array([2]),
            "true_occluded": np.zeros((1, 5), bool),
            "occluded": np.zeros((1, 5), bool),
        }
        arguments["xy"] = arguments["true_xy"].copy()
        arguments["xy"][0, frame] += 100
        assert (tapvid_metrics(**arguments)["pts_within_16"] < 1) == (frame in scored)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_valid_does_not_count(mode):
    """Wrong values where the truth is unknown change nothing; points known nowhere might as well be absent."""
    arguments = random_case(mode)
    valid = np.random.default_rng(2).random((30, 12)) < 0.6
    valid[5] = False
    expected = tapvid_metrics(**arguments, valid=valid)
    spoilt = dict(arguments)
    spoilt["xy"] = np.where(valid[..., None], arguments["xy"], 1e6)
    spoilt["occluded"] = np.where(valid, arguments["occluded"], ~arguments["occluded"])
    assert tapvid_metrics(**spoilt, valid=valid) == expected != tapvid_metrics(**spoilt)
    kept = np.arange(30) != 5
    fewer = {k: v if k == "mode" else v[kept] for k, v in arguments.items()}
    assert tapvid_metrics(**fewer, valid=valid[kept]) == expected
    everything = np.ones_like(valid)
    assert tapvid_metrics(**arguments, valid=everything) == tapvid_metrics(**arguments)


def test_nothing_to_count_is_nan():
    arguments = random_case("first")
    assert all(np.isnan(v) for v in tapvid_metrics(**arguments, valid=np.zeros((30, 12), bool)).values())


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode='last'"):
        tapvid_metrics(**random_case("last"))


def test_inputs_are_not_changed():
    arguments = random_case("first")
    copies = {k: np.copy(v) for k, v in arguments.items()}
    tapvid_metrics(**arguments, valid=np.ones((30, 12), bool))
    assert all(np.array_equal(arguments[k], copies[k]) for k in copies)


@pytest.mark.parametrize("mode", MODES)
def test_queries_equal_tapvids_own(data, mode):
    names = ("in_tracks", "in_occluded", "query_points", "target_points", "occluded")
    with np.load(data / "tapvid_metrics.npz") as file:
        xy, occluded, queries, target, target_occluded = (file[f"{mode}/{name}"] for name in names)
    found, tracks = sample_queries(xy, ~occluded, mode)
    assert found.shape == queries[0].shape
    np.testing.assert_allclose(found, queries[0][:, [0, 2, 1]], rtol=0, atol=1e-12)  # theirs are (t, y, x)
    np.testing.assert_allclose(xy[tracks], target[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(occluded[tracks], target_occluded[0])


def test_queries_leave_out_points_that_are_never_seen():
    xy = np.arange(24.0).reshape(2, 6, 2)
    usable = np.array([[False, True, False, False, False, True], [False] * 6])
    queries, tracks = sample_queries(xy, usable, "first")
    assert tracks.tolist() == [0] and queries.tolist() == [[1, 2, 3]]
    queries, tracks = sample_queries(xy, usable, "strided")
    assert tracks.tolist() == [0] and queries.tolist() == [[5, 10, 11]]
    with pytest.raises(ValueError, match="mode='last'"):
        sample_queries(xy, usable, "last")


@pytest.mark.parametrize("mode", MODES)
def test_the_delta_of_a_track_is_that_of_a_video_with_this_track_alone(mode):
    arguments = random_case(mode)
    frames = np.arange(12)[None]
    own = arguments["query_frames"][:, None]
    counted = ~arguments["true_occluded"] & (frames > own if mode == "first" else frames != own)
    counted[3] = False
    deltas = track_deltas(arguments["true_xy"], arguments["xy"], counted)
    for i in range(30):
        alone = {k: v if k == "mode" else v[i : i + 1] for k, v in arguments.items()}
        expected = tapvid_metrics(**alone, valid=counted[i : i + 1] | arguments["true_occluded"][i : i + 1])
        assert deltas[i] == pytest.approx(expected["average_pts_within_thresh"], abs=1e-12, nan_ok=True)
    assert np.isnan(deltas[3])
