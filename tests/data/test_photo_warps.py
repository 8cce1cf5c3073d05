"""Warps: tracks are where the picture says, and every group does what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from warped_photographs import SIZE, generator, plan_and_homography, waves

from chrono_features.data import photo_warps as warps
from chrono_features.data.clip import Clip, Unusable
from chrono_features.data.photo_warps import FRAMES, PLANS, POINTS, PhotoWarps, render
from chrono_features.data.synthetic_clips import SyntheticClips

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, one of them in a folder below, and something else."""
    path = tmp_path_factory.mktemp("photographs")
    (path / "below").mkdir()
    Image.fromarray(waves(200, 260)).save(path / "wide.png")
    Image.fromarray(waves(240, 200)).save(path / "below" / "tall.JPG", quality=95)
    (path / "notes.txt").write_text("not a photograph")
    return path


@pytest.fixture(scope="module")
def videos(folder) -> dict[str, Clip]:
    return {entry.name: entry.load() for entry in PhotoWarps(folder, SIZE)}


@pytest.fixture
def of_group(videos):
    """of_group(name): the clips of one group."""
    return lambda group: [video for video in videos.values() if video.group == group]


def black_frames(video: Clip) -> np.ndarray:
    return (video.frames.flatten(1) == 0).all(dim=1).numpy()


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of True start and end."""
    steps = np.diff(np.concatenate(([0], flags.astype(int), [0])))
    return list(zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(PLANS.keys() - {"warps/exposure"}))
def test_points_keep_their_colour(of_group, group):
    """Under a track the colour stays, and beside it, on any side, it is another one."""
    height, width = SIZE
    for video in of_group(group):
        seen = video.visible
        shifts = torch.tensor([[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
        xy = video.xy.float()
        inside = ((xy > 1) & (xy < torch.tensor([width - 1, height - 1]))).all(-1) & seen & seen[:, :1]
        changes = []
        for shift in shifts:
            moved = xy.clone()
            moved[:, 1:] += shift
            where = 2 * moved.transpose(0, 1)[:, :, None] / torch.tensor([width, height]) - 1
            colour = F.grid_sample(video.frames.float(), where, align_corners=False)[..., 0]  # [T, 3, N]
            change = (colour - colour[:1]).abs().mean(dim=1).T
            changes.append(change[:, 1:][(inside & inside[:, :1])[:, 1:]].mean().item())
        on_track, *beside = changes
        assert all(on_track < 0.75 * other for other in beside), changes


@pytest.mark.slow
def test_small_pictures_do_not_alias():
    stripes = torch.zeros(3, 240, 240)
    stripes[:, :, ::2] = 1
    for group in PLANS:
        _, homography = plan_and_homography(group, seed=1, photograph=(240, 240), size=(40, 40))
        assert (render(stripes, homography, (40, 40)) - 0.5).abs().max() < 0.15


def test_entries(folder, videos):
    data = PhotoWarps(folder, SIZE)
    entries = list(data)
    assert data.kind == "warps"
    assert data.path == str(folder)
    assert data.total() == len(entries) == 2 * len(PLANS)
    assert [entry.name for entry in entries] == [f"{group}/{stem}" for stem in ("tall", "wide") for group in PLANS]
    for entry in entries:
        video = videos[entry.name]
        assert (video.name, video.group) == (entry.name, entry.group)
        assert video.frames.shape == (FRAMES, 3, *SIZE)
        assert video.frames.dtype == torch.uint8
        assert video.xy.shape == (POINTS, FRAMES, 2)
        assert video.xy.dtype == torch.float64
        assert video.visible.shape == video.valid.shape == (POINTS, FRAMES)
        assert video.visible.dtype == video.valid.dtype == torch.bool
        assert video.group == "gaps/blackout" or video.valid.all()


@pytest.mark.slow
def test_a_name_is_a_clip(folder, videos):
    global_state = torch.get_rng_state()
    for entry in reversed(list(PhotoWarps(folder, SIZE))):
        again, video = entry.load(), videos[entry.name]
        assert torch.equal(again.frames, video.frames)
        for name in ("xy", "visible", "valid"):
            assert np.array_equal(getattr(again, name), getattr(video, name))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not np.allclose(videos["warps/scale/wide"].xy, videos["warps/scale/tall"].xy)


def test_visibility_is_exact(videos):
    left = 0
    for video in videos.values():
        inside = ((video.xy >= 0) & (video.xy < torch.tensor(SIZE[::-1]))).all(-1)
        assert np.array_equal(video.visible, inside.numpy() & ~black_frames(video))
        assert video.visible[:, 0].all()
        assert video.visible.sum(1).min() >= 0.5 * (~black_frames(video)).sum()
        left += (~inside).sum()
    assert left > 100  # or the checks above say nothing


def test_the_frame_holds_its_left_edge_and_not_its_right():
    height, width = SIZE
    onto_edges = torch.eye(3, dtype=torch.float64).repeat(6, 1, 1)
    for row in (0, 1):  # all points end on one edge: frames 1 and 2 left and top, frames 3 and 4 right and bottom
        onto_edges[1 + row, row, row] = 0
        onto_edges[3 + row, row, [row, 2]] = torch.tensor([0, (width, height)[row]], dtype=torch.float64)
    _, visible = warps.draw_tracks(generator(0), onto_edges, torch.zeros(6, dtype=torch.bool), SIZE)
    assert len(visible) == POINTS
    assert visible.unique(dim=0).tolist() == [[True, True, True, False, False, True]]


def test_points_are_all_over_the_first_frame():
    draws = generator(0)
    still = torch.eye(3, dtype=torch.float64).expand(FRAMES, 3, 3)
    xy, visible = warps.draw_tracks(draws, still, torch.zeros(FRAMES, dtype=torch.bool), SIZE)
    assert visible.all()
    assert torch.equal(xy, xy[:, :1].expand_as(xy))
    share = xy[:, 0] / torch.tensor(SIZE[::-1])
    assert share.amin() < 0.1
    assert share.amax() > 0.9
    assert (share.mean(dim=0) - 0.5).abs().max() < 0.1


def affine(video: Clip) -> np.ndarray:  # (T, 2, 2)
    """The best linear map of the first frame's points to every frame's."""
    centred = (video.xy - video.xy.mean(0)).numpy()
    return np.stack([np.linalg.lstsq(centred[:, 0], centred[:, t], rcond=None)[0].T for t in range(FRAMES)])


def test_rotation_turns_far(of_group):
    for video in of_group("warps/rotation"):
        linear = affine(video)
        angle = np.unwrap(np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]))
        assert 88 < np.degrees(abs(angle[-1])) < 182
        steps = np.diff(angle) * np.sign(angle[-1])
        assert (steps > 0).all()
        assert np.degrees(steps.max()) < 15


def test_scale_zooms_far(of_group):
    for video in of_group("warps/scale"):
        zoom = np.log(np.linalg.det(affine(video))) / 2
        assert np.log(1.9) < abs(zoom[-1]) < np.log(3.2)
        assert (np.diff(zoom) * np.sign(zoom[-1]) > -0.01).all()


def test_zooms_and_turns_go_either_way():
    plans = {g: [PLANS[g](generator(seed)).camera for seed in range(12)] for g in ("warps/scale", "warps/rotation")}
    assert {float(camera.zoom[-1].sign()) for camera in plans["warps/scale"]} == {-1.0, 1.0}
    assert {float(camera.turn[-1].sign()) for camera in plans["warps/rotation"]} == {-1.0, 1.0}


def test_homography_is_far_from_affine(of_group):
    def residual(video):
        centred = (video.xy - video.xy.mean(0)).numpy()
        return np.linalg.norm(centred[:, -1] - centred[:, 0] @ affine(video)[-1].T, axis=-1).mean() / max(SIZE)

    tilted = [residual(video) for video in of_group("warps/homography")]
    assert min(tilted) > 0.02
    assert min(tilted) > 2 * max(residual(video) for video in of_group("warps/rotation"))


def test_exposure_changes_suddenly_and_nothing_else_does(of_group):
    for video in of_group("warps/exposure"):
        light = video.frames.float().mean(dim=(2, 3))
        jump = (light[1:].mean(dim=1).log() - light[:-1].mean(dim=1).log()).abs().max()
        assert jump > np.log(1.6)
        cast = (light / light.mean(dim=1, keepdim=True)).std(dim=0)
        assert cast.max() > 0.05
        assert np.linalg.norm(np.diff(video.xy, axis=1), axis=-1).max() < 0.1 * max(SIZE)
    for video in of_group("warps/rotation"):
        light = video.frames.float().mean(dim=(1, 2, 3))
        assert (light[1:].log() - light[:-1].log()).abs().max() < np.log(1.1)


def test_blackouts_hide_everything_and_only_what_follows_is_scored(of_group):
    for video in of_group("gaps/blackout"):
        gaps = runs(black_frames(video))
        assert len(gaps) in (1, 2)
        assert all(3 <= end - start <= 8 for start, end in gaps)
        for start, end in gaps:
            assert start >= 2
            assert end < FRAMES
            assert not video.visible[:, start:end].any()
            assert video.visible[:, [start - 1, end]].any(0).all()
            assert (np.linalg.norm(np.diff(video.xy[:, start - 1 : end], axis=1), axis=-1).mean(0) > 1e-3).all()
        end = gaps[0][1]
        assert video.valid[:, 0].all()
        assert not video.valid[:, 1:end].any()
        assert video.valid[:, end:].all()


def test_blackouts_of_every_kind():
    plans = [PLANS["gaps/blackout"](generator(seed)) for seed in range(200)]
    gaps = [runs(plan.black.numpy()) for plan in plans]
    assert {len(found) for found in gaps} == {1, 2}
    for which in (0, 1):
        assert {found[which][1] - found[which][0] for found in gaps if which < len(found)} == set(range(3, 9))
    assert max(end for found in gaps for _, end in found) < FRAMES
    for plan, found in zip(plans, gaps, strict=True):
        assert plan.scored.nonzero().flatten().tolist() == [0, *range(found[0][1], FRAMES)]


def test_join_jumps_once(of_group):
    for video in of_group("gaps/join"):
        steps = np.linalg.norm(np.diff(video.xy, axis=1), axis=-1).mean(0) / max(SIZE)
        assert steps[0] > 0.12
        assert steps[0] > 3 * steps[1:].max()


def test_folders_without_photographs(tmp_path):
    for data in (PhotoWarps, SyntheticClips):
        with pytest.raises(FileNotFoundError, match="path.*missing"):
            data(tmp_path / "missing")
        with pytest.raises(ValueError, match="path: no photographs.*jpg"):
            data(tmp_path)


def test_photographs_that_are_no_use(tmp_path):
    Image.new("RGB", (400, 191)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    Image.fromarray(waves(192, 192)).save(tmp_path / "c.png")
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) // 2])
    entries = {entry.name: entry for entry in PhotoWarps(tmp_path, SIZE)}  # nothing is read yet
    with pytest.raises(Unusable, match=r"a\.png has 400 x 191 pixels.*at least 192"):
        entries["warps/scale/a"].load()
    for broken in "bd":
        with pytest.raises(Unusable, match=rf"{broken}\.\w+: not a readable image"):
            entries[f"warps/scale/{broken}"].load()
    assert entries["warps/scale/c"].load().frames.shape == (FRAMES, 3, *SIZE)


def test_names_stay_unique(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (200, 200)).save(tmp_path / name)
    names = [entry.name for entry in PhotoWarps(tmp_path)]
    assert len(set(names)) == 3 * len(PLANS)
    assert "gaps/join/a.jpg" in names


def test_large_photographs_are_made_smaller_and_sizes_default(tmp_path, monkeypatch):
    monkeypatch.setattr(warps, "LARGEST", 300)
    Image.fromarray(waves(320, 400)).save(tmp_path / "a.png")
    assert warps._read(tmp_path / "a.png").shape == (3, 300, 375)
    assert PhotoWarps(tmp_path).size == PhotoWarps(tmp_path, None).size == (256, 256)


def test_fingerprints_tell_data_apart(folder, tmp_path):
    Image.fromarray(waves(200, 260)).save(tmp_path / "wide.png")
    prints = [PhotoWarps(folder, SIZE), PhotoWarps(folder, SIZE), PhotoWarps(folder), PhotoWarps(tmp_path, SIZE)]
    first, again, *others = [data.fingerprint() for data in prints]
    assert first == again
    assert all(first != other for other in others)
