import importlib
import subprocess
import sys

import pytest
import torch

from chrono_features.ops import temporal_attention as module
from chrono_features.ops.temporal_attention import choose_backend, plain_temporal_attention, temporal_attention

KERNEL = "chrono_features.ops.temporal_attention_triton"
NAMES = ("x", "norm_weight", "norm_bias", "qkv_weight", "proj_weight", "proj_bias")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def device():
    """Where the kernel runs: a GPU, or the CPU through Triton's interpreter."""
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    import triton.language as tl

    with pytest.MonkeyPatch.context() as patch:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            for name in ("sum", "max"):  # Triton may have been imported before, and these are kernels themselves
                patch.setattr(tl, name, triton.jit(getattr(tl, name).fn))
            sys.modules.pop(KERNEL, None)
            importlib.import_module(KERNEL)
        yield CPU
    del sys.modules[KERNEL]


def draw(batch, frames, positions, heads, size, dtype=torch.float32, device=CPU, seed=0):
    """x and the parameters, none of them symmetric, zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    channels = heads * size

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = 0.5 + 2 * normal(batch, frames, positions, channels)
    norm = (1 + 0.3 * normal(channels), 0.3 * normal(channels))
    qkv = 1.5 * normal(3 * channels, channels) / channels**0.5  # sharp: attention is far from uniform
    proj = (normal(channels, channels) / channels**0.5, 0.3 * normal(channels))
    return [t.to(device, dtype) for t in (x, *norm, qkv, *proj)]


def assert_equals_twin(tensors, heads, window):
    out = temporal_attention(*tensors, heads, window, "triton")
    assert out.dtype == tensors[0].dtype and out.is_contiguous()
    torch.testing.assert_close(out, plain_temporal_attention(*tensors, heads, window), rtol=1e-5, atol=1e-5)


def naive(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, heads, window):
    """The definition: position by position, frame by frame, head by head."""
    batch, frames, positions, channels = x.shape
    size = channels // heads
    out = torch.empty_like(x)
    for b in range(batch):
        for p in range(positions):
            clip = x[b, :, p]
            centred = clip - clip.mean(-1, keepdim=True)
            normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_weight + norm_bias
            q, k, v = normed @ qkv_weight.T[:, :channels], *(normed @ qkv_weight.T[:, channels:]).chunk(2, -1)
            for t in range(frames):
                seen = slice(max(t - window[0], 0), t + window[1] + 1)
                heads_out = []
                for c in (slice(h * size, (h + 1) * size) for h in range(heads)):
                    weights = (k[seen, c] @ q[t, c] / size**0.5).softmax(0)
                    heads_out.append(weights @ v[seen, c])
                out[b, t, p] = clip[t] + proj_weight @ torch.cat(heads_out) + proj_bias
    return out


@pytest.mark.parametrize("frames", [1, 2, 7, 24])
@pytest.mark.parametrize("window", [(6, 6), (0, 0), (3, 0), (0, 2), (100, 70)])
def test_twin_equals_the_definition(frames, window):
    tensors = draw(2, frames, 3, 2, 4, torch.float64)
    out = temporal_attention(*tensors, 2, window)
    torch.testing.assert_close(out, naive(*tensors, 2, window), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 13, 16, 17, 31, 32, 33, 47, 64, 65, 70])
@pytest.mark.parametrize("window", [(6, 6), (0, 0), (3, 0), (100, 70)])
def test_kernel_equals_twin_for_any_length(device, frames, window):
    assert_equals_twin(draw(1, frames, 3, 2, 32, device=device), 2, window)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [5, 16, 70])
@pytest.mark.parametrize(("heads", "size"), [(4, 32), (3, 32), (1, 32), (8, 16), (5, 16), (1, 16), (2, 64), (1, 64)])
def test_kernel_equals_twin_for_any_heads(device, heads, size, frames):
    assert_equals_twin(draw(1, frames, 2, heads, size, device=device), heads, (6, 6))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (5, 20, 1), (1, 1, 70), (2, 64, 2), (70, 1, 3)])
def test_kernel_equals_twin_for_any_batch(device, shape):
    assert_equals_twin(draw(*shape, 2, 16, device=device), 2, (2, 1))


@needs_gpu  # the interpreter has no such limit, and takes long
def test_kernel_takes_more_positions_than_a_launch_has_rows_on_its_short_axes(device):
    assert_equals_twin(draw(2, 1, 33_000, 1, 16, device=device), 1, (6, 6))


@needs_gpu
def test_kernel_takes_more_elements_than_32_bits_count(device):
    if torch.cuda.get_device_properties(device).total_memory < 20e9:
        pytest.skip("needs 20 GB")
    tensors = draw(1, 2, 64, 8, 16, torch.float16, device)
    tensors[0] = tensors[0].repeat(1, 1, 132_000, 1)
    assert tensors[0].numel() > 2**31
    out = temporal_attention(*tensors, 8, (6, 6), "triton")
    for part in (out[:, :, :64], out[:, :, -64:]):
        assert torch.equal(part, temporal_attention(tensors[0][:, :, :64], *tensors[1:], 8, (6, 6), "triton"))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=needs_gpu)])
@pytest.mark.parametrize(("frames", "heads", "size"), [(1, 4, 32), (24, 4, 32), (24, 3, 16), (70, 1, 64), (70, 2, 16)])
def test_half_precision_is_as_exact_as_the_twin(device, frames, heads, size, dtype):
    tensors = draw(2, frames, 3, heads, size, dtype, device)
    expected = plain_temporal_attention(*(t.double() for t in tensors), heads, (6, 6))
    out, twin = (temporal_attention(*tensors, heads, (6, 6), backend) for backend in ("triton", "torch"))
    assert out.dtype == twin.dtype == dtype
    assert (out - expected).norm() < 1.1 * (twin - expected).norm()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_positions_and_clips_do_not_see_each_other(device, backend):
    tensors = draw(2, 9, 5, 2, 16, device=device)
    out = temporal_attention(*tensors, 2, (6, 6), backend)
    tensors[0][0, :, 3] = 1000 * draw(1, 9, 1, 2, 16, device=device, seed=1)[0][0, :, 0]
    moved = temporal_attention(*tensors, 2, (6, 6), backend) != out
    assert moved[0, :, 3].all()
    moved[0, :, 3] = False
    assert not moved.any()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("frames", [20, 130])
def test_frames_outside_the_window_are_not_seen(device, frames, backend):
    tensors = draw(1, frames, 2, 2, 16, device=device)
    out = temporal_attention(*tensors, 2, (3, 5), backend)
    for changed in (0, 10, frames - 1):
        x = tensors[0].clone()
        x[:, changed] = 1000 * draw(1, 1, 2, 2, 16, device=device, seed=1)[0][:, 0]
        moved = (temporal_attention(x, *tensors[1:], 2, (3, 5), backend) != out).any(-1).all(2)[0]
        expected = torch.zeros(frames, dtype=torch.bool, device=device)
        expected[max(changed - 5, 0) : changed + 4] = True
        assert torch.equal(moved, expected)


def gradients(tensors, heads, window, backend, grad=None, wanted=NAMES):
    leaves = [t.detach().clone().requires_grad_(name in wanted) for t, name in zip(tensors, NAMES, strict=True)]
    out = temporal_attention(*leaves, heads, window, backend)
    out.backward(torch.ones((), device=out.device, dtype=out.dtype).expand_as(out) if grad is None else grad)
    return [leaf.grad for leaf in leaves]


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 9, 70])
@pytest.mark.parametrize("expanded", [False, True])
def test_gradients_equal_the_twin(device, frames, expanded):
    tensors = draw(2, frames, 3, 3, 16, device=device)
    grad = None if expanded else draw(2, frames, 3, 3, 16, device=device, seed=1)[0]
    ours, expected = (gradients(tensors, 3, (6, 6), backend, grad) for backend in ("triton", "torch"))
    for name, a, b in zip(NAMES, ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("wanted", [("x",), ("qkv_weight", "proj_bias"), ("norm_bias",)])
def test_only_wanted_gradients_are_made(device, wanted, monkeypatch):
    tensors = draw(1, 5, 2, 2, 16, device=device)
    every = gradients(tensors, 2, (6, 6), "torch")

    def twin(*arguments):
        assert [name for name, t in zip(NAMES, arguments, strict=False) if t.requires_grad] == list(wanted)
        return plain_temporal_attention(*arguments)

    monkeypatch.setattr(module, "plain_temporal_attention", twin)
    for name, expected, grad in zip(NAMES, every, gradients(tensors, 2, (6, 6), "triton", wanted=wanted), strict=True):
        assert (grad is not None) == (name in wanted)
        if grad is not None:
            torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-4)


def test_a_second_derivative_is_refused(device):
    tensors = [t.requires_grad_() for t in draw(1, 3, 2, 1, 16, device=device)]
    out = temporal_attention(*tensors, 1, (6, 6), "triton")
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_x_need_not_be_contiguous(device):
    tensors = draw(2, 9, 4, 2, 16, device=device)
    expected = plain_temporal_attention(*tensors, 2, (6, 6))
    tensors[0] = tensors[0].transpose(2, 3).contiguous().transpose(2, 3)
    tensors[3] = tensors[3].T.contiguous().T
    assert not tensors[0].is_contiguous() and not tensors[3].is_contiguous()
    assert_equals_twin(tensors, 2, (6, 6))
    torch.testing.assert_close(temporal_attention(*tensors, 2, (6, 6), "triton"), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(*(gradients(tensors, 2, (6, 6), backend) for backend in ("triton", "torch")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_in_nothing_out(device, shape, backend):
    tensors = [t.requires_grad_() for t in draw(*shape, 2, 16, device=device)]
    out = temporal_attention(*tensors, 2, (6, 6), backend)
    assert out.shape == (*shape, 32)
    out.sum().backward()
    assert tensors[0].grad.shape == out.shape and not tensors[3].grad.any()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("autocast", [False, True])
def test_parameters_may_be_wider_than_x(device, autocast, backend):
    tensors = draw(2, 9, 3, 2, 16, device=device)
    tensors[0] = tensors[0].half()
    rounded = [tensors[0], *tensors[1:3], *(t.half() for t in tensors[3:])]
    expected = plain_temporal_attention(*(t.double() for t in rounded), 2, (6, 6))
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast(device.type, torch.float16, enabled=autocast):
        out = temporal_attention(*leaves, 2, (6, 6), backend)
        out.sum().backward()
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.02)
    assert [t.grad.dtype for t in leaves] == [t.dtype for t in leaves]
    expected = gradients([t.float() for t in rounded], 2, (6, 6), "torch")
    for name, leaf, grad in zip(NAMES, leaves, expected, strict=True):
        difference = (leaf.grad.float() - grad).norm() / grad.norm()
        assert difference < 5e-3, (name, difference)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_float32_norm_stays_float32(device, backend):
    tensors = draw(2, 9, 3, 2, 16, device=device)
    wanted = ("norm_weight", "norm_bias")
    expected = gradients(tensors, 2, (6, 6), "torch", torch.full_like(tensors[0], 1000), wanted)
    tensors[0] = tensors[0].half()
    grads = gradients(tensors, 2, (6, 6), backend, torch.full_like(tensors[0], 1000), wanted)
    for a, b in zip(grads[1:3], expected[1:3], strict=True):
        assert b.abs().max() > torch.finfo(torch.float16).max
        assert (a - b).norm() < 5e-3 * b.norm()


def test_the_kernel_keeps_the_type_of_x_under_another_autocast(device):
    tensors = draw(1, 9, 3, 2, 16, device=device)
    expected = gradients(tensors, 2, (6, 6), "torch")
    with torch.autocast(device.type, torch.float16):
        out = temporal_attention(*tensors, 2, (6, 6), "triton")
        ours = gradients(tensors, 2, (6, 6), "triton")
    torch.testing.assert_close(out, plain_temporal_attention(*tensors, 2, (6, 6)), rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operator_is_sound(device, requires_grad):
    tensors = [t.requires_grad_(requires_grad) for t in draw(2, 5, 3, 2, 16, device=device)]
    torch.library.opcheck(module._kernel_op, (*tensors, 2, 6, 6))


def test_operator_runs_without_the_kernel(device):
    """An exported program calls it wherever it is loaded; float64 stands for a machine without Triton."""
    tensors = draw(2, 5, 3, 2, 16, torch.float64, device)
    tensors[0] = tensors[0].transpose(0, 2).contiguous().transpose(0, 2)
    torch.library.opcheck(module._kernel_op, (*tensors, 2, 6, 6))
    out = module._kernel_op(*tensors, 2, 6, 6)
    torch.testing.assert_close(out, plain_temporal_attention(*tensors, 2, (6, 6)), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_compiles_as_one_graph(device, backend, monkeypatch):
    one_clip = {(module.compute_capability(device), torch.float32): 20}  # "auto": the other clip is larger
    monkeypatch.setattr(module, "MEASURED_WINS", one_clip)
    torch._dynamo.reset()
    compiled = torch.compile(temporal_attention, backend="aot_eager", fullgraph=True)
    for frames in (5, 9):  # once for this length, then for any
        tensors = [t.requires_grad_() for t in draw(1, frames, 3, 2, 16, device=device)]
        out = compiled(*tensors, 2, (6, 6), backend)
        expected = plain_temporal_attention(*tensors, 2, (6, 6))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        ours, expected = (torch.autograd.grad(o.square().sum(), tensors) for o in (out, expected))
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


# The choice


def test_auto_without_a_measurement_is_torch(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_WINS", {})
    for place in (CPU, torch.device("cuda")) if torch.cuda.is_available() else (CPU,):
        name, reason = choose_backend("auto", place, torch.float32, 128, 4)
        assert name == "torch" and "not measured" in reason


def test_auto_takes_the_kernel_where_it_was_measured_to_win(monkeypatch, device):
    monkeypatch.setattr(module, "compute_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "MEASURED_WINS", {((9, 0), torch.float32): 30})
    name, reason = choose_backend("auto", device, torch.float32, 128, 4)
    assert name == "triton" and "up to 30 rows" in reason
    assert choose_backend("auto", device, torch.float32, 128, 4, 30)[0] == "triton"
    name, reason = choose_backend("auto", device, torch.float32, 128, 4, 31)
    assert name == "torch" and "up to 30 rows" in reason
    name, reason = choose_backend("auto", device, torch.float16, 128, 4)
    assert name == "torch" and "float16" in reason
    name, reason = choose_backend("auto", device, torch.float32, 128, 4, 30, gradients=True)
    assert name == "torch" and "with gradients" in reason
    monkeypatch.setattr(module, "MEASURED_WINS", {((8, 0), torch.float32): 30})
    assert choose_backend("auto", device, torch.float32, 128, 4)[0] == "torch"

    calls = []
    op = module._kernel_op
    monkeypatch.setattr(module, "MEASURED_WINS", {((9, 0), torch.float32): 30})
    monkeypatch.setattr(module, "_kernel_op", lambda *arguments: calls.append(arguments[0].shape) or op(*arguments))
    for shape in ((2, 5, 3), (2, 4, 4)):
        temporal_attention(*draw(*shape, 2, 16, device=device), 2, (6, 6))
    assert calls == [(2, 5, 3, 32)]
    temporal_attention(*(t.requires_grad_() for t in draw(2, 5, 3, 2, 16, device=device)), 2, (6, 6))
    assert len(calls) == 1


def test_a_name_is_taken_at_its_word(device):
    assert choose_backend("torch", device, torch.float32, 128, 4) == ("torch", "backend='torch'")
    assert choose_backend("triton", device, torch.float32, 128, 4, 10**9) == ("triton", "backend='triton'")


@pytest.mark.parametrize(
    ("dtype", "channels", "heads", "reason"),
    [
        (torch.float64, 128, 4, "not float64"),
        (torch.float32, 96, 4, "16, 32 or 64 channels a head, not 24"),
        (torch.float32, 100, 3, "channels a head, not 33.3"),
        (torch.float32, 192, 3, "up to 128 channels, not 192"),
    ],
)
def test_triton_by_name_is_refused_with_the_reason(device, dtype, channels, heads, reason):
    with pytest.raises(ValueError, match=f"backend='triton' cannot run: .*{reason}"):
        choose_backend("triton", device, dtype, channels, heads)
    tensors = draw(1, 2, 2, 1, channels, dtype, device)
    with pytest.raises(ValueError, match=reason):
        temporal_attention(*tensors, heads, (6, 6), "triton")


def test_triton_by_name_needs_a_gpu_or_the_interpreter(device, monkeypatch):
    kernel = sys.modules.get(KERNEL) or importlib.import_module(KERNEL)
    monkeypatch.setattr(kernel, "INTERPRETED", False)
    with pytest.raises(ValueError, match="needs a GPU, and the tokens are on cpu"):
        temporal_attention(*draw(1, 2, 2, 1, 16), 1, (6, 6), "triton")


def test_the_interpreter_is_not_trusted_with_bfloat16(device, monkeypatch):
    kernel = sys.modules.get(KERNEL) or importlib.import_module(KERNEL)
    monkeypatch.setattr(kernel, "INTERPRETED", True)
    with pytest.raises(ValueError, match="interpreter gets bfloat16 wrong"):
        choose_backend("triton", device, torch.bfloat16, 128, 4)


def test_triton_by_name_needs_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="Triton is not installed"):
        choose_backend("triton", CPU, torch.float32, 128, 4)
    assert choose_backend("auto", CPU, torch.float32, 128, 4)[0] == "torch"


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match="backend='cuda'; expected one of 'auto', 'torch', 'triton'"):
        choose_backend("cuda", CPU, torch.float32, 128, 4)
    monkeypatch.setenv(module.BACKEND_VARIABLE, "fast")
    with pytest.raises(ValueError, match="CHRONO_FEATURES_BACKEND='fast'; expected one of 'auto'"):
        choose_backend("torch", CPU, torch.float32, 128, 4)


def test_the_environment_goes_before_the_argument(monkeypatch, device):
    monkeypatch.setenv(module.BACKEND_VARIABLE, "torch")
    name, reason = choose_backend("triton", device, torch.float32, 128, 4)
    assert name == "torch" and module.BACKEND_VARIABLE in reason
    monkeypatch.setenv(module.BACKEND_VARIABLE, "triton")
    assert choose_backend("torch", device, torch.float32, 128, 4)[0] == "triton"
    with pytest.raises(ValueError, match="CHRONO_FEATURES_BACKEND='triton' cannot run: .*not float64"):
        choose_backend("auto", device, torch.float64, 128, 4)
    monkeypatch.setenv(module.BACKEND_VARIABLE, "auto")
    assert choose_backend("triton", device, torch.float64, 128, 4)[0] == "torch"
    monkeypatch.setenv(module.BACKEND_VARIABLE, "")
    assert choose_backend("triton", device, torch.float32, 128, 4)[0] == "triton"


@pytest.mark.slow
def test_the_package_does_without_triton():
    """timm and PyTorch may import Triton; this package neither does nor needs to."""
    script = f"""
import sys
import torch
sys.modules["triton"] = None  # importing it fails
import chrono_features
from chrono_features.ops.temporal_attention import temporal_attention
x = torch.ones(1, 2, 3, 16)
temporal_attention(x, x[0, 0, 0], x[0, 0, 0], torch.ones(48, 16), torch.ones(16, 16), x[0, 0, 0], 1, (6, 6))
assert {KERNEL!r} not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
