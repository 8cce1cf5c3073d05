import pytest
import torch
from small_scenes import generator

from chrono_features.data.synthetic import (
    load_textures,
    procedural_textures,
)
from chrono_features.data.synthetic.textures import TextureSource


def test_procedural_textures():
    textures = procedural_textures(24, 64, generator(0))
    assert textures.shape == (24, 3, 64, 64)
    assert textures.dtype == torch.float32
    assert 0 <= textures.min() < textures.max() <= 1
    assert textures.flatten(2).std(dim=2).amax(dim=1).min() > 0.015  # none is flat
    assert torch.equal(textures, procedural_textures(24, 64, generator(0)))
    with pytest.raises(ValueError, match="count"):
        procedural_textures(0)
    with pytest.raises(ValueError, match="size"):
        procedural_textures(1, 4)


def test_load_textures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(ValueError, match="no photographs"):
        load_textures(tmp_path)
    with pytest.raises(ValueError, match="not a directory"):
        load_textures(tmp_path / "missing")
    image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "a.png")
    oblong = image.new("RGB", (80, 40), (0, 255, 0))
    oblong.paste((0, 0, 255), (40, 0, 80, 40))
    oblong.save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not a photograph")
    textures = load_textures(tmp_path)
    assert textures.shape == (3, 3, 256, 256)
    assert textures.dtype == torch.uint8
    assert textures[:, :, 128, 128].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_every_fifth_photograph_is_kept_for_validation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(4):
        image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"4 photographs.*at least 5"):
        load_textures(tmp_path, "training")
    for i in range(4, 11):
        image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    parts = {part: load_textures(tmp_path, part)[:, 0, 0, 0].tolist() for part in ("training", "validation", None)}
    assert len(parts["validation"]) == 2 and len(parts["training"]) == 9
    assert sorted(parts["training"] + parts["validation"]) == sorted(parts[None])
    with pytest.raises(ValueError, match="part='test'"):
        load_textures(tmp_path, "test")


def test_plain_textures_are_weak_or_repeat():
    photo = torch.rand(1, 3, 64, 64, generator=generator(0))
    weak = repeating = 0
    for seed in range(30):
        source = TextureSource(generator(seed), photo, plain=1.0)
        source.procedural = photo[0][None]
        texture = source.draw()
        repeats = any(torch.allclose(texture[:, :, side:], texture[:, :, :-side]) for side in (4, 8, 16))
        repeating += repeats
        weak += not repeats and texture.std() < 0.7 * photo.std()
    assert repeating > 5 and weak > 5 and weak + repeating >= 28
