"""Files that are damaged, or made to harm: what is read of them keeps its promises, or an error names the file."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import file_kinds
import numpy as np
import pytest
import torch
from file_kinds import DATA, changed_json, damages
from fuzzing import Wrong, check_features, examples, outcome
from hypothesis import given
from hypothesis import strategies as st

from chrono_features import ChronoBackbone, Tracks
from chrono_features.cli.queries import read_points
from chrono_features.data.clip import Clip, Unusable
from chrono_features.data.readers import open_dataset
from chrono_features.video import read_video

pytestmark = pytest.mark.slow

SECONDS = 30  # a call that takes longer hangs


class Kind(NamedTuple):
    """A kind of file: how one is made, how it is read, what holds of that, and which of its files is damaged."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    check: Callable[[Any], None]
    damaged: Callable[[Path], Path] = lambda path: path


def of_video(video: Any) -> None:
    frames = video.frames
    assert frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[1] == 3 and 0 not in frames.shape
    assert 0 < video.fps < float("inf") and all(0 <= i < len(frames) for i in video.doubtful)


def of_tracks(tracks: Tracks) -> None:
    assert tracks.similarity.shape == tracks.xy.shape[:-1] and tracks.xy.shape[-1] == 2
    floating = [tracks.xy, tracks.similarity, tracks.logits, tracks.correlation, tracks.confidence]
    assert all(v is None or v.isfinite().all() for v in floating)


@torch.no_grad()
def of_model(model: ChronoBackbone) -> None:
    """It computes, with whatever configuration was read, unless a damaged weight is finite but absurd."""
    features = model(torch.rand(1, 2, 3, 16, 16), grid=(4, 4))
    if max(float(p.abs().max()) for p in model.parameters()) < 1e3:
        check_features(features)


def of_points(points: dict[str, tuple[float, float, float]]) -> None:
    assert all(len(point) == 3 for point in points.values()) and np.isfinite(list(points.values())).all()


def of_dataset(videos: list[Any]) -> None:
    for video in videos:
        height, width = video.frames.shape[-2:]
        if isinstance(video, Clip):
            assert video.xy.isfinite().all() and video.xy.shape[:2] == video.visible.shape == video.valid.shape
            seen = video.xy[video.visible & video.valid]
            assert ((seen >= 0) & (seen <= torch.tensor([width, height]))).all()
        else:
            assert video.masks.shape == (len(video.frames), height, width) and video.masks.min() >= 0


def of_results(store: Any) -> None:
    """They can be written."""
    json.loads(json.dumps(store.results()))


def videos_of(kind: str) -> Callable[[Path], list[Any]]:
    def read(path: Path) -> list[Any]:
        found = []
        for entry in open_dataset(kind, str(path), None):
            try:
                found.append(entry.load())
            except Unusable:  # a run names the video and goes on
                continue
        return found

    return read


def first(pattern: str) -> Callable[[Path], Path]:
    return lambda path: sorted(path.rglob(pattern))[0]


def sample(name: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copy(DATA / "media" / name, folder))


def playlist(folder: Path) -> Path:
    return Path(shutil.copytree(DATA / "media" / "hls", folder / "hls"), "disc.m3u8")


def authors_checkpoint(path: Path) -> ChronoBackbone:
    return ChronoBackbone.from_pretrained(path, num_heads=2, grid=(4, 4))


def past_damage(path: Path) -> Any:
    return read_video(path, errors="warn")


MEDIA = sorted(p.name for p in (DATA / "media").iterdir() if p.suffix in (".mp4", ".mkv", ".mov", ".avi"))
KINDS = {
    "made.mp4": Kind(lambda folder: file_kinds.make_video(folder, ".mp4"), read_video, of_video),
    "made.mkv": Kind(lambda folder: file_kinds.make_video(folder, ".mkv"), read_video, of_video),
    **{name: Kind(sample(name), past_damage, of_video) for name in MEDIA},
    "playlist": Kind(playlist, past_damage, of_video),
    **{
        f"image{s}": Kind(lambda folder, s=s: file_kinds.make_images(folder, s), read_video, of_video, first(f"0{s}"))
        for s in (".jpg", ".png", ".bmp", ".tif", ".webp")
    },
    "queries": Kind(file_kinds.make_points, lambda path: read_points(path)[0], of_points),
    "tracks": Kind(file_kinds.make_tracks, Tracks.load, of_tracks),
    "points.csv": Kind(file_kinds.make_table, videos_of("csv"), of_dataset, lambda path: path / "points.csv"),
    "pickle 2": Kind(lambda folder: file_kinds.make_pickle(folder, 2), videos_of("davis"), of_dataset),
    "pickle 4": Kind(lambda folder: file_kinds.make_pickle(folder, 4), videos_of("davis"), of_dataset),
    "mask": Kind(file_kinds.make_masks, videos_of("masks"), of_dataset, first("0.png")),
    "image of a mask": Kind(file_kinds.make_masks, videos_of("masks"), of_dataset, first("1.jpg")),
    "config.json": Kind(file_kinds.make_model, ChronoBackbone.from_pretrained, of_model, first("config.json")),
    "model.safetensors": Kind(
        file_kinds.make_model, ChronoBackbone.from_pretrained, of_model, first("model.safetensors")
    ),
    "results": Kind(file_kinds.make_results, file_kinds.results_store, of_results),
    "part of results": Kind(
        file_kinds.make_results,
        file_kinds.results_store,
        of_results,
        lambda path: next(path.parent.glob(".out.json.part*")),
    ),
    "checkpoint": Kind(file_kinds.make_checkpoint, authors_checkpoint, of_model),
}


@contextmanager
def limited() -> Iterator[None]:
    """Fails where a file makes its reader hang."""

    def stop(*_: Any) -> None:
        raise Wrong(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_damaged(kind: Kind, path: Path, contents: bytes) -> None:
    """Reads `path`, whose damaged file holds `contents`."""
    target = kind.damaged(path)
    target.write_bytes(contents)
    with warnings.catch_warnings(), limited():
        warnings.simplefilter("ignore")
        result = outcome(lambda: kind.read(path), (str(path), target.name))
        if not isinstance(result, Exception):
            kind.check(result)


Made = Callable[[str], tuple[Path, bytes]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """made(name): a file of a kind, whole again, and the contents of what is damaged of it."""
    known: dict[str, tuple[Path, bytes]] = {}

    def make(name: str) -> tuple[Path, bytes]:
        if name not in known:
            path = KINDS[name].make(tmp_path_factory.mktemp("files"))
            known[name] = path, KINDS[name].damaged(path).read_bytes()
        path, contents = known[name]
        KINDS[name].damaged(path).write_bytes(contents)
        return path, contents

    return make


@pytest.mark.parametrize("name", KINDS)
def test_whole_files(name: str, made: Made) -> None:
    path, _ = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = KINDS[name].read(path)
    KINDS[name].check(found)


@pytest.mark.parametrize("name", KINDS)
@examples(12, 120)
@given(damage=damages())
def test_damaged_bytes(name: str, made: Made, damage: Callable[[bytes], bytes]) -> None:
    path, contents = made(name)
    read_damaged(KINDS[name], path, damage(contents))


@examples(40, 600)
@given(data=st.data())
def test_configurations(made: Made, data: st.DataObject) -> None:
    path, contents = made("config.json")
    values = data.draw(changed_json(json.loads(contents)))
    read_damaged(KINDS["config.json"], path, json.dumps(values).encode())


@examples(40, 600)
@given(data=st.data(), of_the_model=st.booleans())
def test_headers_of_weights(made: Made, data: st.DataObject, of_the_model: bool) -> None:
    path, contents = made("model.safetensors")
    header, tensors = file_kinds.header_of(contents)
    if of_the_model:
        config = data.draw(changed_json(json.loads(header["__metadata__"]["config"])))
        header["__metadata__"]["config"] = json.dumps(config)
        (path / "config.json").write_text(json.dumps(config))
    else:
        header = data.draw(changed_json(header))
    read_damaged(KINDS["model.safetensors"], path, file_kinds.safetensors(header, tensors))


dtypes = st.sampled_from(["f4", "f8", "f2", ">f4", "i8", "u2", "?", "c8", "U3", "S2", "M8[s]", "f4,i4", "V4"])
shapes = st.lists(st.integers(0, 4), max_size=5).map(tuple) | st.sampled_from([(1, 3, 4), (1, 3, 4, 2), (3, 4, 2)])
numbers = st.sampled_from([0, 1, 0.5, -3, float("nan"), float("inf"), 1e300])


def array(shape: tuple[int, ...], dtype: str, value: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        numeric = dtype[0] not in "MV" and "," not in dtype
        return np.full(shape, value).astype(dtype) if numeric else np.zeros(shape, dtype)


arrays = st.builds(array, shapes, dtypes, numbers)
odd = st.one_of(
    arrays,
    st.none(),
    st.integers(-(2**70), 2**70),
    st.text(max_size=3),
    st.binary(max_size=8),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(arrays, max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


@examples(40, 600)
@given(data=st.data())
def test_arrays_of_tracks(made: Made, data: st.DataObject) -> None:
    path, _ = made("tracks")
    with np.load(path) as saved:
        changed = dict(saved)
    for name in data.draw(st.lists(st.sampled_from([*changed, "confidence", "other"]), min_size=1, max_size=2)):
        changed[name] = data.draw(arrays)
    read_damaged(KINDS["tracks"], path, file_kinds.npz(changed))


@examples(40, 600)
@given(data=st.data(), protocol=st.integers(2, 5))
def test_values_of_pickles(made: Made, data: st.DataObject, protocol: int) -> None:
    path, contents = made("pickle 4")
    videos = pickle.loads(contents)  # our own
    place = data.draw(st.sampled_from(["all", "key", "video", "points", "points", "occluded", "occluded"]))
    if place == "all":
        videos = data.draw(odd)
    elif place == "key":
        key = data.draw(st.one_of(st.integers(-3, 3), st.text(max_size=3), st.binary(max_size=3), st.none()))
        videos[key] = videos["cat"]
    else:
        videos["dog"] = {**videos["cat"], place: data.draw(odd)}
    read_damaged(KINDS["pickle 4"], path, pickle.dumps(videos, protocol))


signs = ["", "0", "1", "-1", "1.5", "1e999", "nan", "99", "9" * 401, "frames", "\ud800", "a,b", '"', "\0", "٣"]


@pytest.mark.parametrize("name", ["points.csv", "queries"])
@examples(40, 600)
@given(data=st.data())
def test_cells_of_tables(name: str, made: Made, data: st.DataObject) -> None:
    path, contents = made(name)
    rows = [line.split(",") for line in contents.decode().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(signs) | st.text(max_size=4))
    text = data.draw(st.sampled_from(["\n", "\r\n", "\r"])).join(",".join(row) for row in rows)
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    read_damaged(KINDS[name], path, text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass"))
