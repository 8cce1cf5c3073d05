"""Held-out clips: those of the generator, and never trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from warped_photographs import SIZE, generator, waves

from chrono_features.data import synthetic_clips as heldout
from chrono_features.data.synthetic import VALIDATION_SEED, load_textures, make_clip
from chrono_features.data.synthetic_clips import SyntheticClips
from chrono_features.training.batches import SyntheticBatches
from chrono_features.training.recipes import RECIPES

Image = pytest.importorskip("PIL.Image")


def test_held_out_entries():
    data = SyntheticClips("", SIZE)
    entries = list(data)
    assert data.kind == "synthetic"
    assert data.total() == len(entries) == len({entry.name for entry in entries}) == 36
    for group in ("synthetic/raycast", "synthetic/layers", "synthetic/occluded"):
        assert sum(entry.group == group for entry in entries) == 12


@pytest.mark.parametrize(
    ("index", "group", "scene"),
    [(0, "raycast", "raycast"), (34, "layers", "layers"), (2, "occluded", "raycast"), (5, "occluded", "layers")],
)
def test_held_out_clips_are_the_generators(monkeypatch, index, group, scene):
    monkeypatch.setattr(heldout, "FRAMES", 6)
    entry = list(SyntheticClips("", (32, 40), first=7))[index]
    video = entry.load()
    variety = {"variety": heldout.OCCLUDED} if group == "occluded" else {}
    clip = make_clip(heldout.FIRST_SEED + 7 + index, frames=6, size=(32, 40), points=128, scene=scene, **variety)
    assert (video.name, video.group) == (entry.name, entry.group) == (f"synthetic/{group}/{index:02d}", entry.group)
    assert (video.frames.float() / 255 - clip.frames).abs().max() <= 0.5 / 255 + 1e-6
    assert video.frames.dtype == torch.uint8
    assert np.array_equal(video.xy, clip.xy)
    assert video.xy.dtype == torch.float64
    assert torch.equal(video.visible, clip.visible)
    assert video.visible.any(1).all()
    assert video.valid.all()


def test_held_out_seeds_are_never_trained_on():
    """As a generator understands them: seeds that agree in 32 bits are one seed."""
    first, again = (torch.rand(4, generator=generator(seed)) for seed in (5, 5 + 2**61))
    assert torch.equal(first, again)
    stages = [stage for recipe in RECIPES.values() for stage in recipe.stages]
    for seed in range(100):
        for world in (1, 3, 8):
            for stage in stages:
                data = SyntheticBatches(stage, None, seed, rank=world - 1, world=world)
                first, last = data.first % 2**32, data.first % 2**32 + len(data) * data.per_step
                assert first < last < VALIDATION_SEED
    assert VALIDATION_SEED < heldout.FIRST_SEED and heldout.FIRST_SEED + heldout.CLIPS < 2**32


def test_held_out_textures(tmp_path, monkeypatch):
    """Those that training keeps for validation."""
    monkeypatch.setattr(heldout, "FRAMES", 2)
    for i in range(5):
        if i == 4:
            with pytest.raises(ValueError, match="4 photographs; expected at least 5"):
                SyntheticClips(tmp_path)
        Image.fromarray(waves(40, 40) // (i + 1)).save(tmp_path / f"{i}.png")
    data = SyntheticClips(tmp_path, (24, 24))
    kept = load_textures(tmp_path, "validation")
    clip = make_clip(heldout.FIRST_SEED, frames=2, size=(24, 24), points=128, scene="raycast", textures=kept)
    video = next(iter(data)).load()
    assert torch.equal(video.frames, (255 * clip.frames).round().byte())
    (tmp_path / "4.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"4\.png: not a readable image"):
        next(iter(SyntheticClips(tmp_path))).load()


def test_the_size_has_a_default():
    assert SyntheticClips().size == SyntheticClips("", None).size == (256, 256)


def test_fingerprints_tell_data_apart(tmp_path):
    Image.fromarray(waves(200, 260)).save(tmp_path / "wide.png")
    for i in range(4):
        Image.fromarray(waves(40, 40)).save(tmp_path / f"{i}.png")
    prints = [
        SyntheticClips("", SIZE),
        SyntheticClips("", SIZE),
        SyntheticClips(),
        SyntheticClips(tmp_path, SIZE),
        SyntheticClips("", SIZE, first=24),
    ]
    first, again, *others = [data.fingerprint() for data in prints]
    assert first == again
    assert all(first != other for other in others)
