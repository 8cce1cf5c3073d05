"""Converters, against the trackers' own conventions in closed form; the trackers themselves are in test_refiners.py."""

import pytest
import torch
import torch.nn.functional as F

from chrono_features import Tracks
from chrono_features.refiners import (
    from_cotracker,
    from_locotrack,
    from_tapir,
    to_cotracker,
    to_locotrack,
    to_tapir,
    txy_from_tyx,
    tyx_from_txy,
)

IMAGE = torch.arange(12.0).reshape(1, 1, 3, 4)  # value = 4 row + column, at pixel centres
QUERIES = torch.tensor([[[3.0, 100.0, 60.0], [0.0, 0.5, 0.5]]])


def example_tracks(**changes):
    torch.manual_seed(0)
    xy, visible = torch.rand(2, 3, 5, 2) * 100, torch.rand(2, 3, 5) > 0.5
    return Tracks(**{"xy": xy, "similarity": torch.ones(2, 3, 5), "visible": visible, **changes})


# --- queries and positions --------------------------------------------------------------------------------------------


def test_a_query_keeps_its_time():
    assert to_cotracker(torch.tensor([[3, 100, 60]])).tolist() == [[3, 99.5, 59.5]]
    assert from_cotracker(torch.tensor([[3, 99.5, 59.5]])).tolist() == [[3, 100, 60]]
    assert to_tapir(torch.tensor([[3, 100, 60]])).tolist() == [[3, 60, 100]]
    assert from_tapir(torch.tensor([[3, 60, 100]])).tolist() == [[3, 100, 60]]
    assert to_locotrack is to_tapir and from_locotrack is from_tapir


@pytest.mark.parametrize("points", [[[3, 100, 60]], [[100.0, 60.0]]])
def test_lists_are_taken(points):
    assert from_cotracker(to_cotracker(points)).tolist() == from_tapir(to_tapir(points)).tolist() == points


def test_positions_are_moved_and_not_turned():
    middle_of_the_first = torch.tensor([[0.5, 0.5]])
    assert to_cotracker(middle_of_the_first).tolist() == [[0.0, 0.0]]
    assert torch.equal(from_cotracker(to_cotracker(middle_of_the_first)), middle_of_the_first)
    xy = torch.tensor([[10.0, 20.0]])
    assert torch.equal(to_tapir(xy), xy) and torch.equal(from_tapir(xy), xy)


def test_orders_of_queries():
    txy = torch.tensor([[3.0, 10.0, 20.0]])
    assert tyx_from_txy(txy).tolist() == [[3.0, 20.0, 10.0]]
    assert torch.equal(txy_from_tyx(tyx_from_txy(txy)), txy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("there", [to_cotracker, from_cotracker, to_tapir, from_tapir])
def test_half_precision_is_left_behind(there, dtype):
    points = torch.tensor([[0, 512, 256]]).to(dtype)
    there_and_here = there(points)
    assert there_and_here.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    shift = 0.5 * ((there is from_cotracker) - (there is to_cotracker))
    assert sorted(there_and_here[0].tolist()) == [0, 256 + shift, 512 + shift]


@pytest.mark.parametrize("row, column", [(0, 0), (2, 3), (1, 2)])
def test_a_pixel_centre_is_the_same_pixel_there(row, column):
    """CoTracker samples with corners aligned, TAPIR and LocoTrack without: each finds the value of this very pixel."""
    query = torch.tensor([[[0.0, column + 0.5, row + 0.5]]])
    height, width = IMAGE.shape[-2:]
    _, x, y = to_cotracker(query)[0, 0]
    place = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1]).view(1, 1, 1, 2)
    assert F.grid_sample(IMAGE, place, align_corners=True).item() == pytest.approx(4 * row + column, abs=1e-5)
    _, y, x = to_tapir(query)[0, 0]
    place = torch.stack([2 * x / width - 1, 2 * y / height - 1]).view(1, 1, 1, 2)
    assert F.grid_sample(IMAGE, place, align_corners=False).item() == pytest.approx(4 * row + column, abs=1e-5)


# --- whole tracks -----------------------------------------------------------------------------------------------------


def test_tracks_in_cotrackers_order():
    tracks = example_tracks()
    xy, visible = to_cotracker(tracks)
    assert xy.shape == (2, 5, 3, 2) and visible.shape == (2, 5, 3) and visible.dtype == torch.bool
    assert torch.equal(xy[1, 4, 2], tracks.xy[1, 2, 4] - 0.5) and visible[1, 4, 2] == tracks.visible[1, 2, 4]


def test_tracks_in_tapirs_order():
    tracks = example_tracks()
    xy, visible = to_tapir(tracks)
    assert torch.equal(xy, tracks.xy) and torch.equal(visible, tracks.visible)


@pytest.mark.parametrize(("there", "back"), [(to_cotracker, from_cotracker), (to_tapir, from_tapir)])
@pytest.mark.parametrize("seen", [True, False])
def test_tracks_there_and_back(there, back, seen):
    tracks = example_tracks() if seen else example_tracks(visible=None)
    again = back(there(tracks))
    torch.testing.assert_close(again.xy, tracks.xy, atol=1e-5, rtol=0)
    assert again.visible is None if not seen else torch.equal(again.visible, tracks.visible)
    assert torch.equal(again.similarity, torch.ones(2, 3, 5)) and again.logits is None


def test_outputs_of_tapir():
    torch.manual_seed(0)
    outputs = {
        "tracks": torch.rand(1, 3, 5, 2),
        "occlusion": torch.randn(1, 3, 5),
        "expected_dist": torch.randn(1, 3, 5),
    }
    tracks = from_tapir({**outputs, "unrefined_tracks": []})
    far, hidden = outputs["expected_dist"].sigmoid(), outputs["occlusion"].sigmoid()
    assert torch.equal(tracks.visible, (1 - hidden) * (1 - far) > 0.5) and tracks.visible.any()
    assert not torch.equal(tracks.visible, hidden <= 0.5)  # the second logit matters
    assert torch.equal(tracks.xy, outputs["tracks"])
    assert torch.equal(tracks.logits, torch.stack([outputs["occlusion"], outputs["expected_dist"]], -1))


def test_outputs_of_locotracks_predictor():
    """Its `occlusion` is a decision, not a logit: True is hidden."""
    occluded = torch.tensor([[[True, False]]])
    tracks = from_locotrack({"tracks": torch.zeros(1, 1, 2, 2), "occlusion": occluded})
    assert tracks.visible.tolist() == [[[False, True]]] and tracks.logits is None


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [to_cotracker, from_cotracker, to_tapir, from_tapir])
@pytest.mark.parametrize(
    ("points", "match"),
    [
        (torch.zeros(4), r"points of shape \(4,\); expected"),
        (torch.tensor(1.0), r"points of shape \(\); expected"),
        ("0,1,2", "points of type str; expected"),
        (None, "points of type NoneType; expected"),
        ([[1, 2], [3]], "points of type list; expected"),
    ],
)
def test_what_is_no_point(convert, points, match):
    with pytest.raises(ValueError, match=match):
        convert(points)


@pytest.mark.parametrize("convert", [to_cotracker, to_tapir])
def test_tracks_of_one_clip_are_refused(convert):
    with pytest.raises(ValueError, match=r"tracks of shape \(3, 5, 2\); expected four dimensions"):
        convert(example_tracks()[0])


@pytest.mark.parametrize("convert", [from_cotracker, from_tapir])
def test_what_is_no_output(convert):
    xy, visible = torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"visibility of torch.float32 \(1, 2, 3\) .*expected torch.bool"):
        convert((xy, visible.float()))
    with pytest.raises(ValueError, match=r"visibility of torch.bool \(1, 3, 2\) .*expected torch.bool \(1, 2, 3\)"):
        convert((xy, visible.mT))
    with pytest.raises(ValueError, match="visibility of list for"):
        convert((xy, [True]))
    with pytest.raises(ValueError, match="an output of 3 values; expected two"):
        convert((xy, visible, visible))
    with pytest.raises(ValueError, match=r"tracks of shape \(2, 3, 2\)"):
        convert((xy[0], visible[0]))


def test_incomplete_outputs():
    xy, logits = torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"outputs with the keys \['occlusion'\]; expected tracks too"):
        from_tapir({"occlusion": logits})
    with pytest.raises(ValueError, match=r"outputs with the keys \['tracks'\]; expected occlusion too"):
        from_tapir({"tracks": xy})
    with pytest.raises(ValueError, match="without expected_dist"):
        from_tapir({"tracks": xy, "occlusion": logits})


def test_outputs_as_arrays():
    tracks, visible = torch.rand(1, 3, 4, 2), torch.rand(1, 3, 4) > 0.5
    for convert in (from_cotracker, from_tapir):
        pair = convert((tracks.numpy(), visible.numpy()))
        assert all(torch.equal(a, b) for a, b in ((pair.xy, convert((tracks, visible)).xy),))
        assert torch.equal(pair.visible, convert((tracks, visible)).visible)
    outputs = {"tracks": tracks, "occlusion": torch.randn(1, 3, 4), "expected_dist": torch.randn(1, 3, 4)}
    arrays = from_tapir({name: value.numpy() for name, value in outputs.items()})
    assert torch.equal(arrays.visible, from_tapir(outputs).visible)


@pytest.mark.parametrize("name", ["occlusion", "expected_dist"])
@pytest.mark.parametrize("value", [None, torch.zeros(1, 3, 5), torch.zeros(1, 3, 4, dtype=torch.int32), [0.0]])
def test_outputs_of_another_kind(name, value):
    outputs = {
        "tracks": torch.rand(1, 3, 4, 2),
        "occlusion": torch.zeros(1, 3, 4),
        "expected_dist": torch.zeros(1, 3, 4),
    }
    with pytest.raises(ValueError, match=name):
        from_tapir({**outputs, name: value})
