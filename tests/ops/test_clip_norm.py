import pytest
import torch
import torch.nn.functional as F

from chrono_features.ops.clip_norm import clip_moments, frame_moments, normed_conv2d

SHAPES = [(1, 1, 8, 8), (2, 3, 5, 7), (3, 2, 1, 1), (1, 4, 1, 6), (2, 2, 2, 1), (1, 2, 2, 2), (1, 2, 3, 3)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(channels=6, out=4, dtype=torch.float64):
    """gamma, beta, weight, bias."""
    sizes = ((channels,), (channels,), (out, channels, 3, 3), (out,))
    return tuple(draw(*size, seed=i, dtype=dtype).requires_grad_() for i, size in enumerate(sizes))


def naive(x, gamma, beta, weight, bias):
    """PyTorch's own group norm over the whole clip, then the convolution."""
    batch, frames, height, width, channels = x.shape
    y = x.permute(0, 4, 1, 2, 3).reshape(batch, channels, frames * height, width)
    y = F.group_norm(y, 1, gamma, beta, 1e-5).view(batch, channels, frames, height, width)
    return F.conv2d(y.transpose(1, 2).flatten(0, 1), weight, bias, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_group_norm_and_convolution(shape):
    x = 3 + 2 * draw(*shape, 6, seed=9)
    values = parameters()
    torch.testing.assert_close(normed_conv2d(x, *values), naive(x, *values), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_group_norm_and_convolution(shape):
    inputs = ((3 + 2 * draw(*shape, 6, seed=9)).requires_grad_(), *parameters())
    weight = torch.rand(shape[0] * shape[1], 4, *shape[2:], dtype=torch.float64)
    ours = torch.autograd.grad((normed_conv2d(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((naive(*inputs) * weight).sum(), inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_parts_of_a_clip_with_its_moments():
    x, values = 3 + draw(2, 5, 4, 4, 6), parameters()
    moments = clip_moments(frame_moments(x))
    parts = [normed_conv2d(part, *values, moments).unflatten(0, (2, -1)) for part in x.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1).flatten(0, 1), normed_conv2d(x, *values), rtol=0, atol=1e-12)


def test_clips_of_a_batch_keep_their_own_moments():
    x = draw(3, 2, 4, 4, 6) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1, 1) + torch.arange(3).view(3, 1, 1, 1, 1)
    together, alone = (
        normed_conv2d(x, *parameters()),
        torch.cat([normed_conv2d(clip[None], *parameters()) for clip in x]),
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_moments_of_frames_and_clips(mean):
    x = mean + draw(2, 5, 3, 4, 6) * torch.arange(1, 6).view(1, 5, 1, 1, 1)
    for moments, dims in ((frame_moments(x), (2, 3, 4)), (clip_moments(frame_moments(x)), (1, 2, 3, 4))):
        variance, expected = torch.var_mean(x, dim=dims, correction=0)
        torch.testing.assert_close(moments.mean, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.variance, variance, rtol=1e-9, atol=0)


def test_float32_moments_survive_a_large_mean():
    x = 1000 + draw(1, 3, 16, 16, 32)
    variance = clip_moments(frame_moments(x.float())).variance
    torch.testing.assert_close(variance.double(), x.var(correction=0)[None], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype):
    x = (100 + draw(1, 20, 16, 16, 32)).to(dtype)  # half precision cannot sum this
    moments, expected = (clip_moments(frame_moments(v)) for v in (x, x.double()))
    for a, b in zip(moments, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_output(dtype):
    x = draw(2, 3, 8, 8, 6).to(dtype)
    values = parameters()
    out = normed_conv2d(x, *(v.detach().to(dtype) for v in values))
    assert out.dtype == dtype
    expected = naive(x.double(), *values)
    assert (out - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_of_a_large_mean(dtype):
    """The mean does not fit the type: what its rounding leaves has to enter the shift and the gradients."""
    x = (20.3 + draw(2, 3, 8, 8, 6)).to(dtype)
    inputs = [v.detach().to(dtype).requires_grad_() for v in (x, *parameters())]
    exact = [v.detach().double().requires_grad_() for v in inputs]
    ours, expected = normed_conv2d(*inputs), naive(*exact)
    assert (ours - expected).norm() < 0.02 * expected.norm()
    weight = draw(*expected.shape, seed=5)
    ours = torch.autograd.grad((ours.double() * weight).sum(), inputs)
    for a, b in zip(ours, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_constant_clips_have_finite_gradients():
    x = torch.ones(1, 2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    normed_conv2d(x, *parameters()).sum().backward()
    assert x.grad.isfinite().all()
