"""Names to checkpoints, a configuration and weights; and saving.

A model's folder holds config.json and model.safetensors. The configuration stands in the header of model.safetensors
too, and both it and the weights are taken from that one file, so that a model that is saved meanwhile is read as it was
before or as it is now, never as a mixture. Folders are read as what a stranger may have written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import authors, checks, folders
from .config import WEIGHT_SOURCES, ChronoConfig, distinct
from .files import open_regular
from .weights import check_savable

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
ADAPTERS_ONLY = "adapters"  # value of the metadata key "contents"
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # that safetensors allows
BUNDLED = Path(__file__).parent / "assets" / "chrono-tiny"
DINOV2_VITS = {
    "dinov2-vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-vitb14": "vit_base_patch14_dinov2.lvd142m",
}
NAMES = ("chrono-tiny", *authors.AUTHORS_FILES, *DINOV2_VITS)


class Checkpoint(NamedTuple):
    """What a model is built from."""

    config: ChronoConfig
    state: dict[str, Tensor] | None  # None: nothing but the ViT was trained
    source: str  # where it comes from, for messages
    vit_from_timm: bool = False  # whether timm supplies the ViT's weights


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    num_heads: int | None = None,
    **config_overrides: Any,
) -> Checkpoint:
    """Finds a model by name and reads it.

    Args:
        name: See `ChronoBackbone.from_pretrained`.
        revision, cache_dir, token, force_download, local_files_only: As in huggingface_hub.
        num_heads: Attention heads of the ViT of an authors' `.ckpt`.
        config_overrides: Fields of `ChronoConfig` to change.

    Raises:
        ValueError: Unknown name or config key, or a broken file.
        OSError: Files are missing and cannot be fetched; the message says how to supply them.
    """
    hub: dict[str, Any] = {
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    check_name(name)
    name = os.fspath(name)
    checks.check_flag("force_download", force_download)
    checks.check_flag("local_files_only", local_files_only)
    if name not in NAMES and not checks.is_folder(Path(name)) and Path(name).suffix == ".ckpt":
        found = Checkpoint(*authors.read_authors(name, num_heads), source=name)
    elif num_heads is not None:
        raise checks.refusal("num_heads", num_heads, "None, but for an authors' .ckpt")
    elif name == "chrono-tiny":
        found = read_folder(BUNDLED)
    elif name in authors.AUTHORS_FILES:
        found = read_folder(_fetch_authors(name, **hub))
    elif name in DINOV2_VITS:
        config = ChronoConfig(vit=DINOV2_VITS[name], adapter_blocks="none", pos_embed_resize="dinov2")
        found = Checkpoint(config, None, name, vit_from_timm=True)
    elif checks.is_folder(Path(name)):
        found = read_folder(Path(name))
    else:
        found = read_folder(_fetch_hub(name, revision=revision, token=token, **hub))
    return found._replace(config=found.config.replace(**config_overrides))


def check_name(name: Any) -> None:
    """Raises ValueError, naming the known ones, if `name` cannot be a model's."""
    expected = f"one of {', '.join(NAMES)}, a folder, a .ckpt file, or a hub id user/model"
    path = checks.check_path("name", name, expected)
    name = os.fspath(name)
    hub_id = name.count("/") == 1 and all(name.split("/")) and not name.startswith(".")
    if not (name in NAMES or hub_id or path.suffix == ".ckpt" or checks.is_folder(path)):
        raise checks.refusal("name", name, f"{expected}{checks.suggestion(name, NAMES)}")


def read_folder(folder: Path) -> Checkpoint:
    """Reads a folder that `save_pretrained` wrote.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is broken, holds what it may not, or config.json is not the configuration of the weights.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; expected a folder that save_pretrained wrote")
    while True:  # until nobody saves meanwhile: safetensors opens the file twice, for the header and for the weights
        before = _identities(folder)
        try:
            checkpoint = _read(folder)
        except ValueError:
            if _identities(folder) == before:
                raise
        else:
            if _identities(folder) == before:
                return checkpoint


def _read(folder: Path) -> Checkpoint:
    try:
        _check_header(folder / WEIGHTS_FILE)
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            about = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{folder / WEIGHTS_FILE} is a truncated or corrupt safetensors file: {error}") from error
    path = folder / CONFIG_FILE
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {MAX_CONFIG_BYTES}")
    config = _parsed(path.read_bytes(), path)
    if "config" in about:  # since version 0.5
        own = _parsed(about["config"], folder / WEIGHTS_FILE)
        if own != config and not _is_interrupted(folder, own):
            raise ValueError(
                f"{path} differs from the configuration in {WEIGHTS_FILE}; expected the same. "
                "Override it in from_pretrained, and save the model to keep that"
            )
        config = own
    return Checkpoint(config, state, str(folder), about.get("contents") == ADAPTERS_ONLY)


def _check_header(path: Path) -> None:
    """ValueError where a weight is named twice, of which safetensors would take the last."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size <= MAX_HEADER_BYTES:  # else safetensors refuses it
            json.loads(file.read(size), object_pairs_hook=distinct)


def save(
    config: ChronoConfig,
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    *,
    adapters_only: bool = False,
) -> None:
    """Writes `config.json`, `model.safetensors` and a model card; an old folder survives a failure.

    Args:
        config, state: What to save.
        folder: Where; other files in it are kept.
        adapters_only: Store what was trained and the name of the ViT, whose weights timm then supplies on loading.

    Raises:
        ValueError: `adapters_only` for a model whose ViT was trained, or weights that could not be loaded again.
    """
    folder = checks.check_path("folder", folder)
    if adapters_only and not (config.freeze_vit and config.stem == "patch"):
        raise ValueError("adapters_only=True with a ViT that is trained too; expected freeze_vit=True and stem='patch'")
    if adapters_only and (sources := sorted(WEIGHT_SOURCES & config.vit_kwargs.keys())):
        named = ", ".join(sources)
        raise ValueError(f"adapters_only=True with {named} in vit_kwargs, which no file may name; expected False")
    text = config.to_json()
    metadata = {"format": "pt", "contents": ADAPTERS_ONLY if adapters_only else "all", "config": text}
    state = {k: v.contiguous() for k, v in state.items() if not (adapters_only and k.startswith("vit."))}
    check_savable(state)
    files = [WEIGHTS_FILE, CONFIG_FILE]  # readers find the configuration of new weights even before it is in its place
    if not os.path.lexists(folder / "README.md"):
        files.append("README.md")
    with folders.write_folder(folder, files) as new:
        (new / CONFIG_FILE).write_text(text, encoding="utf-8")
        if "README.md" in files:
            (new / "README.md").write_text(_MODEL_CARD, encoding="utf-8")
        try:
            save_file(state, new / WEIGHTS_FILE, metadata)
        except SafetensorError as error:  # a full disk, too
            raise OSError(f"{folder / WEIGHTS_FILE} could not be written: {error}") from error
        shutil.copymode(new / CONFIG_FILE, new / WEIGHTS_FILE)


def push(
    folder: str | os.PathLike[str],
    repo_id: str | None,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    branch: str | None = None,
    **options: Any,
) -> str:
    """Uploads what `save` wrote, as huggingface_hub does; returns the address of the commit."""
    folder = Path(folder)
    api = HfApi(token=token)
    repo = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
    if branch is not None:
        api.create_branch(repo_id=repo, branch=branch, exist_ok=True)
    files = [CONFIG_FILE, WEIGHTS_FILE, "README.md"]
    return api.upload_folder(repo_id=repo, folder_path=folder, revision=branch, allow_patterns=files, **options)


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
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    force_download: bool,
    local_files_only: bool,
) -> Path:
    """The folder of an authors' model in the Hugging Face cache, converted on first use."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE) / "chrono-features"
    folder = cache / name
    if _is_complete(folder) and not force_download:
        return folder
    otherwise = authors.by_hand(name, folder)
    cache.mkdir(parents=True, exist_ok=True)
    if local_files_only or constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{otherwise} (not fetched: offline mode)")
    with WeakFileLock(cache / f"{name}.lock"):
        if _is_complete(folder) and not force_download:
            return folder  # another process was faster
        temporary = cache / f"{name}.download"  # under the lock: what is in it a killed process has left
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            target = temporary / f"{name}.ckpt"
            authors.download(name, target, otherwise)
            save(*authors.read_authors(target), folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether both files are there: a process may have been killed between the two."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def _parsed(text: str | bytes, source: Path) -> ChronoConfig:
    try:
        return ChronoConfig.from_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _is_interrupted(folder: Path, config: ChronoConfig) -> bool:
    """Whether the config.json of these weights is still, or since someone was killed, waiting to be renamed."""
    try:
        with open(open_regular(folder / folders.STAGING / CONFIG_FILE, os.O_RDONLY), "rb") as file:
            return ChronoConfig.from_json(file.read(MAX_CONFIG_BYTES)) == config
    except (OSError, ValueError):
        return False


def _identities(folder: Path) -> list[tuple[int, int, int]]:
    """What tells one pair of files from another."""
    found = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in found]


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
