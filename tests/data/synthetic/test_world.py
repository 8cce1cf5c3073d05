import pytest
import torch
from small_scenes import ALL_OF_IT, generator, still_world

from chrono_features.data.synthetic.random_worlds import random_world
from chrono_features.data.synthetic.world import project, sees, surface_points


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
