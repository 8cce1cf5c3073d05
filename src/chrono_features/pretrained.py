"""Names to weights: bundled and published models, folders, hub repositories, the authors' checkpoints; and saving."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import HfApi, constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .backbone import ChronoBackbone
from .checkpoints import (
    ADAPTERS_ONLY,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    build,
    check_savable,
    checked_state,
    is_dense,
    load_plain,
    on_meta,
    read_checkpoint,
)
from .checks import check_flag, check_path, is_folder, is_integer, refusal
from .config import WEIGHT_SOURCES, ChronoConfig, check_grid
from .extras import MissingExtra, require
from .files import write_folder
from .vit import create_vit

BUNDLED = Path(__file__).parent / "assets" / "chrono-tiny"
# File ids on Google Drive, from the README of https://github.com/cvlab-kaist/Chrono
AUTHORS_FILES = {
    "chrono-vits14": "1Q-rqNl1ZkYhH4UtOjwcMH0oKkcCxMi7K",
    "chrono-vitb14": "1XYOr5pVncEAgyWcQZ_TjgvqLTcexdUQr",
}
DINOV2_VITS = {
    "dinov2-vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-vitb14": "vit_base_patch14_dinov2.lvd142m",
}
NAMES = ("chrono-tiny", *AUTHORS_FILES, *DINOV2_VITS)


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **config_overrides: Any,
) -> ChronoBackbone:
    """Loads a model, in eval mode, on the CPU, in float32.

    Args:
        name: "chrono-tiny" (bundled); "chrono-vits14" or "chrono-vitb14" (the authors', fetched once);
            "dinov2-vits14" or "dinov2-vitb14" (no adapters unless `adapter_blocks` says so); a folder that
            `save_pretrained` wrote; an authors' `.ckpt`; or a hub id "user/model". Built-in names come first.
        revision, cache_dir, token, force_download, local_files_only: As in huggingface_hub, for hub ids and the
            authors' weights. What timm fetches follows the environment (HF_HOME, HF_HUB_OFFLINE).
        config_overrides: Fields of `ChronoConfig` to change; for a `.ckpt` also `num_heads`.

    Raises:
        ValueError: Unknown name or config key, or weights that do not fit; the message names the keys.
        OSError: Weights are missing and cannot be fetched; the message says how to supply them.
    """
    hub: dict[str, Any] = {
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    check_name(name)
    name = os.fspath(name)
    check_flag("force_download", force_download)
    check_flag("local_files_only", local_files_only)
    if name == "chrono-tiny":
        return _load_folder(BUNDLED, config_overrides)
    if name in AUTHORS_FILES:
        return _load_folder(_fetch_authors(name, **hub), config_overrides)
    if name in DINOV2_VITS:
        config = ChronoConfig(vit=DINOV2_VITS[name], adapter_blocks="none", pos_embed_resize="dinov2")
        return _with_timm_weights(config.replace(**config_overrides))
    if is_folder(Path(name)):
        return _load_folder(Path(name), config_overrides)
    if Path(name).suffix == ".ckpt":
        return _override(load_authors_checkpoint(name, config_overrides.pop("num_heads", None)), config_overrides)
    return _load_folder(_fetch_hub(name, revision=revision, token=token, **hub), config_overrides)


def check_name(name: Any) -> None:
    """Raises ValueError, naming the known ones, if `name` cannot be a model's."""
    expected = f"one of {', '.join(NAMES)}, a folder, a .ckpt file, or a hub id user/model"
    path = check_path("name", name, expected)
    name = os.fspath(name)
    hub_id = name.count("/") == 1 and all(name.split("/")) and not name.startswith(".")
    if not (name in NAMES or hub_id or path.suffix == ".ckpt" or is_folder(path)):
        raise refusal("name", name, expected)


def save(
    model: ChronoBackbone,
    folder: str | os.PathLike[str],
    *,
    adapters_only: bool = False,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    config: Any = None,
    model_card_kwargs: Mapping[str, Any] | None = None,
    **push_options: Any,
) -> str | None:
    """Writes `config.json`, `model.safetensors` and a model card; an old folder survives a failure.

    Args:
        model: What to save.
        folder: Where; other files in it are kept.
        adapters_only: Store what was trained and the name of the ViT, whose weights timm then supplies on loading.
        push_to_hub, repo_id, push_options: As in huggingface_hub.
        config, model_card_kwargs: Taken for huggingface_hub's sake; the model's own configuration is what is saved.

    Returns:
        The address of the commit with `push_to_hub`, else None.

    Raises:
        ValueError: `adapters_only` for a model whose ViT was trained, or weights that could not be loaded again.
    """
    check_flag("adapters_only", adapters_only)
    check_flag("push_to_hub", push_to_hub)
    check_path("folder", folder)
    if adapters_only and not (model.config.freeze_vit and model.stem is None):
        raise ValueError("adapters_only=True with a ViT that is trained too; expected freeze_vit=True and stem='patch'")
    if adapters_only and (sources := sorted(WEIGHT_SOURCES & model.config.vit_kwargs.keys())):
        named = ", ".join(sources)
        raise ValueError(f"adapters_only=True with {named} in vit_kwargs, which no file may name; expected False")
    folder, text = Path(folder), model.config.to_json()
    metadata = {"format": "pt", "contents": ADAPTERS_ONLY if adapters_only else "all", "config": text}
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (adapters_only and k.startswith("vit."))}
    check_savable(state)
    files = [WEIGHTS_FILE, CONFIG_FILE]  # readers find the configuration of new weights even before it is in its place
    if not os.path.lexists(folder / "README.md"):
        files.append("README.md")
    with write_folder(folder, files) as new:
        (new / CONFIG_FILE).write_text(text, encoding="utf-8")
        if "README.md" in files:
            (new / "README.md").write_text(_MODEL_CARD, encoding="utf-8")
        _save_tensors(state, new / WEIGHTS_FILE, metadata, folder / WEIGHTS_FILE)
        shutil.copymode(new / CONFIG_FILE, new / WEIGHTS_FILE)
    if push_to_hub:
        token = push_options.pop("token", None)
        api = HfApi(token=token)
        private, branch = push_options.pop("private", None), push_options.pop("branch", None)
        repo = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo_id=repo, branch=branch, exist_ok=True)
        files = [CONFIG_FILE, WEIGHTS_FILE, "README.md"]
        return api.upload_folder(
            repo_id=repo, folder_path=folder, revision=branch, allow_patterns=files, **push_options
        )
    return None


def _save_tensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str], target: Path) -> None:
    try:
        save_file(state, path, metadata)
    except SafetensorError as error:  # a full disk, too
        raise OSError(f"{target} could not be written: {error}") from error


def load_authors_checkpoint(
    path: str | os.PathLike[str],
    num_heads: int | None = None,
    grid: tuple[int, int] = (64, 64),
) -> ChronoBackbone:
    """Reads a Lightning checkpoint of the authors' code; sizes come from its tensors.

    Args:
        path: The `.ckpt` file. Only `state_dict`'s `model.*` is used.
        num_heads: Attention heads of the ViT; None means width / 64.
        grid: Tokens per frame.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something other than tensors, keys are missing, unexpected or misshapen, or `num_heads`
            is needed.
    """
    source = _authors_state(Path(path))
    try:
        config = _authors_config(source, num_heads, grid)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return build(Checkpoint(config, _rename_authors(source, config), False), os.fspath(path))


def verify(name: str, davis: str | os.PathLike[str] | None = None) -> list[tuple[str, str, str]]:
    """Fetches the authors' weights, checks every key and runs them.

    Args:
        name: "chrono-vits14" or "chrono-vitb14".
        davis: Path to `tapvid_davis.pkl`, to measure on it.

    Returns:
        Rows of (what, published, measured).

    Raises:
        ValueError: `name` is not one of the authors' models.
        OSError: The weights cannot be fetched.
    """
    from .evaluation.verification import compare

    if name not in AUTHORS_FILES:
        raise ValueError(f"name={name!r}; expected one of {', '.join(AUTHORS_FILES)}")
    return compare(name, load(name), davis)


def _override(model: ChronoBackbone, overrides: Mapping[str, Any]) -> ChronoBackbone:
    if not overrides:
        return model
    return build(Checkpoint(model.config.replace(**overrides), model.state_dict(), False), "the checkpoint")


def _load_folder(folder: Path, overrides: Mapping[str, Any]) -> ChronoBackbone:
    checkpoint = read_checkpoint(folder)
    checkpoint = checkpoint._replace(config=checkpoint.config.replace(**overrides))
    return _with_vit_of_timm(checkpoint, str(folder)) if checkpoint.adapters_only else build(checkpoint, str(folder))


def _with_vit_of_timm(checkpoint: Checkpoint, source: str) -> ChronoBackbone:
    """The model of a checkpoint that leaves the ViT's weights to timm."""
    config, plan = checkpoint.config, on_meta(checkpoint.config, source)
    expected = {key: value for key, value in plan.state_dict().items() if not key.startswith("vit.")}
    state = checked_state(expected, checkpoint.state, source)
    with torch.device("meta"):
        plain = create_vit(config.vit, {}, pretrained=False)
    own, usual = (sum(p.numel() for p in vit.parameters()) for vit in (plan.vit, plain))
    if own > 2 * usual:  # a table of positions may be larger
        raise ValueError(f"{source}: vit_kwargs make {config.vit} of {own} parameters; expected about {usual}")
    model = _with_timm_weights(config)
    model.load_state_dict(state, strict=False)  # what else it has is the ViT
    return model


def _with_timm_weights(config: ChronoConfig) -> ChronoBackbone:
    try:
        return ChronoBackbone(config, pretrained_vit=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {config.vit} are missing: model.safetensors of the hub repository timm/{config.vit} could "
            f"not be fetched ({type(error).__name__}). Download it where there is a network "
            f"(hf download timm/{config.vit}) and copy the Hugging Face cache, or name the file: "
            "vit_kwargs={'pretrained_cfg_overlay': {'file': 'path/to/model.safetensors'}}"
        ) from error


def _fetch_hub(name: str, **options: Any) -> Path:
    try:
        paths = [hf_hub_download(name, file, **options) for file in (CONFIG_FILE, WEIGHTS_FILE)]
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"{CONFIG_FILE} and {WEIGHTS_FILE} of the hub repository {name} could not be fetched "
            f"({type(error).__name__}). Is the name right? Built-in names are {', '.join(NAMES)}. Without a network, "
            "download the two files elsewhere and name their folder"
        ) from error
    return Path(paths[0]).parent


def _fetch_authors(
    name: str, cache_dir: str | os.PathLike[str] | None, force_download: bool, local_files_only: bool
) -> Path:
    """The folder of an authors' model in the Hugging Face cache, converted on first use."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE) / "chrono-features"
    folder = cache / name
    if _is_whole(folder) and not force_download:
        return folder
    address = f"https://drive.google.com/uc?id={AUTHORS_FILES[name]}"
    by_hand = (
        f"the authors' checkpoint of {name} is missing: download it from {address} in a browser and load it with "
        "ChronoBackbone.from_pretrained('path/to/file.ckpt'), or convert it once: "
        f"chrono-features convert FILE.ckpt {folder}"
    )
    cache.mkdir(parents=True, exist_ok=True)
    if local_files_only or constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{by_hand} (not fetched: offline mode)")
    try:
        gdown = require("gdown", "weights")
    except MissingExtra as error:
        raise MissingExtra(f"{error}. Or: {by_hand}") from error
    with FileLock(cache / f"{name}.lock"):
        if _is_whole(folder) and not force_download:
            return folder  # another process was faster
        temporary = cache / f"{name}.download"  # under the lock: what is in it a killed process has left
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            target = temporary / f"{name}.ckpt"
            _download(lambda: gdown.download(address, str(target)), by_hand)
            if not target.is_file():
                raise OSError(by_hand)
            save(load_authors_checkpoint(target), folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether both files are there: a process may have been killed between the two."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def _download(fetch: Callable[[], Any], by_hand: str) -> None:
    try:
        fetch()
    except Exception as error:  # gdown and requests raise many kinds
        raise OSError(f"{by_hand} (the download failed: {type(error).__name__})") from error


def _authors_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    checkpoint = load_plain(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} has no state_dict; expected a Lightning checkpoint of the authors' code")
    prefix = "model."
    own = {k.removeprefix(prefix): v for k, v in state.items() if isinstance(k, str) and k.startswith(prefix)}
    if wrong := [key for key, value in own.items() if not is_dense(value)]:
        raise ValueError(f"{path}: {prefix}{wrong[0]} is no dense floating-point tensor; expected weights")
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
    elif not is_integer(num_heads, 1) or width % num_heads:
        raise refusal("num_heads", num_heads, f"a divisor of the width {width}")
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


_ADAPTER_NAMES = {
    "norm": "norm",
    "conv1": "conv_in",
    "conv_pool": "pool",
    "norm2": "mixer.norm",
    "attn_temp.qkv": "mixer.qkv",
    "attn_temp.proj": "mixer.proj",
    "conv_upsample": "unpool",
    "conv2": "conv_out",
}


def _rename_authors(state: Mapping[str, Tensor], config: ChronoConfig) -> dict[str, Tensor]:
    """The authors' names to ours. Keys that are none of theirs are kept, so that loading reports them."""
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if key == "dino.mask_token":  # only DINOv2's own training uses it
            continue
        if first == "dino":
            renamed["vit." + {"register_tokens": "reg_token"}.get(rest, rest)] = value
        elif first == "adapter":
            index, _, name = rest.partition(".")
            layer, _, parameter = name.rpartition(".")
            known = _ADAPTER_NAMES.get(layer)
            renamed[f"adapters.{index}.{known}.{parameter}" if known else f"model.{key}"] = value
        elif first == "occ_linear":
            renamed[f"visibility_head.linear.{rest}"] = value
        else:
            renamed[f"model.{key}"] = value
    table, token = renamed["vit.pos_embed"], renamed.get("vit.cls_token")
    if "vit.reg_token" in renamed and token is not None and token.shape == table[:, :1].shape:
        # With registers, timm keeps no position for the class token: it is added to the token itself.
        renamed["vit.cls_token"] = renamed["vit.cls_token"] + table[:, :1]
        renamed["vit.pos_embed"] = table[:, 1:]
    return renamed


_MODEL_CARD = """---
library_name: chrono-features
tags: [point-tracking, video, feature-extraction]
---
Dense video features that know about time, for the Python library chrono-features. Install it from a clone of its
repository; the package called `chrono-features` on PyPI is another project:

    pip install .

    from chrono_features import ChronoBackbone
    model = ChronoBackbone.from_pretrained("this folder or repository")
"""
