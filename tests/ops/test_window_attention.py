import pytest
import torch
import torch.nn.functional as F

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


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the queries and keys of every call of the attention that PyTorch provides."""
    seen = []
    attend = F.scaled_dot_product_attention

    def watch(q, k, *rest, **options):
        seen.append((q.shape, k.shape))
        return attend(q, k, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    return seen


@pytest.mark.parametrize("largest", [2, 3, 6, 13, 14, 100])
@pytest.mark.parametrize("frames", [9, 140])
def test_large_batches_are_split(monkeypatch, calls, largest, frames):
    q, k, v = draw(7, 2, frames, 4)
    monkeypatch.setattr(module, "MAX_BATCH", largest)
    torch.testing.assert_close(window_attention(q, k, v, (2, 2)), naive(q, k, v, (2, 2)), rtol=0, atol=1e-12)
    batches = [q[0] if frames > 128 else q[0] * q[1] for q, _ in calls]  # long clips: blocks in place of heads
    assert sum(batches) == 14 and max(batches) <= largest


@pytest.mark.parametrize("window", [(6, 6), (300, 0)])
def test_long_clips_take_blocks(calls, window):
    """A query is compared with a block and the window around it, so time and memory grow linearly."""
    window_attention(*draw(1, 1, 1000, 2), window)
    ((_, keys),) = calls
    block = max(module.BLOCK_FRAMES, sum(window))
    assert keys[-2] == block + sum(window) and keys[1] == -(-1000 // block)


@pytest.mark.slow
def test_compiled_once_for_all_long_clips():
    torch._dynamo.reset()
    compiled, graphs = None, []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda q, k, v: window_attention(q, k, v, (6, 6)), backend=count, fullgraph=True)
    for frames in (150, 200, 333, 500):
        q, k, v = draw(1, 2, frames, 4)
        torch.testing.assert_close(compiled(q, k, v), naive(q, k, v, (6, 6)), rtol=0, atol=1e-12)
    assert len(graphs) == 2  # one for the first length, one for all others


def test_gradients_equal_the_definition():
    tensors = [t.requires_grad_() for t in draw(1, 2, 150, 3)]
    weight = torch.randn(1, 2, 150, 3, dtype=torch.float64)
    ours = torch.autograd.grad((window_attention(*tensors, (6, 6)) * weight).sum(), tensors)
    expected = torch.autograd.grad((naive(*tensors, (6, 6)) * weight).sum(), tensors)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
