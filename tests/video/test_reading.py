import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from chrono_features.extras import how_to_install
from chrono_features.video import DEFAULT_FPS, frame_rate, iter_frames, read_video, write_video

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

MEDIA = Path(__file__).parents[1] / "files" / "media"
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
    from chrono_features.video.decoding import Decoded

    converted = []
    original = Decoded.to_rgb
    monkeypatch.setattr(Decoded, "to_rgb", lambda decoded: converted.append(decoded.number) or original(decoded))
    read_video(clip, start=10, every=5, max_frames=3)
    assert converted == [10, 15, 20]


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
    "transposed the other way": ((0, -1, -1, 0), ".G/BR"),
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


# --- orientation that is not in the container ------------------------------------------------------------------------


def seen_corners(frame: torch.Tensor) -> str:
    names = {"R": RED, "G": GREEN, "B": BLUE, ".": (120, 120, 120)}
    return "/".join(
        "".join(min(names, key=lambda n: np.abs(frame[:, y, x].numpy() - np.array(names[n])).sum()) for x in (8, -8))
        for y in (8, -8)
    )


@pytest.mark.parametrize(("name", "size"), [("upright", (96, 160)), ("sei_180", (96, 160)), ("sei_90", (160, 96))])
def test_orientation_of_the_first_frame_holds_for_all(name: str, size: tuple[int, int]) -> None:
    upright, turned = read_video(MEDIA / "upright.mp4").frames, read_video(MEDIA / f"{name}.mp4").frames
    assert turned.shape == (10, 3, *size)
    quarters = {"upright": 0, "sei_180": 2, "sei_90": 1}[name]
    assert torch.equal(turned, torch.rot90(upright, quarters, (2, 3)))


def with_sei(path: Path, turns: list[str], frames: int = 6) -> None:
    """One H.264 stream of several parts, each with its orientation in the SEI of its first frame only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "100", "bf": "0", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        clock = 0
        for turn in turns:
            codec = av.CodecContext.create("libx264", "w")
            codec.options = {"g": "100", "bf": "0", "crf": "10"}
            codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuv420p", Fraction(1, 25)
            setting = f"h264_metadata=display_orientation=insert:{turn}" if turn else "null"
            edit = av.bitstream.BitStreamFilterContext(setting, stream)
            packets = [packet for _ in range(frames) for packet in codec.encode(av.VideoFrame.from_ndarray(corners()))]
            for packet in [*packets, *codec.encode()]:
                packet.pts = packet.dts = clock
                packet.time_base, clock = Fraction(1, 25), clock + 1
                for edited in edit.filter(packet):
                    edited.stream = stream
                    container.mux(edited)


SEI = {
    # degrees anticlockwise, then mirrored
    "rotate=90": "G./RB",
    "rotate=180": ".B/GR",
    "rotate=270": "BR/.G",
    "flip=horizontal": "GR/.B",
    "flip=vertical": "B./RG",
    "rotate=90:flip=horizontal": None,
    "rotate=90:flip=vertical": None,
}


@pytest.mark.parametrize("turn", SEI)
def test_every_orientation_of_the_sei(tmp_path: Path, turn: str) -> None:
    path = tmp_path / "a.ts"
    with_sei(path, [turn])
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        a, b, _, c, d = struct.unpack("5i", bytes(first.side_data["DISPLAYMATRIX"])[:20])
    expected = SEI[turn] or next(seen for matrix, seen in TURNS.values() if matrix == tuple(np.sign((a, b, c, d))))
    frames = read_video(path).frames
    assert len(frames) == 6 and {seen_corners(frame) for frame in frames} == {expected}


def test_orientation_holds_until_another_comes(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with_sei(path, ["rotate=180", "", "flip=vertical", "flip=horizontal"])
    seen = [seen_corners(frame) for frame in iter_frames(path)]
    assert seen == [".B/GR"] * 12 + ["B./RG"] * 6 + ["GR/.B"] * 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_of_a_jpeg_read_as_a_video(tmp_path: Path, orientation: int) -> None:
    """PyAV does not know this side data; the mirrored ones show no rotation."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    alone, folder = read_video(tmp_path / "a.jpg").frames[0], read_video(tmp_path).frames[0]
    assert alone.shape == folder.shape
    assert seen_corners(alone) == seen_corners(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("exif.jpg", (1, 3, 64, 48)),
        ("exif_mjpeg.avi", (3, 3, 64, 48)),
        ("exif_png.mov", (3, 3, 48, 64)),
        ("mvhevc.mov", (8, 3, 96, 160)),
        ("latin1_title.mp4", (6, 3, 48, 64)),
    ],
)
def test_side_data_and_metadata_that_pyav_does_not_know(name: str, shape: tuple[int, ...]) -> None:
    frames = read_video(MEDIA / name).frames
    with av.open(str(MEDIA / name), metadata_errors="replace") as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames.shape == shape
    for frame, expected in zip(frames, plain, strict=True):
        turned = np.rot90(expected, -1) if shape[2] == 64 else expected
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), turned)


def test_rotation_of_a_file_with_side_data_that_pyav_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "turned.mov"
    data = bytearray((MEDIA / "mvhevc.mov").read_bytes())
    one, at = 1 << 16, data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 96 * one, 0, 1 << 30)
    path.write_bytes(data)
    upright, turned = read_video(MEDIA / "mvhevc.mov").frames, read_video(path).frames
    assert torch.equal(turned, torch.rot90(upright, -1, (2, 3)))


# --- streams ----------------------------------------------------------------------------------------------------------


def several_streams(path: Path, sizes: list[tuple[int, int]], default: int | None, counts: list[int]) -> None:
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in sizes:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for i, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if i == default else 0
        for i in range(max(counts)):
            for stream, count in zip(streams, counts, strict=True):
                if i < count:
                    picture = np.full((stream.height, stream.width, 3), 90, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())


@pytest.mark.parametrize("default", [0, 1, 2])
def test_best_of_several_streams_or_another(tmp_path: Path, default: int) -> None:
    path, sizes = tmp_path / "a.mkv", [(48, 64), (64, 96), (32, 32)]
    several_streams(path, sizes, default, [5, 6, 7])
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    assert best == default
    assert read_video(path).frames.shape == (5 + best, 3, *sizes[best])
    for index, size in enumerate(sizes):
        assert read_video(path, stream=index).frames.shape == (5 + index, 3, *size)
        assert len(list(iter_frames(path, stream=index))) == 5 + index
        assert frame_rate(path, stream=index) == 25
    for index in (3, -1, "0", 1.0, True):
        with pytest.raises(ValueError, match="^stream=.*expected"):
            read_video(path, stream=index)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream("mjpeg"), container.add_stream("mpeg4", rate=25)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 90, np.uint8), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        for picture in numbered(9):
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(film.encode())
    assert read_video(path).frames.shape == (9, 3, 48, 64)
    with av.open(str(path)) as container:
        cover_art = next(s.index for s in container.streams.video if s.disposition & av.stream.Disposition.attached_pic)
    with pytest.raises(ValueError, match=f"stream={cover_art}; expected one of {1 - cover_art}"):
        read_video(path, stream=cover_art)


@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(8, 9), Fraction(2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pixels_that_are_not_square_are_told(tmp_path: Path, suffix: str, aspect: Fraction) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for picture in numbered(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with pytest.warns(
        UserWarning, match=rf"a\{suffix}: pixels are not square but {aspect.numerator}:.*64 x 48"
    ) as told:
        assert read_video(path).frames.shape == (30, 3, 48, 64)
    assert len(told) == 1


def test_square_pixels_need_no_word(clip: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_video(clip)
        read_video(clip, errors="warn")


# --- addresses, codecs, messages --------------------------------------------------------------------------------------

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", PLAYLIST.format("http://127.0.0.1:{port}/a.ts")),
        ("a.m3u8", PLAYLIST.format("tcp://127.0.0.1:{port}")),
        ("a.m3u8", PLAYLIST.format("crypto+http://127.0.0.1:{port}/a.ts")),
        ("a.ffconcat", "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.mp4'\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile 'tcp://127.0.0.1:{port}'\n"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"),
        ("a.mpd", '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" mediaPresentationDuration="PT1S" type="static"><Period>'
                  '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
                  "<BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"),
    ],
)  # fmt: skip
def test_local_files_open_no_network(tmp_path: Path, name: str, text: str) -> None:
    visitors = []

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = server.accept()
                visitors.append(visitor)
                visitor.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, daemon=True).start()
        (tmp_path / name).write_text(text.format(port=server.getsockname()[1]))
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_video(tmp_path / name)
    assert not visitors


def test_every_container_is_opened_with_a_list_of_protocols() -> None:
    source = Path(sys.modules["chrono_features"].__file__).parent
    opened = [path.name for path in source.rglob("*.py") if "av.open(" in path.read_text()]
    assert sorted(opened) == ["decoding.py", "writing.py"]


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "http:b.mp4", "concat:x|y.mp4", "100%.mp4", "a%03d.mp4", "-i.mp4", "ü \n.mp4"]
)
def test_odd_names(clip: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    clip.rename(name)
    assert len(read_video(name).frames) == len(read_video(Path(name).absolute()).frames) == 30


URLS = [
    "https://example.org/a.mp4", "rtsp://camera/1", "s3://bucket/a.mp4", "gs://bucket/a.mp4", "file:///a.mp4"
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", [str, Path])
def test_urls_are_named_as_such(url: str, kind: type) -> None:
    for read in (read_video, iter_frames, frame_rate):
        with pytest.raises(FileNotFoundError, match=f"^{url}: URLs are not read"):
            read(kind(url))


@pytest.mark.parametrize("url", ["http:/x", "file:/x", "file:///x", "http:///x", "s3://bucket//a.mp4"])
def test_urls_are_named_as_they_are_typed(url: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{url}: URLs are not read"):
        read_video(url)


@pytest.mark.parametrize("path", [None, 3, b"a.mp4"])
def test_what_is_no_path(path: object) -> None:
    for read in (read_video, iter_frames, frame_rate):
        with pytest.raises(ValueError, match="path=.*expected the path"):
            read(path)


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"a\.mp4: no file"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("tag", [b"zzzz", b"\0\0\0\0"])
def test_unknown_codec(clip: Path, tag: bytes) -> None:
    clip.write_bytes(clip.read_bytes().replace(b"avc1", tag))
    with pytest.raises(ValueError, match=r"clip\.mp4: the codec of its video is unknown"):
        read_video(clip)
    with pytest.raises(ValueError, match=r"clip\.mp4: the codec of its video is unknown"):
        frame_rate(clip)


def test_one_frame_is_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", numbered(1), fps=25)
    with pytest.raises(ValueError, match="start=1; .* which has 1 frame$"):
        read_video(tmp_path / "one.mp4", start=1)


def test_the_rate_of_a_file_is_its_own(clip: Path) -> None:
    with pytest.raises(ValueError, match=r"fps=10; expected no rate for .*clip\.mp4"):
        read_video(clip, fps=10)


@pytest.mark.parametrize("end", [2**40, 2**70])
def test_ends_beyond_all_files(clip: Path, end: int) -> None:
    assert len(read_video(clip, end=end).frames) == 30


# --- memory and processes ---------------------------------------------------------------------------------------------


def frames_alive() -> int:
    import gc

    return sum(type(thing).__name__ == "VideoFrame" for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["raise", "warn"])
@pytest.mark.parametrize("turn", ["plain", "rotated", "turns in the middle"])
def test_no_frame_stays_alive_without_the_collector(tmp_path: Path, turn: str, errors: str) -> None:
    import gc

    path = tmp_path / "a.ts"
    with_sei(path, {"plain": [""], "rotated": ["rotate=180"]}.get(turn, ["rotate=180", "flip=vertical", ""]), 20)
    gc.collect()
    gc.disable()
    try:
        before = frames_alive()
        alive = [frames_alive() - before for _ in iter_frames(path, errors=errors)]
        after = frames_alive() - before
    finally:
        gc.enable()
    # The one that was given, one that the decoder is about to fill, and at the end those that it held back.
    assert max(alive[: len(alive) // 2]) <= 2 and after == 0


@pytest.mark.slow
def test_children_of_a_process_that_has_read_a_video_end(clip: Path) -> None:
    """A collection in the child freed the frames of the parent, whose decoding threads it does not have."""
    script = """
        import gc, os, sys, time
        from chrono_features.video import iter_frames, read_video
        gc.disable()
        read_video(sys.argv[1])
        next(iter_frames(sys.argv[1]))
        children = []
        for _ in range(12):
            if not (child := os.fork()):
                gc.collect()
                os._exit(0)
            children.append(child)
        end = time.time() + 20
        while children and time.time() < end:
            children = [child for child in children if not os.waitpid(child, os.WNOHANG)[0]]
            time.sleep(0.02)
        for child in children:
            os.kill(child, 9)
        sys.exit(f"{len(children)} children hang" if children else 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(clip)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("inside", [False, True])
def test_playlists_of_live_streams_are_refused(tmp_path, data, inside):
    """FFmpeg would leave out the first segments, and wait at the end for more."""
    folder = shutil.copytree(data / "media" / "hls", tmp_path / "hls")
    playlist = folder / "disc.m3u8"
    playlist.write_text(playlist.read_text().replace("#EXT-X-ENDLIST", ""))
    told = playlist
    if inside:
        playlist = folder / "all.m3u8"
        playlist.write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\ndisc.m3u8\n")
    with pytest.raises(ValueError, match=rf"{told.name}: the playlist of a live stream; expected one that ends"):
        read_video(playlist)


@pytest.mark.parametrize("name", ["gone.ts", "http://127.0.0.1:9/s1.ts", "file:s1.ts", "s1.ts?token=1"])
@pytest.mark.parametrize("place", ["s0.ts", "s1.ts", "s2.ts"])
@pytest.mark.parametrize("errors", ["raise", "warn"])
def test_playlists_name_segments_that_are_not_there(tmp_path, data, name, place, errors):
    """FFmpeg would pass over them, and frames of the next segment would be taken for theirs."""
    playlist = shutil.copytree(data / "media" / "hls", tmp_path / "hls") / "disc.m3u8"
    playlist.write_text(playlist.read_text().replace(place, name))
    with pytest.raises(ValueError, match=f"{playlist.name}: 1 of 3 segments are not local.*{re.escape(name)}"):
        read_video(playlist, end=1, errors=errors)


def test_a_playlist_may_name_absolute_paths(tmp_path, data):
    folder = data / "media" / "hls"
    (tmp_path / "a.m3u8").write_text((folder / "disc.m3u8").read_text().replace("s1.ts", f"file:{folder / 's1.ts'}"))
    for name in ("s0.ts", "s2.ts"):
        shutil.copy(folder / name, tmp_path)
    assert (read_video(tmp_path / "a.m3u8").frames == read_video(folder / "disc.m3u8").frames).all()


def test_an_image_with_a_pattern_for_its_name_is_itself(tmp_path):
    for name, value in (("f%d.png", 200), ("f0.png", 0), ("f1.png", 40)):
        Image.new("L", (16, 16), value).save(tmp_path / name)
    frames = read_video(tmp_path / "f%d.png").frames
    assert len(frames) == 1
    assert (frames == 200).all()


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    Image.new("L", (16, 16)).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    for read in (read_video, iter_frames, frame_rate):
        with pytest.raises(ValueError, match="path=''; expected the path"):
            read("")


@pytest.mark.parametrize("path", ["a\0b.mp4", 3, None])
def test_what_can_be_no_path_is_told_from_what_is_not_there(path):
    for read in (read_video, iter_frames, frame_rate):
        with pytest.raises(ValueError, match=f"path={re.escape(repr(path))}; expected the path of a video"):
            read(path)
