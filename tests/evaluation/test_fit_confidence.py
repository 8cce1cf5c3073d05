from __future__ import annotations

import numpy as np
import pytest
import torch

from chrono_features import ChronoBackbone
from chrono_features.confidence import fit, probability, track_signals
from chrono_features.data.clip import Clip, Entry, Unusable
from chrono_features.evaluation import fit_confidence as module
from chrono_features.evaluation.fit_confidence import FIRST_CLIP, fit_confidence

SIZE, FRAMES, POINTS = (40, 48), 4, 12


def video(seed: int) -> Clip:
    """A still picture that trembles; some points are said to be elsewhere, some are hidden or not known at times."""
    draws = np.random.default_rng(seed)
    still, noise = draws.integers(0, 256, (3, *SIZE)), draws.integers(-9, 10, (FRAMES, 3, *SIZE))
    xy = np.repeat(draws.random((POINTS, 1, 2)) * SIZE[::-1], FRAMES, axis=1)
    xy[:3, 2:] = draws.random((3, 1, 2)) * SIZE[::-1]
    occluded, valid = np.zeros((2, POINTS, FRAMES), bool)
    occluded[3:6, 2], valid[:] = True, True
    valid[6:8, 1] = False
    occluded[8, 0] = True  # its query is in the second frame
    frames = torch.from_numpy((still + noise).clip(0, 255).astype(np.uint8))
    visible = ~torch.from_numpy(occluded)
    return Clip(frames, torch.from_numpy(xy), visible, torch.from_numpy(valid), name=f"v{seed}", group="tests")


made: list[tuple] = []  # what was opened, with which options


class Clips:
    """Two videos and one that cannot be used."""

    def __init__(self, path, seed=0, **options):
        self.path, self.seed = path, seed
        made.append((path, options))

    def __iter__(self):
        def fail():
            raise Unusable("too small")

        for load in (lambda: video(self.seed), fail, lambda: video(self.seed + 1)):
            yield Entry("name", "group", load)

    def total(self):
        return 3


@pytest.fixture
def clips(monkeypatch):
    made.clear()
    monkeypatch.setattr(module, "SyntheticClips", Clips)
    monkeypatch.setattr(module, "PhotoWarps", lambda path: Clips(path, seed=2))


@pytest.fixture
def model(small_model):
    return small_model(grid=(24, 24), temperature=30.0, radius=2.0)


@torch.no_grad()
def expected_weights(model, refine):
    """All that is known and comes after a query's own frame, from all videos, one point and frame at a time."""
    signals, good = [], []
    for seed in range(4):
        v = video(seed)
        start = (v.visible & v.valid).int().argmax(1).tolist()
        queries = torch.tensor([[t, *v.xy[n, t]] for n, t in enumerate(start)], dtype=torch.float32)[None]
        tracks = model.track(v.frames[None], queries, refine=refine)
        features = model(v.frames[None])
        found = track_signals(features, queries, tracks, SIZE, temperature=30.0, radius=2.0)[0]
        for n in range(POINTS):
            for t in range(start[n] + 1, FRAMES):
                if v.valid[n, t]:
                    x, y = (tracks.xy[0, n, t] - v.xy[n, t]) * torch.tensor([256 / SIZE[1], 256 / SIZE[0]])
                    signals.append(found[n, t])
                    good.append(np.hypot(x, y) < 4 and bool(v.visible[n, t]))
    assert 0.1 < np.mean(good) < 0.9
    return fit(torch.stack(signals), torch.tensor(good))


@pytest.mark.slow
def test_weights_are_fitted_to_all_tracks_and_kept_in_files(model, clips, tmp_path):
    told = []
    expected = {refine: expected_weights(model, refine) for refine in (None, "photometric")}
    assert fit_confidence(model, "photographs", lambda *done: told.append(done)) is None
    assert model.config.confidence == pytest.approx(expected[None], abs=0.01)
    assert model.config.refined_confidence == pytest.approx(expected["photometric"], abs=0.01)
    assert told == [(1, 6), (2, 6), (3, 6), (4, 6)]
    assert made == [("photographs", {"first": FIRST_CLIP, "part": None}), ("photographs", {})]

    model.save_pretrained(tmp_path)
    again = ChronoBackbone.from_pretrained(str(tmp_path))
    assert again.config == model.config and again.config.confidence is not None
    v = video(9)
    queries = torch.tensor([[[0.0, 20.0, 20.0], [1.0, 30.0, 10.0]]])
    tracks = again.track(v.frames[None], queries, refine="photometric", confidence=True)
    signals = track_signals(model(v.frames[None]), queries, tracks, SIZE, temperature=30.0, radius=2.0)
    torch.testing.assert_close(tracks.confidence, probability(signals, model.config.refined_confidence))


def test_tracks_that_are_all_bad_are_refused(model, clips, monkeypatch):
    monkeypatch.setattr(module, "NEAR", 0.0)
    with pytest.raises(ValueError, match="good is False for all"):
        fit_confidence(model, "photographs")
    assert model.config.confidence is None and model.config.refined_confidence is None


def test_a_missing_folder_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit_confidence(model, tmp_path / "nowhere")


def test_the_former_name_warns(model, monkeypatch):
    fitted = []
    monkeypatch.setattr(module, "fit_confidence", lambda *arguments: fitted.append(arguments))
    with pytest.warns(DeprecationWarning, match="calibrate is now called fit_confidence"):
        module.calibrate(model, "photographs", print)
    assert fitted == [(model, "photographs", print)]
