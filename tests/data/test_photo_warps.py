"""Warps and held-out clips: tracks are where the picture says, and every group does what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chrono_features.data import photo_warps as warps
from chrono_features.data import synthetic_clips as heldout
from chrono_features.data.camera_motion import homographies, project
from chrono_features.data.clip import LabelledVideo, Unusable
from chrono_features.data.photo_warps import FRAMES, PLANS, POINTS, PhotoWarps, render
from chrono_features.data.synthetic import VALIDATION_SEED, load_textures, make_clip
from chrono_features.data.synthetic_clips import SyntheticClips
from chrono_features.training.batches import SyntheticBatches
from chrono_features.training.recipes import RECIPES

Image = pytest.importorskip("PIL.Image")
SIZE = (60, 72)  # (height, width)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(height: int, width: int) -> np.ndarray:
    """Colours that tell positions: steep, and alike nowhere near."""
    y, x = np.mgrid[:height, :width] + 0.5
    phases = x / 11, y / 11, (x + y) / 17
    return (127.5 + 120 * np.sin(np.stack(phases, axis=-1))).astype(np.uint8)


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
def videos(folder) -> dict[str, LabelledVideo]:
    return {entry.name: entry.load() for entry in PhotoWarps(folder, SIZE)}


@pytest.fixture
def of_group(videos):
    """of_group(name): the clips of one group."""
    return lambda group: [video for video in videos.values() if video.group == group]


def plan_and_homography(group: str, seed: int, photograph=(256, 320), size=(128, 128)):
    draws = generator(seed)
    plan = PLANS[group](draws)
    return plan, homographies(draws, plan.camera, photograph, size)


def black_frames(video: LabelledVideo) -> np.ndarray:
    return (video.frames.flatten(1) == 0).all(dim=1).numpy()


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of True start and end."""
    steps = np.diff(np.concatenate(([0], flags.astype(int), [0])))
    return list(zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True))


# --- picture and tracks agree ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", PLANS)
def test_a_dot_is_where_its_track_is(group):
    _, homography = plan_and_homography(group, seed=4)
    dot = project(torch.linalg.inv(homography[:1]), torch.tensor([[50.0, 80.0]]).double())[0, 0]
    y, x = torch.meshgrid(torch.arange(256) + 0.5, torch.arange(320) + 0.5, indexing="ij")
    picture = torch.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * 2.0**2)).float().expand(3, -1, -1)
    xy = project(homography, dot[None])[0]
    frames = render(picture, homography, (128, 128))[:, 0].double()
    centres = torch.arange(128) + 0.5
    total = frames.sum(dim=(1, 2))
    centroid = torch.stack((frames.sum(dim=1) @ centres.double(), frames.sum(dim=2) @ centres.double()), dim=1)
    whole = ((xy > 16) & (xy < 112)).all(dim=1)
    assert whole.sum() >= 8
    assert (xy[whole] - xy[0]).norm(dim=1).max() > 10  # or the check below says little
    error = (centroid / total[:, None] - xy)[whole].norm(dim=1)
    assert error.max() < 0.05


@pytest.mark.parametrize("group", sorted(PLANS.keys() - {"warps/exposure"}))
def test_points_keep_their_colour(of_group, group):
    """Under a track the colour stays, and beside it, on any side, it is another one."""
    height, width = SIZE
    for video in of_group(group):
        seen = torch.from_numpy(~video.occluded)
        shifts = torch.tensor([[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
        xy = torch.from_numpy(video.xy).float()
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


def test_small_pictures_do_not_alias():
    stripes = torch.zeros(3, 240, 240)
    stripes[:, :, ::2] = 1
    for group in PLANS:
        _, homography = plan_and_homography(group, seed=1, photograph=(240, 240), size=(40, 40))
        assert (render(stripes, homography, (40, 40)) - 0.5).abs().max() < 0.15


# --- what clips are -------------------------------------------------------------------------------------------------


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
        assert video.xy.dtype == np.float64
        assert video.occluded.shape == video.valid.shape == (POINTS, FRAMES)
        assert video.occluded.dtype == video.valid.dtype == bool
        assert video.group == "gaps/blackout" or video.valid.all()


def test_a_name_is_a_clip(folder, videos):
    global_state = torch.get_rng_state()
    for entry in reversed(list(PhotoWarps(folder, SIZE))):
        again, video = entry.load(), videos[entry.name]
        assert torch.equal(again.frames, video.frames)
        for name in ("xy", "occluded", "valid"):
            assert np.array_equal(getattr(again, name), getattr(video, name))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not np.allclose(videos["warps/scale/wide"].xy, videos["warps/scale/tall"].xy)


def test_visibility_is_exact(videos):
    left = 0
    for video in videos.values():
        inside = ((video.xy >= 0) & (video.xy < SIZE[::-1])).all(-1)
        assert np.array_equal(~video.occluded, inside & ~black_frames(video))
        assert not video.occluded[:, 0].any()
        assert (~video.occluded).sum(1).min() >= 0.5 * (~black_frames(video)).sum()
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


@pytest.mark.parametrize("group", PLANS)
@pytest.mark.parametrize("photograph", [(200, 200), (192, 500)])
def test_no_view_leaves_the_photograph_and_the_plane_is_in_front(group, photograph):
    height, width = SIZE
    corners = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]).double()
    for seed in range(40):
        _, homography = plan_and_homography(group, seed, photograph, SIZE)
        seen = project(torch.linalg.inv(homography), corners)
        assert seen.amin() > -1e-6
        assert (seen <= torch.tensor(photograph[::-1]) + 1e-6).all()
        extent = (seen.amax(dim=(0, 1)) - seen.amin(dim=(0, 1))) / torch.tensor(photograph[::-1])
        assert extent.max() > 0.9 - 1e-6  # and it is used
        ahead = homography[:, 2] @ torch.cat((seen, torch.ones(4, FRAMES, 1)), dim=-1).flatten(0, 1).T
        assert (ahead > 0).all() or (ahead < 0).all()


# --- what groups promise --------------------------------------------------------------------------------------------


def affine(video: LabelledVideo) -> np.ndarray:  # (T, 2, 2)
    """The best linear map of the first frame's points to every frame's."""
    centred = video.xy - video.xy.mean(0)
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
        centred = video.xy - video.xy.mean(0)
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
            assert video.occluded[:, start:end].all()
            assert not video.occluded[:, [start - 1, end]].all(axis=0).any()
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


# --- what can be wrong ----------------------------------------------------------------------------------------------


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
    assert SyntheticClips().size == SyntheticClips("", None).size == (256, 256)


def test_fingerprints_tell_data_apart(folder, tmp_path):
    Image.fromarray(waves(200, 260)).save(tmp_path / "wide.png")
    prints = [PhotoWarps(folder, SIZE), PhotoWarps(folder, SIZE), PhotoWarps(folder), PhotoWarps(tmp_path, SIZE)]
    first, again, *others = [data.fingerprint() for data in prints]
    assert first == again
    assert all(first != other for other in others)
    for i in range(4):
        Image.fromarray(waves(40, 40)).save(tmp_path / f"{i}.png")
    prints = [
        SyntheticClips("", SIZE),
        SyntheticClips("", SIZE),
        SyntheticClips(),
        SyntheticClips(tmp_path, SIZE),
        SyntheticClips("", SIZE, first=24),
    ]
    first, again, *others = [data.fingerprint() for data in prints]
    assert first == again
    assert all(first != other for other in others)


# --- held-out clips -------------------------------------------------------------------------------------------------


def test_held_out_entries():
    data = SyntheticClips("", SIZE)
    entries = list(data)
    assert data.kind == "synthetic"
    assert data.total() == len(entries) == len({entry.name for entry in entries}) == 36
    for group in ("synthetic/raycast", "synthetic/layers", "synthetic/occluded"):
        assert sum(entry.group == group for entry in entries) == 12


@pytest.mark.parametrize(
    ("index", "group", "scene"),
    [(0, "raycast", "raycast"), (34, "layers", "layers"), (2, "occluded", "raycast"), (5, "occluded", "layers")],
)
def test_held_out_clips_are_the_generators(monkeypatch, index, group, scene):
    monkeypatch.setattr(heldout, "FRAMES", 6)
    entry = list(SyntheticClips("", (32, 40), first=7))[index]
    video = entry.load()
    variety = {"variety": heldout.OCCLUDED} if group == "occluded" else {}
    clip = make_clip(heldout.FIRST_SEED + 7 + index, frames=6, size=(32, 40), points=128, scene=scene, **variety)
    assert (video.name, video.group) == (entry.name, entry.group) == (f"synthetic/{group}/{index:02d}", entry.group)
    assert (video.frames.float() / 255 - clip.video).abs().max() <= 0.5 / 255 + 1e-6
    assert video.frames.dtype == torch.uint8
    assert np.array_equal(video.xy, clip.tracks.numpy())
    assert video.xy.dtype == np.float64
    assert np.array_equal(video.occluded, ~clip.visible.numpy())
    assert (~video.occluded).any(axis=1).all()
    assert video.valid.all()


def test_held_out_seeds_are_never_trained_on():
    """As a generator understands them: seeds that agree in 32 bits are one seed."""
    first, again = (torch.rand(4, generator=generator(seed)) for seed in (5, 5 + 2**61))
    assert torch.equal(first, again)
    stages = [stage for recipe in RECIPES.values() for stage in recipe.stages]
    for seed in range(100):
        for world in (1, 3, 8):
            for stage in stages:
                data = SyntheticBatches(stage, None, seed, rank=world - 1, world=world)
                first, last = data.first % 2**32, data.first % 2**32 + len(data) * data.per_step
                assert first < last < VALIDATION_SEED
    assert VALIDATION_SEED < heldout.FIRST_SEED and heldout.FIRST_SEED + heldout.CLIPS < 2**32


def test_held_out_textures(tmp_path, monkeypatch):
    """Those that training keeps for validation."""
    monkeypatch.setattr(heldout, "FRAMES", 2)
    for i in range(5):
        if i == 4:
            with pytest.raises(ValueError, match="4 photographs; expected at least 5"):
                SyntheticClips(tmp_path)
        Image.fromarray(waves(40, 40) // (i + 1)).save(tmp_path / f"{i}.png")
    data = SyntheticClips(tmp_path, (24, 24))
    kept = load_textures(tmp_path, "validation")
    clip = make_clip(heldout.FIRST_SEED, frames=2, size=(24, 24), points=128, scene="raycast", textures=kept)
    video = next(iter(data)).load()
    assert torch.equal(video.frames, (255 * clip.video).round().byte())
    (tmp_path / "4.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"4\.png: not a readable image"):
        next(iter(SyntheticClips(tmp_path))).load()
