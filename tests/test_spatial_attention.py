import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from chrono_features.ops import spatial_attention as module
from chrono_features.ops.spatial_attention import describe_spatial_attention, spatial_attention


def test_without_a_measurement_the_choice_is_pytorchs():
    before = torch.backends.cuda.flash_sdp_enabled()
    with spatial_attention(torch.device("cpu")):
        assert torch.backends.cuda.flash_sdp_enabled() == before
    assert "own choice (cpu)" in describe_spatial_attention(torch.device("cpu"))


def test_a_measured_kernel_is_used_inside_and_only_there(monkeypatch):
    monkeypatch.setattr(module, "_order", lambda device: [SDPBackend.MATH])
    q = torch.randn(1, 2, 5, 8)
    expected = F.scaled_dot_product_attention(q, q, q)
    with spatial_attention(torch.device("cpu")):
        assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), expected)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert describe_spatial_attention(torch.device("cpu")).startswith("MATH: measured")


def test_a_models_blocks_run_in_it(monkeypatch, small_model, clip):
    seen = []
    monkeypatch.setattr(module, "_order", lambda device: [SDPBackend.MATH])
    model = small_model()
    for block in model.vit.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    features = model(clip())
    assert seen == [False] * 3
    monkeypatch.undo()
    torch.testing.assert_close(features, model(clip()), rtol=0, atol=1e-5)


def test_checkpoints_compute_blocks_again_on_the_same_kernel(monkeypatch, small_model, clip):
    monkeypatch.setattr(module, "_order", lambda device: [SDPBackend.MATH])
    model, seen = small_model(freeze_vit=False).train(), []
    model.set_grad_checkpointing()
    for block in model.vit.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    model(clip()).square().sum().backward()
    assert len(seen) == 6 and not any(seen)


def test_measured_kernels_are_looked_up_by_capability(monkeypatch):
    monkeypatch.setitem(module.MEASURED_BEST, (9, 0), [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    monkeypatch.setattr(module, "compute_capability", lambda device: (9, 0) if device.type == "cuda" else (0, 0))
    assert describe_spatial_attention(torch.device("cuda")).startswith("EFFICIENT_ATTENTION")
    assert "own choice" in describe_spatial_attention(torch.device("cpu"))
