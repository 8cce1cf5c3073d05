import itertools

import torch
from small_scenes import generator

from chrono_features.data.synthetic.motion import rotations
from chrono_features.data.synthetic.random_worlds import _creature


def test_limbs_of_solids_hang_together():
    times = torch.arange(5).double() * 4
    turn = rotations(torch.rand(5, 3, generator=generator(1)).double())
    path = torch.rand(5, 3, generator=generator(2)).double()
    parts = _creature(generator(3), times, turn, path, size=1.0, group=7)
    body, chains = parts[0], 0
    for before, part in itertools.pairwise(parts):
        assert part.group == 7 and part.is_round and part.is_moving
        start = part.position - 0.9 * part.radii[0] * part.rotation[..., 0]
        end = before.position + 0.9 * before.radii[0] * before.rotation[..., 0]
        along_body = ((start - body.position)[:, None] @ body.rotation)[:, 0]
        hangs_on_limb = torch.allclose(start, end) and before is not body
        on_axis = along_body[:, 1:].abs().max() < 1e-9 and along_body[:, 0].abs().max() <= 0.9
        assert hangs_on_limb or on_axis
        chains += hangs_on_limb
        if hangs_on_limb:
            bend = (part.rotation[..., 0] * before.rotation[..., 0]).sum(-1)
            assert bend.max() - bend.min() > 1e-3  # the joint moves
    assert chains
