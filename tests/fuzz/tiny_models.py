"""Models small enough to be called ten thousand times."""

from __future__ import annotations

from typing import Any

import torch

from chrono_features import ChronoBackbone, ChronoConfig

TINY = {
    "vit": "vit_tiny_patch16_224",
    "vit_kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
    "grid": (4, 4),
    "adapter_channels": 4,
    "adapter_heads": 2,
    "window": (1, 1),
    "confidence": (0.0, 1.0, 1.0, -1.0, -1.0),
    "refined_confidence": (0.0, 1.0, 1.0, -1.0, -1.0, 1.0),
}


def tiny(**changes: Any) -> ChronoBackbone:
    """A tiny model whose parameters are all random."""
    model = ChronoBackbone(ChronoConfig.from_dict({**TINY, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=p[0].numel() ** -0.5, generator=generator).add_(
                1.0 if p.ndim == 1 and "norm" in name else 0.0
            )
    return model
