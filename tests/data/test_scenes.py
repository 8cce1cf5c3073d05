"""Synthetic clips: the tracks are where the picture says they are, and the same seed is the same clip."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chrono_features.data.synthetic import (
    Variety,
    covers,
    load_textures,
    make_clip,
    photometric,
    procedural_textures,
    raycast,
)
from chrono_features.data.synthetic import layers as layered
from chrono_features.data.synthetic.materials import lookup, make_materials
from chrono_features.data.synthetic.motion import camera_view, rotations, wander
from chrono_features.data.synthetic.picture import render_frames
from chrono_features.data.synthetic.random_worlds import _creature, random_world
from chrono_features.data.synthetic.scene import choose, near_edges
from chrono_features.data.synthetic.shapes import Blob, Capsule, Polygon, random_shape
from chrono_features.data.synthetic.textures import TextureSource
from chrono_features.data.synthetic.variety import NOTHING
from chrono_features.data.synthetic.world import World, project, sees, surface_points

SMALL = {"frames": 4, "size": (40, 56), "points": 16, "textures": procedural_textures(6, 32)}
KINDS = ("raycast", "layers")
ALL_OF_IT = Variety(**dict.fromkeys(Variety.__dataclass_fields__, 1.0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- clips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", KINDS)
def test_a_seed_is_a_clip(scene):
    global_state = torch.get_rng_state()
    first, again, other = (make_clip(seed, scene=scene, **SMALL) for seed in (5, 5, 6))
    for name in ("video", "tracks", "visible", "moving"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.video, other.video)
    assert not torch.equal(first.tracks, other.tracks)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("scene", KINDS)
@pytest.mark.parametrize(("frames", "size", "points"), [(4, (40, 56), 16), (1, (17, 9), 1)])
def test_shapes_types_and_ranges(scene, frames, size, points):
    clip = make_clip(3, scene=scene, frames=frames, size=size, points=points)
    assert clip.video.shape == (frames, 3, *size)
    assert clip.video.dtype == torch.float32
    assert 0 <= clip.video.min() < clip.video.max() <= 1
    assert clip.tracks.shape == (points, frames, 2)
    assert clip.tracks.dtype == torch.float32
    assert clip.tracks.isfinite().all()
    assert clip.visible.shape == (points, frames)
    assert clip.moving.shape == (points,)
    assert clip.visible.dtype == clip.moving.dtype == torch.bool


@pytest.mark.parametrize("scene", KINDS)
def test_visible_at_the_anchor_and_never_outside(scene):
    seen_outside = 0
    for seed in range(6):
        anchored = make_clip(seed, scene=scene, anchor=2, frame_step=4.0, **SMALL)
        assert anchored.visible[:, 2].all()
        free = make_clip(seed, scene=scene, frame_step=4.0, **SMALL)
        assert free.visible.any(dim=1).all()
        for clip in (anchored, free):
            outside = (clip.tracks < 0).any(-1) | (clip.tracks[..., 0] >= 56) | (clip.tracks[..., 1] >= 40)
            assert not (outside & clip.visible).any()
            seen_outside += int(outside.sum())
    assert seen_outside > 20  # or the check above says nothing


@pytest.mark.parametrize("scene", KINDS)
def test_free_anchors_are_spread_over_the_clip(scene):
    clips = [make_clip(seed, scene=scene, frame_step=5.0, **SMALL) for seed in range(6)]
    hidden_at = torch.stack([~clip.visible for clip in clips]).flatten(0, 1).any(dim=0)
    assert hidden_at.all()  # in every frame some point is hidden: none is everyone's anchor


@pytest.mark.parametrize("scene", KINDS)
def test_half_of_the_points_move(scene):
    shares = [make_clip(seed, scene=scene, **SMALL).moving.float().mean().item() for seed in range(6)]
    assert sorted(shares)[len(shares) // 2] == 0.5
    assert max(shares) <= 0.5


@pytest.mark.parametrize("scene", KINDS)
def test_half_of_the_points_are_near_edges(scene):
    def near_another(clip, everywhere):  # [N] bool: what moves and what does not are both close by
        distance = torch.cdist(clip.tracks[:, 0], everywhere.tracks[:, 0])
        other = clip.moving[:, None] != everywhere.moving
        return ((distance < 3.0) & other).any(dim=1)  # near is 3.2 px here

    shares = {0.0: [], 1.0: []}
    for seed in range(6):
        options = {"scene": scene, "frames": 1, "size": (96, 128), "photometric": False}
        everywhere = make_clip(seed, points=3000, variety=NOTHING, **options)
        for edges, found in shares.items():
            clip = make_clip(seed, points=64, variety=dataclasses.replace(NOTHING, edges=edges), **options)
            assert torch.equal(clip.video, everywhere.video)
            found.append(near_another(clip, everywhere).float().mean())
    assert statistics.fmean(shares[1.0]) > 1.6 * statistics.fmean(shares[0.0])  # other outlines are not looked for here


def test_near_an_edge_is_within_a_distance_of_it():
    xy = torch.rand(2, 500, 2, generator=generator(0), dtype=torch.float64) * 10
    border = torch.tensor([[4.0], [7.0]])  # of frame 0 and 1

    def look(positions):
        return (positions[..., 0] > border).long()

    near, away = near_edges(xy, look(xy), look, 2.0), (xy[..., 0] - border).abs()
    assert torch.equal(near, away < 2**0.5)  # diagonally, which is at most 2 away


@pytest.mark.parametrize("scene", KINDS)
def test_points_near_a_cover_are_near_an_edge(scene, monkeypatch):
    def disc(*_, **__):  # of a radius of 12.8 pixels, in the middle of frame 2 of 4
        pictures, there = (torch.zeros(3, 8, 8),), torch.tensor([[False, False, True, False]])
        centre = torch.tensor([64.0, 48.0], dtype=torch.float64).expand(1, 4, 2)
        return covers.Covers(
            (Blob(0.1, (), ()),), pictures, centre, there, torch.zeros(4).bool(), pictures[0], (96, 128)
        )

    monkeypatch.setattr(f"{make_clip.__module__}.random_covers", disc)
    counts = []
    for edges in (0.0, 1.0):
        variety = dataclasses.replace(NOTHING, edges=edges)
        clips = [make_clip(seed, scene=scene, frames=4, size=(96, 128), anchor=2, variety=variety) for seed in range(8)]
        away = torch.cat([(clip.tracks[:, 2] - torch.tensor([64.0, 48.0])).norm(dim=-1) - 12.8 for clip in clips])
        assert away.min() > 0
        counts.append(int((away < 3).sum()))
    assert counts[1] > 1.8 * counts[0] > 0


def test_points_are_drawn_from_all_four_kinds_alike():
    moving, near = (torch.rand(400, generator=generator(seed)) < 0.3 for seed in (0, 1))
    chosen = choose(generator(2), moving, 80, near)
    assert len(set(chosen.tolist())) == 80
    counts = [int(((moving[chosen] == a) & (near[chosen] == b)).sum()) for a in (True, False) for b in (True, False)]
    assert counts == [20, 20, 20, 20]
    near[moving] = False
    chosen = choose(generator(2), moving, 80, near)
    assert (moving[chosen].sum(), near[chosen].sum()) == (40, 20)  # of what moves nothing is near
    everything = choose(generator(2), torch.zeros(5, dtype=torch.bool), 5, torch.ones(5, dtype=torch.bool))
    assert sorted(everything.tolist()) == list(range(5))


@pytest.mark.parametrize("scene", KINDS)
def test_frame_step_scales_time(scene):
    uncovered = Variety(covers=0.0, blackout=0.0)  # these come and go from frame to frame
    still = make_clip(1, scene=scene, frame_step=1e-6, photometric=False, variety=uncovered, **SMALL)
    assert (still.tracks - still.tracks[:, :1]).abs().max() < 1e-2
    assert (still.video - still.video[:1]).abs().max() < 1e-2
    moved = make_clip(1, scene=scene, frame_step=3.0, **SMALL)
    assert (moved.tracks - moved.tracks[:, :1]).abs().max() > 1


def test_mixed_is_one_kind_or_the_other():
    made, photo = [], torch.rand(1, 3, 8, 8, generator=generator(0))
    for seed in range(8):
        mixed, *pure = (
            make_clip(seed, scene=scene, frames=2, size=(8, 8), points=2, textures=photo) for scene in ("mixed", *KINDS)
        )
        same = [torch.equal(mixed.tracks, clip.tracks) for clip in pure]
        assert sum(same) == 1
        made.append(same.index(True))
    assert set(made) == {0, 1}


@pytest.mark.parametrize("scene", KINDS)
def test_textures_given_are_used(scene):
    red = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = torch.randint(100, 255, (2, 32, 32), generator=generator(0), dtype=torch.uint8)
    bare = {"scene": scene, "photometric": False, "variety": NOTHING}
    black = [
        torch.cat([make_clip(seed, **bare, **options).video.amin(dim=1) < 0.05 for seed in range(4, 8)]).float().mean()
        for options in ({**SMALL, "textures": red}, SMALL)
    ]
    assert black[1] < 0.3 < 0.4 < black[0]  # a channel is black wherever a photograph is seen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed=-1; expected an integer from 0 to"),
        ({"frames": 0}, "frames=0; expected a positive integer"),
        ({"size": (4, 64)}, "size=.4, 64.; expected .height, width."),
        ({"size": 64}, "size"),
        ({"points": 0}, "points"),
        ({"scene": "kubric"}, "scene.*'kubric'.*raycast"),
        ({"frame_step": 0.0}, "frame_step"),
        ({"anchor": 8}, "anchor=8; expected .*0 to 7"),
        ({"textures": torch.zeros(3, 64, 64)}, "textures"),
        ({"textures": torch.zeros(1, 3, 64, 64, dtype=torch.long)}, "textures"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_clip(**{"seed": 0, **wrong})


def test_integers_may_be_numpys():
    given = {"frames": 2, "size": (16, 24), "points": 4, "anchor": 1}
    like = {"frames": np.int64(2), "size": (np.int32(16), np.int64(24)), "points": np.uint8(4), "anchor": np.int64(1)}
    assert torch.equal(make_clip(np.int64(3), **like).tracks, make_clip(3, **given).tracks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scene", KINDS)
def test_a_gpu_makes_the_same_clip(scene):
    here, there = make_clip(2, scene=scene, **SMALL), make_clip(2, scene=scene, device="cuda", **SMALL)
    assert there.video.is_cuda
    assert torch.equal(here.tracks, there.tracks.cpu())
    assert torch.equal(here.visible, there.visible.cpu())
    assert (here.video - there.video.cpu()).abs().mean() < 1e-3


# --- what comes in between ------------------------------------------------------------------------------------------


def one_cover() -> covers.Covers:
    """A disc of radius 10 pixels, in frame 0 at (20, 10), in frame 1 at (30, 20), gone in frame 2; frame 3 is blank."""
    return covers.Covers(
        shapes=(Blob(0.25, (), ()),),
        pictures=(torch.ones(3, 8, 8),),
        centre=torch.tensor([[[20.0, 10.0], [30.0, 20.0], [30.0, 20.0], [0.0, 0.0]]]).double(),
        present=torch.tensor([[True, True, False, False]]),
        blank=torch.tensor([False, False, False, True]),
        instead=torch.full((3, 8, 8), 0.5),
        size=(30, 40),
    )


def test_what_a_cover_hides_by_hand():
    xy = torch.tensor([[20.0, 10.0], [29.9, 10.0], [30.1, 10.0], [30.0, 20.0]]).double()
    hidden = covers.hidden(one_cover(), torch.arange(4), xy.expand(4, -1, -1))
    assert hidden.tolist() == [
        [True, True, False, False],
        [False, False, False, True],
        [False] * 4,
        [True] * 4,
    ]
    assert covers.hidden(one_cover(), torch.tensor([1]), xy[None]).tolist() == [hidden[1].tolist()]


def test_covers_are_painted_where_they_hide():
    cover, black = one_cover(), torch.zeros(4, 3, 30, 40)
    pasted = covers.paste(cover, black)
    assert not black.any()
    y, x = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    centres = torch.stack((x, y), dim=-1).flatten(0, 1).double()
    hidden = covers.hidden(cover, torch.arange(4), centres.expand(4, -1, -1)).view(4, 30, 40)
    assert torch.equal((pasted > 0).all(dim=1), hidden)
    assert (pasted[:2][:, 0][hidden[:2]] == 1).all() and (pasted[3] == 0.5).all()


@pytest.mark.parametrize("scene", KINDS)
def test_covered_points_are_not_visible(scene):
    variety, hidden = Variety(covers=1.0, blackout=1.0), 0
    for seed in range(6):
        without, covered = (
            make_clip(seed, scene=scene, frames=6, size=(40, 56), variety=v, anchor=2, photometric=False)
            for v in (dataclasses.replace(variety, covers=0.0, blackout=0.0), variety)
        )
        assert covered.visible[:, 2].all()
        covers_nothing = (without.video == covered.video).all(dim=1).float().mean(dim=(1, 2))
        assert covers_nothing[2] > 0.1 and covers_nothing.min() == 0  # what is not covered is the same picture
        free = make_clip(seed, scene=scene, frames=6, size=(40, 56), points=16, variety=variety)
        assert free.visible.any(dim=1).all()
        hidden += int((~free.visible).all(dim=0).sum())
    assert hidden > 6  # frames in which nothing is seen


def test_covers_leave_most_of_the_picture():
    for seed in range(30):
        draws = generator(seed)
        source = TextureSource(draws, None, 0.0, 1)
        made = covers.random_covers(draws, source, torch.arange(6).double(), (40, 56), ALL_OF_IT, anchor=3)
        assert not made.blank[3] and int(made.blank.sum()) <= 2
        where = torch.rand(1, 500, 2, generator=draws).double() * torch.tensor([56.0, 40.0])
        assert covers.hidden(made, torch.tensor([3]), where).float().mean() < 0.8


# --- light, lens, codec ---------------------------------------------------------------------------------------------


def test_blur_takes_each_frame_by_its_kernel():
    video = torch.rand(2, 3, 9, 11, generator=generator(0))
    kernels = torch.zeros(2, 3, 3)
    kernels[0, 1, 1], kernels[1, 1, 2] = 1, 1  # nothing; a shift to the left
    blurred = photometric.blur(video, kernels)
    assert torch.equal(blurred[0], video[0])
    assert torch.equal(blurred[1, :, :, :-1], video[1, :, :, 1:])
    assert torch.equal(blurred[1, :, :, -1], video[1, :, :, -1])  # the border is repeated


def test_grain_is_strong_and_another_in_every_frame():
    grey, times = torch.full((3, 3, 48, 64), 0.5), torch.arange(3).double()
    grainy = dataclasses.replace(NOTHING, grain=1.0)
    for seed in range(4):
        deviation = [
            photometric.add_photometrics(generator(seed), grey, times, variety).std(dim=(2, 3))
            for variety in (NOTHING, grainy)
        ]
        assert deviation[0].max() < 0.04 and deviation[1].min() > 0.06
        frames = photometric.add_photometrics(generator(seed), grey, times, grainy).flatten(1)
        assert (torch.corrcoef(frames) - torch.eye(3)).abs().max() < 0.05


def test_grain_moves_no_point():
    clips = [make_clip(3, variety=dataclasses.replace(ALL_OF_IT, grain=grain), **SMALL) for grain in (0.0, 1.0)]
    assert torch.equal(clips[0].tracks, clips[1].tracks) and torch.equal(clips[0].visible, clips[1].visible)
    assert not torch.equal(clips[0].video, clips[1].video)


def test_noise_is_normal_and_another_in_every_frame():
    video = torch.empty(6, 3, 32, 40)
    noise = photometric._noise(generator(0), video)
    assert noise.shape == video.shape and noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03
    likeness = torch.corrcoef(noise.flatten(1)) - torch.eye(6)
    assert likeness.abs().max() < 0.1
    across = torch.corrcoef(torch.stack((noise[..., 1:].flatten(), noise[..., :-1].flatten())))[0, 1]
    assert across.abs() < 0.05


def test_compression_rounds_blocks():
    video = torch.rand(2, 3, 20, 13, generator=generator(0))
    assert torch.allclose(photometric.compress(video, 1e-6), video, atol=1e-4)
    coarse = photometric.compress(video, 0.1)
    assert coarse.shape == video.shape and coarse.min() >= 0 and coarse.max() <= 1
    assert 0.02 < (coarse - video).abs().mean() < 0.3
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert (photometric.compress(grey, 0.1) - grey).abs().max() < 0.05
    rough = photometric.compress(video[:, :, :16, :8], 1.0)  # nothing but the blocks' means is left
    assert rough.unflatten(2, (2, 8)).std(dim=(3, 4)).max() < 0.2


def test_photometrics_keep_their_range_and_their_picture():
    video = procedural_textures(3, 48, generator(0))
    times = torch.arange(3).double()
    for seed in range(8):
        changed = photometric.add_photometrics(generator(seed), video, times, ALL_OF_IT)
        assert changed.shape == video.shape and changed.min() >= 0 and changed.max() <= 1
        likeness = torch.corrcoef(torch.stack((changed.flatten(), video.flatten())))[0, 1]
        assert 0.4 < likeness < 0.9999


# --- ray casting ----------------------------------------------------------------------------------------------------


def still_world(**solids) -> World:
    """A camera at the origin that looks along z in a big room, and solids name=(position over 2 frames, radii)."""
    identity = torch.eye(3, dtype=torch.float64)
    positions = [torch.zeros(2, 3)] + [torch.tensor(position) for position, _ in solids.values()]
    return World(
        rotation=identity.expand(len(positions), 2, 3, 3),
        position=torch.stack(positions).double(),
        radii=torch.tensor([(20.0, 20.0, 20.0)] + [radii for _, radii in solids.values()], dtype=torch.float64),
        is_round=torch.tensor([False] + ["ball" in name for name in solids]),
        is_moving=torch.tensor([False] + [True] * len(solids)),
        camera_rotation=identity.expand(2, 3, 3),
        camera_position=torch.zeros(2, 3, dtype=torch.float64),
        focal=torch.full((2,), 32.0, dtype=torch.float64),
        group=tuple(range(len(positions))),
        size=(64, 64),
    )


def test_projection_and_occlusion_by_hand():
    world = still_world(
        board=(((0.5, 0.0, 2.0), (-0.5, 0.0, 2.0)), (0.3, 0.3, 0.01)),  # in front of the ball in frame 0 only
        ball=(((1.0, 0.0, 5.0), (1.0, 0.0, 5.0)), (1.0, 1.0, 1.0)),
    )
    solid = torch.tensor([2, 2, 1])
    unit = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    xy, depth = project(world, solid, unit)
    assert torch.allclose(xy[0], torch.tensor([40.0, 32.0]).double())  # 32 + 32 * 1 / 4
    assert torch.allclose(depth[0], torch.tensor([4.0, 4.0]).double())
    assert torch.allclose(xy[2, :, 0], torch.tensor([32 + 16 / 1.99, 32 - 16 / 1.99]).double())
    visible = sees(world, solid, xy, depth)
    assert visible.tolist() == [[False, True], [False, False], [True, True]]  # the back of a ball is never seen


def test_a_point_outside_the_frame_or_behind_the_camera_is_not_seen():
    board = (((0.0, 0.0, 2.0), (3.0, 0.0, 2.0)), (0.3, 0.3, 0.01))
    behind = (((0.0, 0.0, -2.0), (0.0, 0.0, 2.0)), (0.3, 0.3, 0.01))
    for solid, expected in ((board, [True, False]), (behind, [False, True])):
        world = still_world(board=solid)
        point = torch.tensor([1]), torch.tensor([[0.1, 0.2, -1.0]]).double()
        assert sees(world, point[0], *project(world, *point))[0].tolist() == expected


def test_what_is_behind_the_camera_hides_nothing():
    world = still_world(board=(((0.0, 0.0, -2.0), (0.0, 0.0, 2.0)), (0.5, 0.5, 0.01)))
    wall = torch.tensor([0]), torch.tensor([[0.01, 0.02, 1.0]]).double()
    assert sees(world, wall[0], *project(world, *wall))[0].tolist() == [True, False]


def test_of_two_boards_in_one_place_one_is_seen():
    place = ((0.0, 0.0, 2.0), (0.0, 0.0, 2.0)), (0.3, 0.3, 0.01)
    world = still_world(board=place, twin=place)
    point = torch.tensor([1, 2]), torch.tensor([[0.1, 0.2, -1.0]] * 2).double()
    assert sees(world, point[0], *project(world, *point)).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("seed", range(4))
def test_a_ray_through_a_visible_track_ends_on_its_point(seed):
    draws = generator(seed)
    world = random_world(draws, torch.arange(4).double() * 2, (48, 64), ALL_OF_IT)
    xy = torch.rand(4, 50, 2, generator=draws, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    solid, unit, depth = surface_points(world, xy)
    assert torch.isfinite(depth).all()
    solid, unit = solid.flatten(), unit.flatten(0, 1)
    tracks, depth = project(world, solid, unit)
    visible = sees(world, solid, tracks, depth)
    anchor = torch.arange(4).repeat_interleave(50)
    assert torch.allclose(tracks[torch.arange(200), anchor], xy.flatten(0, 1), atol=1e-6)
    assert visible[torch.arange(200), anchor].all()
    assert not visible.all()
    hit, hit_unit, _ = surface_points(world, tracks.transpose(0, 1))
    assert (solid[:, None] == hit.T)[visible].all()
    assert (hit_unit.transpose(0, 1) - unit[:, None])[visible].abs().max() < 1e-4


def test_a_shadow_is_dark_where_the_light_is_hidden():
    world = still_world(ball=(((0.0, 0.0, 10.0),) * 2, (1.0, 1.0, 1.0)))
    world = world.to("cpu", torch.float32)
    white = [torch.ones(3, 8, 8)]
    faces = 2 * raycast.CUBE_FACES
    scale = torch.ones(2, faces)
    materials = make_materials(white, torch.zeros(faces).long(), scale, scale, torch.ones(faces))
    xy = torch.tensor([[[48.0, 56.0], [32.0, 32.0]]]).expand(2, 2, 2)
    light = raycast.Light(torch.tensor([[-10.0, 0.0, 0.0]] * 2), 0.25, 0.5, casts_shadows=True)
    # The light's ray over the ball's centre ends at x = 10 on the far wall, seen 16 pixels right of the middle.
    shaded, _ = raycast.shade(world, materials, light, xy)
    unshaded, _ = raycast.shade(world, materials, dataclasses.replace(light, casts_shadows=False), xy)
    assert torch.allclose(shaded[:, :, 0], torch.full((2, 3), 0.25, dtype=shaded.dtype), atol=1e-6)
    assert (unshaded[:, :, 0] > 0.4).all()
    assert torch.equal(shaded[:, :, 1], unshaded[:, :, 1])


def test_rotations_are_rotations():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.pi / 2], [0.3, -0.8, 1.9]]).double()
    turned = rotations(vectors)
    assert torch.allclose(turned @ turned.transpose(1, 2), torch.eye(3).double().expand(3, 3, 3))
    assert torch.allclose(turned[1] @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 1.0, 0]).double(), atol=1e-6)
    skew = torch.tensor([[0, -1.9, -0.8], [1.9, 0, -0.3], [0.8, 0.3, 0]]).double()
    assert torch.allclose(turned[2], torch.linalg.matrix_exp(skew))


def test_wander_keeps_its_speed_and_reach():
    times = torch.arange(2000).double() / 10
    for seed in range(5):
        slow = wander(generator(seed), times, speed=0.01, reach=1.0)
        fast = wander(generator(seed), times, speed=1.0, reach=0.5)
        speed = (slow[1:] - slow[:-1]).norm(dim=-1).mean() * 10
        assert 0.002 < speed < 0.02
        assert fast.norm(dim=-1).max() <= 0.5 + 1e-9
        assert (fast[1:] - fast[:-1]).norm(dim=-1).max() < 0.05  # smooth


def test_a_view_without_variety_is_still_and_one_with_it_stays_near():
    times = torch.arange(200).double()
    for part in camera_view(generator(0), times, NOTHING):
        assert not part.any()
    for seed in range(5):
        roll, zoom, shift = camera_view(generator(seed), times, dataclasses.replace(ALL_OF_IT, jump=0.0))
        assert 0.02 < roll.abs().max() < math.pi + 0.06
        assert 0.02 < zoom.abs().max() <= 0.8
        assert 0.0005 < shift.abs().max() <= 0.04
        assert (shift[1:] - shift[:-1]).norm(dim=-1).mean() > 0.1 * shift.norm(dim=-1).mean()  # it is not smooth


def test_a_camera_that_jumps_does_so_once():
    times = torch.arange(20).double()
    for seed in range(10):
        roll, zoom, shift = camera_view(generator(seed), times, dataclasses.replace(NOTHING, jump=1.0))
        steps = (shift[1:] - shift[:-1]).norm(dim=-1)
        (frame,) = steps.nonzero()[:, 0].tolist()
        assert 0.15 <= steps[frame] <= 0.5
        for part, most in ((roll, 0.8), (zoom, 0.4)):
            assert not part[: frame + 1].any()
            assert (part[frame + 1 :] == part[-1]).all()
            assert 0 < abs(part[-1]) <= most
    camera_view(generator(0), times[:1], dataclasses.replace(NOTHING, jump=1.0))  # one frame has nowhere to jump


def test_variety_is_made_of_probabilities():
    with pytest.raises(ValueError, match=r"roll=1\.5; expected a probability"):
        Variety(roll=1.5)


def test_limbs_of_solids_hang_together():
    times = torch.arange(5).double() * 4
    turn = rotations(torch.rand(5, 3, generator=generator(1)).double())
    path = torch.rand(5, 3, generator=generator(2)).double()
    parts = _creature(generator(3), times, turn, path, size=1.0, group=7)
    body, chains = parts[0], 0
    for before, part in itertools.pairwise(parts):
        assert part.group == 7 and part.is_round and part.is_moving
        start = part.position - 0.9 * part.radii[0] * part.rotation[..., 0]
        end = before.position + 0.9 * before.radii[0] * before.rotation[..., 0]
        along_body = ((start - body.position)[:, None] @ body.rotation)[:, 0]
        hangs_on_limb = torch.allclose(start, end) and before is not body
        on_axis = along_body[:, 1:].abs().max() < 1e-9 and along_body[:, 0].abs().max() <= 0.9
        assert hangs_on_limb or on_axis
        chains += hangs_on_limb
        if hangs_on_limb:
            bend = (part.rotation[..., 0] * before.rotation[..., 0]).sum(-1)
            assert bend.max() - bend.min() > 1e-3  # the joint moves
    assert chains


# --- layers ---------------------------------------------------------------------------------------------------------


def two_cards() -> layered.Layers:
    """On a still background a card of half side 0.2, and before it another that moves from beside it onto it."""
    still = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    moving = still.clone()
    moving[0, 0, 2] = 0.4
    square = Polygon(tuple(i * math.pi / 2 for i in range(4)), (0.2,) * 4)
    return layered.Layers(
        homography=torch.stack((still, still, moving)),
        wave_vector=torch.zeros(3, 2, 2, dtype=torch.float64),
        wave_push=torch.zeros(3, 2, 2, dtype=torch.float64),
        wave_phase=torch.zeros(3, 2, 2, dtype=torch.float64),
        group=(0, 1, 2),
        is_moving=torch.tensor([False, False, True]),
        bent=(),
        shapes=(None, square, square),
        size=(50, 100),
    )


def test_layers_cover_each_other_by_hand():
    stack = two_cards()
    layer = torch.tensor([0, 0, 1, 2, 2])
    points = torch.tensor([[0.0, 0.0], [0.4, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.6]]).double()
    xy = layered.from_layer(stack, layer, points)
    expected = [[50, 25], [90, 35], [60, 35], [100 - 0, 35], [100, 85]]
    assert torch.allclose(xy[:, 0], torch.tensor(expected).double())
    assert torch.allclose(xy[3, 1], torch.tensor([60.0, 35.0]).double())
    visible = layered.sees(stack, layer, xy)
    assert visible[:, 0].tolist() == [False, False, True, False, False]  # x = 100 is just outside
    assert visible[:, 1].tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_the_layer_at_a_visible_track_is_its_own(seed):
    draws = generator(seed)
    stack = layered.random_layers(draws, torch.arange(4).double() * 2, (48, 64), ALL_OF_IT)
    xy = torch.rand(4, 50, 2, generator=draws, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    layer, x, y = layered.topmost(stack, xy.transpose(1, 2))
    layer, points = layer.flatten(), torch.stack((x, y), dim=-1).flatten(0, 1)
    tracks = layered.from_layer(stack, layer, points)
    visible = layered.sees(stack, layer, tracks)
    anchor = torch.arange(4).repeat_interleave(50)
    assert torch.allclose(tracks[torch.arange(200), anchor], xy.flatten(0, 1), atol=1e-6)
    assert visible[torch.arange(200), anchor].all()
    assert not visible.all()
    top, x, y = (value.T[visible] for value in layered.topmost(stack, tracks.permute(1, 2, 0)))
    assert torch.equal(top, layer[:, None].expand(-1, 4)[visible])
    expected = points[:, None].expand(-1, 4, -1)[visible]
    assert (torch.stack((x, y), dim=-1) - expected).abs().max() < 1e-6


def test_bending_moves_points_and_never_folds():
    for seed in range(8):
        stack = layered.random_layers(generator(seed), torch.arange(3).double(), (64, 64))
        slope = (stack.wave_vector.norm(dim=-1) * stack.wave_push.norm(dim=-1)).sum(dim=1)
        assert slope.max() <= layered.WAVES * layered.STEEPEST_WAVE
        assert stack.bent == tuple(slope.nonzero().flatten().tolist())
    assert stack.bent


def test_limbs_of_layers_hang_together():
    times = torch.arange(5).double() * 4
    root = torch.eye(3).double().expand(5, 3, 3)
    parts = layered._creature(generator(2), times, root, group=4)
    assert all(part.group == 4 and part.moving for part in parts)
    ends = [(part.homography @ torch.tensor([part.shape.length, 0, 1.0]).double())[:, :2] for part in parts]
    starts = [part.homography[:, :2, 2] for part in parts]
    hanging = [any(torch.allclose(start, end) for end in ends) for start in starts]
    rooted = [bool((start == start[0]).all()) for start in starts]
    assert all(a or b for a, b in zip(hanging, rooted, strict=True)) and any(hanging)
    turns = torch.stack([part.homography[:, 0, 0] for part in parts])
    assert (turns.amax(dim=1) - turns.amin(dim=1) > 1e-3).sum() == len(parts) - 1  # all but the body move


def test_a_group_of_layers_shares_texture_and_light():
    stack = dataclasses.replace(two_cards(), group=(0, 1, 1))
    draws = generator(0)
    materials = layered.random_materials(draws, TextureSource(draws, None), stack)
    assert torch.equal(materials.first_row[1], materials.first_row[2])
    assert not torch.equal(materials.first_row[0], materials.first_row[1])
    assert not torch.equal(materials.shift[:, 1], materials.shift[:, 2])
    gain = layered.random_gain(draws, torch.arange(2).double(), stack.group)
    assert torch.equal(gain[1], gain[2]) and not torch.equal(gain[0], gain[1])


def test_a_capsule_by_hand():
    capsule = Capsule(0.5, 0.1)
    x = torch.tensor([0.0, -0.09, -0.11, 0.59, 0.61, 0.25, 0.25])
    y = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.09, -0.11])
    assert (capsule.level(x, y) > 0).tolist() == [True, True, False, True, False, True, False]


def test_shapes_are_around_the_middle_and_bounded():
    x, y = (torch.linspace(-3, 3, 121).view(shape) for shape in ((1, -1), (-1, 1)))
    x, y = torch.broadcast_tensors(x, y)
    shares = []
    for seed in range(40):
        inside = random_shape(generator(seed), 0.5).level(x, y) > 0
        assert not inside[(x.abs() > 2.9) | (y.abs() > 2.9)].any()
        shares.append(inside.float().mean().item() * 36 / (math.pi * 0.25))  # relative to the disc
    assert all(0.1 < share < 4 for share in shares)
    circle = Blob(0.5, (), ()).level(x, y) > 0
    assert torch.equal(circle, x**2 + y**2 < 0.25)


# --- picture and tracks agree ---------------------------------------------------------------------------------------


def plain_scene(scene: str, seed: int):
    """Video without light, exposure or noise, with tracks."""
    draws, times, size = generator(seed), torch.arange(4).double() * 1.5, (64, 64)
    source = TextureSource(draws, None)
    xy = torch.rand(4, 60, 2, generator=draws, dtype=torch.float64) * 64
    if scene == "raycast":
        world = random_world(draws, times, size)
        light = raycast.Light(torch.zeros(4, 3).double(), 1.0, 0.0, casts_shadows=False)
        video = raycast.render(world, raycast.random_materials(draws, source, world), light, "cpu")
        solid, unit, _ = surface_points(world, xy)
        solid = solid.flatten()
        tracks, depth = project(world, solid, unit.flatten(0, 1))
        return video, tracks, sees(world, solid, tracks, depth)
    stack = layered.random_layers(draws, times, size)
    gain = torch.ones(len(stack.shapes), 4)
    video = layered.render(stack, layered.random_materials(draws, source, stack), gain, "cpu")
    layer, x, y = layered.topmost(stack, xy.transpose(1, 2))
    layer = layer.flatten()
    tracks = layered.from_layer(stack, layer, torch.stack((x, y), dim=-1).flatten(0, 1))
    return video, tracks, layered.sees(stack, layer, tracks)


@pytest.mark.parametrize("scene", KINDS)
def test_points_keep_their_colour(scene):
    """The colour under a track stays the same, and a little beside the track it changes, whichever the side."""
    shifts = torch.tensor([[0.0, 0.0], [0.7, 0.0], [-0.7, 0.0], [0.0, 0.7], [0.0, -0.7]])
    changes = []
    for seed in range(6):
        video, tracks, visible = plain_scene(scene, seed)
        moved = (
            tracks.float().transpose(0, 1)
            + torch.where(torch.arange(4) > 1, 1.0, 0.0)[:, None, None] * shifts[:, None, None]
        )
        colours = torch.stack(
            [F.grid_sample(video, where[:, :, None] / 32 - 1, align_corners=False)[..., 0] for where in moved]
        )  # [5, T, 3, N]
        change = (colours[:, 3] - colours[:, 0]).abs().mean(dim=1)
        changes.append(change[:, visible[:, 0] & visible[:, 3]])
    changes = torch.cat(changes, dim=1)
    assert changes.shape[1] > 100
    on_track, *beside = changes.mean(dim=1).tolist()
    assert on_track < 0.04
    assert all(on_track < 0.8 * other for other in beside)


def test_pixels_are_sampled_at_their_centres_and_edges_are_smooth():
    def shade(index, xy):
        colour = torch.stack((xy[:, 0] / 8, xy[:, 1] / 8, (xy[:, 0] > 3.5).float()), dim=1)
        return colour, (xy[:, 0] > 3.5).long() * (index[:, None] > 0)  # frame 0 shows a single face

    video = render_frames(shade, 2, (6, 8), "cpu")
    assert torch.allclose(video[:, 0], ((torch.arange(8) + 0.5) / 8).expand(2, 6, 8))
    assert torch.allclose(video[:, 1], ((torch.arange(6)[:, None] + 0.5) / 8).expand(2, 6, 8))
    assert video[1, 2, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1, 1]


# --- textures -------------------------------------------------------------------------------------------------------


def test_lookup_is_bilinear_mirrored_and_has_levels():
    texture = torch.rand(3, 32, 32, generator=generator(0))
    other = torch.zeros(3, 32, 32)
    face = torch.tensor([0, 1])
    table = make_materials([other, texture], face, torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2))

    def colour(column: float, row: float, footprint: float) -> torch.Tensor:
        """At texel coordinates, where the centre of the first texel is (0.5, 0.5)."""
        uv = 1 + torch.tensor([[column, -column], [row, -row]]) / 32  # a place and its mirror image
        both = lookup(table, torch.tensor([1, 1]), uv, torch.full((2,), footprint))
        assert torch.equal(both[0], both[1])
        return both[0]

    assert torch.allclose(colour(3.5, 7.5, 1.0), texture[:, 7, 3], atol=1e-5)
    assert torch.allclose(colour(3.75, 7.5, 1.0), torch.lerp(texture[:, 7, 3], texture[:, 7, 4], 0.25), atol=1e-5)
    assert torch.allclose(colour(3.5, 7.75, 1.0), torch.lerp(texture[:, 7, 3], texture[:, 8, 3], 0.25), atol=1e-5)
    assert torch.allclose(colour(0.1, 0.1, 1.0), texture[:, 0, 0], atol=1e-5)
    assert torch.allclose(colour(5.0, 9.0, 2.0), texture[:, 8:10, 4:6].mean(dim=(1, 2)), atol=1e-5)
    assert torch.allclose(colour(6.0, 10.0, 4.0), texture[:, 8:12, 4:8].mean(dim=(1, 2)), atol=1e-5)
    assert torch.equal(lookup(table, face[:1], torch.ones(2, 1), torch.ones(1)), torch.zeros(1, 3))


def test_procedural_textures():
    textures = procedural_textures(24, 64, generator(0))
    assert textures.shape == (24, 3, 64, 64)
    assert textures.dtype == torch.float32
    assert 0 <= textures.min() < textures.max() <= 1
    assert textures.flatten(2).std(dim=2).amax(dim=1).min() > 0.015  # none is flat
    assert torch.equal(textures, procedural_textures(24, 64, generator(0)))
    with pytest.raises(ValueError, match="count"):
        procedural_textures(0)
    with pytest.raises(ValueError, match="size"):
        procedural_textures(1, 4)


def test_load_textures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(ValueError, match="no photographs"):
        load_textures(tmp_path)
    with pytest.raises(ValueError, match="not a directory"):
        load_textures(tmp_path / "missing")
    image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "a.png")
    oblong = image.new("RGB", (80, 40), (0, 255, 0))
    oblong.paste((0, 0, 255), (40, 0, 80, 40))
    oblong.save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not a photograph")
    textures = load_textures(tmp_path)
    assert textures.shape == (3, 3, 256, 256)
    assert textures.dtype == torch.uint8
    assert textures[:, :, 128, 128].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_every_fifth_photograph_is_kept_for_validation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(4):
        image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"4 photographs.*at least 5"):
        load_textures(tmp_path, "training")
    for i in range(4, 11):
        image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    parts = {part: load_textures(tmp_path, part)[:, 0, 0, 0].tolist() for part in ("training", "validation", None)}
    assert len(parts["validation"]) == 2 and len(parts["training"]) == 9
    assert sorted(parts["training"] + parts["validation"]) == sorted(parts[None])
    with pytest.raises(ValueError, match="part='test'"):
        load_textures(tmp_path, "test")


def test_plain_textures_are_weak_or_repeat():
    photo = torch.rand(1, 3, 64, 64, generator=generator(0))
    weak = repeating = 0
    for seed in range(30):
        source = TextureSource(generator(seed), photo, plain=1.0)
        source.procedural = photo[0][None]
        texture = source.draw()
        repeats = any(torch.allclose(texture[:, :, side:], texture[:, :, :-side]) for side in (4, 8, 16))
        repeating += repeats
        weak += not repeats and texture.std() < 0.7 * photo.std()
    assert repeating > 5 and weak > 5 and weak + repeating >= 28
