import torch
from small_scenes import generator

from chrono_features.data.synthetic.materials import lookup, make_materials


def test_lookup_is_bilinear_mirrored_and_has_levels():
    texture = torch.rand(3, 32, 32, generator=generator(0))
    other = torch.zeros(3, 32, 32)
    face = torch.tensor([0, 1])
    table = make_materials([other, texture], face, torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2))

    def colour(column: float, row: float, footprint: float) -> torch.Tensor:
        """At texel coordinates, where the centre of the first texel is (0.5, 0.5)."""
        uv = 1 + torch.tensor([[column, -column], [row, -row]]) / 32  # a place and its mirror image
        both = lookup(table, torch.tensor([1, 1]), uv, torch.full((2,), footprint))
        assert torch.equal(both[0], both[1])
        return both[0]

    assert torch.allclose(colour(3.5, 7.5, 1.0), texture[:, 7, 3], atol=1e-5)
    assert torch.allclose(colour(3.75, 7.5, 1.0), torch.lerp(texture[:, 7, 3], texture[:, 7, 4], 0.25), atol=1e-5)
    assert torch.allclose(colour(3.5, 7.75, 1.0), torch.lerp(texture[:, 7, 3], texture[:, 8, 3], 0.25), atol=1e-5)
    assert torch.allclose(colour(0.1, 0.1, 1.0), texture[:, 0, 0], atol=1e-5)
    assert torch.allclose(colour(5.0, 9.0, 2.0), texture[:, 8:10, 4:6].mean(dim=(1, 2)), atol=1e-5)
    assert torch.allclose(colour(6.0, 10.0, 4.0), texture[:, 8:12, 4:8].mean(dim=(1, 2)), atol=1e-5)
    assert torch.equal(lookup(table, face[:1], torch.ones(2, 1), torch.ones(1)), torch.zeros(1, 3))
