"""`Tracks` beyond its tensors: what it says of itself, tables and files."""

import csv
import json

import numpy as np
import pytest
import torch

from chrono_features import ChronoBackbone, Tracks, grid_queries

FRAMES, POINTS = 3, 4


@pytest.fixture
def tracks():
    g = torch.Generator().manual_seed(0)
    return Tracks(
        xy=100 * torch.rand(1, POINTS, FRAMES, 2, generator=g),
        similarity=torch.rand(1, POINTS, FRAMES, generator=g),
        visible=torch.rand(1, POINTS, FRAMES, generator=g) > 0.5,
        confidence=torch.rand(1, POINTS, FRAMES, generator=g),
        queries=grid_queries(2, (40, 60)),
        columns={"name": ["a", "b", "ü", "d"], "object": [1, 1, 2, 2]},
        info={"image_size": [40, 60], "fps": 25.0, "model": "chrono-tiny"},
    )


def test_track_says_what_was_tracked(small_model, clip, tmp_path):
    model = small_model(norm="token")
    queries = grid_queries(2, (32, 32), t=1)
    found = model.track(clip(1, 3), queries)
    assert torch.equal(found.queries, queries)
    assert found.info["image_size"] == [32, 32] and found.info["model"] == "" and found.info["version"]
    model.save_pretrained(tmp_path / "m")
    loaded = ChronoBackbone.from_pretrained(tmp_path / "m")
    assert loaded.track(clip(1, 3), queries).info["model"] == str(tmp_path / "m")


def test_it_tells_what_it_is_in_one_line(tracks):
    share = tracks.visible.double().mean().item()
    assert repr(tracks) == f"Tracks(1 videos, 4 points, 3 frames, {share:.0%} visible, confidence, float32 on cpu)"
    assert repr(tracks[0, 1:]).startswith("Tracks(3 points, 3 frames, ")
    assert "visible" not in repr(Tracks(tracks.xy, tracks.similarity))
    assert repr(tracks[:, :0])


def test_files_hold_all_of_it(tracks, tmp_path):
    tracks.save(tmp_path / "t.npz")
    loaded = Tracks.load(tmp_path / "t.npz")
    for name, value in tracks.numpy().items():
        assert np.array_equal(value, loaded.numpy()[name])
    assert loaded.columns == tracks.columns and loaded.info == tracks.info


def test_numpy(tracks):
    arrays = tracks.to(torch.bfloat16).numpy()
    assert arrays.keys() == {"xy", "similarity", "visible", "confidence", "queries"}
    assert arrays["xy"].dtype == np.float32 and arrays["visible"].dtype == bool


@pytest.mark.parametrize(
    ("index", "names"),
    [((0,), "abüd"), ((slice(None), slice(1, 3)), "bü"), ((0, [3, 0]), "da"), ((0, torch.tensor([1])), "b"),
     ((0, slice(None), [1]), "abüd"), ((0, np.array([True, False, False, True])), "ad")],
)  # fmt: skip
def test_queries_and_columns_follow_their_points(tracks, index, names):
    some = tracks[index]
    assert "".join(some.columns["name"]) == names
    expected = tracks.queries[0][["abüd".index(n) for n in names]]
    assert torch.equal(some.queries.reshape(-1, 3), expected)


def test_one_point_has_no_columns(tracks):
    assert tracks[0, 2].columns == {} and tracks[0, 2].queries.shape == (3,)
    assert tracks[0, :, 1].columns == {} and tracks[0, :, 1].queries is None  # of one frame


def test_a_table_has_a_row_for_each_point_and_frame(tracks):
    pytest.importorskip("pandas")
    table = tracks.to_dataframe()
    assert list(table) == ["point", "name", "object", "t", "x", "y", "similarity", "visible", "confidence"]
    assert len(table) == POINTS * FRAMES
    row = table[(table.name == "ü") & (table.t == 1)].iloc[0]
    assert (row.x, row.y) == pytest.approx(tracks.xy[0, 2, 1].tolist()) and row.visible == tracks.visible[0, 2, 1]
    assert tracks[0].to_dataframe().equals(table)
    both = Tracks(tracks.xy.repeat(2, 1, 1, 1), tracks.similarity.repeat(2, 1, 1)).to_dataframe()
    assert both.video.tolist() == [0] * len(table) + [1] * len(table)
    with pytest.raises(ValueError, match=r"expected \(B, N, T\) or \(N, T\)"):
        tracks[0, 1].to_dataframe()


def test_csv(tracks, tmp_path):
    tracks.save(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == POINTS * FRAMES and rows[7]["name"] == "ü" and rows[7]["t"] == "1"
    assert float(rows[7]["x"]) == pytest.approx(tracks.xy[0, 2, 1, 0].item(), abs=1e-4)
    assert rows[7]["visible"] == str(int(tracks.visible[0, 2, 1]))


def test_json(tracks, tmp_path):
    tracks.save(tmp_path / "t.json")
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["info"] == tracks.info and len(found["points"]) == POINTS
    point = found["points"][2]
    assert point["name"] == "ü" and point["query"] == tracks.queries[0, 2].tolist()
    assert point["xy"][1] == pytest.approx(tracks.xy[0, 2, 1].tolist(), abs=1e-4)
    assert point["visible"] == tracks.visible[0, 2].tolist()


def test_wrong_columns_and_queries_are_named(tracks):
    with pytest.raises(ValueError, match=r"columns\['name'\]=\['a'\]; expected 4 values"):
        Tracks(tracks.xy, tracks.similarity, columns={"name": ["a"]})
    with pytest.raises(ValueError, match="columns=3; expected a mapping"):
        Tracks(tracks.xy, tracks.similarity, columns=3)
    with pytest.raises(ValueError, match="^xy of type NoneType"):
        Tracks(None, tracks.similarity)
    with pytest.raises(ValueError, match=r"queries of shape \(1, 4, 2\); expected \(1, 4, 3\)"):
        Tracks(tracks.xy, tracks.similarity, queries=torch.zeros(1, 4, 2))


@pytest.mark.parametrize(
    "about", ["{", "[]", '{"else": {}}', '{"columns": {"name": "abcd"}}', '{"columns": {"name": ["a"]}}']
)
def test_strange_files_are_named(tracks, tmp_path, about):
    np.savez(tmp_path / "t.npz", **tracks.numpy(), about=np.array(about))
    with pytest.raises(ValueError, match=r"t\.npz"):
        Tracks.load(tmp_path / "t.npz")
