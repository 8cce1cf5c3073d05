"""Frames of a video file in order of presentation, each with what is wrong with it. Needs PyAV."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_path
from ..extras import require
from .cropping import Crop, container_crop
from .damage import Progress, ends_amid_packet

PROTOCOLS = "file,crypto,data"  # a playlist, or a file in another's clothes, opens no network
JOINED = ("hls", "mpegts")  # demuxers of what may be joined from segments
PLAYLIST, MAX_PLAYLIST_BYTES, MAX_PLAYLIST_DEPTH = b"#EXTM3U", 1 << 24, 4
INCOMPLETE = "incomplete data"
UPRIGHT = (1, 0, 0, 1)
TURNS = {90: (0, -1, 1, 0), -90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}  # degrees anticlockwise


class Decoded(NamedTuple):
    """A frame, or a gap where data gave none."""

    path: Path
    number: int  # of the frame in the file; for a gap, of the frame after it
    frame: Any  # av.VideoFrame; None for a gap
    crop: Crop
    matrix: tuple[int, int, int, int]  # a, b, c, d of the display matrix
    fault: str  # what is wrong with it, or with what led to it; "" for nothing
    doubtful: bool  # it has a fault, or was predicted from frames that have

    def to_rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, cropped, then turned and mirrored by quarters as the display matrix says.

        Raises:
            ValueError: FFmpeg cannot convert it, or the cropping is larger than it.
        """
        name = f"{self.path}: frame {self.number}"
        try:
            rgb = self.frame.to_ndarray(format="rgb24")
        except require("av", "video").error.FFmpegError as error:
            kind = f"{self.frame.format.name} of {self.frame.width} x {self.frame.height} pixels"
            raise ValueError(f"{name}, {kind} is not converted to RGB ({error.strerror})") from error
        left, right, top, bottom = self.crop
        rgb = rgb[top : len(rgb) - bottom, left : rgb.shape[1] - right]
        if not rgb.size:
            raise ValueError(f"{name}, the container's cropping {tuple(self.crop)} leaves nothing of it")
        # x' = a x + c y, y' = b x + d y, up to a shift that keeps the image on the canvas.
        a, b, c, d = self.matrix
        if abs(b) > abs(a):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def decode(path: Path, index: int | None, threads: str, *, tell: bool) -> Iterator[Decoded]:
    """All frames of a video file, and the gaps between them, in order of presentation.

    Args:
        path: The file.
        index: The stream's index in the file; None takes the best one by FFmpeg's rules.
        threads: "SLICE" tells a fault where it is, "AUTO", which is faster, there or before.
        tell: Warn of pixels that are not square.
    """
    with open_video(path) as container:
        stream = video_stream(container, path, index)
        stream.thread_type = threads
        aspect = stream.sample_aspect_ratio or 1
        if tell and abs(aspect - 1) > 0.01:  # rounding makes 4319:4320 of square ones
            size = f"{stream.codec_context.width} x {stream.codec_context.height}"
            warnings.warn(
                f"{path}: pixels are not square but {aspect.numerator}:{aspect.denominator}; "
                f"frames and coordinates stay in the {size} pixels that are stored",
                stacklevel=2,
            )
        crop = container_crop(container, stream, path)
        count, matrix, tainted = 0, UPRIGHT, False
        for frame, fault in _with_faults(container, stream, path):
            if frame is None:
                tainted = True
            else:
                # H.264 and HEVC tell the orientation at times only: it holds until another comes.
                matrix = _display_matrix(frame) or matrix
                tainted = bool(fault) or (tainted and not frame.key_frame)
            yield Decoded(path, count, frame, crop, matrix, fault, tainted)
            count += frame is not None
            del frame


def existing(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path.

    Raises:
        FileNotFoundError: There is nothing there; a URL is told apart.
        ValueError: It is no path.
    """
    found = check_path("path", path, "the path of a video or of a folder of images")
    if found.exists():
        return found
    if url := re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", os.fspath(path), re.DOTALL):
        address = os.fspath(path)
        if isinstance(path, Path):  # which has dropped slashes: one before a host, two before a file's path
            address = f"{url[1]}:{'///' if url[1].lower() == 'file' else '//'}{url[2]}"
        raise FileNotFoundError(f"{address}: URLs are not read; expected a file: download the video first")
    raise FileNotFoundError(f"{found}: no such file; expected a video or a folder of images")


@contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """An open container of PyAV's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no video that FFmpeg reads.
    """
    av = require("av", "video")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no file; expected a video or a folder of images")
    _check_recording(path)
    try:
        # An absolute path: FFmpeg takes a name such as "a:b.mp4" for an address.
        options = {"protocol_whitelist": PROTOCOLS, "pattern_type": "none"}  # f%d.png is that file, not f0.png, f1.png
        container = av.open(os.path.abspath(path), metadata_errors="replace", container_options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: not a readable video, or truncated ({reason})") from error
    with container:
        yield container


def _check_recording(path: Path, depth: int = 0) -> None:
    """ValueError for a playlist that FFmpeg would read in part.

    Of a live stream's it leaves out the first segments, and waits for more at the end. Of any it passes over segments
    that do not open, and what follows would be taken for them.
    """
    with path.open("rb") as file:
        if file.read(len(PLAYLIST)) != PLAYLIST:
            return
        text = file.read(MAX_PLAYLIST_BYTES)
    lines = [line.rstrip() for line in text.splitlines()]
    if any(line.startswith((b"#EXT-X-STREAM-INF:", b"#EXT-X-MEDIA:")) for line in lines):  # a playlist of playlists
        named = [line for line in lines if not line.startswith(b"#")] + re.findall(rb'URI="([^"]+)"', text)
        for name in named if depth < MAX_PLAYLIST_DEPTH else ():
            if (other := _beside(path, name)).is_file():
                _check_recording(other, depth + 1)
    elif not any(line.startswith(b"#EXT-X-ENDLIST") for line in lines):
        raise ValueError(f"{path}: the playlist of a live stream; expected one that ends, with #EXT-X-ENDLIST")
    else:
        segments = [line for line in lines if line and not line.startswith(b"#")]
        if missing := [os.fsdecode(name) for name in segments if not _beside(path, name).is_file()]:
            raise ValueError(
                f"{path}: {len(missing)} of {len(segments)} segments are not local files, the first is {missing[0]}; "
                "expected files: download them, or delete their lines to read the rest"
            )


def _beside(playlist: Path, name: bytes) -> Path:
    """The file that a playlist names, as FFmpeg finds it: "file:" starts from the current folder."""
    plain = re.sub(rb"^file:(//)?|\0", b"", name)
    return (Path() if name.startswith(b"file:") else playlist.parent) / os.fsdecode(plain)


def video_stream(container: Any, path: Path, index: int | None) -> Any:
    """The stream to read.

    Raises:
        ValueError: There is none, `index` is not one of a video, or its codec is unknown.
    """
    cover_art = require("av.stream", "video").Disposition.attached_pic
    streams = {s.index: s for s in container.streams.video if not s.disposition & cover_art}
    if not streams:
        others = sorted({s.type for s in container.streams if s.type != "video"})
        holds = f"it holds only {', '.join(others)}" if others else "it holds no streams"
        raise ValueError(f"{path}: no video stream; {holds}")
    if index is not None and index not in streams:
        raise ValueError(f"stream={index!r}; expected one of {', '.join(map(str, streams))}, {path}'s video streams")
    if index is None:
        best = container.streams.best("video")
        index = best.index if best and best.index in streams else min(streams)
    if streams[index].codec_context is None:
        raise ValueError(f"{path}: the codec of its video is unknown to this FFmpeg; expected a common one, as H.264")
    return streams[index]


def _with_faults(container: Any, stream: Any, path: Path) -> Iterator[tuple[Any, str]]:
    """Frames with their faults; (None, fault) for a gap. Past damage it goes on as far as data goes."""
    av = require("av", "video")
    progress = Progress(container, stream, path)
    lost: list[tuple[float, str]] = []  # time and fault of packets that gave no frame, until their place is known
    short = ""
    packets = _packets(container, stream)
    if container.format.name in JOINED:
        packets = _without_joins(packets)
    if ends_amid_packet(path, container.format.name):
        packets = _cut_off(packets)
    for packet, fault in packets:
        frames: deque[Any] = deque()
        if packet is None:  # what the decoder holds back comes out, and it is ready for more
            with suppress(av.error.FFmpegError):
                frames.extend(stream.codec_context.decode(None))
            stream.codec_context.flush_buffers()
        else:
            try:
                frames.extend(packet.decode())
            except av.error.FFmpegError as error:
                # A recording that starts amid a group of pictures: decoding begins with the next one.
                if progress.started or packet.is_keyframe:
                    fault = fault or error.strerror or str(error)
                    lost.append((-math.inf if packet.pts is None else packet.pts, fault))
            progress.add_packet(packet, fault)
        at_end = packet is not None and not packet.size
        while frames:
            frame = frames.popleft()
            lost.sort()
            while lost and lost[0][0] <= (math.inf if frame.pts is None else frame.pts):
                yield None, lost.pop(0)[1]
            if at_end and not short and progress.skips_to(frame) and (short := progress.missing()):
                yield None, short  # what was cut off would be shown in part before this frame
            yield frame, progress.add_frame(frame)
            del frame
        if packet is None:
            yield None, fault
    for _, fault in lost:
        yield None, fault
    if not lost and not short and (fault := progress.shortfall()):
        yield None, fault


def _packets(container: Any, stream: Any) -> Iterator[tuple[Any, str]]:
    """Packets with their faults; (None, fault) where the container is damaged. It is read on as far as that leads."""
    moved = True
    while moved:
        moved = False
        try:
            for packet in container.demux(stream):
                moved = moved or packet.size > 0
                yield packet, INCOMPLETE if packet.is_corrupt else ""
            return
        except require("av", "video").error.FFmpegError as error:
            fault = error.strerror or str(error)
        yield None, fault


def _without_joins(packets: Iterator[tuple[Any, str]]) -> Iterator[tuple[Any, str]]:
    """Packets of a transport stream; a fault that comes of joining segments is none.

    There the mark of a corrupt packet means a gap in a counter. Where segments were joined it is followed by a key
    frame: by the next packet, or, as parsers run late, by the one after it.
    """
    ahead: deque[tuple[Any, str]] = deque()
    for item in packets:
        ahead.append(item)
        if len(ahead) > 2:
            packet, fault = ahead.popleft()
            joined = any(later is not None and later.is_keyframe for later, _ in ahead)
            yield packet, "" if packet is not None and joined else fault
    yield from ahead


def _cut_off(packets: Iterator[tuple[Any, str]]) -> Iterator[tuple[Any, str]]:
    """Packets of a file that ends amid the last of them."""
    for (packet, fault), (after, _) in pairwise(chain(packets, [(None, "")])):
        is_last = packet is not None and packet.size > 0 and after is not None and not after.size  # an empty one ends
        yield packet, fault or (INCOMPLETE if is_last else "")


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of the frame's display matrix, if it has one."""
    # `frame.side_data` would leave frame and data in a reference cycle. PyAV knows no side data that is newer than
    # itself and gives up at the first of these: what comes before it is there.
    side_data = require("av.sidedata.sidedata", "video").SideDataContainer
    data = side_data.__new__(side_data)
    try:
        data.__init__(frame)
        known, rest_unknown = list(data), False
    except ValueError:
        known, rest_unknown = list(data)[:-1], True
    for item in reversed(known):
        if item.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("5i", bytes(item)[:20])
            return a, b, c, d
    return TURNS.get(frame.rotation) if rest_unknown else None  # without a mirror, which `rotation` does not tell
