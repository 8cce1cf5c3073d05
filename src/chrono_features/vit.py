"""timm's ViTs, as they are walked block by block: which ones, and where their positions come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .checks import is_integer
from .dtypes import wide_dtype


def create_vit(name: str, kwargs: Mapping[str, Any], pretrained: bool) -> Any:
    """A timm `VisionTransformer` or `Eva` at its pretrained image size, without what classification adds.

    Raises:
        ValueError: The model is of another class, or drops patches.
    """
    if kwargs.get("in_chans", 3) != 3:
        raise ValueError(f"vit_kwargs={dict(kwargs)!r}; expected in_chans=3, the colours of a frame")
    if kwargs.get("patch_drop_rate"):
        raise ValueError(f"vit_kwargs={dict(kwargs)!r}; expected no patch_drop_rate: every patch needs a feature")
    expected = "expected timm's VisionTransformer or Eva"
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"vit={name!r} is no model of timm {timm.__version__}; {expected}")
    try:
        options = {**kwargs, "num_classes": 0, "dynamic_img_size": True}
        vit: Any = timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        if pretrained:  # they could not be fetched
            raise
        raise ValueError(f"vit={name!r} with {options}: {error}; {expected}") from error
    except Exception as error:  # wrong values fail anywhere in timm, and other classes do not take all of these
        raise ValueError(f"vit={name!r} with {options}: {type(error).__name__}: {error}; {expected}") from error
    if type(vit) not in (VisionTransformer, Eva):
        raise ValueError(f"vit={name!r} is a {type(vit).__name__}; {expected}")
    for what, pair in (("patch size", vit.patch_embed.patch_size), ("grid", vit.patch_embed.grid_size)):
        if len(pair) != 2 or not all(is_integer(n, 1) for n in pair):
            raise ValueError(f"vit={name!r} with vit_kwargs={dict(kwargs)!r} has the {what} {pair}; expected two sizes")
    if any(block.attn.num_heads < 1 for block in vit.blocks):
        raise ValueError(f"vit={name!r} with vit_kwargs={dict(kwargs)!r}; expected num_heads of 1 or more")
    vit.attn_pool = None
    return vit


def final_norm(vit: Any) -> nn.Module:
    """The norm after the last block, which models with average pooling keep under another name."""
    return vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm


def position_table(vit: Any, grid: tuple[int, int], resize: str) -> Tensor | None:
    """The absolute position table resampled to `grid`, (1, tokens, C), or None.

    Args:
        vit: The ViT.
        grid: Tokens per frame.
        resize: "dinov2" (DINOv2's own rule) or "timm". The native table is left alone.
    """
    if vit.pos_embed is None:
        return None
    native = tuple(vit.patch_embed.grid_size)
    if grid == native:
        return vit.pos_embed
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    wide = vit.pos_embed[:, prefix:].to(wide_dtype(vit.pos_embed.dtype))
    table = rearrange(wide, "n (h w) c -> n c h w", h=native[0])
    if resize == "dinov2" and vit.reg_token is None:
        # DINOv2 without registers: not antialiased, and scaled by a factor a tenth of a cell too large.
        scale = [(size + 0.1) / old for size, old in zip(grid, native, strict=True)]
        table = F.interpolate(table, scale_factor=scale, mode="bicubic")
    else:
        table = F.interpolate(table, grid, mode="bicubic", antialias=True)
    table = rearrange(table, "n c h w -> n (h w) c").to(vit.pos_embed.dtype)
    return torch.cat([vit.pos_embed[:, :prefix], table], dim=1)


def first_tokens(
    vit: Any,
    patches: Tensor,  # (N, h * w, C)
    grid: tuple[int, int],
    resize: str,
) -> Tensor:
    """What the first block gets, (N, tokens, C): class and register tokens, patch tokens, and their positions."""
    prefix = [token.expand(len(patches), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    position = position_table(vit, grid, resize)
    x = patches
    if position is not None and vit.no_embed_class:
        x = x + position
    x = torch.cat([*prefix, x], dim=1) if prefix else x
    if position is not None and not vit.no_embed_class:
        x = x + position
    return vit.norm_pre(vit.pos_drop(x))


def rotary_tables(vit: Any, grid: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Each block's keyword arguments: its rotary position table, where the ViT has one."""
    rope = getattr(vit, "rope", None)
    if rope is None:
        return [{} for _ in vit.blocks]
    tables = rope.get_embed(shape=grid)
    return [{"rope": tables[i] if vit.rope_mixed else tables} for i in range(len(vit.blocks))]
