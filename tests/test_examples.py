"""The scripts in `examples/`, with a stand-in for the tracker's checkout."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from chrono_features import ChronoBackbone, ChronoConfig

SCRIPT = Path(__file__).parent.parent / "examples" / "locotrack.py"
STAND_IN = """
import types
from typing import Any, NamedTuple

import torch
from torch import nn


class FeatureGrids(NamedTuple):
    lowres: Any
    hires: Any
    highest: Any
    resolutions: Any


utils = types.SimpleNamespace(generate_default_resolutions=lambda size, initial: [tuple(size)])


class LocoTrack(nn.Module):
    def __init__(self, model_size, initial_resolution):
        super().__init__()
        self.initial_resolution, self.extra_convs = initial_resolution, None
        self.torch_pips_mixer = nn.Linear(256, 4)
        self.resnet_torch = nn.Conv2d(3, 256, 8, stride=8)

    def get_feature_grids(self, video, is_training=False, refinement_resolutions=None):
        maps = self.resnet_torch(video.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, video.shape[:2])
        return FeatureGrids((maps.permute(0, 1, 3, 4, 2),), (), (), refinement_resolutions)

    def forward(self, video, query_points, refinement_resolutions):
        assert [tuple(video.shape[2:4])] == refinement_resolutions and video.abs().max() <= 1
        grids = self.get_feature_grids(video, False, refinement_resolutions)
        out = self.torch_pips_mixer(grids.lowres[0].mean(dim=(2, 3)))[:, None]
        out = out.expand(-1, query_points.shape[1], -1, -1)
        tracks = query_points[:, :, None, [2, 1]] + out[..., :2]
        found = {"tracks": tracks, "occlusion": out[..., 2], "expected_dist": out[..., 3]}
        return {**found, **{f"unrefined_{name}": [value] for name, value in found.items()}}
"""


@pytest.fixture
def script(monkeypatch):
    if not SCRIPT.exists():
        pytest.skip("no examples/ beside the tests")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("locotrack_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "locotrack_example", module)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        del sys.modules[name]


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout" / "locotrack_pytorch" / "models"
    folder.mkdir(parents=True)
    (folder / "locotrack_model.py").write_text(STAND_IN)
    return tmp_path / "checkout"


@pytest.fixture
def small_model(tmp_path):
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False,
           "global_pool": "", "pos_embed": "none"}  # fmt: skip
    config = ChronoConfig(
        vit="vit_tiny_patch16_224", vit_kwargs=vit, grid=(4, 4), stem="conv", neck="x2", out_channels=12, norm="token",
        adapter_channels=8, adapter_heads=2,
    )  # fmt: skip
    ChronoBackbone(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


SIZES = ["--size", "64", "--frames", "3", "--points", "5", "--steps", "4", "--workers", "0"]


def call(script, *arguments):
    return CliRunner().invoke(script.app, [str(a) for a in arguments], catch_exceptions=False)


def weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["tracker"]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["own", "a model"])
def test_a_stopped_run_goes_on_to_the_same_weights(script, checkout, small_model, tmp_path, monkeypatch, features):
    features = small_model if features == "a model" else features
    monkeypatch.setattr(script, "CHECKPOINT_EVERY", 2)
    arguments = ["--features", features, "--checkout", checkout, *SIZES]
    call(script, "train", tmp_path / "whole", *arguments)
    step = script.Trainee.forward
    calls = []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(script.Trainee, "forward", interrupted)
    assert call(script, "train", tmp_path / "parts", *arguments).exit_code != 0
    monkeypatch.setattr(script.Trainee, "forward", step)
    call(script, "train", tmp_path / "parts", *arguments)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = script.build(script.read_setting(tmp_path / "whole"), checkout).state_dict()
    moved = {name.split(".")[0] for name in whole if not torch.equal(whole[name], fresh[name])}
    assert moved == {"torch_pips_mixer", "resnet_torch"}
    frozen = [name for name in whole if ".chrono." in name]
    assert all(torch.equal(whole[name], fresh[name]) for name in frozen) and bool(frozen) == (features != "own")


def test_a_folder_of_another_run_is_refused(script, checkout, tmp_path):
    arguments = ["train", tmp_path / "run", "--features", "own", "--checkout", checkout, *SIZES]
    call(script, *arguments)
    with pytest.raises(ValueError, match=r"holds a run of Setting\(.*seed=0.*expected .*seed=1"):
        call(script, *arguments, "--seed", 1)


def test_a_folder_that_is_no_checkout_is_refused(script, tmp_path):
    with pytest.raises(ValueError, match="--checkout .*; expected a clone of LocoTrack"):
        call(script, "train", tmp_path / "run", "--features", "own", "--checkout", tmp_path, *SIZES)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_refused(script, checkout, tmp_path):
    with pytest.raises(ValueError, match=r"nothing holds no checkpoint.pt; expected the folder of a run"):
        call(script, "evaluate", tmp_path / "nothing", "--checkout", checkout, "--data", "synthetic")


def test_positions_are_in_pixels_of_the_video(script, checkout):
    tracker = script.build(script.Setting("own", "small", 32, 3, 2, 1, 1, 1e-3, 0, None), checkout)
    for parameter in tracker.torch_pips_mixer.parameters():
        torch.nn.init.zeros_(parameter)  # points stay where they are asked for
    queries = torch.tensor([[[1.0, 60.0, 10.0], [0.0, 8.0, 30.0]]])
    tracks = script.as_tracker(tracker, 32)(torch.zeros(1, 3, 3, 48, 64, dtype=torch.uint8), queries)
    torch.testing.assert_close(tracks.xy, queries[:, :, None, 1:].expand(-1, -1, 3, -1))
    assert not tracks.visible.any()  # 1/2 of 1/2


def test_the_loss_counts_all_estimates_alike(script):
    class Fixed(torch.nn.Module):
        def forward(self, frames, queries, refinement_resolutions):
            xy, logits = queries[:, :, None, [2, 1]].expand(-1, -1, 2, -1), torch.zeros(1, 1, 2)
            names = ("tracks", "occlusion", "expected_dist")
            return {
                **dict(zip(names, (xy + 1, logits, logits), strict=True)),
                **{f"unrefined_{n}": [v] * 2 for n, v in zip(names, (xy + 3, logits, logits), strict=True)},
            }

    video = torch.zeros(1, 2, 3, 128, 128, dtype=torch.uint8)
    batch = script.Batch(
        video, torch.tensor([[[0.0, 9, 5]]]), torch.tensor([9.0, 5]).expand(1, 1, 2, 2), torch.ones(1, 1, 2) > 0
    )
    losses = script.Trainee(Fixed(), 128)(batch)
    near, far = (2 * 2**0.5, 6 * 2**0.5)  # at 256 x 256; beyond 4 px the loss is linear
    huber = near**2 / 2 + 2 * 4 * (far - 2)
    visibility = 3 * 2 * torch.tensor(2.0).log()
    torch.testing.assert_close(losses["huber"], torch.tensor(huber), rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["total"], 0.05 * huber + visibility, rtol=1e-4, atol=0)
    assert losses["last estimate, px"] == pytest.approx(near, rel=1e-4)


@pytest.mark.slow
def test_evaluation_writes_results(script, checkout, tmp_path, monkeypatch):
    call(script, "train", tmp_path / "run", "--features", "own", "--checkout", checkout, *SIZES)
    seen = {}

    def measure(trackers, data, out, **options):
        seen["about"], seen["data"] = trackers[0].about, list(data)
        return {"data": {}, "records": []}

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "print_tables", lambda results: None)
    call(script, "evaluate", tmp_path / "run", "--checkout", checkout, "--data", "synthetic")
    assert seen["data"] == ["synthetic"] and seen["about"]["trained_steps"] == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["features"] == "own"
