"""What several test files share: where reference data lies, and models small enough to run anywhere."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch

from chrono_features import ChronoBackbone, ChronoConfig

SMALL = {
    "vit": "vit_tiny_patch16_224",
    "vit_kwargs": {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "grid": (8, 8),
    "adapter_channels": 8,
    "adapter_heads": 2,
    "window": (2, 2),
}


@pytest.fixture(scope="session")
def data() -> Path:
    return Path(__file__).parent / "files"


@pytest.fixture(autouse=True)
def no_backend_override(monkeypatch):
    monkeypatch.delenv("CHRONO_FEATURES_BACKEND", raising=False)


@pytest.fixture
def small_config():
    """small_config(**changes): the configuration of a very small ViT on an 8 x 8 grid."""
    return lambda **changes: ChronoConfig.from_dict({**SMALL, **changes})


@pytest.fixture
def randomise():
    """randomise(module): every parameter drawn anew, so that nothing is zero, one or the identity by accident."""

    def fill(module: torch.nn.Module, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                scale = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
        return module

    return fill


@pytest.fixture
def small_model(small_config, randomise):
    """small_model(**changes): a small model, all parameters random."""
    return lambda **changes: randomise(ChronoBackbone(small_config(**changes)))


@pytest.fixture
def clip():
    """clip(B, T, H, W, seed): a random float video."""

    def draw(batch: int = 1, frames: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
        return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No address can be reached, and nothing is in the Hugging Face cache."""
    from huggingface_hub import constants

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's attempts
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if hasattr(constants, name):
            monkeypatch.setattr(constants, name, os.fspath(tmp_path / "hub"))


@pytest.fixture
def allocations():
    """allocations(function): the most bytes that PyTorch held at once beyond those before the call."""

    def peak_bytes(function) -> int:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            kept = function()
        live = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        del kept
        return peak

    return peak_bytes
