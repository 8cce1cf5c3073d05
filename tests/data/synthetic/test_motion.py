import dataclasses
import math

import torch
from small_scenes import ALL_OF_IT, generator

from chrono_features.data.synthetic.motion import camera_view, rotations, wander
from chrono_features.data.synthetic.variety import NOTHING


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
