"""Attention over time in a window that is cut off at the ends of the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_FRAMES = 64  # queries per call on long clips; a call sees the block and the window around it
MAX_BATCH = 65_535  # scaled_dot_product_attention fails on CUDA for larger batches (pytorch#146704)


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
    frames = q.shape[-2]
    if q.shape[0] > MAX_BATCH:
        parts = zip(q.split(MAX_BATCH), k.split(MAX_BATCH), v.split(MAX_BATCH), strict=True)
        return torch.cat([window_attention(*part, window) for part in parts])
    if frames <= 2 * BLOCK_FRAMES:
        return _attend(q, k, v, 0, 0, window)
    before, after = window
    out = []
    for start in range(0, frames, BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, frames)
        first, last = max(start - before, 0), min(stop + after, frames)
        keys, values = k[..., first:last, :], v[..., first:last, :]
        out.append(_attend(q[..., start:stop, :], keys, values, start, first, window))
    return torch.cat(out, dim=-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, q_start: int, k_start: int, window: tuple[int, int]) -> Tensor:
    """Banded attention between frames q_start … and frames k_start …"""
    q_frame = torch.arange(q_start, q_start + q.shape[-2], device=q.device)[:, None]
    k_frame = torch.arange(k_start, k_start + k.shape[-2], device=q.device)[None, :]
    band = (k_frame >= q_frame - window[0]) & (k_frame <= q_frame + window[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band)
