"""Where the frames of long clips wait: on the model's device, in main memory, or in memory-mapped files."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .checks import check_path, is_folder, refusal

Offload = str | os.PathLike[str] | None  # None: the model's device; "cpu"; or a folder


class FrameQueue:
    """Frames in the order in which they came: appended at one end and taken at the other."""

    def __init__(self) -> None:
        self._chunks: deque[Tensor] = deque()

    def copy(self) -> FrameQueue:
        other = FrameQueue()
        other._chunks = self._chunks.copy()
        return other

    def append(self, chunk: Tensor) -> None:  # (B, n, ...)
        self._chunks.append(chunk)

    def state_dict(self) -> dict[str, Tensor]:
        """All frames that wait, in one tensor (B, n, ...); empty without any."""
        return {"frames": torch.cat(list(self._chunks), dim=1)} if self._chunks else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._chunks = deque(state.values())

    def take(self, count: int) -> Tensor:  # (B, count, ...)
        """Removes and returns the first `count` frames."""
        taken = []
        while count:
            chunk = self._chunks.popleft()
            if chunk.shape[1] > count:
                self._chunks.appendleft(chunk[:, count:].clone())  # a view would hold the whole
                chunk = chunk[:, :count]
            taken.append(chunk)
            count -= chunk.shape[1]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


class FrameStore:
    """A whole stream of frames, where `offload` says: written and read again and again, in place.

    It is allocated in few large pieces, never frame by frame: those would end up between the network's own tensors,
    and the memory that these leave could not be given back.
    """

    def __init__(self, piece: int, offload: str | os.PathLike[str] | None) -> None:
        self._piece, self._offload = piece, offload  # frames in a piece
        self._pieces: list[Tensor] = []  # (B, piece, ...)
        self._device: torch.device | None = None
        self._read = self._written = 0

    def append(self, chunk: Tensor) -> None:  # (B, n, ...)
        """Writes the next frames, never beyond what was read before."""
        self._device = chunk.device
        while self._written + chunk.shape[1] > self._piece * len(self._pieces):
            shape = (chunk.shape[0], self._piece, *chunk.shape[2:])
            self._pieces.append(empty(shape, chunk.dtype, chunk.device, self._offload))
        done = 0
        for part in self._parts(self._written, chunk.shape[1]):
            part.copy_(chunk[:, done : done + part.shape[1]])
            done += part.shape[1]
        self._written += done

    def take(self, count: int) -> Tensor:  # (B, count, ...)
        """A copy of the next `count` frames."""
        chunk = torch.cat([part.to(self._device) for part in self._parts(self._read, count)], dim=1)
        self._read += count
        return chunk

    def _parts(self, start: int, count: int) -> Iterator[Tensor]:
        """Views of the stored frames from `start` on."""
        while count:
            piece, at = divmod(start, self._piece)
            part = self._pieces[piece][:, at : at + count]
            yield part
            start, count = start + part.shape[1], count - part.shape[1]

    def drain(self, step: int) -> Iterator[Tensor]:
        """Yields all frames from the first on, `step` at a time. What is written meanwhile takes their place."""
        total, self._read, self._written = self._written, 0, 0
        for start in range(0, total, step):
            yield self.take(min(step, total - start))


def empty(shape: Iterable[int], dtype: torch.dtype, device: torch.device, offload: Offload) -> Tensor:
    """An uninitialised tensor on `device`, on the host or in a temporary file that vanishes with it.

    On the host it is a map of its own: large tensors that come and go between small ones would leave gaps in a heap.
    """
    shape = tuple(shape)
    if offload is None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if offload in (None, "cpu"):
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        memory = mmap.mmap(-1, size, **private)  # shared with forked processes it would change under one's hands
    else:
        with tempfile.TemporaryFile(dir=offload) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash on writing
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def check_offload(offload: Offload) -> None:
    known = offload is None or (isinstance(offload, str) and offload == "cpu")
    if not known and not is_folder(check_path("offload", offload)):
        raise refusal("offload", offload, "None, 'cpu' or an existing folder")
