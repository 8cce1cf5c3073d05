"""Videos that are damaged, and those that only look so."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from chrono_features.video import iter_frames, read_video

av = pytest.importorskip("av")

MEDIA = Path(__file__).parents[1] / "files" / "media"
RNG = np.random.default_rng(0)
NOISE = [RNG.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(40)]


def encode(path: Path, codec: str, frames: list[np.ndarray] = NOISE, gop: int = 10, between: int = 0) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(gop), "bf": str(between)})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24", "gif": "rgb8"}.get(codec, "yuv420p")
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path.read_bytes()


def plain(path: Path) -> list[np.ndarray]:
    """All that PyAV decodes, a frame at a time."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        for packet in container.demux(stream):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return frames


def as_plain(path: Path, **options: object) -> bool:
    frames = [frame.permute(1, 2, 0).numpy() for frame in iter_frames(path, **options)]
    expected = plain(path)
    return len(frames) == len(expected) and all(map(np.array_equal, frames, expected))


# --- whole videos that were called damaged --------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("lengths", [(25, 25, 25), (20, 7, 31, 12)])
def test_joined_transport_streams(tmp_path: Path, codec: str, lengths: tuple[int, ...]) -> None:
    """Counters start again in every segment, and the demuxer marks the packets there as corrupt."""
    parts = [encode(tmp_path / "part.ts", codec, (NOISE * 2)[:length]) for length in lengths]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_video(path).frames) == sum(lengths)
        assert as_plain(path) and as_plain(path, errors="warn")


def test_playlist_with_discontinuities() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video = read_video(MEDIA / "hls" / "disc.m3u8", errors="warn")
    assert video.frames.shape == (75, 3, 96, 160) and video.doubtful == ()
    assert as_plain(MEDIA / "hls" / "disc.m3u8")


@pytest.mark.parametrize("surplus", [1, 2, 3, 100])
@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_avi_whose_header_counts_too_many_frames(tmp_path: Path, codec: str, surplus: int) -> None:
    path = tmp_path / "a.avi"
    data = bytearray(encode(path, codec))
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        at = data.index(tag) + offset
        assert struct.unpack_from("<I", data, at) == (40,)
        struct.pack_into("<I", data, at, 40 + surplus)
    path.write_bytes(data)
    assert len(read_video(path).frames) == 40 and as_plain(path)


def test_avi_without_its_index_is_whole_while_its_frames_are(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    data = encode(path, "mjpeg")
    path.write_bytes(data[: data.rindex(b"idx1") + 40])
    assert len(read_video(path).frames) == 40


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("mid_concealed.mp4", 100), ("mid_damaged.mp4", 99)])
def test_damage_is_an_error_that_names_the_frame_and_the_ways_on(name: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}: .*first bad frame is 50\).*end=50.*errors='warn'"):
        read_video(MEDIA / name)
    with pytest.raises(ValueError, match="first bad frame is 50"):
        read_video(MEDIA / name, start=60, every=7)
    assert len(read_video(MEDIA / name, end=50).frames) == 50
    with pytest.warns(UserWarning, match=rf"{name}: frame 50 is damaged .*marks it corrupt"):
        video = read_video(MEDIA / name, errors="warn")
    assert len(video.frames) == count and as_plain(MEDIA / name, errors="warn")
    # The next key frame is the 75th; a frame that is lost moves all after it.
    assert video.doubtful == tuple(range(50, 75 - (100 - count)))


def test_frames_that_are_lost_are_told() -> None:
    with pytest.warns(UserWarning, match="data is missing or damaged before frame 53"):
        read_video(MEDIA / "mid_damaged.mp4", errors="warn")


def test_doubtful_frames_are_counted_among_those_returned() -> None:
    with pytest.warns(UserWarning, match="frame 50"):
        video = read_video(MEDIA / "mid_concealed.mp4", start=40, every=5, errors="warn")
    assert video.doubtful == (2, 3, 4, 5, 6)  # frames 50 to 70
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_video(MEDIA / "mid_concealed.mp4", end=50, errors="warn").doubtful == ()


def test_much_damage_is_not_told_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    path.write_bytes(encode(path, "png").replace(b"\x89PNG", b"\x89pNG"))
    with pytest.warns(UserWarning) as told, pytest.raises(ValueError, match=r"a\.mov: no frame could be decoded"):
        read_video(path, errors="warn")
    assert len(told) == 20 and "not told one by one" in str(told[-1].message)
    with pytest.raises(ValueError, match=r"a\.mov: no frame could be decoded.*errors='warn'"):
        read_video(path)


@pytest.mark.parametrize("errors", ["ignore", None, True, "strict"])
def test_bad_policies(errors: object) -> None:
    with pytest.raises(ValueError, match="errors=.*expected 'raise' or 'warn'"):
        read_video(MEDIA / "upright.mp4", errors=errors)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.ts", "libx264"), ("a.ts", "libx265"), ("a.ts", "mpeg2video"), ("a.avi", "mjpeg"), ("a.avi", "libx264"),
        ("a.mp4", "libx264"), ("a.mp4", "libx265"), ("a.mkv", "libx264"), ("a.mpg", "mpeg2video"),
    ],
)  # fmt: skip
def test_missing_bytes_never_go_unnoticed(tmp_path: Path, name: str, codec: str) -> None:
    """A hole in the second of four groups of pictures: lost packets in a stream, zeros in a file with an index."""
    path = tmp_path / name
    frames = NOISE[:8] * 5
    data = bytearray(encode(path, codec, frames, gop=20))
    whole = plain(path)
    at = int(len(data) * 0.4) // 188 * 188
    if path.suffix == ".ts":
        del data[at : at + 10 * 188]
    else:
        data[at : at + 1880] = bytes(1880)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: truncated or damaged after \d+ frames"):
        read_video(path)
    with pytest.warns(UserWarning, match="damaged"):
        video = read_video(path, errors="warn")
    assert codec == "mjpeg" or as_plain(path, errors="warn")  # it leaves chance values where data is missing
    bad = [i for i, frame in enumerate(video.frames) if not np.array_equal(frame.permute(1, 2, 0).numpy(), whole[i])]
    assert len(video.frames) < len(whole) or set(bad) <= set(video.doubtful)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mjpeg"), ("a.mkv", "libx265")])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_off_files_give_what_is_there(tmp_path: Path, name: str, codec: str, share: float) -> None:
    path = tmp_path / name
    with av.open(str(path), "w", options={"movflags": "faststart"} if name == "a.mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "8"})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in NOISE:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"first bad frame is (\d+)\)") as caught:
        read_video(path)
    count = int(str(caught.value).split(" after ")[1].split()[0])
    assert len(read_video(path, end=count).frames) == count
    with pytest.warns(UserWarning, match="missing|damaged"):
        assert len(read_video(path, errors="warn").frames) == len(plain(path)) >= count


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("start", [0.2, 0.35, 0.6])
def test_a_recording_that_starts_amid_a_group_of_pictures(tmp_path: Path, codec: str, start: float) -> None:
    path = tmp_path / "a.ts"
    data = encode(path, codec, gop=8)
    header = data[: 3 * 188]  # what a receiver knows of the stream
    path.write_bytes(header + data[int(len(data) * start) // 188 * 188 :])
    frames = len(plain(path))
    assert 5 < frames < 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_video(path).frames) == frames and as_plain(path)


# --- values that were wrong without a word ----------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "codec"), [(".h264", "libx264"), (".hevc", "libx265"), (".m2v", "mpeg2video")])
def test_a_bare_stream_states_no_duration(tmp_path: Path, suffix: str, codec: str) -> None:
    encode(path := tmp_path / f"a{suffix}", codec, NOISE[:12])
    assert as_plain(path)


@pytest.mark.parametrize("number", [11, 14, 31])
def test_frames_shown_before_a_bad_one_that_they_are_predicted_from(tmp_path: Path, number: int) -> None:
    """The first bad frame is the first one shown, not the first one stored."""
    moved = [np.roll(NOISE[0].repeat(2, 0).repeat(2, 1)[:48, :64], 3 * t, 1) for t in range(40)]
    data = bytearray(encode(path := tmp_path / "a.mp4", "libx264", moved, between=2))
    right = [frame.clone() for frame in iter_frames(path)]
    with av.open(str(path)) as container:
        packets = [(p.pts, p.pos, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size]
    reordered = [i for i in range(10, 39) if packets[i + 1][0] < packets[i][0] and not packets[i][3]]
    time, at, size, _ = packets[min(reordered, key=lambda i: abs(i - number))]
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    first = sorted(p[0] for p in packets).index(time) - 2
    with pytest.raises(ValueError, match=r"the first bad frame is (\d+)") as told:
        read_video(path)
    end = int(str(told.value).split("end=")[1].split()[0])
    assert first <= end < first + 2
    assert all(map(np.array_equal, iter_frames(path, end=end), right[:end]))
    with pytest.warns(UserWarning, match="damaged"):
        video = read_video(path, errors="warn")
    assert end in video.doubtful


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("a.ts", "mpeg4"), ("a.m2ts", "libx264"), ("a.gif", "gif")]
)
@pytest.mark.parametrize("share", [0.45, 0.81])
def test_a_last_frame_that_is_cut_off(tmp_path: Path, name: str, codec: str, share: float) -> None:
    data = encode(path := tmp_path / name, codec)
    right = [frame.clone() for frame in iter_frames(path)]
    path.write_bytes(data[: int(len(data) * share) // 188 * 188 + 77])
    with pytest.raises(ValueError, match="the first bad frame is") as told:
        read_video(path)
    end = int(str(told.value).split("end=")[1].split()[0])
    assert all(map(np.array_equal, iter_frames(path, end=end), right[:end]))
    with pytest.warns(UserWarning, match="incomplete data"):
        assert read_video(path, errors="warn").doubtful[0] == end


def test_the_duration_of_flash_video(tmp_path: Path) -> None:
    data = encode(path := tmp_path / "a.flv", "flv")
    with av.open(str(path)) as container:
        at, size = [(p.pos, p.size) for p in container.demux(video=0)][20]
    path.write_bytes(data[:at] + data[at + size :])
    with pytest.raises(ValueError, match="before the duration that it states"):
        read_video(path)


def test_the_rate_of_bare_dv(tmp_path: Path) -> None:
    """FFmpeg states that of its clock, 60000."""
    path = tmp_path / "a.dv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((576, 720, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
        for _ in range(3):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.warns(UserWarning, match="not square"):
        assert read_video(path).fps == 25
