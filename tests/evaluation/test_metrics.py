import numpy as np
import pytest

from chrono_features.evaluation.metrics import (
    average_precision,
    balanced_accuracy,
    bootstrap_interval,
    joint_extent,
    pck,
    reliability,
)

NAN = float("nan")


def test_balanced_accuracy_of_a_case_by_hand():
    visible = np.array([True, True, True, True, False, False])
    called = np.array([True, True, True, False, False, True])
    assert balanced_accuracy(visible, called) == pytest.approx((3 / 4 + 1 / 2) / 2)
    counted = np.array([True, True, True, True, True, False])
    assert balanced_accuracy(visible, called, counted) == pytest.approx((3 / 4 + 1) / 2)


def test_balanced_accuracy_does_not_reward_calling_everything_visible():
    visible = np.arange(100) > 2
    assert balanced_accuracy(visible, np.ones(100, bool)) == 0.5
    assert np.isnan(balanced_accuracy(np.ones(4, bool), np.ones(4, bool)))


def test_average_precision_of_a_case_by_hand():
    truth = np.array([True, False, True, False, True])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert average_precision(truth, score) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(truth, -score) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)  # the case is symmetric
    assert average_precision(truth, truth.astype(float)) == 1
    counted = np.array([True, True, True, False, False])
    assert average_precision(truth, score, counted) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(~np.ones(3, bool), np.ones(3)))


def test_equal_scores_count_together_whatever_their_order():
    truth = np.array([True, False, False, True])
    for order in ([0, 1, 2, 3], [1, 2, 0, 3], [3, 1, 0, 2]):
        assert average_precision(truth[order], np.zeros(4)) == 0.5


# Values of the formulas that stood here before scikit-learn and SciPy took over: results of earlier versions hold.


def draws(seed: int = 0, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = rng.random(count)
    return rng.random(count) < probability, probability


def test_metrics_are_those_of_earlier_versions():
    truth, probability = draws()
    for score in (probability, probability.round(1), probability > 0.5, -probability):
        order = np.argsort(-score.astype(float), kind="stable")
        ranked, found = score[order], np.cumsum(truth[order])
        last = np.append(ranked[1:] != ranked[:-1], True)  # of each group of equal scores
        precision, recall = (found / np.arange(1, len(found) + 1))[last], found[last] / found[-1]
        expected = (np.diff(recall, prepend=0.0) * precision).sum()
        assert average_precision(truth, score) == pytest.approx(expected, abs=1e-12)
    called = probability > 0.5
    expected = (called[truth].mean() + (~called)[~truth].mean()) / 2
    assert balanced_accuracy(truth, called) == pytest.approx(expected, abs=1e-12)
    for values in (probability, np.arange(11) / 10, probability.astype(np.float32).astype(float)):
        happened = np.arange(len(values)) % 3 == 0
        place = (values * 10).astype(int).clip(0, 9)
        expected = [(values[place == b].mean(), happened[place == b].mean(), sum(place == b)) for b in np.unique(place)]
        np.testing.assert_allclose(reliability(values, happened), expected, rtol=0, atol=1e-12)


def test_intervals_are_those_of_earlier_versions():
    values = draws()[1][:30]
    means = values[np.random.default_rng(0).integers(30, size=(10_000, 30))].mean(axis=1)
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_a_tracker_that_breaks_down_does_not_end_the_run():
    truth, score = np.array([True, True, False, False]), np.array([0.9, NAN, 0.5, NAN])
    assert average_precision(truth, score) == pytest.approx(1 / 2 + 1 / 2 * 2 / 4)
    assert reliability(score, truth) == [(0.5, 0.0, 1), (0.9, 1.0, 1)]
    assert reliability(np.array([]), np.array([], bool)) == []


def test_pck_counts_joints_nearer_than_a_share_of_the_extent():
    true_xy = np.array([[[0.0, 0.0], [0.0, 0.0]], [[30.0, 40.0], [10.0, 0.0]]])  # extents 40 and 10
    known = np.ones((2, 2), bool)
    assert joint_extent(true_xy, known).tolist() == [40, 10]
    off = np.array([[[7.9, 0.0], [1.9, 0.0]], [[8.0, 0.0], [0.0, 2.1]]])
    assert pck(true_xy, true_xy + off, known, joint_extent(true_xy, known)) == 0.5  # at 0.2: 8 and 2 px, strictly
    counted = np.array([[True, True], [False, False]])
    assert pck(true_xy, true_xy + off, counted, joint_extent(true_xy, known)) == 1
    assert joint_extent(true_xy, ~known).tolist() == [0, 0]


def test_reliability_of_a_calibrated_forecast_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    rows = reliability(probability, rng.random(200_000) < probability)
    assert len(rows) == 10 and sum(count for _, _, count in rows) == 200_000
    assert all(abs(stated - seen) < 0.015 for stated, seen, _ in rows)
    assert reliability(np.array([1.0, 0.95]), np.array([True, False])) == [(0.975, 0.5, 2)]


def test_bootstrap_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        values = rng.normal(0.5, 0.1, 40)
        low, high = bootstrap_interval(values, samples=500)
        assert low < values.mean() < high
        inside += low < 0.5 < high
    assert 0.89 <= inside / 200 <= 0.98
    assert bootstrap_interval([0.2, NAN, 0.4, 0.9]) == bootstrap_interval([0.2, 0.4, 0.9])
    assert all(np.isnan(bootstrap_interval([0.5, NAN])))
