"""Points to track: grids, and the objects of masks."""

import numpy as np
import pytest
import torch

from chrono_features import grid_queries
from chrono_features.queries import object_queries


def test_a_grid_in_a_part_of_the_image():
    whole, part = grid_queries((2, 3), (40, 60)), grid_queries((2, 3), (40, 60), 4, roi=(10, 20, 40, 40))
    assert part[0, :, 0].tolist() == [4.0] * 6
    torch.testing.assert_close(part[..., 1:], whole[..., 1:] * torch.tensor([0.5, 0.5]) + torch.tensor([10.0, 20.0]))


@pytest.mark.parametrize("roi", [(0, 0, 61, 10), (5, 0, 5, 10), (0, 0, 1), "all", (0, float("nan"), 1, 1)])
def test_parts_that_are_none(roi):
    with pytest.raises(ValueError, match=r"^roi=.*expected \(x0, y0, x1, y1\)"):
        grid_queries(2, (40, 60), roi=roi)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, torch.int32])
def test_every_object_gets_points_inside_of_it(kind):
    mask = np.zeros((40, 60), np.int64)
    mask[4:20, 6:30] = 3
    mask[30, 50] = 9  # a pixel
    mask[22:38, 5:25] = 5
    mask[24:36, 7:23] = 0  # a frame around nothing
    given = torch.from_numpy(mask).to(kind) if isinstance(kind, torch.dtype) else mask.astype(kind)
    queries, objects = object_queries(given, 5, t=2)
    t, x, y = queries[0].unbind(-1)
    assert (t == 2).all() and objects.unique().tolist() == [3, 5, 9]
    assert mask[y.int().numpy(), x.int().numpy()].tolist() == objects.tolist()
    assert (objects == 3).sum() == 25 and queries[0, objects == 9].tolist() == [[2, 50.5, 30.5]]
    assert torch.equal(queries[0, objects == 3, 1:], grid_queries(5, (16, 24))[0, :, 1:] + torch.tensor([6.0, 4.0]))


def test_a_part_cuts_objects():
    mask = np.zeros((40, 60), np.int64)
    mask[:, 20:40] = 1
    queries, _ = object_queries(mask, 4, roi=(0, 0, 30, 20))
    assert queries[..., 1].max() < 30 and queries[..., 2].max() < 20
    with pytest.raises(ValueError, match="mask has no object inside roi="):
        object_queries(mask, 4, roi=(0, 0, 10, 10))


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 5)), np.zeros((4, 5, 3), int), np.zeros((4, 5), int), np.zeros((0, 5), int)]
)
def test_masks_that_are_none(mask):
    with pytest.raises(ValueError, match="^mask (is|has)"):
        object_queries(mask)
