"""What is wrong with a video file, and how that is told."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any

DEFAULT_FPS = 24.0  # of a folder of images, and of the rare file that tells no rate
TOLD = 20  # faults of a file that are told one by one


def rate_of(stream: Any) -> float:
    """Frames per second that the file states."""
    average, most = stream.average_rate, stream.base_rate
    if average and most and average > 100 * most:  # the clock's rate, which FFmpeg takes for the frames' in bare DV
        average = most
    return float(average or stream.guessed_rate or DEFAULT_FPS)


def counted(frames: int) -> str:
    return f"{frames} frame{'' if frames == 1 else 's'}"


class Damage:
    """How the faults of a file are told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told = 0
        self.in_doubt = False  # a run of doubtful frames has been told and goes on

    def refusal(self, number: int, fault: str) -> str:
        """The message where faults are errors; frame `number` is the first bad one."""
        if not number:
            what, stop = f"no frame could be decoded before damage ({fault})", ""
        else:
            what = f"truncated or damaged after {counted(number)} ({fault}; the first bad frame is {number})"
            stop = f"end={number} to stop there, or "
        return f"{self.path}: {what}; expected a whole file, or {stop}errors='warn' to read what decodes"

    def warn(self, number: int, gap: bool, fault: str, doubtful: bool) -> None:
        """Tells of a fault at frame `number`, or in the gap before it; once for a run of doubtful frames."""
        if fault and (gap or not self.in_doubt) and self.told < TOLD:
            self.told += 1
            where = f"data is missing or damaged before frame {number}" if gap else f"frame {number} is damaged"
            more = "; further faults are not told one by one" if self.told == TOLD else ""
            what = f"{where} ({fault}); frames up to the next key frame are doubtful"
            warnings.warn(f"{self.path}: {what}{more}", stacklevel=2)
        self.in_doubt = doubtful


class Progress:
    """How far packets and frames of a stream have come, which are damaged, and whether that is as far as the file says.

    A bad packet spoils its own frame, and those decoded later but shown before, up to a key frame.
    """

    def __init__(self, container: Any, stream: Any, path: Path) -> None:
        self.container, self.stream, self.path = container, stream, path
        # The time of a frame, in units of the stream, as all times here.
        self.period = 1 / rate_of(stream) / float(stream.time_base)
        self.indexed = sum(entry.size > 0 for entry in stream.index_entries) if container.format.name == "avi" else 0
        self.started = False  # frames can be expected of packets
        self.packets = 0
        self.last_packet = self.last_frame = self.end = -math.inf
        self.duration = 0  # of all packets together
        self.interlaced = False
        self.faults: dict[int | None, str] = {}  # by the time of the frame
        self.spoilt_before, self.fault = -math.inf, ""  # of the latest bad packet

    def add_packet(self, packet: Any, fault: str) -> None:
        time = -math.inf if packet.pts is None else packet.pts
        duration = packet.duration or 0
        self.started = self.started or packet.is_keyframe
        self.packets += packet.size > 0
        self.duration += duration
        self.end = max(self.end, time + duration)
        if not packet.is_discard:
            self.last_packet = max(self.last_packet, time)
        if packet.is_keyframe:
            self.spoilt_before = -math.inf
        if fault:
            self.spoilt_before, self.fault = max(self.spoilt_before, time), fault
        if fault or time < self.spoilt_before:
            self.faults[packet.pts] = self.fault

    def add_frame(self, frame: Any) -> str:
        """What is wrong with the frame; "" for nothing."""
        self.started = True
        self.interlaced = frame.interlaced_frame
        if frame.pts is not None:
            self.last_frame = max(self.last_frame, frame.pts)
        marked = "the decoder marks it corrupt" if frame.is_corrupt else ""
        return self.faults.pop(frame.pts, "") or marked

    def shortfall(self) -> str:
        """What is missing at the end; "" for nothing."""
        # Each field may be a packet, and only one of the two has the time of the frame.
        if self.last_packet - self.last_frame > self.period * (1.5 if self.interlaced else 0.75):
            return "its last frame does not decode"
        return self.missing()

    def skips_to(self, frame: Any) -> bool:
        """Whether other frames would fit between the last frame and this one."""
        return frame.pts is not None and self.period * 1.5 < frame.pts - self.last_frame < math.inf

    def missing(self) -> str:
        """What is missing of the packets, once all are read; "" for nothing."""
        kind, unit = self.container.format.name, float(self.stream.time_base)
        if kind == "avi":  # its header may count frames that were never stored; the index at its end knows better
            stored = self.stream.frames if _riff_is_cut(self.path) else self.indexed
            missing = stored - self.packets
            return f"{missing} of {counted(stored)} missing" if missing > 0 else ""
        if kind == "mpegts" or self.end == -math.inf:  # states nothing; nor does a bare stream, such as .h264
            return ""
        if kind == "hls":  # times may start again in any segment
            missing = (self.container.duration or 0) / 1e6 - self.duration * unit
        else:
            missing = _stated_end(self.container, self.stream) - self.end * unit
        return f"it ends {missing:.2f} s before the duration that it states" if missing > 2 * self.period * unit else ""


def _stated_end(container: Any, stream: Any) -> float:
    """When the last frame ends according to the file's header, in seconds; 0 where the header does not say."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # Matroska: 00:00:02.4
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    if container.format.name == "flv" and len(container.streams) == 1:  # else that of sound, which may be longer
        return (container.duration or 0) / 1e6
    return 0.0


def ends_amid_packet(path: Path, kind: str) -> bool:
    """Whether a file of a format that states neither duration nor frames breaks off amid a packet."""
    if kind not in ("mpegts", "gif"):
        return False
    with open(path, "rb") as file:
        head, size = file.read(1024), file.seek(0, os.SEEK_END)
        file.seek(-1, os.SEEK_END)
        end = file.read(1)
    if kind == "gif":
        return end not in b"\0;"  # of a frame, and of the file
    for length in (188, 192, 204):  # of a packet of a transport stream, which starts with a "G"
        for start in range(length):
            if len(head) >= start + 4 * length and head[start : start + 4 * length : length] == b"GGGG":
                return (size - start) % length not in (0, 188)  # of 192 bytes 4 stand before the "G", of 204 16 after
    return False


def _riff_is_cut(path: Path) -> bool:
    """Whether an AVI file ends before the sizes in its headers say. Large ones consist of several parts."""
    with open(path, "rb") as file:
        at, end = 0, os.fstat(file.fileno()).st_size
        while at < end:
            file.seek(at)
            kind, size = struct.unpack("<4sI", file.read(8).ljust(8, bytes(1)))
            if kind != b"RIFF":
                return False
            if not size:  # a recording that was broken off
                return True
            at += 8 + size + size % 2
    return at > end + 1
