"""The time mixer as one kernel: LayerNorm, projections, window attention and residual, with no intermediate in memory.

Rows of x are taken clip after clip, the T frames of one position next to each other, as one long sequence. The frames
that a row sees are then an interval of rows around it, cut off at the ends of its own clip. So neither T nor the number
of positions nor the window is padded, and short clips share a tile.

Imported upon first use, never with the package. With TRITON_INTERPRET=1 set before the import, the kernel runs on the
CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIZES = ("total", "span", "frames", "positions", "before", "after")


@triton.jit
def _row_offsets(
    first,  # () int64
    relative,  # (R,) int32
    frames,
    positions,
):
    """Where in x, counted in rows of channels, the rows first + relative of the long sequence lie."""
    # Sizes may need 64 bits, but divisions in 64 bits are slow: they are made once for `first`, not row by row.
    frame = (first % frames).to(tl.int32) + relative  # from the start of the clip that `first` lies in
    position = (first // frames % positions).to(tl.int32) + frame // frames
    batch = first // frames // positions + position // positions
    return (batch * frames + frame % frames) * positions + position % positions


@triton.jit
def _normalised_rows(
    x,  # (B, T, P, C)
    offsets,  # (R, BLOCK_C)
    inside,  # (R, BLOCK_C) bool
    weight,  # (C,)
    bias,  # (C,)
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EPS: tl.constexpr,
):
    """LayerNorm in float32, rounded to the type of x as the twin does; zero beyond the channels."""
    channel = tl.arange(0, BLOCK_C)
    real = channel < CHANNELS
    y = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(real[None, :], y - tl.sum(y, axis=1)[:, None] / CHANNELS, 0.0)
    y *= tl.rsqrt(tl.sum(y * y, axis=1) / CHANNELS + EPS)[:, None]
    gamma = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    beta = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    return (y * gamma[None, :] + beta[None, :]).to(x.dtype.element_ty)


@triton.jit
def _project(
    y,  # (R, K)
    weight,  # (K, N) pointers
    real,  # (K, N) bool, or what broadcasts to it
):
    # Weights of another type are rounded here: a cast beforehand would be one more kernel for each.
    return tl.dot(y, tl.load(weight, mask=real, other=0.0).to(y.dtype), input_precision="ieee")


@triton.jit
def _attend(
    x,  # (B, T, P, C)
    y,  # (R, BLOCK_C) normalised rows of the queries
    norm_weight,  # (C,)
    norm_bias,  # (C,)
    weight,  # (BLOCK_C, HEAD_SIZE) pointers to the query weights of the head; those of keys and values follow
    first,  # () int64
    lowest,  # (R,)
    highest,  # (R,)
    key_start,
    key_stop,
    frames,
    positions,
    HEAD_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE_CLIPS: tl.constexpr,
    EPS: tl.constexpr,
):
    """Attention of one head, (R, HEAD_SIZE): row r sees rows lowest[r] … highest[r]."""
    SCALE: tl.constexpr = 1.4426950408889634 / HEAD_SIZE**0.5  # log2(e), for exp2
    dtype = x.dtype.element_ty
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_C)
    real = channel < CHANNELS
    q = _project(y, weight, real[:, None]).to(dtype)

    # Online softmax. A block may hold no key that a row sees; the mask is finite so that this is not NaN. What such
    # a block adds vanishes, multiplied by exp2(-1e30), once a key is seen, and every row sees itself.
    maximum = tl.full((ROWS,), -1e30, tl.float32)
    denominator = tl.full((ROWS,), 0.0, tl.float32)
    mixed = tl.full((ROWS, HEAD_SIZE), 0.0, tl.float32)
    for start in range(key_start, key_stop, ROWS):
        key = start + row
        if WHOLE_CLIPS:  # then this is the only block, and its keys are the queries' rows
            z = y
        else:
            key_inside = (key < key_stop)[:, None] & real[None, :]
            key_offsets = _row_offsets(first, key, frames, positions)[:, None] * CHANNELS + channel[None, :]
            z = _normalised_rows(x, key_offsets, key_inside, norm_weight, norm_bias, CHANNELS, BLOCK_C, EPS)
        # Loaded here rather than before the loop: both at once take too much shared memory in float32.
        k = _project(z, weight + CHANNELS * CHANNELS, real[:, None]).to(dtype)
        v = _project(z, weight + 2 * CHANNELS * CHANNELS, real[:, None]).to(dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
        seen = (lowest[:, None] <= key[None, :]) & (key[None, :] <= highest[:, None])
        scores = tl.where(seen, scores, -1e30)
        raised = tl.maximum(maximum, tl.max(scores, axis=1))
        probability = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(maximum - raised)
        denominator = denominator * shrink + tl.sum(probability, axis=1)
        mixed = mixed * shrink[:, None] + tl.dot(probability.to(dtype), v, input_precision="ieee")
        maximum = raised
    return (mixed / denominator[:, None]).to(dtype)


@triton.jit(do_not_specialize=_SIZES)  # a clip of another length is not compiled again
def _temporal_attention(
    x,  # (B, T, P, C)
    norm_weight,  # (C,)
    norm_bias,  # (C,)
    qkv_weight,  # (3 C, C)
    proj_weight,  # (C, C)
    proj_bias,  # (C,)
    out,  # (B, T, P, C)
    total,
    span,
    frames,
    positions,
    before,
    after,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE_CLIPS: tl.constexpr,
    EPS: tl.constexpr,
):
    CHANNELS: tl.constexpr = HEADS * HEAD_SIZE
    dtype = x.dtype.element_ty

    # The queries of a program are `count` rows of the long sequence, from row `first` on. All other row numbers are
    # relative to `first`. Row r sees rows lowest[r] … highest[r].
    first = tl.program_id(0).to(tl.int64) * span
    count = tl.minimum(total - first, span).to(tl.int32)
    row = tl.arange(0, ROWS)
    first_frame = (first % frames).to(tl.int32)
    frame = (first_frame + row) % frames
    lowest = row - tl.minimum(before, frame)
    highest = row + tl.minimum(after, frames - 1 - frame)
    key_start = -tl.minimum(before, first_frame)
    key_stop = count + tl.minimum(after, frames - 1 - (first_frame + count - 1) % frames)

    channel = tl.arange(0, BLOCK_C)
    column = tl.arange(0, HEAD_SIZE)
    real = channel < CHANNELS
    inside = (row < count)[:, None] & real[None, :]
    offsets = _row_offsets(first, row, frames, positions)[:, None] * CHANNELS + channel[None, :]
    y = _normalised_rows(x, offsets, inside, norm_weight, norm_bias, CHANNELS, BLOCK_C, EPS)

    update = tl.full((ROWS, BLOCK_C), 0.0, tl.float32)
    for head in range(HEADS):
        head_column = head * HEAD_SIZE + column
        weight = qkv_weight + head_column[None, :] * CHANNELS + channel[:, None]  # transposed
        mixed = _attend(
            x, y, norm_weight, norm_bias, weight,
            first, lowest, highest, key_start, key_stop, frames, positions,
            HEAD_SIZE, CHANNELS, BLOCK_C, ROWS, WHOLE_CLIPS, EPS,
        )  # fmt: skip
        update += _project(mixed, proj_weight + channel[None, :] * CHANNELS + head_column[:, None], real[None, :])

    # x is read again: kept from the beginning, it would hold registers through all heads.
    update += tl.load(proj_bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    update += tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, update.to(dtype), mask=inside)


INTERPRETED = not isinstance(_temporal_attention, triton.runtime.JITFunction)


def fused_temporal_attention(
    x: Tensor,  # (B, T, P, C)
    norm_weight: Tensor,  # (C,)
    norm_bias: Tensor,  # (C,)
    qkv_weight: Tensor,  # (3 C, C)
    proj_weight: Tensor,  # (C, C)
    proj_bias: Tensor,  # (C,)
    heads: int,
    window: tuple[int, int],
    eps: float,
) -> Tensor:
    """Returns what the plain twin returns, contiguous, without gradients."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    batch, frames, positions, channels = x.shape
    total = batch * frames * positions
    block = triton.next_power_of_2(channels)
    rows, warps = _tile(x.dtype, block, frames)
    span = rows // frames * frames or rows  # as many whole clips as a tile holds, or a piece of one
    parameters = [p.contiguous() for p in (norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias)]
    with torch.cuda.device_of(x):  # Triton launches on the current device, which need not be that of x
        _temporal_attention[(triton.cdiv(total, span),)](
            x,
            *parameters,
            out,
            total,
            span,
            frames,
            positions,
            *window,
            HEADS=heads,
            HEAD_SIZE=channels // heads,
            BLOCK_C=block,
            ROWS=rows,
            WHOLE_CLIPS=frames <= rows,
            EPS=eps,
            num_warps=warps,
            num_stages=1,  # loops are short: loads ahead would only take registers
        )
    return out


def _tile(dtype: torch.dtype, block: int, frames: int) -> tuple[int, int]:
    """Rows of x and warps of a program, from what the compiler reports for capabilities 8.0 and 9.0; not timed.

    A program keeps normalised rows and the sum over heads, rows x channels each. In half precision 64 rows, which
    Hopper's matrix units ask for, of 128 channels are what registers hold: with 4 warps, so that two programs share a
    multiprocessor, if clips are whole (96 bytes a thread spill on 8.0, none on 9.0), and with 8 if rows around them
    are normalised too. Float32 goes through no matrix unit; tiles of more than 2,048 numbers spill kilobytes.
    """
    if dtype == torch.float32:
        return min(64, 2048 // block), 8
    return 64, 4 if frames <= 64 or block < 128 else 8
