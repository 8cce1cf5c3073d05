"""Attention over time in a window that is cut off at the ends of the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_FRAMES = 64  # queries per call on long clips; a call sees the block and the window around it
MAX_BATCH = 65_535  # heads included: scaled_dot_product_attention fails on CUDA beyond (pytorch#146704)


def window_attention(
    q: Tensor,  # (N, heads, T, d)
    k: Tensor,  # (N, heads, T, d)
    v: Tensor,  # (N, heads, T, d)
    window: tuple[int, int],
) -> Tensor:
    """Each frame t attends to frames t - before … t + after that exist.

    Exact for any T. Long clips run in blocks of frames, so time and memory grow linearly with T.

    Args:
        q, k, v: Queries, keys and values; scores are scaled by 1 / sqrt(d).
        window: Frames (before, after).

    Returns:
        (N, heads, T, d).
    """
    if q.shape[0] > MAX_BATCH // q.shape[1]:
        step = MAX_BATCH // q.shape[1]
        parts = zip(q.split(step), k.split(step), v.split(step), strict=True)
        return torch.cat([window_attention(*part, window) for part in parts])
    frames, device = q.shape[-2], q.device
    if frames <= 2 * BLOCK_FRAMES:
        time = torch.arange(frames, device=device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_seen(time[:, None], time, window))

    # Blocks of queries, each with the keys around it, take the place of heads: no loop, whatever the length.
    before, after = (min(side, frames) for side in window)
    block = max(BLOCK_FRAMES, before + after)  # so that keys are held no more than twice
    blocks = (frames + block - 1) // block
    margin = blocks * block - frames
    queries = F.pad(q, (0, 0, 0, margin)).unflatten(-2, (blocks, block))
    keys, values = (
        F.pad(x, (0, 0, before, after + margin)).unfold(-2, before + block + after, block).transpose(-2, -1)
        for x in (k, v)
    )
    start = torch.arange(blocks, device=device)[None, :, None, None] * block
    q_frame = start + torch.arange(block, device=device)[:, None]
    k_frame = start + torch.arange(-before, block + after, device=device)
    seen = _seen(q_frame, k_frame, window) & (k_frame >= 0) & (k_frame < frames)
    seen |= q_frame >= frames  # what is added at the end is cut off again, but its gradients have to be finite
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
    return out.flatten(1, 2)[:, :frames].unflatten(0, q.shape[:2])


def _seen(q_frame: Tensor, k_frame: Tensor, window: tuple[int, int]) -> Tensor:
    return (k_frame >= q_frame - window[0]) & (k_frame <= q_frame + window[1])
