import dataclasses

import torch
from small_scenes import still_world

from chrono_features.data.synthetic import (
    raycast,
)
from chrono_features.data.synthetic.materials import make_materials


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
