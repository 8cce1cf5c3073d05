"""The bundled model: there, small, honest about what it is, and tracking."""

import pytest
import torch

from chrono_features import ChronoBackbone, checkpoints
from chrono_features.data.synthetic import make_clip


@pytest.fixture(scope="module")
def tiny():
    return ChronoBackbone.from_pretrained("chrono-tiny")


def test_needs_no_network_and_fits_the_wheel(no_network):
    model = ChronoBackbone.from_pretrained("chrono-tiny")
    assert not model.training and model.dtype == torch.float32
    assert (checkpoints.BUNDLED / "model.safetensors").stat().st_size <= 12_000_000
    card = (checkpoints.BUNDLED / "README.md").read_text()
    assert card.splitlines()[0] == "This is not the paper's model: it was trained from scratch and holds no DINOv2."


@torch.no_grad()
def test_features_know_about_time_and_stream(tiny):
    clip = make_clip(5, frames=3, size=(64, 64), points=4)
    together = tiny(clip.frames[None], grid=(8, 8))
    alone = tiny(clip.frames[None, :1], grid=(8, 8))
    assert together.shape == (1, 3, 96, 16, 16)
    torch.testing.assert_close(together.norm(dim=2), torch.ones(1, 3, 16, 16))
    assert (together[:, :1] - alone).abs().max() > 1e-3  # neighbours matter
    torch.testing.assert_close(
        tiny.vit_features(clip.frames[None], grid=(8, 8))[:, :1], tiny.vit_features(clip.frames[None, :1], grid=(8, 8))
    )


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["raycast", "layers"])
def test_tracks_better_than_standing_still_and_than_an_untrained_twin(tiny, scene):
    torch.manual_seed(0)
    twin = ChronoBackbone(tiny.config)
    shares = {"trained": [], "untrained": [], "static": []}
    for seed in (10**9, 10**9 + 1, 10**9 + 2):
        clip = make_clip(seed, frames=4, size=(128, 128), points=48, scene=scene, frame_step=2.0, anchor=0)
        queries = torch.cat([torch.zeros(48, 1), clip.xy[:, 0].clamp(0, 128)], dim=-1)[None]
        later = clip.visible[:, 1:]
        answers = {
            name: m.track(clip.frames[None], queries, grid=(16, 16)).xy[0]
            for name, m in (("trained", tiny), ("untrained", twin))
        }
        answers["static"] = clip.xy[:, :1].expand(-1, 4, -1)
        for name, xy in answers.items():
            near = (xy - clip.xy).norm(dim=-1)[:, 1:] < 2
            shares[name].append((near & later).sum() / later.sum())
    trained, untrained, static = (torch.tensor(shares[name]).mean() for name in ("trained", "untrained", "static"))
    assert trained > static + 0.15 and trained > untrained + 0.3, shares
