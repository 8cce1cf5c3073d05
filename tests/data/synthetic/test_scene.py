"""Synthetic clips: the same seed is the same clip, and points are drawn as asked for."""

import dataclasses
import statistics

import numpy as np
import pytest
import torch
from small_scenes import KINDS, SMALL, generator

from chrono_features.data.synthetic import (
    Variety,
    covers,
    make_clip,
)
from chrono_features.data.synthetic.scene import choose, near_edges
from chrono_features.data.synthetic.shapes import Blob
from chrono_features.data.synthetic.variety import NOTHING


@pytest.mark.parametrize("scene", KINDS)
def test_a_seed_is_a_clip(scene):
    global_state = torch.get_rng_state()
    first, again, other = (make_clip(seed, scene=scene, **SMALL) for seed in (5, 5, 6))
    for name in ("frames", "xy", "visible", "moving"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.frames, other.frames)
    assert not torch.equal(first.xy, other.xy)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("scene", KINDS)
@pytest.mark.parametrize(("frames", "size", "points"), [(4, (40, 56), 16), (1, (17, 9), 1)])
def test_shapes_types_and_ranges(scene, frames, size, points):
    clip = make_clip(3, scene=scene, frames=frames, size=size, points=points)
    assert clip.frames.shape == (frames, 3, *size)
    assert clip.frames.dtype == torch.float32
    assert 0 <= clip.frames.min() < clip.frames.max() <= 1
    assert clip.xy.shape == (points, frames, 2)
    assert clip.xy.dtype == torch.float32
    assert clip.xy.isfinite().all()
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
            outside = (clip.xy < 0).any(-1) | (clip.xy[..., 0] >= 56) | (clip.xy[..., 1] >= 40)
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


@pytest.mark.slow
@pytest.mark.parametrize("scene", KINDS)
def test_half_of_the_points_are_near_edges(scene):
    def near_another(clip, everywhere):  # [N] bool: what moves and what does not are both close by
        distance = torch.cdist(clip.xy[:, 0], everywhere.xy[:, 0])
        other = clip.moving[:, None] != everywhere.moving
        return ((distance < 3.0) & other).any(dim=1)  # near is 3.2 px here

    shares = {0.0: [], 1.0: []}
    for seed in range(6):
        options = {"scene": scene, "frames": 1, "size": (96, 128), "photometric": False}
        everywhere = make_clip(seed, points=3000, variety=NOTHING, **options)
        for edges, found in shares.items():
            clip = make_clip(seed, points=64, variety=dataclasses.replace(NOTHING, edges=edges), **options)
            assert torch.equal(clip.frames, everywhere.frames)
            found.append(near_another(clip, everywhere).float().mean())
    assert statistics.fmean(shares[1.0]) > 1.6 * statistics.fmean(shares[0.0])  # other outlines are not looked for here


def test_near_an_edge_is_within_a_distance_of_it():
    xy = torch.rand(2, 500, 2, generator=generator(0), dtype=torch.float64) * 10
    border = torch.tensor([[4.0], [7.0]])  # of frame 0 and 1

    def look(positions):
        return (positions[..., 0] > border).long()

    near, away = near_edges(xy, look(xy), look, 2.0), (xy[..., 0] - border).abs()
    assert torch.equal(near, away < 2**0.5)  # diagonally, which is at most 2 away


@pytest.mark.slow
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
        away = torch.cat([(clip.xy[:, 2] - torch.tensor([64.0, 48.0])).norm(dim=-1) - 12.8 for clip in clips])
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
    assert (still.xy - still.xy[:, :1]).abs().max() < 1e-2
    assert (still.frames - still.frames[:1]).abs().max() < 1e-2
    moved = make_clip(1, scene=scene, frame_step=3.0, **SMALL)
    assert (moved.xy - moved.xy[:, :1]).abs().max() > 1


@pytest.mark.slow
def test_mixed_is_one_kind_or_the_other():
    made, photo = [], torch.rand(1, 3, 8, 8, generator=generator(0))
    for seed in range(8):
        mixed, *pure = (
            make_clip(seed, scene=scene, frames=2, size=(8, 8), points=2, textures=photo) for scene in ("mixed", *KINDS)
        )
        same = [torch.equal(mixed.xy, clip.xy) for clip in pure]
        assert sum(same) == 1
        made.append(same.index(True))
    assert set(made) == {0, 1}


@pytest.mark.parametrize("scene", KINDS)
def test_textures_given_are_used(scene):
    red = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = torch.randint(100, 255, (2, 32, 32), generator=generator(0), dtype=torch.uint8)
    bare = {"scene": scene, "photometric": False, "variety": NOTHING}
    black = [
        torch.cat([make_clip(seed, **bare, **options).frames.amin(dim=1) < 0.05 for seed in range(4, 8)]).float().mean()
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
    assert torch.equal(make_clip(np.int64(3), **like).xy, make_clip(3, **given).xy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scene", KINDS)
def test_a_gpu_makes_the_same_clip(scene):
    here, there = make_clip(2, scene=scene, **SMALL), make_clip(2, scene=scene, device="cuda", **SMALL)
    assert there.frames.is_cuda
    assert torch.equal(here.xy, there.xy.cpu())
    assert torch.equal(here.visible, there.visible.cpu())
    assert (here.frames - there.frames.cpu()).abs().mean() < 1e-3
