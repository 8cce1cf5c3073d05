"""The names and signatures that users rely on."""

import ast
import dataclasses
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest
import torch

import chrono_features
from chrono_features import ChronoBackbone, ChronoConfig, Tracks, grid_queries, soft_argmax_track
from chrono_features.adapter import TemporalAdapter
from chrono_features.checkpoints import NAMES
from chrono_features.confidence import track_signals
from chrono_features.labels import propagate_labels
from chrono_features.layers import VisibilityHead
from chrono_features.refine import refine_photometric


def names(function):
    return list(inspect.signature(function).parameters)


def test_public_names():
    expected = {
        "ChronoBackbone",
        "ChronoConfig",
        "Tracks",
        "as_video",
        "grid_queries",
        "soft_argmax_track",
    }
    assert set(chrono_features.__all__) == expected
    assert all(inspect.getdoc(getattr(chrono_features, name)) for name in expected)


def test_version_and_types():
    assert chrono_features.__version__ == importlib.metadata.version("chrono-features")
    assert (Path(chrono_features.__file__).parent / "py.typed").exists()


def test_signatures():
    parameters = inspect.signature(soft_argmax_track).parameters
    assert list(parameters) == [
        "features",
        "queries",
        "image_size",
        "query_features",
        "temperature",
        "radius",
        "visibility_head",
        "visible_threshold",
        "correlation_dtype",
        "memory_budget",
    ]
    keyword_only = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only == list(parameters)[3:]
    assert parameters["temperature"].default == 20.0 and parameters["radius"].default == 5.0
    assert parameters["visible_threshold"].default == 0.5
    assert parameters["correlation_dtype"].default is torch.float32
    assert names(grid_queries) == ["size", "image_size", "t", "roi"]
    assert names(ChronoBackbone.__init__)[1:] == ["config", "pretrained_vit", "backend"]
    assert names(ChronoBackbone.forward)[1:] == ["video", "grid", "max_frames_in_memory", "offload"]
    options = ["features", "refine", "confidence", "temperature", "radius", "visible_threshold"]
    options += ["correlation_dtype", "memory_budget", "max_frames_in_memory", "offload"]
    assert names(ChronoBackbone.track)[1:] == ["video", "queries", "grid", *options]
    assert names(refine_photometric) == ["video", "features", "queries", "tracks", "soft_argmax", "options"]
    assert names(track_signals) == ["features", "queries", "tracks", "image_size", "temperature", "radius"]
    expected = ["xy", "similarity", "visible", "logits", "correlation", "confidence", "queries", "columns", "info"]
    assert [f.name for f in dataclasses.fields(Tracks)] == expected


def test_where_names_live():
    homes = {TemporalAdapter: "adapter", VisibilityHead: "layers", propagate_labels: "labels"}
    assert {value: value.__module__ for value in homes} == {v: f"chrono_features.{n}" for v, n in homes.items()}
    for value, home in homes.items():  # where they were until version 0.4
        with pytest.warns(DeprecationWarning, match=f"from chrono_features.{home} import {value.__name__}"):
            assert getattr(chrono_features, value.__name__) is value
    with pytest.raises(AttributeError, match="'nothing'"):
        chrono_features.nothing  # noqa: B018


def test_defaults_of_the_configuration():
    assert ChronoConfig().to_dict() == {
        "vit": "vit_small_patch14_dinov2.lvd142m",
        "vit_kwargs": {},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "pos_embed_resize": "timm",
        "grid": [64, 64],
        "input_size": None,
        "antialias": True,
        "adapter_blocks": "all",
        "adapter_channels": 128,
        "adapter_heads": 4,
        "adapter_stride": 4,
        "window": [6, 6],
        "mixer": "attention",
        "norm": "clip",
        "stem": "patch",
        "neck": None,
        "out_channels": None,
        "freeze_vit": True,
        "temperature": 20.0,
        "radius": 5.0,
        "visible_threshold": 0.5,
        "refined_visible_threshold": 0.5,
        "confidence": None,
        "refined_confidence": None,
    }


def test_model_names():
    assert set(NAMES) == {"chrono-tiny", "chrono-vits14", "chrono-vitb14", "dinov2-vits14", "dinov2-vitb14"}


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_keep_no_graph(page):
    """A call of the whole model stands in inference mode; chunks, streams and `track` have no gradients anyway."""
    for block in blocks(page):
        tree = ast.parse(block)
        quiet = [w for w in ast.walk(tree) if isinstance(w, ast.With) and "inference_mode" in ast.unparse(w.items[0])]
        inside = {call for block_in in quiet for call in ast.walk(block_in)}
        for call in ast.walk(tree):
            bare = isinstance(call, ast.Call) and ast.unparse(call.func) == "model" and not call.keywords
            assert not bare or call in inside, f"{page.name}: {ast.unparse(call)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "index.md"], ids=lambda page: page.name)
def test_the_first_example_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("av")
    from chrono_features.video import write_video

    write_video(tmp_path / "clip.mp4", torch.randint(256, (3, 3, 48, 64), dtype=torch.uint8), 10)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(page)[0], names)
    assert names["feats"].shape == (1, 3, 96, 80, 80) and not names["feats"].requires_grad
    assert names["tracks"].xy.shape == (1, 256, 3, 2)


def test_the_interface_in_five_lines(small_config):
    model = ChronoBackbone(small_config())
    video, queries = torch.rand(2, 3, 3, 40, 50), grid_queries(2, (40, 50), t=1).expand(2, -1, -1)
    features = model(video)
    tracks = soft_argmax_track(features, queries, image_size=(40, 50))
    assert features.shape == (2, 3, 16, 8, 8)
    assert tracks.xy.shape == (2, 4, 3, 2) and tracks.similarity.shape == (2, 4, 3) and tracks.visible is None
    assert model.track(video, queries).visible.shape == (2, 4, 3)
