import pytest
import torch

from chrono_features.ops import window_attention as module
from chrono_features.ops.window_attention import window_attention


def naive(q, k, v, window):
    """The definition, frame by frame."""
    out = torch.empty_like(v)
    for t in range(q.shape[-2]):
        seen = slice(max(t - window[0], 0), t + window[1] + 1)
        scores = q[..., t : t + 1, :] @ k[..., seen, :].transpose(-1, -2) / q.shape[-1] ** 0.5
        out[..., t : t + 1, :] = scores.softmax(-1) @ v[..., seen, :]
    return out


def draw(batch, heads, frames, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(3, batch, heads, frames, width, generator=generator, dtype=dtype).unbind()


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 13, 14, 63, 64, 127, 128, 129, 192, 193, 333])
@pytest.mark.parametrize("window", [(6, 6), (0, 0), (3, 0), (0, 2), (100, 70)])
def test_equals_the_definition_for_any_length(frames, window):
    q, k, v = draw(2, 2, frames, 4)
    torch.testing.assert_close(window_attention(q, k, v, window), naive(q, k, v, window), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 2, 5, 1000])
def test_block_length_changes_nothing(monkeypatch, block):
    q, k, v = draw(1, 2, 40, 4)
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    torch.testing.assert_close(window_attention(q, k, v, (6, 3)), naive(q, k, v, (6, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("largest", [1, 3, 4, 6, 7, 8])
def test_large_batches_are_split(monkeypatch, largest):
    q, k, v = draw(7, 1, 9, 4)
    expected = naive(q, k, v, (2, 2))
    batches = []
    attend = module._attend
    monkeypatch.setattr(module, "_attend", lambda q, *rest: batches.append(len(q)) or attend(q, *rest))
    monkeypatch.setattr(module, "MAX_BATCH", largest)
    torch.testing.assert_close(window_attention(q, k, v, (2, 2)), expected, rtol=0, atol=1e-12)
    assert sum(batches) == 7 and max(batches) <= largest


def test_long_clips_take_blocks(monkeypatch):
    """No call sees more than a block and the window around it, so memory grows linearly."""
    seen = []
    attend = module._attend
    monkeypatch.setattr(module, "_attend", lambda q, k, *rest: seen.append((q, k)) or attend(q, k, *rest))
    window_attention(*draw(1, 1, 333, 2), (6, 6))
    assert max(q.shape[-2] for q, _ in seen) <= module.BLOCK_FRAMES
    assert max(k.shape[-2] for _, k in seen) <= module.BLOCK_FRAMES + 12


def test_gradients_equal_the_definition():
    tensors = [t.requires_grad_() for t in draw(1, 2, 150, 3)]
    weight = torch.randn(1, 2, 150, 3, dtype=torch.float64)
    ours = torch.autograd.grad((window_attention(*tensors, (6, 6)) * weight).sum(), tensors)
    expected = torch.autograd.grad((naive(*tensors, (6, 6)) * weight).sum(), tensors)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
