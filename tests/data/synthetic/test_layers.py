import dataclasses
import math

import pytest
import torch
from small_scenes import ALL_OF_IT, generator

from chrono_features.data.synthetic import layers as layered
from chrono_features.data.synthetic.shapes import Polygon
from chrono_features.data.synthetic.textures import TextureSource


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
