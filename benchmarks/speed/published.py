"""The straightforward forms that ours are measured against: the adapter and the matching as published.

Written from the method's description (Chrono, arXiv 2501.12218), with the memory layouts that it suggests: tokens
permuted to images and back, PyTorch's group norm over the clip, separate activations, and the whole similarity volume.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chrono_features import ChronoBackbone
from chrono_features.adapter import TemporalAdapter


class PublishedAdapter(nn.Module):
    """`TemporalAdapter` as published, with the same weights."""

    def __init__(self, adapter: TemporalAdapter) -> None:
        super().__init__()
        dim = adapter.norm.weight.shape[0]
        self.norm = nn.GroupNorm(1, dim, eps=1e-5)
        self.norm.load_state_dict(adapter.norm.state_dict())
        for name in ("conv_in", "pool", "unpool", "conv_out"):
            conv = copy.deepcopy(getattr(adapter, name))
            self.add_module(name, conv.to(memory_format=torch.contiguous_format))
        self.norm2, self.qkv, self.proj = (copy.deepcopy(getattr(adapter.mixer, n)) for n in ("norm", "qkv", "proj"))
        self.heads, self.window = adapter.mixer.heads, adapter.mixer.window

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C)
    ) -> Tensor:
        batch, frames, height, width, channels = x.shape
        y = x.permute(0, 4, 1, 2, 3).contiguous()
        y = F.group_norm(y.float(), 1, self.norm.weight.float(), self.norm.bias.float(), self.norm.eps).to(x.dtype)
        y = y.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
        y = F.relu(self.pool(F.relu(self.conv_in(y))))
        coarse = y.shape[-2:]
        y = y.unflatten(0, (batch, frames)).permute(0, 3, 4, 1, 2).reshape(-1, frames, y.shape[1])
        y = y + self._attention(self.norm2(y))
        y = y.view(batch, *coarse, frames, -1).permute(0, 3, 4, 1, 2).flatten(0, 1).contiguous()
        y = self.conv_out(F.relu(self.unpool(y)))
        return x + y.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2).contiguous()

    def _attention(self, x: Tensor) -> Tensor:  # (N, T, C)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        time = torch.arange(x.shape[1], device=x.device)
        apart = time - time[:, None]
        hidden = (apart < -self.window[0]) | (apart > self.window[1])
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        y = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


def published_network(model: ChronoBackbone) -> ChronoBackbone:
    """A copy of the model with published adapters."""
    network = copy.deepcopy(model)
    for name, adapter in model.adapters.items():
        network.adapters[name] = PublishedAdapter(adapter)
    return network.to(model.device, model.dtype)


def literal_track(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3) (t, x, y)
    image_size: tuple[int, int],
    temperature: float = 20.0,
    radius: float = 5.0,
) -> Tensor:
    """Soft-argmax by the formula: the volume, a softmax over all cells, the disc around the maximum, (B, N, T, 2)."""
    batch, frames, _, rows, columns = features.shape
    height, width = image_size
    scale = queries.new_tensor([2 / width, 2 / height])
    wanted = features.new_empty(batch, queries.shape[1], features.shape[2])
    for b, t in torch.cartesian_prod(torch.arange(batch), torch.arange(frames)).tolist():
        chosen = queries[b, :, 0] == t
        at = (queries[b, chosen, 1:] * scale - 1)[None, :, None]
        frame = features[b, t][None].to(at.dtype)
        sampled = F.grid_sample(frame, at, align_corners=False, padding_mode="border")[0, :, :, 0]
        wanted[b, chosen] = sampled.T.to(wanted.dtype)
    volume = torch.einsum("bnc,btchw->bnthw", wanted, features)
    probability = F.softmax(volume.flatten(3) * temperature, dim=-1).view_as(volume)
    best = volume.flatten(3).argmax(dim=-1)
    y = torch.arange(rows, device=features.device)[:, None] + 0.5
    x = torch.arange(columns, device=features.device) + 0.5
    best_x, best_y = best % columns + 0.5, best // columns + 0.5
    apart = (x - best_x[..., None, None]) ** 2 + (y - best_y[..., None, None]) ** 2
    masked = probability * (apart < radius**2)
    total = masked.sum(dim=(-2, -1)).clamp(min=1e-12)
    found = torch.stack([(masked * x).sum(dim=(-2, -1)) / total, (masked * y).sum(dim=(-2, -1)) / total], dim=-1)
    found = found * found.new_tensor([width / columns, height / rows])
    own = torch.arange(frames, device=features.device) == queries[..., :1]
    return torch.where(own[..., None], queries[:, :, None, 1:].to(found), found)
