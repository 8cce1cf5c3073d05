import pytest
import torch
import torch.nn.functional as F

from chrono_features.adapter import AttentionMixer, ConvMixer, TemporalAdapter

MIXERS, NORMS = ("attention", "conv1d", "conv3d"), ("clip", "token")


@pytest.fixture
def adapter(randomise):
    def make(**options):
        defaults = {"dim": 6, "channels": 8, "heads": 2, "stride": 4, "window": (2, 1)}
        return randomise(TemporalAdapter(**{**defaults, **options})).double().eval()

    return make


def tokens(batch, frames, height, width, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, height, width, dim, generator=generator, dtype=torch.float64)


def naive_mix(mixer, x):
    """Time mixing written out, position by position: (B, T, h, w, C) to the same."""
    frames = x.shape[1]
    normed = F.layer_norm(x, x.shape[-1:], mixer.norm.weight, mixer.norm.bias, 1e-5)
    update = torch.zeros_like(x)
    if isinstance(mixer, AttentionMixer):
        before, after = mixer.window
        q, k, v = (normed @ mixer.qkv.weight.T).chunk(3, dim=-1)
        width = x.shape[-1] // mixer.heads
        for t in range(frames):
            seen = slice(max(0, t - before), t + after + 1)
            for c in (slice(h * width, (h + 1) * width) for h in range(mixer.heads)):
                scores = torch.einsum("bhwc,bshwc->bshw", q[:, t, ..., c], k[:, seen, ..., c]) / width**0.5
                update[:, t, ..., c] = torch.einsum("bshw,bshwc->bhwc", scores.softmax(1), v[:, seen, ..., c])
        return x + update @ mixer.proj.weight.T + mixer.proj.bias
    length, rows, columns = mixer.conv.weight.shape[2:]
    before = mixer.pad[4]
    for t in range(frames):
        for i in range(length):
            source = t + i - before
            if 0 <= source < frames:  # frames beyond the ends count as zeros
                frame = normed[:, source].permute(0, 3, 1, 2)
                kernel = mixer.conv.weight[:, :, i]
                update[:, t] += F.conv2d(frame, kernel, padding=(rows // 2, columns // 2)).permute(0, 2, 3, 1)
    return x + update + mixer.conv.bias


def naive_adapter(adapter, x, norm):
    """The design, literally: norm, conv, padding by repetition, pooling, time, up, crop, conv, residual."""
    batch, frames, height, width, dim = x.shape
    if norm == "clip":  # a clip as one "image" of T * h rows: statistics over channels, frames and positions together
        flat = x.permute(0, 4, 1, 2, 3).reshape(batch, dim, frames * height, width)
        normed = F.group_norm(flat, 1, adapter.norm.weight, adapter.norm.bias, 1e-5)
        y = normed.view(batch, dim, frames, height, width).permute(0, 2, 1, 3, 4)
    else:
        y = F.layer_norm(x, (dim,), adapter.norm.weight, adapter.norm.bias, 1e-5).permute(0, 1, 4, 2, 3)
    y = F.conv2d(y.reshape(-1, dim, height, width), adapter.conv_in.weight, adapter.conv_in.bias, padding=1).relu()
    while y.shape[-1] % adapter.stride:
        y = torch.cat([y, y[..., -1:]], dim=-1)
    while y.shape[-2] % adapter.stride:
        y = torch.cat([y, y[..., -1:, :]], dim=-2)
    y = F.conv2d(y, adapter.pool.weight, adapter.pool.bias, stride=adapter.stride).relu()
    mixed = naive_mix(adapter.mixer, y.view(batch, frames, *y.shape[1:]).permute(0, 1, 3, 4, 2))
    y = mixed.permute(0, 1, 4, 2, 3).flatten(0, 1)
    y = F.conv_transpose2d(y, adapter.unpool.weight, adapter.unpool.bias, stride=adapter.stride).relu()
    y = F.conv2d(y[:, :, :height, :width], adapter.conv_out.weight, adapter.conv_out.bias, padding=1)
    return x + y.view(batch, frames, dim, height, width).permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_new_adapter_is_the_identity(mixer, norm):
    x = tokens(2, 3, 8, 8).float()
    assert torch.equal(TemporalAdapter(6, 8, 2, mixer=mixer, norm=norm)(x), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 7, 8, 12), (1, 4, 5, 7), (2, 3, 1, 1), (1, 2, 9, 2)])
def test_equals_the_design_written_out(adapter, mixer, norm, shape):
    module, x = adapter(mixer=mixer, norm=norm), tokens(*shape)
    torch.testing.assert_close(module(x), naive_adapter(module, x, norm), rtol=0, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_other_strides(adapter, stride):
    module, x = adapter(stride=stride), tokens(1, 3, 7, 8)
    torch.testing.assert_close(module(x), naive_adapter(module, x, "clip"), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mixer", MIXERS)
def test_token_norm_frames_depend_on_the_window_only(adapter, mixer):
    module, x = adapter(mixer=mixer, norm="token", window=(2, 1)), tokens(1, 9, 4, 4)
    for changed in range(9):
        other = x.clone()
        other[:, changed] = tokens(1, 1, 4, 4, seed=1)[:, 0]
        moved = (module(x) - module(other) - (x - other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-9
        reach = torch.zeros(9, dtype=torch.bool)
        reach[max(0, changed - 1) : changed + 3] = True  # frame t sees t - 2 … t + 1
        assert torch.equal(moved, reach), changed


@pytest.mark.parametrize("mixer", MIXERS)
def test_clip_norm_couples_all_frames(adapter, mixer):
    module, x = adapter(mixer=mixer, norm="clip", window=(1, 1)), tokens(1, 9, 4, 4)
    other = x.clone()
    other[:, 0] *= 2
    assert ((module(x) - module(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-9).all()


def test_padding_does_not_enter_the_statistics(adapter):
    """The adapter of a 5 x 5 grid is not that of the grid padded to 8 x 8 beforehand."""
    module, x = adapter(norm="clip"), tokens(1, 2, 5, 5)
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    padded = torch.cat([padded, padded[..., -1:, :].expand(-1, -1, -1, 3, -1)], dim=3)
    assert (module(x) - module(padded)[:, :, :5, :5]).abs().max() > 1e-3


def test_window_sets_the_length_of_convolutions():
    assert ConvMixer(8, (6, 6), spatial=1).conv.kernel_size == (13, 1, 1)
    assert ConvMixer(8, (6, 6), spatial=3).conv.kernel_size == (13, 3, 3)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_reach_every_parameter(adapter, mixer):
    module = adapter(mixer=mixer)
    module(tokens(1, 4, 5, 6)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_input_is_not_changed(adapter):
    x = tokens(1, 3, 5, 5)
    before = x.clone()
    adapter()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_keeps_the_type_of_the_stream(adapter, norm):
    """The update is in half precision, the tokens that it is added to are not."""
    module, x = adapter(norm=norm).float(), 100 + tokens(1, 3, 8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.float32
    update = module(x) - x
    assert ((out - x) - update).norm() < 0.05 * update.norm()
