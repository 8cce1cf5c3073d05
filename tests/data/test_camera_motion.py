from __future__ import annotations

import pytest
import torch
from warped_photographs import SIZE, plan_and_homography

from chrono_features.data.camera_motion import project
from chrono_features.data.photo_warps import FRAMES, PLANS, render


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
