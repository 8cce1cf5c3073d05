"""What cannot be read again is not written; what cannot be read is refused by name."""

import os
import pickle

import pytest
import torch

from chrono_features import ChronoBackbone
from chrono_features.data.tapvid import TapVid
from chrono_features.tracks import Tracks


def _nan(model):
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    return model


@pytest.mark.parametrize("spoil", [_nan, lambda m: m.to(torch.float8_e4m3fn), lambda m: m.to("meta")])
def test_a_model_that_could_not_be_loaded_does_not_replace_one_that_can(tmp_path, spoil):
    ChronoBackbone.from_pretrained("chrono-tiny").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model holds .*; expected"):
        spoil(ChronoBackbone.from_pretrained("chrono-tiny")).save_pretrained(tmp_path)
    ChronoBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["xy", "similarity"])
def test_tracks_that_could_not_be_loaded_do_not_replace_others(tmp_path, name):
    arrays = {"xy": torch.rand(1, 2, 3, 2), "similarity": torch.rand(1, 2, 3)}
    Tracks(**arrays).save(tmp_path / "t.npz")
    spoiled = arrays[name].clone()
    spoiled.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=name):
        Tracks(**{**arrays, name: spoiled}).save(tmp_path / "t.npz")
    assert torch.equal(Tracks.load(tmp_path / "t.npz").xy, arrays["xy"])


def test_meta_tracks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="xy"):
        Tracks(torch.rand(1, 2, 3, 2, device="meta"), torch.rand(1, 2, 3, device="meta")).save(tmp_path / "t.npz")


def test_a_key_too_long_for_a_name_names_the_file(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({1 << 20000: {}}))
    with pytest.raises(ValueError, match="a.pkl"):
        list(TapVid("davis", str(tmp_path / "a.pkl"), None))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_among_shards_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.pkl")
    with pytest.raises(ValueError, match="0.pkl is a pipe"):
        list(TapVid("davis", str(tmp_path), None, shards="*.pkl"))
