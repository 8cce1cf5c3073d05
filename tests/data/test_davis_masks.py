import io
from pathlib import Path

import numpy as np
import pytest
from pickled_videos import jpegs, pictures

from chrono_features.data.clip import MaskClip, Unusable
from chrono_features.data.readers import open_dataset

Image = pytest.importorskip("PIL.Image")


def davis(root: Path, masks: np.ndarray, name: str = "goat", level: str = "480p", mode: str = "P") -> str:
    """A folder as DAVIS has it: frames in JPEG, masks in PNG."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / level / name).mkdir(parents=True, exist_ok=True)
    for t, (file, mask) in enumerate(zip(jpegs(pictures(0, len(masks), *masks.shape[1:])), masks, strict=True)):
        (root / "JPEGImages" / level / name / f"{t:05}.jpg").write_bytes(file)
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([value * 37 % 256 for value in range(3 * 256)])
        else:
            image = image.convert(mode)
        image.save(root / "Annotations" / level / name / f"{t:05}.png")
    return str(root)


def labels(frames: int = 3) -> np.ndarray:
    """0, 2 and 5, of which 5 is missing from the first frame."""
    masks = np.random.default_rng(0).choice(np.array([0, 2, 5], np.uint8), (frames, 12, 20))
    masks[0][masks[0] == 5] = 0
    return masks


@pytest.mark.parametrize("level", ["480p", "Full-Resolution", ""])
def test_masks(tmp_path: Path, level: str) -> None:
    path = davis(tmp_path, labels(), level=level)
    davis(tmp_path, labels()[::-1], "camel", level)
    dataset = open_dataset("masks", path, (8, 10))
    assert dataset.total() == 2
    camel, goat = dataset
    assert (camel.name, goat.name, goat.group) == ("camel", "goat", "masks")
    video = goat.load()
    assert isinstance(video, MaskClip) and (video.name, video.group) == ("goat", "masks")
    for frame, file in zip(video.frames.numpy(), jpegs(pictures(0, 3)), strict=True):
        np.testing.assert_array_equal(frame.transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(file))))
    expected = (labels() == 2) + 2 * (labels() == 5)
    assert video.masks.dtype == np.int64
    np.testing.assert_array_equal(video.masks, expected)
    np.testing.assert_array_equal(camel.load().masks, expected[::-1])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert dataset.fingerprint() == {"files": 12, "bytes": sum(file.stat().st_size for file in files)}


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "RGBA"])
def test_masks_of_black_and_white(tmp_path: Path, mode: str) -> None:
    masks = np.where(labels() > 0, 255, 0).astype(np.uint8)
    (entry,) = open_dataset("masks", davis(tmp_path, masks, mode=mode))
    np.testing.assert_array_equal(entry.load().masks, labels() > 0)


def test_void_becomes_background(tmp_path: Path) -> None:
    masks = labels()
    masks[1, :3] = 255
    (entry,) = open_dataset("masks", davis(tmp_path, masks))
    np.testing.assert_array_equal(entry.load().masks, (masks == 2) + 2 * (masks == 5))


@pytest.mark.parametrize("first", [0, 1])
def test_void_of_8_bit_masks_beside_masks_of_16(tmp_path: Path, first: int) -> None:
    """In 8 bits 255 is void, in 16 an object; each mask goes by its own type."""
    narrow = np.zeros((16, 16), np.uint8)
    narrow[2:6, 2:6], narrow[8:12, 2:6], narrow[0] = 1, 2, 255
    wide = np.zeros((16, 16), np.uint16)
    wide[2:6, 2:6], wide[8:12, 2:6] = 1, 2
    masks = [narrow, wide] if first == 0 else [wide, narrow]
    images, annotations = tmp_path / "JPEGImages/480p/a", tmp_path / "Annotations/480p/a"
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / f"{i}.jpg")
        Image.fromarray(mask).save(annotations / f"{i}.png")
    (entry,) = open_dataset("masks", str(tmp_path))
    np.testing.assert_array_equal(entry.load().masks, np.stack([wide, wide]))


def test_of_several_resolutions_480p_is_read(tmp_path: Path) -> None:
    davis(tmp_path, labels().repeat(2, 1).repeat(2, 2), level="Full-Resolution")
    (entry,) = open_dataset("masks", davis(tmp_path, labels()))
    assert entry.load().frames.shape == (3, 3, 12, 20)
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder / "480p").rename(tmp_path / folder / "240p")
    with pytest.raises(ValueError, match="resolutions 240p, Full-Resolution; expected 480p, or only one"):
        open_dataset("masks", str(tmp_path))


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    (entry,) = open_dataset("masks", davis(tmp_path, labels()))
    masks, frames = (tmp_path / folder / "480p" / "goat" for folder in ("Annotations", "JPEGImages"))

    def refused(message: str) -> None:
        with pytest.raises(Unusable, match=message):
            entry.load()

    (masks / "00001.png").rename(masks / "aside")
    refused(r"1 of 3 frames have no mask; the first is .*goat.00001\.png")
    Image.fromarray(labels()[0].T).save(masks / "00001.png")
    refused(r"a mask is \(H, W\)=\(20, 12\); expected the frames' \(12, 20\)")
    Image.fromarray(pictures()[0]).save(masks / "00001.png")
    refused(r"00001\.png is in colour \(RGB\)")
    (masks / "00001.png").write_bytes(b"nothing")
    refused(r"00001\.png: not a readable image")
    for t in range(3):
        Image.fromarray(np.zeros((12, 20), np.uint8)).save(masks / f"{t:05}.png")
    refused("no mask shows an object")
    (frames / "00001.jpg").write_bytes(b"nothing")
    refused(r"00001\.jpg: not a readable image")
    for t in (1, 2):
        (frames / f"{t:05}.jpg").unlink()
    refused("1 frames; expected at least 2")
    for file in masks.iterdir():
        file.unlink()
    masks.rmdir()
    refused("1 of 1 frames have no mask")
    masks.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=r"Annotations.480p: no such folder"):
        open_dataset("masks", str(tmp_path))
    (frames / "00000.jpg").unlink()
    masks.parent.mkdir()
    with pytest.raises(ValueError, match="no folders of images"):
        open_dataset("masks", str(tmp_path))
