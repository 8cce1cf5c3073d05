"""A model's folder, config.json and model.safetensors, read as what a stranger may have written.

The configuration stands in the header of model.safetensors too. Both it and the weights are taken from that one file,
so that a model that is saved meanwhile is read as it was before or as it is now, never as a mixture.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .backbone import ChronoBackbone
from .config import ChronoConfig, distinct
from .files import STAGING, open_regular

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
ADAPTERS_ONLY = "adapters"  # value of the metadata key "contents"
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # that safetensors allows
INITIALISING = frozenset({"add_", "clamp_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})
MAX_NESTING = 100
NESTING = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ"})  # what can be hashed
# Constructors that PyTorch allows, of any size: their memory is not in the file, nor set to anything.
ALLOCATING = re.compile(r"(__builtin__|builtins) bytearray|torch \w*Tensor|torch(\.storage)? UntypedStorage")
WEIGHT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TYPES = "float64, float32, float16 or bfloat16"


class Checkpoint(NamedTuple):
    """What a folder holds."""

    config: ChronoConfig
    state: dict[str, Tensor]
    adapters_only: bool


def read_checkpoint(folder: Path) -> Checkpoint:
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
        raise ValueError(f"{folder / WEIGHTS_FILE} is not a whole safetensors file: {error}") from error
    config = read_config(folder / CONFIG_FILE)
    if "config" in about:  # since version 0.5
        own = _parsed(about["config"], folder / WEIGHTS_FILE)
        if own != config and not _is_interrupted(folder, own):
            raise ValueError(
                f"{folder / CONFIG_FILE} differs from the configuration in {WEIGHTS_FILE}; expected the same. "
                "Override it in from_pretrained, and save the model to keep that"
            )
        config = own
    return Checkpoint(config, state, about.get("contents") == ADAPTERS_ONLY)


def _check_header(path: Path) -> None:
    """ValueError where a weight is named twice, of which safetensors would take the last."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size <= MAX_HEADER_BYTES:  # else safetensors refuses it
            json.loads(file.read(size), object_pairs_hook=distinct)


def read_config(path: Path) -> ChronoConfig:
    """Reads config.json; ValueError unless it is a configuration."""
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {MAX_CONFIG_BYTES}")
    return _parsed(path.read_bytes(), path)


def build(checkpoint: Checkpoint, source: str) -> ChronoBackbone:
    """The model of a configuration with these weights, whose sizes are compared before any is allocated.

    Raises:
        ValueError: No model can be built, or the weights do not fit; the message names the keys.
    """
    model = on_meta(checkpoint.config, source)
    state = checked_state(model.state_dict(), checkpoint.state, source)
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in model.buffers()):  # rotary tables: they are computed, not stored
        model = ChronoBackbone(checkpoint.config)
        model.load_state_dict(state)
    return model


def on_meta(config: ChronoConfig, source: str) -> ChronoBackbone:
    """A model without memory, which has names, shapes and types; ValueError where the configuration allows none."""
    try:
        with torch.device("meta"), _Unwritten():
            return ChronoBackbone(config)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # sizes that no tensor can have
        raise ValueError(f"{source}: no model can have this configuration ({error})") from error


class _Unwritten(TorchFunctionMode):
    """Skips what initialises tensors: where they have no memory it does nothing, and takes longer than all the rest."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in INITIALISING and args and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))


def checked_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Copies of the weights in the model's types; ValueError unless they are its weights and finite."""
    shared = expected.keys() & state.keys()
    problems = {
        "missing keys": sorted(expected.keys() - state.keys()),
        "unexpected keys": sorted(map(str, state.keys() - expected.keys())),
        "misshapen keys": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in shared and state[key].shape != value.shape
        ],
        "keys that are not dense floating-point tensors": [
            f"{key} {state[key].dtype}" for key in sorted(shared) if not is_dense(state[key])
        ],
    }
    if not any(problems.values()):
        copies = {key: state[key].to(value.dtype, copy=True).contiguous() for key, value in expected.items()}
        problems["keys with NaN or infinite values"] = [key for key, value in copies.items() if not _is_finite(value)]
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {_shorten(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model: {told}")
    return copies


def load_plain(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    Raises:
        ValueError: It is damaged, or holds anything else.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("expected what torch.save writes since PyTorch 1.6")
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
        _check_pickle(torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl"))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no checkpoint, or holds more than tensors and plain values: not loaded") from error
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from error


def _check_pickle(data: bytes) -> None:
    """ValueError where values are nested so deeply that hashing them, as a key, overflows the C stack.

    Nor may the pickle make memory of its own.
    """
    stack: list[int] = []  # of depths in the place of values
    marks: list[int] = []
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and ALLOCATING.fullmatch(argument):
            raise ValueError(f"it wants {argument}, which makes what the file does not hold")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "MARK":
            marks.append(len(stack))
        else:
            taken = opcode.stack_before
            if pickletools.markobject in taken:
                start = marks.pop() - taken.index(pickletools.markobject)
            else:
                start = len(stack) - len(taken)
            deepest = max(stack[start:], default=0) + (opcode.name in NESTING)
            if start < 0 or deepest > MAX_NESTING:
                raise ValueError(f"it is damaged, or nested deeper than {MAX_NESTING}")
            stack[start:] = [deepest] * len(opcode.stack_after)


def _parsed(text: str | bytes, source: Path) -> ChronoConfig:
    try:
        return ChronoConfig.from_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _is_interrupted(folder: Path, config: ChronoConfig) -> bool:
    """Whether the config.json of these weights is still, or since someone was killed, waiting to be renamed."""
    try:
        with open(open_regular(folder / STAGING / CONFIG_FILE, os.O_RDONLY), "rb") as file:
            return ChronoConfig.from_json(file.read(MAX_CONFIG_BYTES)) == config
    except (OSError, ValueError):
        return False


def _identities(folder: Path) -> list[tuple[int, int, int]]:
    """What tells one pair of files from another."""
    files = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return [(file.st_ino, file.st_mtime_ns, file.st_size) for file in files]


def is_dense(value: object) -> bool:
    """Whether it is a tensor that weights can be: dense, floating-point, in memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    if value.is_meta or value.is_nested:
        return False
    return value.dtype in WEIGHT_TYPES


def check_savable(state: Mapping[str, Tensor]) -> None:
    """ValueError unless `checked_state` will take these weights back."""
    for key, value in state.items():
        if not is_dense(value):
            raise ValueError(f"model holds {key} of {value.dtype} on {value.device}; expected dense {_TYPES} in memory")
        if not _is_finite(value):
            raise ValueError(f"model holds NaN or infinity in {key}; expected finite weights")


def _is_finite(value: Tensor) -> bool:
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())  # the sum is faster, but may overflow


def _shorten(keys: Sequence[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")
