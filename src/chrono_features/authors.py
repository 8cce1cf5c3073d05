"""The authors' checkpoints: where they are, what their keys are called, and the configuration that their sizes tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from . import checks, files, weights
from .config import ChronoConfig, check_grid
from .extras import MissingExtra, require

# File ids on Google Drive, from the README of https://github.com/cvlab-kaist/Chrono
AUTHORS_FILES = {
    "chrono-vits14": "1Q-rqNl1ZkYhH4UtOjwcMH0oKkcCxMi7K",
    "chrono-vitb14": "1XYOr5pVncEAgyWcQZ_TjgvqLTcexdUQr",
}
ADAPTER_NAMES = {  # the layers of an adapter, by the authors' names and by ours
    "norm": "norm",
    "conv1": "conv_in",
    "conv_pool": "pool",
    "norm2": "mixer.norm",
    "attn_temp.qkv": "mixer.qkv",
    "attn_temp.proj": "mixer.proj",
    "conv_upsample": "unpool",
    "conv2": "conv_out",
}


def read_authors(
    path: str | os.PathLike[str],
    num_heads: int | None = None,
    grid: tuple[int, int] = (64, 64),
) -> tuple[ChronoConfig, dict[str, Tensor]]:
    """Reads a Lightning checkpoint of the authors' code; sizes come from its tensors.

    Args:
        path: The `.ckpt` file. Only `state_dict`'s `model.*` is used.
        num_heads: Attention heads of the ViT; None means width / 64.
        grid: Tokens per frame.

    Returns:
        The configuration, and the weights under our names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something other than tensors, keys are missing or misshapen, or `num_heads` is needed.
    """
    state = _authors_state(Path(path))
    try:
        config = _authors_config(state, num_heads, grid)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return config, _rename_authors(state)


def by_hand(name: str, folder: Path) -> str:
    """How to get the authors' checkpoint of a model without this library."""
    return (
        f"the authors' checkpoint of {name} is missing: download it from {_address(name)} in a browser and load it "
        "with ChronoBackbone.from_pretrained('path/to/file.ckpt'), or convert it once: "
        f"chrono-features convert FILE.ckpt {folder}"
    )


def download(name: str, target: Path, otherwise: str) -> None:
    """Fetches the authors' checkpoint of a model.

    Raises:
        MissingExtra: gdown is not installed. This and other messages end with what to do `otherwise`.
        OSError: It could not be fetched.
    """
    try:
        gdown = require("gdown", "weights")
    except MissingExtra as error:
        raise MissingExtra(f"{error}. Or: {otherwise}") from error
    try:
        gdown.download(_address(name), str(target))
    except Exception as error:  # gdown and requests raise many kinds
        raise OSError(f"{otherwise} (the download failed: {type(error).__name__})") from error
    if not target.is_file():
        raise OSError(otherwise)


def _address(name: str) -> str:
    return f"https://drive.google.com/uc?id={AUTHORS_FILES[name]}"


def _authors_state(path: Path) -> dict[str, Tensor]:
    files.check_regular(path, "a Lightning checkpoint of the authors' code")
    checkpoint = weights.load_plain(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} has no state_dict; expected a Lightning checkpoint of the authors' code")
    own = {k.removeprefix("model."): v for k, v in state.items() if isinstance(k, str) and k.startswith("model.")}
    if wrong := [key for key, value in own.items() if not weights.is_dense(value)]:
        raise ValueError(f"{path}: model.{wrong[0]} is no dense floating-point tensor; expected weights")
    if (needed := sum(value.nbytes for value in own.values())) > (size := path.stat().st_size):
        raise ValueError(f"{path} has {size} bytes for weights of {needed}; expected every weight to be stored")
    return own


def _authors_config(state: Mapping[str, Tensor], num_heads: int | None, grid: tuple[int, int]) -> ChronoConfig:
    sizes = (
        "dino.pos_embed",
        "dino.patch_embed.proj.weight",
        "dino.blocks.0.mlp.fc1.weight",
        "adapter.0.conv_pool.weight",
    )
    if missing := [key for key in sizes if key not in state]:
        raise ValueError(
            f"missing keys: {', '.join('model.' + k for k in missing)}; expected a checkpoint of the authors' code"
        )
    position, patch, mlp, pool = (state[key] for key in sizes)
    if [v.ndim for v in (position, patch, mlp, pool)] != [3, 4, 2, 4] or not all(state[key].numel() for key in sizes):
        told = ", ".join(f"model.{key} {tuple(state[key].shape)}" for key in sizes)
        raise ValueError(f"misshapen keys: {told}; expected 3, 4, 2 and 4 dimensions, none of them 0")
    width, patch_size = patch.shape[0], patch.shape[-1]
    if num_heads is None:
        if width % 64:
            raise ValueError(f"num_heads=None; expected the number of heads, as the width {width} is no multiple of 64")
        num_heads = width // 64
    elif not checks.is_integer(num_heads, 1) or width % num_heads:
        raise checks.refusal("num_heads", num_heads, f"a divisor of the width {width}")
    depth = len({key.split(".")[2] for key in state if key.startswith("dino.blocks.")})
    registers = state.get("dino.register_tokens")
    if registers is not None and registers.ndim != 3:
        raise ValueError(f"misshapen keys: model.dino.register_tokens {tuple(registers.shape)}; expected 3 dimensions")
    side = round((position.shape[1] - 1) ** 0.5)
    return ChronoConfig(
        vit="vit_small_patch14_dinov2.lvd142m" if registers is None else "vit_small_patch14_reg4_dinov2.lvd142m",
        vit_kwargs={
            "img_size": side * patch_size,
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp.shape[0] / width,
            **({} if registers is None else {"reg_tokens": registers.shape[1]}),
        },
        pos_embed_resize="dinov2",
        grid=check_grid(grid),
        input_size=(256, 256),
        antialias=False,
        adapter_channels=pool.shape[0],
        adapter_stride=pool.shape[-1],
    )


def _rename_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names to ours."""
    renamed = {_our_name(key): value for key, value in state.items() if key != "dino.mask_token"}  # of training only
    table, token = renamed["vit.pos_embed"], renamed.get("vit.cls_token")
    if "vit.reg_token" in renamed and token is not None and token.shape == table[:, :1].shape:
        # With registers, timm keeps no position for the class token: it is added to the token itself.
        renamed["vit.cls_token"] = token + table[:, :1]
        renamed["vit.pos_embed"] = table[:, 1:]
    return renamed


def _our_name(key: str) -> str:
    """A name that is none of the authors' is kept, so that loading reports it."""
    first, _, rest = key.partition(".")
    index, _, name = rest.partition(".")
    layer, _, parameter = name.rpartition(".")
    if first == "dino":
        return f"vit.{'reg_token' if rest == 'register_tokens' else rest}"
    if first == "adapter" and layer in ADAPTER_NAMES:
        return f"adapters.{index}.{ADAPTER_NAMES[layer]}.{parameter}"
    if first == "occ_linear":
        return f"visibility_head.linear.{rest}"
    return f"model.{key}"
