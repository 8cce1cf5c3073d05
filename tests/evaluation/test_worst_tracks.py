from __future__ import annotations

import numpy as np
import pytest
import torch

from chrono_features.data.clip import Clip

pytest.importorskip("PIL")

from chrono_features.evaluation.worst_tracks import FOUND, TRUTH, draw_clip

FRAMES, SIDE = 6, 64


def labelled() -> Clip:
    """Grey frames, and a track that stands still at (20, 40); it is occluded in frame 3 and unknown in frame 4."""
    xy = np.broadcast_to(np.array([20.0, 40.0]), (1, FRAMES, 2))
    occluded, valid = np.zeros((1, FRAMES), bool), np.ones((1, FRAMES), bool)
    occluded[:, 3], valid[:, 4] = True, False
    frames = torch.full((FRAMES, 3, SIDE, SIDE), 90, dtype=torch.uint8)
    return Clip(frames, torch.from_numpy(xy.copy()), ~torch.from_numpy(occluded), torch.from_numpy(valid))


def distance(image: np.ndarray, x: float, y: float, colour: tuple[int, int, int]) -> int:
    return int(np.abs(image[int(5 * y), int(5 * x)].astype(int) - colour).max())


def test_marks() -> None:
    xy = [[20, 24], [20, 24], [None, None], [20, 24], [20, 24], [44, 24]]
    track = {"track": 0, "delta": 0.0, "query": [1, 20, 40], "xy": xy, "visible": [1, 1, 1, 1, 1, 0]}
    frames = list(draw_clip(labelled(), track, range(FRAMES)))
    assert all(f.shape == (320, 320, 3) and f.dtype == np.uint8 for f in frames)
    for t in (0, 1, 2, 5):
        assert distance(frames[t], 20, 40, TRUTH) < 5
    for t in (3, 4):  # hidden, unknown
        assert distance(frames[t], 20, 40, TRUTH) > 50
    for t in (0, 1, 3, 4):
        assert distance(frames[t], 20, 24, FOUND) < 5
    assert distance(frames[2], 20, 24, FOUND) > 50  # not found
    assert frames[0][160, 100].min() > frames[2][160, 100].max() + 40  # the line between them
    ring = frames[5][110:131, 210:231].astype(int)
    assert distance(frames[5], 44, 24, FOUND) > 50 and np.abs(ring - FOUND).max(-1).min() < 30
