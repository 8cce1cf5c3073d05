"""The time mixer of an adapter: pre-norm attention over time at every position, with its residual.

The plain twin runs everywhere and defines the result. The kernel is one Triton launch in its place; its backward pass
computes the twin again. `choose_backend` decides which of them runs, and says why.
"""

# Without postponed annotations: PyTorch 2.4 infers the schema of a custom operator from types, not from their names.

import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import check_choice
from .window_attention import window_attention

BACKENDS = ("auto", "torch", "triton")
BACKEND_VARIABLE = "CHRONO_FEATURES_BACKEND"

# (CUDA compute capability, type) -> the largest number of rows (B * T * P) at which the kernel was measured to be
# faster without gradients. With them it was not measured: the backward pass computes the twin again.
MEASURED_WINS: dict[tuple[tuple[int, int], torch.dtype], int] = {((9, 0), torch.bfloat16): 25_600}

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_HEAD_SIZES = (16, 32, 64)
KERNEL_CHANNELS = 128  # with more, tiles do not fit the 99 KB of shared memory that every GPU since Ampere has
EPS = 1e-5


@torch.compiler.assume_constant_result  # torch.compile cannot follow a question to the driver
def compute_capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) where there is none. ROCm counts in the same numbers, and is none."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0, 0
    return torch.cuda.get_device_capability(device)


def temporal_attention(
    x: Tensor,  # (B, T, P, C)
    norm_weight: Tensor,  # (C,)
    norm_bias: Tensor,  # (C,)
    qkv_weight: Tensor,  # (3 C, C), rows are (3, heads, C / heads)
    proj_weight: Tensor,  # (C, C)
    proj_bias: Tensor,  # (C,)
    heads: int,
    window: tuple[int, int],
    backend: str = "auto",
) -> Tensor:
    """x + proj(attention(qkv(LayerNorm(x)))), where each frame of a position sees that position's frames around it.

    Parameters may have another type than x: the projections run in the type of x, the norm in the wider of the two.

    Args:
        x: Tokens at P positions.
        norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias: Parameters.
        heads: Attention heads.
        window: Frames (before, after) that a frame sees, where they exist.
        backend: "auto", "torch" or "triton"; see `choose_backend`.

    Returns:
        (B, T, P, C).

    Raises:
        ValueError: The backend is unknown, or was asked for by name and cannot run.
    """
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    parameters = (norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias)
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    name, _ = choose_backend(backend, x.device, x.dtype, x.shape[3], heads, rows, gradients)
    if name == "torch":
        return plain_temporal_attention(x, *parameters, heads, window)
    return _kernel_op(x, *parameters, heads, *window)


def plain_temporal_attention(
    x: Tensor,  # (B, T, P, C)
    norm_weight: Tensor,  # (C,)
    norm_bias: Tensor,  # (C,)
    qkv_weight: Tensor,  # (3 C, C)
    proj_weight: Tensor,  # (C, C)
    proj_bias: Tensor,  # (C,)
    heads: int,
    window: tuple[int, int],
) -> Tensor:
    """`temporal_attention` in plain PyTorch."""
    batch, _, positions, channels = x.shape
    wide = torch.promote_types(x.dtype, norm_weight.dtype)
    y = F.layer_norm(x.to(wide), (channels,), norm_weight.to(wide), norm_bias.to(wide), EPS).to(x.dtype)
    qkv = F.linear(y, qkv_weight.to(x.dtype)).unflatten(-1, (3, heads, channels // heads))
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (B * P, heads, T, d) each
    y = window_attention(q, k, v, window)
    y = y.transpose(1, 2).flatten(2).unflatten(0, (batch, positions)).transpose(1, 2)
    return x + F.linear(y, proj_weight.to(x.dtype), proj_bias.to(x.dtype))


def check_backend(backend: str, asker: str = "backend") -> None:
    """ValueError, naming who asked, unless there is such a backend."""
    check_choice(asker, backend, BACKENDS)


def choose_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    heads: int,
    rows: int | None = None,
    gradients: bool = False,
) -> tuple[str, str]:
    """Which backend runs, "torch" or "triton", and why.

    "auto" takes the kernel only where it was measured to be faster. The environment variable CHRONO_FEATURES_BACKEND
    goes before the argument; a compiled model keeps the value that it was compiled with.

    Args:
        backend: "auto", "torch" or "triton".
        device, dtype, channels: Of the tokens.
        heads: Attention heads.
        rows: B * T * P; None stands for as many as the kernel is good for.
        gradients: Whether a backward pass may follow.

    Raises:
        ValueError: The backend is unknown, or is "triton" and cannot run; the message says why.
    """
    override = _environment()
    asker = BACKEND_VARIABLE if override else "backend"
    backend = override or backend
    check_backend(backend, asker)
    if backend == "auto":
        return _faster_backend(device, dtype, channels, heads, rows, gradients)
    if backend == "triton" and (obstacle := _obstacle(device, dtype, channels, heads)):
        raise ValueError(f"{asker}={backend!r} cannot run: {obstacle}")
    return backend, f"{asker}={backend!r}"


def _faster_backend(
    device: torch.device, dtype: torch.dtype, channels: int, heads: int, rows: int | None, gradients: bool
) -> tuple[str, str]:
    limit = MEASURED_WINS.get((compute_capability(device), dtype))
    if limit is None:
        return "torch", f"the kernel was not measured to be faster on this {device.type} device in {str(dtype)[6:]}"
    if gradients:
        return "torch", "the kernel was not measured to be faster with gradients"
    if obstacle := _obstacle(device, dtype, channels, heads):
        return "torch", obstacle
    if rows is not None and rows > limit:
        return "torch", f"the kernel was measured to be faster up to {limit} rows, and there are more"
    return "triton", f"measured to be faster on this kind of GPU, up to {limit} rows"


def _obstacle(device: torch.device, dtype: torch.dtype, channels: int, heads: int) -> str | None:
    """Why the kernel cannot run, or None if it can."""
    if dtype not in KERNEL_DTYPES:
        return f"the kernel is for float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if channels not in [heads * size for size in KERNEL_HEAD_SIZES]:
        return f"the kernel is for 16, 32 or 64 channels a head, not {channels / heads:g}"
    if channels > KERNEL_CHANNELS:
        return f"the kernel is for up to {KERNEL_CHANNELS} channels, not {channels}"
    return _obstacle_here(device, dtype)


# What torch.compile takes as constants: it cannot trace an import, or a question to the driver.


@torch.compiler.assume_constant_result
def _obstacle_here(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with PyTorch's builds for CUDA"
    from .temporal_attention_triton import INTERPRETED

    if INTERPRETED:  # on any device
        return "Triton's interpreter gets bfloat16 wrong" if dtype == torch.bfloat16 else None
    return None if device.type == "cuda" else f"the kernel needs a GPU, and the tokens are on {device.type}"


@torch.compiler.assume_constant_result
def _environment() -> str | None:
    return os.environ.get(BACKEND_VARIABLE)


@torch.library.custom_op("chrono_features::temporal_attention", mutates_args=())
def _kernel_op(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    before: int,
    after: int,
) -> Tensor:
    tensors = (x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias)
    if _obstacle(x.device, x.dtype, x.shape[3], heads):  # an exported program may be run where the kernel cannot
        with torch.autocast(x.device.type, enabled=False):
            return plain_temporal_attention(*tensors, heads, (before, after)).contiguous()
    from .temporal_attention_triton import fused_temporal_attention

    return fused_temporal_attention(*tensors, heads, (before, after), EPS)


@_kernel_op.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, heads, before, after = inputs
    ctx.settings = (heads, (before, after))
    ctx.save_for_backward(*tensors)


@once_differentiable
def _backward(
    ctx: Any,
    grad: Tensor,  # (B, T, P, C)
) -> tuple[Tensor | None, ...]:
    pairs = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)  # needs_input_grad goes on: heads, before, after
    tensors = [tensor.detach().requires_grad_(needed) for tensor, needed in pairs]
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):  # in the types that the kernel ran in
        out = plain_temporal_attention(*tensors, *ctx.settings)
        grads = iter(torch.autograd.grad(out, [t for t in tensors if t.requires_grad], grad))
    return (*(next(grads) if t.requires_grad else None for t in tensors), None, None, None)


_kernel_op.register_autograd(_backward, setup_context=_save_inputs)
