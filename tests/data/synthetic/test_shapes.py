import math

import torch
from small_scenes import generator

from chrono_features.data.synthetic.shapes import Blob, Capsule, random_shape


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
