"""From a checkpoint to a model: sizes are compared before any memory is taken."""

from __future__ import annotations

from typing import TypeVar

import torch

from .checkpoints import Checkpoint
from .config import ChronoConfig
from .network import ChronoNetwork
from .vit import create_vit
from .weights import UnwrittenWeights, checked_state

Model = TypeVar("Model", bound=ChronoNetwork)


def build(model_class: type[Model], checkpoint: Checkpoint) -> Model:
    """Builds a model with the weights of a checkpoint.

    Raises:
        ValueError: No model can be built, or the weights do not fit; the message names the keys.
        OSError: The ViT's weights are left to timm, which cannot fetch them.
    """
    config, state, source, vit_from_timm = checkpoint
    if state is None:
        return _with_timm_weights(model_class, config)
    plan = _on_meta(model_class, config, source)
    if vit_from_timm:
        expected = {key: value for key, value in plan.state_dict().items() if not key.startswith("vit.")}
        state = checked_state(expected, state, source)
        _check_vit_size(plan, source)
        model = _with_timm_weights(model_class, config)
        model.load_state_dict(state, strict=False)  # what else it has is the ViT
        return model
    state = checked_state(plan.state_dict(), state, source)
    plan.load_state_dict(state, assign=True)
    if not any(tensor.is_meta for tensor in plan.buffers()):
        return plan
    model = model_class(config)  # rotary tables are computed, not stored
    model.load_state_dict(state)
    return model


def _on_meta(model_class: type[Model], config: ChronoConfig, source: str) -> Model:
    """A model without memory, which has names, shapes and types."""
    try:
        with torch.device("meta"), UnwrittenWeights():
            return model_class(config)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # sizes that no tensor can have
        raise ValueError(f"{source}: no model can have this configuration ({error})") from error


def _with_timm_weights(model_class: type[Model], config: ChronoConfig) -> Model:
    try:
        return model_class(config, pretrained_vit=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {config.vit} are missing: model.safetensors of the hub repository timm/{config.vit} "
            f"could not be fetched ({type(error).__name__}). Download it where there is a network "
            f"(hf download timm/{config.vit}) and copy the Hugging Face cache, or name the file: "
            "vit_kwargs={'pretrained_cfg_overlay': {'file': 'path/to/model.safetensors'}}"
        ) from error


def _check_vit_size(plan: ChronoNetwork, source: str) -> None:
    """ValueError where a file's vit_kwargs would make timm's ViT much larger than it is."""
    config = plan.config
    with torch.device("meta"):
        usual = create_vit(config.vit, {}, pretrained=False)
    size, usual_size = (sum(p.numel() for p in vit.parameters()) for vit in (plan.vit, usual))
    if size > 2 * usual_size:  # a table of positions may be larger
        raise ValueError(f"{source}: vit_kwargs make {config.vit} of {size} parameters; expected about {usual_size}")
