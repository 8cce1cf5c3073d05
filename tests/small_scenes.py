"""Small synthetic clips and worlds for tests."""

import torch

from chrono_features.data.synthetic import (
    Variety,
    procedural_textures,
)
from chrono_features.data.synthetic.world import World

SMALL = {"frames": 4, "size": (40, 56), "points": 16, "textures": procedural_textures(6, 32)}
KINDS = ("raycast", "layers")
ALL_OF_IT = Variety(**dict.fromkeys(Variety.__dataclass_fields__, 1.0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
