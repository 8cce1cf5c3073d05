from pathlib import Path

import numpy as np
import pytest
import torch
from cli_calls import SIZE, TINY

from chrono_features import ChronoBackbone
from chrono_features.video import write_video


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> ChronoBackbone:
    """The command line loads this one whatever the name."""
    torch.manual_seed(0)
    network = ChronoBackbone(TINY)
    with torch.no_grad():
        for adapter in network.adapters.values():  # a new adapter does nothing
            adapter.conv_out.weight.normal_(std=0.5)
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", classmethod(lambda cls, name, **options: network))
    return network


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    big = np.kron(rng.integers(0, 256, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", [big[: SIZE[0], 2 * t : SIZE[1] + 2 * t] for t in range(8)], fps=20)
    return tmp_path / "clip.mp4"
