"""Public calls with arguments that nobody expects: a right result, or an error that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fuzzing import check_features, check_tracks, examples, instead_of, outcome
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TINY, tiny

from chrono_features import ChronoBackbone, ChronoConfig, Tracks, grid_queries, soft_argmax_track, viz
from chrono_features.adapter import TemporalAdapter
from chrono_features.confidence import fit, probability, track_signals, with_confidence
from chrono_features.config import SoftArgmax
from chrono_features.labels import propagate_labels
from chrono_features.layers import VisibilityHead
from chrono_features.refine import RefineOptions, refine_photometric

pytestmark = pytest.mark.slow

CLIP = tiny()
TOKEN = tiny(norm="token", neck="x2")
VIDEO = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
QUERIES = torch.tensor([[[0.0, 3.0, 4.0], [2.0, 16.0, 0.5], [1.0, 8.0, 8.0]]])
with torch.no_grad():
    FEATURES = CLIP(VIDEO)
    TRACKS = CLIP.track(VIDEO, QUERIES)
    STATS = CLIP.clip_statistics(VIDEO)


class Call(NamedTuple):
    """A public call with arguments that are right, and a check of what it returns for others."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    check: Callable[..., object] = lambda result, **arguments: None
    also: tuple[str, ...] = ()  # names that errors may have beside the arguments'


def of_features(result: Any, **arguments: Any) -> None:
    check_features(result)


def of_video_tracks(result: Tracks, *, video: Any, queries: Any, **arguments: Any) -> None:
    check_tracks(result, tuple(video.shape[-2:]), queries)


def of_tracks(result: Tracks, *, queries: Any, image_size: Any, **arguments: Any) -> None:
    check_tracks(result, tuple(map(float, image_size)), queries)


def is_finite(result: Any, **arguments: Any) -> None:
    assert result.isfinite().all()


def in_unit_range(result: Any, **arguments: Any) -> None:
    assert ((result >= -1e-5) & (result <= 1 + 1e-5)).all()


def of_frames(result: Any, **arguments: Any) -> None:
    for features in result:
        check_features(features)


def drawn(result: Iterator[Any], **arguments: Any) -> None:
    for picture in result:
        assert picture.dtype == "uint8" and picture.ndim == 3


def stream(model: ChronoBackbone, stats: Any, frames: Any, grid: Any, causal: Any, force: Any) -> torch.Tensor:
    push = model.stream(stats, grid=grid, causal=causal, force=force)
    return torch.cat([push(frames), push(frames), push.flush()], dim=1)


def unread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Iterators raise when they are read."""
    return lambda **arguments: list(function(**arguments))


def replaced(**changes: Any) -> ChronoConfig:
    return ChronoConfig.from_dict(TINY).replace(**changes)


def built(**changes: Any) -> ChronoBackbone:
    return ChronoBackbone({**TINY, **changes})


LONG_VIDEO = {"max_frames_in_memory": 2, "offload": "cpu"}
SOFT = {"temperature": 20.0, "radius": 5.0, "memory_budget": 10_000, "correlation_dtype": torch.float32}
SIZES = {"adapter_channels": 4, "adapter_heads": 2, "adapter_stride": 2, "window": (1, 1), "out_channels": 6}
CHOICES = {f.name: f.default for f in fields(ChronoConfig) if f.name not in ("vit", "vit_kwargs", *SIZES)}
CALLS = {
    "forward": Call(CLIP, {"video": VIDEO, "grid": (4, 4)}, of_features),
    "forward in chunks": Call(CLIP, {"video": VIDEO, "grid": (3, 4), **LONG_VIDEO}, of_features),
    "vit_features": Call(CLIP.vit_features, {"video": VIDEO, "grid": (4, 4)}, of_features),
    "forward_pyramid": Call(TOKEN.forward_pyramid, {"video": VIDEO, "grid": (4, 4)}, of_frames),
    "iter_features": Call(
        unread(TOKEN.iter_features),
        {"frames": list(VIDEO[0]), "grid": (4, 4), **LONG_VIDEO},
        of_frames,
        ("frame", "video"),
    ),
    "clip_statistics": Call(CLIP.calibrate, {"video": VIDEO, "grid": (4, 4), **LONG_VIDEO}, is_finite),
    "stream": Call(
        lambda **arguments: stream(CLIP, **arguments),
        {"stats": STATS, "frames": VIDEO, "grid": (4, 4), "causal": True, "force": True},
        of_features,
        ("video",),
    ),
    "stream by token": Call(
        lambda **arguments: stream(TOKEN, **arguments),
        {"stats": None, "frames": VIDEO, "grid": (4, 4), "causal": False, "force": False},
        of_features,
        ("video",),
    ),
    "track": Call(
        CLIP.track,
        {"video": VIDEO, "queries": QUERIES, "grid": (4, 4), "refine": None, "confidence": False, **LONG_VIDEO, **SOFT},
        of_video_tracks,
    ),
    "track with all": Call(
        CLIP.track,
        {"video": VIDEO, "queries": QUERIES, "features": FEATURES, "refine": "photometric", "confidence": True},
        of_video_tracks,
    ),
    "soft_argmax_track": Call(
        soft_argmax_track,
        {
            "features": FEATURES,
            "queries": QUERIES,
            "image_size": (16, 16),
            "visibility_head": CLIP.visibility_head,
            **SOFT,
        },
        of_tracks,
    ),
    "soft_argmax_track by features": Call(
        soft_argmax_track,
        {"features": FEATURES, "query_features": FEATURES[:, 0, :, 0], "image_size": (16, 16)},
        lambda result, image_size, **_: check_tracks(result, tuple(map(float, image_size))),
        ("queries",),
    ),
    "grid_queries": Call(grid_queries, {"size": 3, "image_size": (16, 16), "t": 1}, is_finite),
    "propagate_labels": Call(
        propagate_labels,
        {
            "features": FEATURES,
            "labels": torch.randint(3, (1, 16, 16), dtype=torch.uint8),
            "video": VIDEO,
            "context": 2,
            "neighbours": 3,
            "radius": 2,
            "temperature": 10.0,
        },
        in_unit_range,
    ),
    "refine_photometric": Call(
        refine_photometric,
        {
            "video": VIDEO,
            "features": FEATURES,
            "queries": QUERIES,
            "tracks": TRACKS,
            "soft_argmax": SoftArgmax(),
            "options": RefineOptions(),
        },
        lambda result, **_: is_finite(result.xy),
    ),
    "track_signals": Call(
        track_signals,
        {"features": FEATURES, "queries": QUERIES, "tracks": TRACKS, "image_size": (16, 16), "temperature": 20.0},
        is_finite,
    ),
    "with_confidence": Call(
        with_confidence,
        {
            "tracks": TRACKS,
            "features": FEATURES,
            "queries": QUERIES,
            "image_size": (16, 16),
            "weights": TINY["confidence"],
            "radius": 5.0,
        },
        lambda result, **_: in_unit_range(result.confidence),
    ),
    "probability": Call(
        probability, {"signals": torch.rand(5, 4), "weights": (0.0, 1.0, 1.0, 1.0, 1.0)}, in_unit_range
    ),
    "fit": Call(fit, {"signals": torch.rand(6, 4), "good": torch.arange(6) > 2}),
    "Tracks": Call(Tracks, {f.name: getattr(TRACKS, f.name) for f in fields(Tracks)}),
    "Tracks[]": Call(lambda index: TRACKS[index], {"index": 0}),
    "ChronoConfig of sizes": Call(replaced, SIZES),
    "ChronoConfig of choices": Call(replaced, CHOICES),
    "ChronoConfig.from_dict": Call(ChronoConfig.from_dict, {"values": TINY}, also=("keys",)),
    "ChronoBackbone": Call(lambda config: ChronoBackbone(config), {"config": TINY}, also=("keys",)),
    "load": Call(
        ChronoBackbone.from_pretrained, {"name": "chrono-tiny", "grid": (4, 4), "temperature": 20.0, "window": (1, 1)}
    ),
    "load with other sizes": Call(
        ChronoBackbone.from_pretrained, {"name": "chrono-tiny", **SIZES, "adapter_blocks": "all"}, also=("chrono-tiny",)
    ),
    "vit_kwargs": Call(
        lambda **kwargs: ChronoBackbone({**TINY, "vit_kwargs": {**TINY["vit_kwargs"], **kwargs}})(VIDEO),
        {"img_size": 16, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "mlp_ratio": 2.0, "pos_embed": "learn"},
        of_features,
        also=("vit_kwargs",),
    ),
    "save": Call(
        lambda **arguments: CLIP.save_pretrained(**arguments),
        {"save_directory": "model", "adapters_only": False},
        also=("folder",),
    ),
    "TemporalAdapter": Call(
        TemporalAdapter,
        {"dim": 8, "channels": 4, "heads": 2, "stride": 2, "window": (1, 1), "mixer": "attention", "norm": "clip"},
    ),
    "TemporalAdapter.forward": Call(TemporalAdapter(8, 4, 2), {"x": torch.rand(1, 3, 4, 4, 8)}),
    "VisibilityHead.forward": Call(VisibilityHead(), {"statistics": torch.rand(2, 3)}),
    "set_grad_checkpointing": Call(tiny().set_grad_checkpointing, {"enable": True}),
    "backend": Call(lambda backend: ChronoBackbone(TINY, backend=backend), {"backend": "torch"}),
    "draw_tracks": Call(
        unread(viz.draw_tracks), {"video": (255 * VIDEO[0]).byte(), "tracks": TRACKS[0], "trail": 2}, drawn
    ),
    "pca_frames": Call(unread(viz.pca_frames), {"features": FEATURES[0], "size": (8, 8)}, drawn),
    "principal_components": Call(viz.principal_components, {"features": FEATURES[0], "count": 3}, is_finite),
    "similarity_overlay": Call(
        viz.similarity_overlay,
        {"frame": (255 * VIDEO[0, 0]).byte(), "similarity": torch.rand(4, 4), "limits": (0.0, 1.0), "opacity": 0.5},
    ),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some calls write


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR", "ignore:torch.quant", "ignore:Initializing zero"
)
@pytest.mark.parametrize("name", CALLS)
@examples(60, 300)
@given(data=st.data())
@torch.no_grad()
def test_calls(name: str, data: st.DataObject) -> None:
    call = CALLS[name]
    changed = data.draw(st.lists(st.sampled_from(sorted(call.arguments)), min_size=1, max_size=2, unique=True))
    arguments = {**call.arguments, **{n: data.draw(instead_of(call.arguments[n])) for n in changed}}
    texts = [value for value in arguments.values() if isinstance(value, str) and value]  # names of models and files
    result = outcome(lambda: call.function(**arguments), {*call.arguments, *call.also, *texts})
    if not isinstance(result, Exception):
        call.check(result, **arguments)
