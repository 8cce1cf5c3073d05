"""The tracks are where the picture says they are, in both kinds of scene."""

import pytest
import torch
from small_scenes import KINDS, generator
from torch.nn import functional as F

from chrono_features.data.synthetic import layers as layered
from chrono_features.data.synthetic import (
    raycast,
)
from chrono_features.data.synthetic.picture import render_frames
from chrono_features.data.synthetic.random_worlds import random_world
from chrono_features.data.synthetic.textures import TextureSource
from chrono_features.data.synthetic.world import project, sees, surface_points


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
