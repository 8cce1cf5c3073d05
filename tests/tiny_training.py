"""A recipe that trains in seconds."""

import dataclasses

from chrono_features import ChronoConfig
from chrono_features.training import Recipe, Stage, train

STAGE = Stage("pairs", 8, (2, 2), (1, 2), (32, 32), (8, 8), 2, 16, 3e-3, scene="raycast", adapters=False)
CONFIG = ChronoConfig(
    vit="vit_tiny_patch16_224",
    vit_kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False,
                "global_pool": "", "pos_embed": "none"},
    grid=(8, 8), stem="conv", norm="token", adapter_channels=8, adapter_heads=2, freeze_vit=False, radius=3.0,
)  # fmt: skip
CLIPS = dataclasses.replace(
    STAGE, name="clips", steps=4, frames=(2, 4), adapters=True, views=2, frames_after=(0, 6), cross_entropy=(1.0, 0.5)
)
RECIPE = Recipe("test", (STAGE, CLIPS), CONFIG)


def run(out, recipe=RECIPE, **options):
    return train(recipe, out, workers=0, mixed_precision="no", **options)
