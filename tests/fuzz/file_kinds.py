"""Small files of every kind that is read, and what can happen to the bytes of a file."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny

from chrono_features import Tracks
from chrono_features.data import readers
from chrono_features.evaluation.records import SECTIONS
from chrono_features.evaluation.run import evaluate
from chrono_features.evaluation.store import Store
from chrono_features.evaluation.trackers import baseline
from chrono_features.video import write_video

DATA = Path(__file__).parents[1] / "files"
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
SIGNS = [
    b"0",
    b"-1",
    b"NaN",
    b"1e999",
    b"9" * 401,
    b"null",
    b"{}",
    b"[[",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
]


def flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def overwrite(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    length = min(draw.choice([1, 2, 4, 8, 64]), len(data) - start)
    data[start : start + length] = draw.randbytes(length)


def put_extreme(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    value = struct.pack(draw.choice("<>") + "I", draw.choice(EXTREMES))[: draw.choice([1, 2, 4])]
    data[start : start + len(value)] = value


def cut_out(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.choice([1, 3, 16, len(data) // 3 + 1])]


def cut_off(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def repeat(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + draw.choice([1, 8, 200])]


def put_sign(data: bytearray, draw: random.Random) -> None:
    """Text where text stands."""
    places = [i for i, byte in enumerate(data[:4000]) if chr(byte) in '0123456789",:[]{}']
    start = draw.choice(places) if places else draw.randrange(len(data))
    data[start : start + draw.choice([0, 1])] = draw.choice(SIGNS)


def change_head(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(min(len(data), 96))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])


DAMAGES = [flip, overwrite, put_extreme, cut_out, cut_off, repeat, put_sign, change_head]


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One to four damages, as a function of the bytes that they happen to."""
    happened = draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32))

    def damaged(data: bytes) -> bytes:
        changed, source = bytearray(data), random.Random(seed)
        for damage in happened:
            if changed:
                damage(changed, source)
        return bytes(changed)

    return damaged


values = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**400, -1, 0, "", "clip", "attention", "\ud800", "a" * 300, "hf-hub:a/b"]),
    st.text(max_size=4),
)
plain_json = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """Plain values of which one is replaced, renamed, left out or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {k: v for k, v in value.items() if k != key}
        how = draw(st.sampled_from(["inside", "inside", "replaced", "left out", "renamed", "added"]))
        if how == "left out":
            return rest
        if how == "renamed":
            return {**rest, draw(st.text(max_size=5)): value[key]}
        if how == "added":
            return {**value, draw(st.text(max_size=5)): draw(plain_json)}
        return {**value, key: draw(changed_json(value[key])) if how == "inside" else draw(plain_json)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], draw(changed_json(value[i])), *value[i + 1 :]]
    return draw(plain_json)


# --- Files ------------------------------------------------------------------------------------------------------------


def pictures(count: int = 4, height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    drawn = [np.stack([8 * x + 9 * t, 9 * y, x * y], axis=-1) % 256 for t in range(count)]
    return np.stack(drawn).astype(np.uint8)


def make_video(folder: Path, suffix: str) -> Path:
    write_video(path := folder / f"clip{suffix}", pictures(), 10)
    return path


def make_images(folder: Path, suffix: str) -> Path:
    """A folder of two images."""
    (frames := folder / "frames").mkdir()
    for t, picture in enumerate(pictures(2)):
        Image.fromarray(picture).save(frames / f"{t}{suffix}")
    return frames


def make_masks(folder: Path) -> Path:
    path = folder / "davis"
    for below in ("JPEGImages", "Annotations"):
        (path / below / "480p" / "cat").mkdir(parents=True)
    for t, picture in enumerate(pictures(2)):
        Image.fromarray(picture).save(path / "JPEGImages" / "480p" / "cat" / f"{t}.jpg")
        mask = (picture[..., 0] > 128).astype(np.uint8)
        Image.fromarray(mask).save(path / "Annotations" / "480p" / "cat" / f"{t}.png")
    return path


def make_table(folder: Path) -> Path:
    (table := folder / "table").mkdir()
    make_images(table, ".png")
    rows = [f"frames,{n},{t},{3 * n + t}.5,{4 * n},{int(t != n)},a" for n in range(3) for t in range(2)]
    (table / "points.csv").write_text("\n".join(["video,track,t,x,y,visible,group", *rows]) + "\n")
    return table


def make_points(folder: Path) -> Path:
    (path := folder / "points.csv").write_text("t,x,y\n0,1.5,2\n1,3,4\n3,31.9,0\n")
    return path


def make_tracks(folder: Path) -> Path:
    shape = 1, 3, 4
    tracks = Tracks(torch.rand(*shape, 2), torch.rand(shape), torch.rand(shape) > 0.5, torch.rand(*shape, 2))
    tracks.save(path := folder / "tracks.npz")
    return path


def make_pickle(folder: Path, protocol: int) -> Path:
    draw = np.random.default_rng(0)
    video = {"video": pictures(), "points": draw.random((3, 4, 2)), "occluded": draw.random((3, 4)) > 0.7}
    (path := folder / "davis.pkl").write_bytes(pickle.dumps({"cat": video, "dog": video}, protocol))
    return path


def make_model(folder: Path) -> Path:
    tiny().save_pretrained(path := folder / "model")
    return path


def make_results(folder: Path) -> Path:
    """A file of results, and the part that a run has left beside it."""
    data = readers.open_dataset("csv", str(make_table(folder)), None)
    evaluate([baseline("static")], {"csv": data}, path := folder / "out.json")
    store = results_store(path)
    for record in list(store.records.values()):
        store.add({**record, "video": "another"})
    return path


def results_store(path: Path) -> Store:
    """The results in a file and its parts, for a run on the same."""
    with open(path.with_name("header.json"), "a+") as file:  # of the first time
        file.seek(0)
        if not (text := file.read()):
            saved = json.loads(path.read_text())
            file.write(text := json.dumps({section: saved[section] for section in SECTIONS}))
    return Store(path, json.loads(text))


def make_checkpoint(folder: Path) -> Path:
    return Path(shutil.copy(DATA / "authors_tiny.ckpt", folder / "authors.ckpt"))


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def safetensors(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]
