import numpy as np
import pytest
import torch

from chrono_features.data.clip import MaskClip
from chrono_features.evaluation.masks import (
    _dilated,
    boundary_accuracy,
    mask_consistency,
    mask_queries,
    propagation_metrics,
    region_similarity,
)

NAN = float("nan")


def box(top, bottom, left, right, size=(100, 100)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def masked_video(masks):
    masks = np.asarray(masks, np.int64)
    return MaskClip("name", "group", torch.zeros(len(masks), 3, *masks.shape[1:], dtype=torch.uint8), masks)


# --- J and F ----------------------------------------------------------------------------------------------------------


def test_region_similarity_by_hand():
    assert region_similarity(box(0, 10, 0, 10), box(5, 10, 0, 20)) == pytest.approx(50 / 150)
    assert region_similarity(box(0, 10, 0, 10), box(0, 10, 0, 10)) == 1
    assert region_similarity(box(0, 10, 0, 10), box(20, 30, 0, 10)) == 0


def test_empty_masks():
    empty, full, some = box(0, 0, 0, 0), box(0, 100, 0, 100), box(10, 20, 10, 20)
    for score in (region_similarity, boundary_accuracy):
        assert score(empty, empty) == score(full, full) == 1
        assert score(empty, some) == score(some, empty) == 0
    assert region_similarity(full, empty) == 0
    assert boundary_accuracy(full, empty) == 1  # neither has a boundary: DAVIS's code says so


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_boundaries_match_up_to_the_tolerance(turned, flipped):
    """Straight edges through the frame. Its diagonal is 141.4 pixels, 0.008 of which are 1.1: two, and no third."""
    truth = box(0, 100, 0, 40)
    for shift, expected in ((0, 1), (1, 1), (2, 1), (3, 0)):
        found = box(0, 100, 0, 40 + shift)
        pair = [mask[:, ::-1] if flipped else mask for mask in (truth, found)]
        pair = [mask.T if turned else mask for mask in pair]
        assert boundary_accuracy(*pair) == boundary_accuracy(*pair[::-1]) == expected
    assert boundary_accuracy(truth, box(0, 100, 0, 43), tolerance=0.02) == 1  # 2.8 pixels: three
    assert boundary_accuracy(truth, box(0, 100, 0, 42), tolerance=0.007) == 0  # 0.99 pixels: one


def test_a_shifted_box_loses_its_corners_first():
    truth = box(30, 50, 30, 50)
    scores = [boundary_accuracy(truth, box(30, 50, 30 + shift, 50 + shift)) for shift in range(5)]
    assert scores[0] == scores[1] == scores[2] == 1 > scores[3] > scores[4] > 0


def test_the_boundary_is_half_a_pixel_up_and_to_the_left():
    """A pixel's boundary is itself and the three above, to the left, and both; two pixels side by side share two."""
    assert boundary_accuracy(box(5, 6, 5, 6), box(5, 6, 6, 7), tolerance=0) == 0.5
    assert boundary_accuracy(box(5, 6, 5, 6), box(6, 7, 6, 7), tolerance=0) == 0.25
    assert boundary_accuracy(box(5, 6, 5, 6), box(5, 7, 5, 6), tolerance=0) == pytest.approx(0.8)  # 4 of 4, 4 of 6


def test_the_edge_of_the_frame_is_no_boundary():
    """In the last row only what lies to the right can differ, in the last column only what lies below."""
    corner, taller = box(99, 100, 99, 100), box(98, 100, 99, 100)
    assert boundary_accuracy(corner, taller, tolerance=0) == pytest.approx(4 / 7)  # 2 of 3, 2 of 4
    through, shorter = box(0, 50, 0, 100), box(0, 50, 0, 99)
    assert boundary_accuracy(through, shorter, tolerance=0) == pytest.approx(2 * 99 / 248)  # 99 of 100, 99 of 148


def test_precision_and_recall():
    """The truth has two boxes of equal boundary, one of which is found: their harmonic mean is that of 1 and 1/2."""
    one, two = box(10, 20, 10, 20), box(10, 20, 10, 20) | box(60, 70, 60, 70)
    assert boundary_accuracy(two, one) == boundary_accuracy(one, two) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(23, 31), (40, 12)])
@pytest.mark.parametrize("tolerance", [0.008, 0.06, 0.1])
def test_boundary_accuracy_equals_distances_between_all_pairs(seed, size, tolerance):
    rng = np.random.default_rng(seed)
    masks = [np.kron(rng.random((9, 9)) < 0.2, np.ones((5, 5), bool))[: size[0], : size[1]] for _ in range(2)]
    points = []
    for mask in masks:
        at = {(y, x): mask[min(y, size[0] - 1), min(x, size[1] - 1)] for y, x in np.ndindex(size[0] + 1, size[1] + 1)}
        edge = [(y, x) for y, x in np.ndindex(size) if len({at[y + i, x + j] for i in (0, 1) for j in (0, 1)}) == 2]
        points.append(np.array(edge))
    squared = np.square(points[0][:, None] - points[1]).sum(-1)
    near = squared <= np.ceil(tolerance * np.hypot(*size)) ** 2
    recall, precision = near.any(1).mean(), near.any(0).mean()
    expected = 2 * precision * recall / (precision + recall)
    assert boundary_accuracy(*masks, tolerance) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("radius", [0, 1, 4, 9])
def test_dilation_reaches_the_pixels_of_a_disc(radius):
    mask = np.random.default_rng(radius).random((23, 17)) < 0.03
    away = np.square(np.argwhere(mask)[:, None, None] - np.stack(np.indices(mask.shape), axis=-1)).sum(-1)
    np.testing.assert_array_equal(_dilated(mask, radius), (away <= radius**2).any(0))


# --- Masks carried by features ----------------------------------------------------------------------------------------


def still(frames, height=8, width=8):
    """Features of a video in which nothing moves and no two cells are alike."""
    cells = torch.eye(height * width).unflatten(1, (height, width))
    return cells.expand(frames, -1, -1, -1) + 0.0


def halves(frames, object_at_left=1, object_at_right=0, size=64):
    masks = np.full((frames, size, size), object_at_right)
    masks[:, :, : size // 2] = object_at_left
    return masks


def test_still_features_and_still_masks_score_one():
    assert propagation_metrics(still(5), masked_video(halves(5))) == {"J": 1, "F": 1, "J&F": 1}


def test_the_mean_over_frames_and_objects_by_hand():
    """Two objects, two frames that count; in one of them the left one covers all but the right quarter."""
    masks = halves(4, 1, 2)
    masks[2, :, :48] = 1
    metrics = propagation_metrics(still(4), masked_video(masks))
    assert metrics["J"] == pytest.approx((1 + 1 + 32 / 48 + 16 / 32) / 4)
    assert metrics["F"] == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert metrics["J&F"] == pytest.approx((metrics["J"] + metrics["F"]) / 2)


@pytest.mark.parametrize(("frame", "counts"), [(1, True), (2, True), (3, False)])
def test_the_last_frame_is_not_scored(frame, counts):
    masks = halves(4)
    masks[frame] = 0
    metrics = propagation_metrics(still(4), masked_video(masks))
    assert metrics["J"] == metrics["F"] == (0.5 if counts else 1)


def test_features_decide_where_masks_go():
    """A scene that moves by one cell a frame, and what comes into it looks like the object."""
    field = torch.randn(64, 8, 11, generator=torch.Generator().manual_seed(0))
    field[..., :3] = field[..., 3:4]
    features = torch.stack([field[..., 3 - t : 11 - t] for t in range(4)])
    masks = np.stack([box(0, 64, 0, 16 + 8 * t, (64, 64)) for t in range(4)]).astype(int)
    assert propagation_metrics(features, masked_video(masks))["J"] > 0.9
    assert propagation_metrics(still(4), masked_video(masks))["J"] == pytest.approx((16 / 24 + 16 / 32) / 2)
    stays = propagation_metrics(features, masked_video(masks), radius=0)
    assert stays["J"] == pytest.approx((16 / 24 + 16 / 32) / 2)


def test_numbers_of_objects_do_not_matter():
    rng = np.random.default_rng(0)
    masks = np.kron(rng.integers(0, 4, (1, 8, 8)), np.ones((5, 8, 8), int))
    features = torch.randn(5, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = propagation_metrics(features, masked_video(masks))
    assert 0 < expected["J"] < 1 and 0 < expected["F"] < 1
    for order in ([0, 2, 3, 1], [0, 3, 9, 5]):
        assert propagation_metrics(features, masked_video(np.array(order)[masks])) == pytest.approx(expected)


def test_objects_that_appear_later_count_as_background():
    masks = halves(5)
    later = masks.copy()
    later[2:, 10:20, 40:60] = 2
    assert propagation_metrics(still(5), masked_video(later)) == propagation_metrics(still(5), masked_video(masks))


def test_an_object_smaller_than_a_cell_is_still_seen():
    """Its labels never exceed the background's, but each channel is stretched to its own range."""
    masks = np.zeros((3, 64, 64), int)
    masks[:, 26:30, 26:30] = 1
    assert propagation_metrics(still(3), masked_video(masks))["J"] > 0


def test_objects_that_vanish_from_the_features_leave_background():
    """All frames but the first look alike everywhere and like the first frame's background."""
    features = torch.zeros(4, 2, 8, 8)
    features[0, 0, :, :4] = 1
    features[0, 1, :, 4:] = features[1:, 1] = 1
    metrics = propagation_metrics(features, masked_video(halves(4)))
    assert metrics == {"J": 0, "F": 0, "J&F": 0}
    gone = halves(4)
    gone[1:] = 0
    assert propagation_metrics(features, masked_video(gone)) == {"J": 1, "F": 1, "J&F": 1}


def test_nothing_to_score_is_nan():
    for masks in (halves(2), np.zeros((4, 64, 64))):
        metrics = propagation_metrics(still(len(masks)), masked_video(masks))
        assert list(metrics) == ["J", "F", "J&F"] and np.isnan(list(metrics.values())).all()


def test_features_of_another_video():
    with pytest.raises(ValueError, match="features of 5 frames; expected the 4 of the video name"):
        propagation_metrics(still(5), masked_video(halves(4)))


# --- Points in masks --------------------------------------------------------------------------------------------------


def scene():
    masks = np.zeros((2, 256, 256), int)
    masks[0, 20:120, 30:200] = 1
    masks[0, 150:250, 100:150] = 2
    masks[0, 200:203, 10:80] = 5  # too thin to keep away from its boundary
    masks[1, 150:250, 160:180] = 7  # not in the first frame
    return masks


@pytest.mark.parametrize("count", [3, 10, 100, 1000])
def test_queries_lie_well_inside_their_objects(count):
    masks = scene()
    queries, objects = mask_queries(masked_video(masks), count)
    assert queries.dtype == np.float32 and queries.shape == (len(objects), 3) and len(objects) <= count
    assert set(objects) == {1, 2, 5} and (queries[:, 0] == 0).all()
    assert (queries[:, 1:] % 1 == 0.5).all() and len(np.unique(queries, axis=0)) == len(queries)
    x, y = np.floor(queries[:, 1:].T).astype(int)
    assert (masks[0, y, x] == objects).all()
    wide = objects != 5
    for dy, dx in np.ndindex(7, 7):
        if (dy - 3) ** 2 + (dx - 3) ** 2 <= 9:
            assert (masks[0, y + dy - 3, x + dx - 3] == objects)[wide].all()


def test_queries_are_a_regular_grid_that_uses_its_share():
    queries, objects = mask_queries(masked_video(scene()), 90)
    for number in (1, 2):
        xy = queries[objects == number, 1:]
        columns, rows = (np.unique(values) for values in xy.T)
        step = np.diff(columns)[0]
        assert (np.diff(columns) == step).all() and (np.diff(rows) == step).all()
        assert 20 < len(xy) == len(columns) * len(rows) <= 30


def test_all_of_a_small_object_is_queried_where_there_is_room():
    masks = np.zeros((1, 256, 256), int)
    masks[0, 100:102, 100:103] = 3
    queries, objects = mask_queries(masked_video(masks), 6)
    assert objects.tolist() == [3] * 6
    assert queries.tolist() == [[0, x + 0.5, y + 0.5] for y in (100, 101) for x in (100, 101, 102)]
    assert len(mask_queries(masked_video(masks), 1)[0]) == 1


def test_the_margin_grows_with_the_frame():
    masks = np.zeros((1, 512, 300), int)
    masks[0, 100:113, 100:113] = 1  # of 13 pixels, one is 6 away from all that is outside
    assert mask_queries(masked_video(masks))[0].tolist() == [[0, 106.5, 106.5]]


def test_queries_of_renamed_objects():
    masks = scene()
    queries, objects = mask_queries(masked_video(masks))
    renamed = np.array([0, 6, 4, 0, 0, 3, 0, 0])
    other_queries, other_objects = mask_queries(masked_video(renamed[masks]))
    expected = {(*query, renamed[number]) for query, number in zip(queries.tolist(), objects, strict=True)}
    assert {(*query, number) for query, number in zip(other_queries.tolist(), other_objects, strict=True)} == expected


def test_a_first_frame_without_objects_has_no_queries():
    masks = scene()
    masks[0] = 0
    queries, objects = mask_queries(masked_video(masks))
    assert queries.shape == (0, 3) and queries.dtype == np.float32 and objects.shape == (0,)


@pytest.mark.parametrize("count", [2, 0, -1])
def test_too_few_queries(count):
    with pytest.raises(ValueError, match=f"count={count}; expected at least 1 for each of 3 objects of name"):
        mask_queries(masked_video(scene()), count)


# --- Points that stay in masks ----------------------------------------------------------------------------------------


def test_consistency_by_hand():
    """Object 1 is the left half, in the last frame nowhere; object 2 is the right half."""
    masks = halves(4, 1, 2, size=8)
    masks[3] = 2
    xy = np.array([[[1, 1], [3.99, 7.99], [4, 1], [1, 1]], [[5, 5], [8, 5], [5, -0.01], [5, 5]]])
    visible = np.array([[True, True, True, True], [True, True, False, True]])
    # Called visible: the first point inside, outside, absent; the second outside, not, inside. Present: 2 + 3 times.
    metrics = mask_consistency(xy, visible, np.array([1, 2]), masks)
    assert metrics == {"mask_precision": pytest.approx(2 / 5), "mask_recall": pytest.approx(2 / 5)}
    everywhere = mask_consistency(xy[:1], np.ones((1, 4), bool), np.array([1]), masks)
    assert everywhere == {"mask_precision": pytest.approx(1 / 3), "mask_recall": pytest.approx(1 / 2)}
    hidden = mask_consistency(xy, np.zeros((2, 4), bool), np.array([1, 2]), masks)
    assert np.isnan(hidden["mask_precision"]) and hidden["mask_recall"] == 0


@pytest.mark.parametrize("query_frames", [0, 2, np.array([0, 2])])
def test_only_frames_after_the_query_count(query_frames):
    """An error in a frame shows if, and only if, that frame counts."""
    masks, objects = halves(4, 1, 2, size=8), np.array([1, 2])
    right = np.tile(np.array([[[2.0, 4.0]], [[6.0, 4.0]]]), (1, 4, 1))
    for n, t in np.ndindex(2, 4):
        xy = right.copy()
        xy[n, t] = right[1 - n, t]
        metrics = mask_consistency(xy, np.ones((2, 4), bool), objects, masks, query_frames)
        own = query_frames if np.isscalar(query_frames) else query_frames[n]
        assert (metrics["mask_precision"] < 1) == (metrics["mask_recall"] < 1) == (t > own)


@pytest.mark.parametrize("xy", [(NAN, 2.0), (2.0, NAN), (float("inf"), 2.0), (2.0, -1.0), (8.0, 2.0), (2.0, 1e9)])
def test_positions_outside_of_the_picture_are_outside_of_every_mask(xy):
    masks = np.ones((2, 8, 8), int)
    metrics = mask_consistency(np.full((1, 2, 2), xy), np.ones((1, 2), bool), np.array([1]), masks)
    assert metrics == {"mask_precision": 0, "mask_recall": 0}


def test_nothing_to_count_is_nan():
    masks = np.ones((3, 8, 8), int)
    for points, last in ((0, 0), (2, 2)):
        xy, visible = np.ones((points, 3, 2)), np.ones((points, 3), bool)
        assert np.isnan(list(mask_consistency(xy, visible, np.ones(points, int), masks, last).values())).all()


def test_queries_of_a_still_video_stay_inside():
    masks = np.repeat(scene()[:1], 3, axis=0)
    queries, objects = mask_queries(masked_video(masks))
    xy = np.repeat(queries[:, None, 1:], 3, axis=1)
    metrics = mask_consistency(xy, np.ones(xy.shape[:2], bool), objects, masks)
    assert metrics == {"mask_precision": 1, "mask_recall": 1}
