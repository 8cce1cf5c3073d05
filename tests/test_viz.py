import numpy as np
import pytest
import torch

from chrono_features.tracks import Tracks
from chrono_features.viz import (
    draw_tracks,
    mark_radius,
    pca_frames,
    point_colours,
    principal_components,
    side_by_side,
    similarity_overlay,
)

pytest.importorskip("PIL")

GREY = 90


def tracks_at(xy: torch.Tensor, visible: torch.Tensor | None = None) -> Tracks:
    return Tracks(xy, torch.ones(xy.shape[:2]), visible)


def still(*points: tuple[float, float], frames: int = 3) -> torch.Tensor:
    return torch.tensor(points)[:, None].expand(-1, frames, -1)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.full((3, 3, 240, 320), GREY, dtype=torch.uint8)


def test_discs_where_visible_and_rings_where_occluded(video: torch.Tensor) -> None:
    xy = still((60.5, 40.5), (200.5, 180.5))
    visible = torch.tensor([[True, True, True], [True, False, True]])
    frames = list(draw_tracks(video, tracks_at(xy, visible)))
    assert len(frames) == 3 and all(f.shape == (240, 320, 3) and f.dtype == np.uint8 for f in frames)
    first, second = point_colours(xy[:, 0].numpy())
    for frame in frames:
        assert tuple(frame[40, 60]) == first
    assert tuple(frames[0][180, 200]) == second
    assert tuple(frames[1][180, 200]) == (GREY,) * 3  # hollow
    ring = np.abs(frames[1][175:187, 195:207].astype(int) - second).sum(-1)
    assert ring.min() < 100  # but there
    assert tuple(frames[2][180, 200]) == second


def test_marks_are_centred_on_the_raster_position(video: torch.Tensor) -> None:
    for x, y in ((100.0, 80.0), (100.5, 80.5), (33.25, 120.75)):
        frame = next(draw_tracks(video[:1], tracks_at(still((x, y), frames=1))))
        weight = np.abs(frame.astype(float) - GREY).sum(-1)
        rows, columns = np.mgrid[:240, :320] + 0.5
        assert np.average(columns, weights=weight) == pytest.approx(x, abs=0.15)
        assert np.average(rows, weights=weight) == pytest.approx(y, abs=0.15)


def test_marks_grow_with_the_frame() -> None:
    for height, width in ((480, 640), (1440, 1920)):
        video = torch.full((1, 3, height, width), GREY, dtype=torch.uint8)
        frame = next(draw_tracks(video, tracks_at(still((100.0, 100.0), frames=1))))
        coloured = (frame[..., 0] > 200).sum()
        assert coloured == pytest.approx(np.pi * mark_radius(height, width) ** 2, rel=0.2)
    assert mark_radius(1440, 1920) == pytest.approx(3 * mark_radius(480, 640))


def test_everything_else_is_untouched() -> None:
    video = torch.randint(0, 256, (1, 3, 121, 161), dtype=torch.uint8)
    before = video.clone()
    frame = next(draw_tracks(video, tracks_at(still((20.0, 30.0), frames=1))))
    assert torch.equal(video, before)
    changed = (frame != video[0].permute(1, 2, 0).numpy()).any(-1)
    assert changed.any() and not changed[40:].any() and not changed[:, 30:].any()


def test_trails_fade_and_stop_where_occluded() -> None:
    video = torch.full((10, 3, 60, 400), GREY, dtype=torch.uint8)
    xy = torch.stack([20.0 + 36 * torch.arange(10), torch.full((10,), 30.0)], -1)[None]
    seen = torch.ones(1, 10, dtype=torch.bool)
    seen[0, 5] = False

    def strength(frame: np.ndarray, k: int) -> float:  # of the trail between positions k and k + 1
        return float(np.abs(frame[30, int(20 + 36 * (k + 0.5))].astype(float) - GREY).sum())

    last = list(draw_tracks(video, tracks_at(xy), trail=6))[-1]
    assert strength(last, 8) > strength(last, 6) > strength(last, 4) > 0
    assert strength(last, 2) == 0
    broken = list(draw_tracks(video, tracks_at(xy, seen), trail=6))[-1]
    assert strength(broken, 4) == strength(broken, 5) == 0 < strength(broken, 6)
    bare = list(draw_tracks(video, tracks_at(xy), trail=0))[-1]
    assert all(strength(bare, k) == 0 for k in range(9))


def test_colours_are_distinct_and_follow_height() -> None:
    y, x = np.mgrid[:16, :16]
    xy = np.stack([x.ravel(), y.ravel()], -1).astype(float)
    colours = point_colours(xy)
    assert len(set(colours)) == 256
    shuffled = np.random.default_rng(0).permutation(256)
    assert point_colours(xy[shuffled]) == [colours[i] for i in shuffled]
    assert colours[0][0] == 255 and colours[-1][2] == 255  # red at the top, violet at the bottom


def test_no_points(video: torch.Tensor) -> None:
    frames = list(draw_tracks(video, tracks_at(torch.zeros(0, 3, 2))))
    assert len(frames) == 3 and (frames[0] == GREY).all()


def test_draw_tracks_refuses(video: torch.Tensor) -> None:
    tracks = tracks_at(still((5.0, 5.0)))
    with pytest.raises(ValueError, match=r"video of type torch\.float32"):
        draw_tracks(video.float(), tracks)
    with pytest.raises(ValueError, match=r"video is torch\.uint8 of shape"):
        draw_tracks(video[None], tracks)
    with pytest.raises(ValueError, match=r"tracks.xy of shape \(1, 3, 2\); expected \(N, T, 2\) with T=2"):
        draw_tracks(video[:2], tracks)
    with pytest.raises(ValueError, match="trail=-1"):
        draw_tracks(video, tracks, trail=-1)


def test_principal_components_are_those_of_an_svd() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 7, 5, 6) * torch.arange(1, 8).view(7, 1, 1) + 3
    components = principal_components(features)
    rows = features.permute(0, 2, 3, 1).reshape(-1, 7).double().numpy()
    rows = rows - rows.mean(0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    expected = rows @ axes[:3].T
    got = components.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    for k in range(3):
        sign = np.sign(got[:, k] @ expected[:, k])
        np.testing.assert_allclose(got[:, k], sign * expected[:, k], atol=1e-4)
    assert torch.equal(principal_components(features), principal_components(features.clone()))


def test_pca_frames_use_the_whole_range_over_the_whole_clip() -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 8, 4, 4) * 0.1
    features[3:, 0] += 5  # the clip's greatest change is in time
    frames = list(pca_frames(features, (32, 48)))
    assert len(frames) == 6 and all(f.shape == (32, 48, 3) and f.dtype == np.uint8 for f in frames)
    red = np.array([f[..., 0].mean() for f in frames])
    assert np.abs(red[:3].mean() - red[3:].mean()) > 200
    flat = list(pca_frames(torch.ones(2, 4, 3, 3), (8, 8)))
    assert np.isfinite(flat[0]).all()


def test_pca_refuses_too_few_channels() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(2, 2, 4, 4\); expected .* C of at least 3"):
        pca_frames(torch.ones(2, 2, 4, 4), (8, 8))


def test_side_by_side_labels_every_column() -> None:
    left, right = (np.full((100, 150, 3), v, np.uint8) for v in (40, 80))
    frames = list(side_by_side({"left": [left] * 3, "right": iter([right] * 2)}))
    assert len(frames) == 2
    strip = frames[0].shape[0] - 100
    assert frames[0].shape == (100 + strip, 300, 3)
    assert (frames[0][strip:, :150] == 40).all() and (frames[0][strip:, 150:] == 80).all()
    for part in (frames[0][:strip, :150], frames[0][:strip, 150:]):
        assert part.min() < 100 and part.max() == 255  # black letters on white


def test_similarity_overlay_is_brightest_where_most_similar() -> None:
    frame = torch.full((3, 60, 80), GREY, dtype=torch.uint8)
    similarity = torch.zeros(6, 8)
    similarity[4, 6] = 1.0
    picture = similarity_overlay(frame, similarity)
    assert picture.shape == (60, 80, 3) and picture.dtype == np.uint8
    row, column = np.unravel_index(picture.sum(-1).argmax(), (60, 80))
    assert 40 <= row < 50 and 60 <= column < 70
    np.testing.assert_array_equal(similarity_overlay(frame, similarity, opacity=0.0), np.full((60, 80, 3), GREY))
    with pytest.raises(ValueError, match=r"limits=\(1.0, 1.0\)"):
        similarity_overlay(frame, similarity, limits=(1.0, 1.0))
    with pytest.raises(ValueError, match="similarity of shape"):
        similarity_overlay(frame, similarity[None])
