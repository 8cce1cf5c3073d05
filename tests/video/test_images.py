import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import chrono_features
from chrono_features.data.clip import Unusable
from chrono_features.data.readers import open_dataset
from chrono_features.data.reading import photographs
from chrono_features.data.synthetic import load_textures
from chrono_features.video import frame_rate, iter_frames, read_video
from chrono_features.video.images import FORMATS, IMAGE_SUFFIXES, OTHER_SUFFIXES, natural

Image = pytest.importorskip("PIL.Image")
av = pytest.importorskip("av")

RAMP = np.linspace(0, 255, 32 * 24).reshape(24, 32)  # black to white
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1).round().astype(np.uint8)
DEEP = (RAMP / 255 * 65535).round().astype(np.uint16)


def tiff(path: Path, data: bytes, bits: int, photometric: int = 1, width: int = 32, height: int = 24) -> None:
    """A grey TIFF of any depth, which Pillow does not write."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int] = (4, 4), extra: bytes = b"") -> bytes:
    """A grey PNG that says it has this size, with further chunks."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(5 * 4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, form, **options)
    return buffer.getvalue()


def grey16(folder: Path, kind: str) -> None:
    if kind == "png":
        Image.fromarray(DEEP).save(folder / "0.png")
    elif kind == "tiff, little end first":
        Image.fromarray(DEEP).save(folder / "0.tif")
    elif kind == "tiff, big end first":
        Image.frombytes("I;16B", (32, 24), DEEP.astype(">u2").tobytes()).save(folder / "0.tif")
    elif kind == "tiff, white is zero":
        tiff(folder / "0.tif", (65535 - DEEP).astype("<u2").tobytes(), 16, photometric=0)
    elif kind == "tiff of 12 bits":
        high, low = (DEEP >> 4).reshape(-1, 2).T.astype(np.uint32)
        packed = (high << 12 | low).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
        tiff(folder / "0.tif", packed.tobytes(), 12)


@pytest.mark.parametrize(
    "kind", ["png", "tiff, little end first", "tiff, big end first", "tiff, white is zero", "tiff of 12 bits"]
)
def test_wide_integers_are_scaled_by_their_range(tmp_path: Path, kind: str) -> None:
    grey16(tmp_path, kind)
    frame = read_video(tmp_path).frames[0].numpy()
    assert (frame == frame[:1]).all()
    tolerance = 1 if "12" in kind else 0
    assert np.abs(frame[0].astype(int) - np.rint(DEEP * (255 / 65535))).max() <= tolerance


def test_a_folder_and_its_file_alone_agree(tmp_path: Path) -> None:
    grey16(tmp_path, "png")
    alone, folder = (read_video(path).frames.int() for path in (tmp_path / "0.png", tmp_path))
    assert (alone - folder).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", ".png"), ("L", ".png"), ("LA", ".png"), ("P", ".png"), ("RGB", ".png"), ("RGBA", ".png"),
        ("L", ".jpg"), ("RGB", ".bmp"), ("P", ".bmp"), ("1", ".tif"), ("RGB", ".tiff"), ("CMYK", ".tif"),
        ("RGBA", ".tif"), ("RGB", ".webp"), ("RGBA", ".webp"),
    ],
)  # fmt: skip
def test_modes_of_8_bits_are_as_pillow_converts_them(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / f"0{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    expected = np.asarray(Image.open(tmp_path / f"0{suffix}").convert("RGB"))
    frame = read_video(tmp_path).frames[0].permute(1, 2, 0).numpy()
    assert (frame == expected).all()
    if suffix in (".png", ".bmp", ".webp") and mode in ("RGB", "RGBA"):
        assert (frame == COLOURS).all()


def test_colours_of_16_bits(tmp_path: Path) -> None:
    deep = COLOURS.astype(np.uint16) * 257
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 32, 24, "rgb48be", av.time_base
    frame = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="rgb48be")
    (tmp_path / "0.png").write_bytes(b"".join(bytes(p) for p in [*codec.encode(frame), *codec.encode()]))
    assert (read_video(tmp_path).frames[0].permute(1, 2, 0).numpy() == COLOURS).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(RAMP.astype(np.float32)), "floating-point values"),
        (Image.fromarray(RAMP.astype(np.int32)), "32-bit values"),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    image.save(tmp_path / "0.tif")
    with pytest.raises(ValueError, match=rf"0\.tif.*{message}"):
        read_video(tmp_path)


def test_signed_values_are_refused(tmp_path: Path) -> None:
    """Pillow would take -1 for 255."""
    tags = pytest.importorskip("PIL.TiffImagePlugin").ImageFileDirectory_v2()
    tags[339] = 2  # SampleFormat
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "0.tif", tiffinfo=tags)
    with pytest.raises(ValueError, match=r"0\.tif: signed values"):
        read_video(tmp_path)


@pytest.mark.parametrize(("mode", "compression"), [("RGB", "raw"), ("RGB", "jpeg"), ("PA", "raw"), ("PA", "tiff_lzw")])
def test_tiff_alone_is_as_in_a_folder(tmp_path: Path, mode: str, compression: str) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (32, 1))
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1))
    (image.quantize(64).convert("PA") if mode == "PA" else image).save(tmp_path / "a.tif", compression=compression)
    alone, inside = read_video(tmp_path / "a.tif"), read_video(tmp_path)
    assert np.array_equal(alone.frames, inside.frames)
    assert np.abs(alone.frames[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(image)).max() < 16


def test_a_tiff_of_several_images_alone_is_refused(tmp_path: Path) -> None:
    """FFmpeg reads the first one, and says nothing of the others."""
    image = Image.new("L", (8, 6))
    image.save(tmp_path / "stack.tif", save_all=True, append_images=[image] * 3)
    with pytest.raises(ValueError, match=r"stack\.tif: .*it holds 4 images"):
        read_video(tmp_path / "stack.tif")


@pytest.mark.filterwarnings("error")
def test_transparent_palettes_do_not_warn(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB").quantize(16)
    image.save(tmp_path / "0.png", transparency=bytes(range(16)))
    assert np.array_equal(read_video(tmp_path).frames[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_an_image_of_several_is_refused(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 100)]
    images[0].save(tmp_path / f"0{suffix}", save_all=True, append_images=images[1:])
    with pytest.raises(ValueError, match=rf"0\{suffix}: .*2 images"):
        read_video(tmp_path)


def test_the_preview_in_a_phone_s_jpeg_is_no_second_image(tmp_path: Path) -> None:
    images = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (100, 0)]
    images[0].save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=images[1:])
    assert (read_video(tmp_path).frames == 100).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8, 0], stored[:8, 16:, 1], stored[8:, :8, 2] = 255, 255, 255
    Image.fromarray(stored).save(tmp_path / f"0{suffix}", exif=exif)
    upright = stored.swapaxes(0, 1) if orientation > 4 else stored
    flips = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = flips[orientation]
    frame = read_video(tmp_path).frames[0].permute(1, 2, 0).numpy()
    assert np.abs(frame.astype(int) - upright[::rows, ::columns]).mean() < 8  # lossy formats


# --- folders --------------------------------------------------------------------------------------------------------


def save_numbered(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), 2 * i, np.uint8)).save(folder / name)


def order(folder: Path) -> list[int]:
    return [int(frame[0, 0, 0]) // 2 for frame in iter_frames(folder)]


@pytest.mark.parametrize(
    "form", ["{}.png", "frame{}.png", "frame_{}_left.png", "{:05d}.png", "2020-{}-07.png", "a.{}.png"]
)
def test_frames_are_in_natural_order(tmp_path: Path, form: str) -> None:
    save_numbered(tmp_path, [form.format(i) for i in range(1, 13)])
    assert order(tmp_path) == list(range(12))


def test_natural_order_is_total() -> None:
    names = [
        "1.png",
        "01.png",
        "1_1.png",
        "a.png",
        "a1.png",
        "a1b.png",
        "A.png",
        "10.png",
        "2.png",
        "x2y10.png",
        "x2y9.png",
    ]
    expected = ["01.png", "1.png", "1_1.png", "2.png", "10.png", "A.png", "a.png", "a1.png", "a1b.png"]
    ordered = [path.name for path in sorted(map(Path, names), key=natural)]
    assert ordered == [*expected, "x2y9.png", "x2y10.png"]


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    save_numbered(tmp_path, [f"{i}{suffix}" for i, suffix in enumerate((*IMAGE_SUFFIXES, ".PNG", ".Jpg"))])
    assert order(tmp_path) == list(range(len(IMAGE_SUFFIXES) + 2))


def test_hidden_files_and_others_are_left_out(tmp_path: Path) -> None:
    save_numbered(tmp_path, ["0.png", "1.png"])
    for name in ("._0.png", ".DS_Store", ".hidden.gif", "notes.txt", "points.csv", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "folder.png").mkdir()
    assert order(tmp_path) == [0, 1]


@pytest.mark.parametrize("suffix", OTHER_SUFFIXES)
def test_images_that_are_not_read_are_named(tmp_path: Path, suffix: str) -> None:
    save_numbered(tmp_path, ["0.png", "2.png"])
    (tmp_path / f"1{suffix.upper()}").write_bytes(b"image")
    with pytest.raises(ValueError, match=rf"1\{suffix.upper()}: images of this format are not read.*PNG"):
        read_video(tmp_path)


@pytest.mark.parametrize(
    "suffix", [".npy", ".svg", ".bw", ".jfi", ".rgb", ".eps", ".hif", ".mpo", ".fits", ".dcm", ".xpm"]
)
def test_no_image_is_dropped(tmp_path: Path, suffix: str) -> None:
    save_numbered(tmp_path, ["0.png", "2.png"])
    (tmp_path / f"1{suffix}").write_bytes(b"image")
    with pytest.raises(ValueError, match=rf"1\{suffix}: images of this format are not read"):
        read_video(tmp_path)


def test_the_rate_of_a_folder(tmp_path: Path) -> None:
    save_numbered(tmp_path, ["0.png", "1.png", "2.png"])
    assert frame_rate(tmp_path) == 24 and frame_rate(tmp_path, fps=10) == 10
    assert read_video(tmp_path, fps=10, every=2).fps == 5
    for fps in (0, -1, float("nan"), float("inf"), "10"):
        with pytest.raises(ValueError, match="fps=.*above 0"):
            read_video(tmp_path, fps=fps)
    with pytest.raises(ValueError, match="stream=0; expected None"):
        read_video(tmp_path, stream=0)


# --- hostile files --------------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
HOSTILE = {
    "PostScript": EPS,
    "bomb": png((60000, 60000)),
    "damaged EXIF": png(extra=chunk(b"eXIf", b"MM[*\0\0\0\x08")),
    "cut": saved("PNG")[:-60],
    "text": b"nothing",
    "empty": b"",
    "GIF": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "PPM": b"P6 1 1 255 aaa",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["0.png", "0.jpg"])
def test_hostile_images_are_named(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match=rf"0\.\w+: not a readable image.*{', '.join(FORMATS)}"):
        read_video(tmp_path)
    if kind != "damaged EXIF":  # photographs are not turned
        with pytest.raises(ValueError, match=r"0\.\w+: not a readable image"):
            load_textures(tmp_path)
        with pytest.raises(Unusable, match=r"0\.\w+: not a readable image"):
            next(iter(open_dataset("warps", tmp_path))).load()


@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_damage_anywhere_in_an_image_is_one_kind_of_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274], exif[305] = 6, "software"
    for form, (suffix, *_) in FORMATS.items():
        whole = saved(form, exif=exif)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data) if rng.random() < 0.5 else 100, 3):
                data[at] = rng.integers(256)
            path = tmp_path / f"0{suffix}"
            path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
            try:
                assert read_video(tmp_path).frames.shape[:2] == (1, 3)
            except ValueError as error:
                assert path.name in str(error)
            path.unlink()


def test_images_are_opened_in_one_place() -> None:
    source = Path(chrono_features.__file__).parent
    opening = [path.name for path in source.rglob("*.py") if re.search(r"(?i)\b(pil|image)\.open\(", path.read_text())]
    assert opening == ["images.py"]


# --- photographs and masks ------------------------------------------------------------------------------------------


def test_photographs_of_all_formats_and_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / "below").mkdir()
    save_numbered(tmp_path, [f"{i}{suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)])
    for name in ("._0.png", ".cache/0.png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    Image.fromarray(DEEP).save(tmp_path / "below" / "deep.png")
    assert len(photographs(tmp_path)) == len(IMAGE_SUFFIXES) + 1
    textures = load_textures(tmp_path)
    assert len(textures) == len(IMAGE_SUFFIXES) + 2  # two crops of the oblong one
    assert abs(textures[-2:].float().mean() - 127.5) < 2  # 16 bits are not cut off


def mask_set(root: Path, masks: list[np.ndarray | Image.Image], suffix: str = ".png") -> Path:
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "clip").mkdir(parents=True)
    for i, mask in enumerate(masks):
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(root / "Annotations" / "clip" / f"{i}{suffix}")
        Image.fromarray(COLOURS).save(root / "JPEGImages" / "clip" / f"{i}.jpg")
    return root


@pytest.mark.parametrize("ids", [(1001, 1002), (1, 300), (255, 256), (254, 255), (65534, 65535)])
def test_masks_of_16_bits(tmp_path: Path, ids: tuple[int, int]) -> None:
    mask = np.zeros((24, 32), np.uint16)
    mask[2:17, 1:16], mask[2:17, 1:31] = ids[0], np.where(mask[2:17, 1:31], mask[2:17, 1:31], ids[1])
    mask[2:17, 1:16] = ids[0]
    video = next(iter(open_dataset("masks", mask_set(tmp_path, [mask] * 11)))).load()
    assert [(video.masks == value).sum() for value in (1, 2)] == [225 * 11, 225 * 11]
    assert video.masks.max() == 2 and len(video.frames) == 11


def test_void_is_a_value_of_8_bits(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:4], mask[4:8] = 255, 7
    video = next(iter(open_dataset("masks", mask_set(tmp_path, [mask] * 2)))).load()
    assert np.unique(video.masks).tolist() == [0, 1] and (video.masks[:, 4:8] == 1).all()


def test_masks_that_would_lose_bits_are_refused(tmp_path: Path) -> None:
    deep = np.repeat(DEEP[..., None], 3, axis=-1)
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 32, 24, "rgb48be", av.time_base
    frame = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="rgb48be")
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode()])
    root = mask_set(tmp_path, [COLOURS[..., 0]] * 2)
    (root / "Annotations" / "clip" / "1.png").write_bytes(data)
    with pytest.raises(Unusable, match=r"1\.png.*16-bit"):
        next(iter(open_dataset("masks", root))).load()
    Image.fromarray(RAMP.astype(np.float32)).save(root / "Annotations" / "clip" / "1.png", format="TIFF")
    with pytest.raises(Unusable, match=r"1\.png.*floating-point"):
        next(iter(open_dataset("masks", root))).load()


def test_videos_of_masks_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("10", "9", "._9", ".ipynb_checkpoints"):
        for folder in ("JPEGImages", "Annotations"):
            (tmp_path / folder / name).mkdir(parents=True)
            save_numbered(tmp_path / folder / name, ["0.png"])
    (tmp_path / "JPEGImages" / ".DS_Store").write_bytes(b"")
    (tmp_path / "JPEGImages" / "9" / "._0.png").write_bytes(b"")
    data = open_dataset("masks", tmp_path)
    assert [entry.name for entry in data] == ["9", "10"]
    assert data.fingerprint()["files"] == 4
