import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from chrono_features.extras import how_to_install
from chrono_features.video import DEFAULT_FPS, frame_rate, iter_frames, read_video, write_video

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

RED, GREEN, BLUE = (250, 20, 30), (10, 200, 60), (30, 60, 220)


def numbered(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames whose grey level tells their index."""
    return [np.full((height, width, 3), 10 + 4 * i, np.uint8) for i in range(count)]


def index_of(frame: torch.Tensor) -> int:
    return round((float(frame.float().mean()) - 10) / 4)


def corners() -> np.ndarray:
    picture = np.full((48, 64, 3), 120, np.uint8)
    picture[:20, :20], picture[:20, -20:], picture[-20:, :20] = RED, GREEN, BLUE
    return picture


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", numbered(30), fps=30)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_round_trip_keeps_colour_size_rate_and_count(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, [corners()] * 7, fps=29.97)
    video = read_video(path)
    assert video.frames.shape == (7, 3, 48, 64) and video.frames.dtype == torch.uint8
    assert video.size == (48, 64)
    assert video.fps == pytest.approx(29.97, abs=0.01)
    for (y, x), colour in {(10, 10): RED, (10, 54): GREEN, (38, 10): BLUE, (38, 54): (120, 120, 120)}.items():
        assert np.abs(video.frames[3, :, y, x].numpy().astype(int) - colour).max() <= 4


def test_output_says_which_colours_it_means(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", [corners()] * 2, fps=25)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p" and context.name == "h264"


def test_tensors_and_odd_sizes(tmp_path: Path) -> None:
    picture = corners()[:47, :63]
    write_video(tmp_path / "clip.mp4", [torch.from_numpy(picture).permute(2, 0, 1)] * 2, fps=25)
    frame = read_video(tmp_path / "clip.mp4").frames[0]
    assert frame.shape == (3, 48, 64)
    assert np.abs(frame[:, 47, 5].numpy().astype(int) - BLUE).max() <= 6  # the last row, repeated


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, range(30)),
        ({"start": 4}, range(4, 30)),
        ({"end": 3}, range(3)),
        ({"start": 5, "end": 9}, range(5, 9)),
        ({"every": 7}, range(0, 30, 7)),
        ({"start": 3, "every": 10}, range(3, 30, 10)),
        ({"max_frames": 4}, range(4)),
        ({"start": 2, "every": 3, "max_frames": 4}, range(2, 14, 3)),
        ({"start": 2, "every": 3, "max_frames": 4, "end": 9}, range(2, 9, 3)),
        ({"end": 1000}, range(30)),
    ],
)
def test_frames_are_chosen_like_a_slice(clip: Path, selection: dict, expected: range) -> None:
    video = read_video(clip, **selection)
    assert [index_of(f) for f in video.frames] == list(expected)
    assert [index_of(f) for f in iter_frames(clip, **selection)] == list(expected)
    assert video.fps == pytest.approx(30 / selection.get("every", 1))
    assert (video.start, video.every) == (selection.get("start", 0), selection.get("every", 1))


def test_only_frames_that_are_used_are_converted(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chrono_features.video as module

    converted = []
    original = module._to_rgb
    monkeypatch.setattr(module, "_to_rgb", lambda frame: converted.append(frame.pts) or original(frame))
    read_video(clip, start=10, every=5, max_frames=3)
    assert len(converted) == 3


def test_on_frame_counts(clip: Path) -> None:
    seen: list[int] = []
    read_video(clip, every=10, on_frame=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("selection", "name"),
    [
        ({"start": -1}, "start"),
        ({"start": 1.5}, "start"),
        ({"start": "1"}, "start"),
        ({"start": 5, "end": 5}, "end"),
        ({"end": 0}, "end"),
        ({"every": 0}, "every"),
        ({"every": True}, "every"),
        ({"max_frames": 0}, "max_frames"),
        ({"start": 30}, "start"),
        ({"start": 99, "end": 120}, "start"),
    ],
)
def test_bad_selections(clip: Path, selection: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*expected"):
        read_video(clip, **selection)


def test_selection_is_checked_before_the_first_frame(clip: Path) -> None:
    with pytest.raises(ValueError, match="every=0"):
        iter_frames(clip, every=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        iter_frames(clip.parent / "nowhere.mp4")


TURNS = {
    # a, b, c, d of the display matrix -> the corners (top left, top right / bottom left, bottom right) to be seen
    "as it is": ((1, 0, 0, 1), "RG/B."),
    "90 clockwise": ((0, 1, -1, 0), "BR/.G"),
    "180": ((-1, 0, 0, -1), ".B/GR"),
    "90 anticlockwise": ((0, -1, 1, 0), "G./RB"),
    "mirrored left to right": ((-1, 0, 0, 1), "GR/.B"),
    "mirrored top to bottom": ((1, 0, 0, -1), "B./RG"),
    "transposed": ((0, 1, 1, 0), "RB/G."),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_of_the_container_is_honoured(tmp_path: Path, turn: str) -> None:
    (a, b, c, d), expected = TURNS[turn]
    path = tmp_path / "phone.mp4"
    write_video(path, [corners()] * 3, fps=25)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # in the track header, as 16.16 fixed point numbers
    shift = (64 if a + c < 0 else 0, 48 if b + d < 0 else 0)
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, *shift, 1 << 30)
    path.write_bytes(data)

    frame = read_video(path).frames[1]
    assert frame.shape == ((3, 64, 48) if b else (3, 48, 64))
    names = {"R": RED, "G": GREEN, "B": BLUE, ".": (120, 120, 120)}
    seen = "/".join(
        "".join(min(names, key=lambda n: np.abs(frame[:, y, x].numpy() - np.array(names[n])).sum()) for x in (8, -8))
        for y in (8, -8)
    )
    assert seen == expected


def test_folder_of_images(tmp_path: Path) -> None:
    for name, picture in zip(("b.png", "a.JPG", "c.jpeg"), numbered(3), strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    video = read_video(tmp_path)
    assert [index_of(f) for f in video.frames] == [1, 0, 2]
    assert video.fps == frame_rate(tmp_path) == DEFAULT_FPS
    assert [index_of(f) for f in read_video(tmp_path, start=1, every=1, max_frames=1).frames] == [0]


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned clockwise
    Image.fromarray(corners()).save(tmp_path / "a.png", exif=exif)
    frame = read_video(tmp_path).frames[0]
    assert frame.shape == (3, 64, 48)
    assert tuple(frame[:, 5, 5].tolist()) == BLUE


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without images"):
        read_video(tmp_path)
    Image.fromarray(numbered(1)[0]).save(tmp_path / "a.png")
    Image.fromarray(numbered(1, 32, 32)[0]).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"frame 1 is .*\(3, 32, 32\); expected \(3, 48, 64\)"):
        read_video(tmp_path)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.png: not a readable image"):
        read_video(tmp_path)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("this is not a video")
    with pytest.raises(ValueError, match=r"text\.mp4: not a readable video"):
        read_video(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty\.mp4: not a readable video"):
        read_video(tmp_path / "empty.mp4")


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.wav: no video stream; it holds only audio"):
        read_video(path)


def noise_clip(path: Path, count: int = 40, **options: str) -> bytes:
    """A video whose bytes are spread evenly over its frames."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(count):
            picture = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
        ("a.avi", {}),
    ],
)
def test_truncated_video(tmp_path: Path, name: str, options: dict) -> None:
    path = tmp_path / name
    data = noise_clip(path, **options)
    assert len(read_video(path).frames) == 40
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{name}: truncated or damaged after \d+ frames") as caught:
        read_video(path)
    # The message names the frames that can be had, and they can.
    count = int(str(caught.value).split(" after ")[1].split()[0])
    assert 10 <= count <= 30
    assert len(read_video(path, end=count).frames) == count


def test_truncated_video_with_its_index_at_the_end(tmp_path: Path) -> None:
    data = noise_clip(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video, or truncated"):
        read_video(tmp_path / "a.mp4")


class Stop(BaseException):
    """Stands for KeyboardInterrupt."""


def test_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, numbered(5), fps=25)
    before = path.read_bytes()

    def interrupted():
        yield from numbered(3)
        raise Stop

    with pytest.raises(Stop):
        write_video(path, interrupted(), fps=25)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "error", "message"),
    [
        ("clip.txt", numbered(1), 25, ValueError, "path=.*expected a name that ends in .mp4"),
        ("nowhere/clip.mp4", numbered(1), 25, FileNotFoundError, "nowhere"),
        ("clip.mp4", numbered(1), 0, ValueError, "fps=0"),
        ("clip.mp4", numbered(1), float("nan"), ValueError, "fps=nan"),
        ("clip.mp4", [], 25, ValueError, "frames holds no frame"),
        ("clip.mp4", [np.zeros((8, 8, 3))], 25, ValueError, r"frames\[0\] is float64.*array \(H, W, 3\)"),
        ("clip.mp4", [torch.zeros(8, 8, 3, dtype=torch.uint8)], 25, ValueError, r"tensor \(3, H, W\)"),
        ("clip.mp4", [*numbered(1), *numbered(1, 32)], 25, ValueError, r"frames\[1\] of shape \(32, 64, 3\)"),
    ],
)
def test_bad_writes(tmp_path: Path, name: str, frames: list, fps: float, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        write_video(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=re.escape(f"av is missing; expected {how_to_install('video')}")):
        read_video(clip)
