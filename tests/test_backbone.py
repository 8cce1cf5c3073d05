import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from chrono_features import ChronoBackbone, ChronoConfig, grid_queries

VITS = {
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", 14),
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", 14),
    "dinov3": ("vit_small_patch16_dinov3.lvd1689m", 16),
    "eva02": ("eva02_tiny_patch14_224.mim_in22k", 14),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224.naver_in1k", 16),
    "rope_mixed_ape": ("vit_small_patch16_rope_mixed_ape_224.naver_in1k", 16),
    "plain": ("vit_tiny_patch16_224", 16),
    "norm_pre": ("vit_base_patch16_clip_224.openai", 16),
    "no_prefix": ("vit_base_patch16_siglip_224", 16),
}
NATIVE = 5  # cells a side of the position tables below


def unit(x, dim):
    return x / x.square().sum(dim, keepdim=True).clamp(min=1e-6).sqrt()


def normalised(video, config):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return (video - mean) / std


# --- Features of a model with new adapters are the plain ViT's --------------------------------------------------------


def bicubic_matrix(native, size, scale, antialias):
    """(size, native) weights of a one-dimensional bicubic resampling, written out."""
    a, stretch = (-0.5, max(1.0, 1 / scale)) if antialias else (-0.75, 1.0)

    def kernel(x):
        x = abs(x)
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return ((((x - 5) * x + 8) * x) - 4) * a if x < 2 else 0.0

    weights = torch.zeros(size, native, dtype=torch.float64)
    for i in range(size):
        centre = (i + 0.5) / scale
        reach = int(2 * stretch) + 2
        for j in range(int(centre) - reach, int(centre) + reach + 1):
            if antialias and not 0 <= j < native:
                continue  # antialiased: cells outside do not count; else the edge cell repeats
            weights[i, min(max(j, 0), native - 1)] += kernel((j + 0.5 - centre) / stretch)
        if antialias:
            weights[i] /= weights[i].sum()
    return weights


def resampled(table, grid, rule):
    """(1, native * native, C) to (1, h * w, C) by DINOv2's rule without ("scaled") or with ("exact") registers."""
    side = int(table.shape[1] ** 0.5)
    factors = [(n + 0.1) / side if rule == "scaled" else n / side for n in grid]
    rows, columns = (bicubic_matrix(side, n, f, rule == "exact") for n, f in zip(grid, factors, strict=True))
    out = torch.einsum("hi,wj,ijc->hwc", rows, columns, table[0].double().unflatten(0, (side, side)))
    return out.flatten(0, 1)[None].to(table)


@pytest.fixture
def vit_model(randomise):
    def make(kind, grid, **changes):
        name, patch = VITS[kind]
        kwargs = {"img_size": NATIVE * patch, "embed_dim": 32, "depth": 3, "num_heads": 2}
        config = {"vit": name, "vit_kwargs": kwargs, "grid": grid, "adapter_channels": 8, "adapter_heads": 2, **changes}
        model = ChronoBackbone(ChronoConfig(**config))
        randomise(model.vit)
        return model

    return make


def plain_features(model, video, table_rule=None):
    """The timm model's own forward pass, holding a position table resampled here (or resampling it itself)."""
    config = model.config
    vit = timm.create_model(config.vit, num_classes=0, dynamic_img_size=True, **config.vit_kwargs).eval()
    vit.attn_pool = None  # of SigLIP; it comes after the features
    vit.load_state_dict(model.vit.state_dict())
    if table_rule and vit.pos_embed is not None:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        own, table = vit.pos_embed[:, :prefix], vit.pos_embed[:, prefix:]
        vit.pos_embed = nn.Parameter(torch.cat([own, resampled(table, config.grid, table_rule)], dim=1))
        vit.patch_embed.grid_size = config.grid  # timm has nothing left to resample
    tokens = vit.forward_features(normalised(video, config).flatten(0, 1))
    if isinstance(vit.norm, nn.Identity):
        tokens = vit.fc_norm(tokens)
    tokens = tokens[:, vit.num_prefix_tokens :].unflatten(0, video.shape[:2]).unflatten(2, config.grid)
    return unit(tokens.permute(0, 1, 4, 2, 3), 2)


def frames_for(model, clip, batch=1, frames=2):
    patch, grid = model.patch_size, model.config.grid
    return clip(batch, frames, patch[0] * grid[0], patch[1] * grid[1])


@pytest.mark.parametrize("grid", [(NATIVE, NATIVE), (8, 6), (3, 7), (2, 2)])
@pytest.mark.parametrize("kind", VITS)
@torch.no_grad()
def test_new_adapters_leave_the_plain_vit(vit_model, clip, kind, grid):
    model = vit_model(kind, grid, pos_embed_resize="timm")
    video = frames_for(model, clip)
    assert len(model.adapters) == 2
    torch.testing.assert_close(model(video), plain_features(model, video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(NATIVE, NATIVE), (8, 6), (3, 7), (9, 2)])
@pytest.mark.parametrize(("kind", "rule"), [("dinov2", "scaled"), ("registers", "exact"), ("plain", "scaled")])
@torch.no_grad()
def test_position_tables_follow_dinov2(vit_model, clip, kind, rule, grid):
    model = vit_model(kind, grid, pos_embed_resize="dinov2")
    video = frames_for(model, clip)
    expected = plain_features(model, video, rule if grid != (NATIVE, NATIVE) else None)
    torch.testing.assert_close(model(video), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_two_rules_differ(vit_model, clip):
    model = vit_model("dinov2", (8, 6), pos_embed_resize="dinov2")
    video = frames_for(model, clip)
    other = vit_model("dinov2", (8, 6), pos_embed_resize="timm")
    assert (model(video) - other(video)).abs().max() > 1e-3


def test_unsupported_classes_are_refused_by_name():
    with pytest.raises(ValueError, match="VisionTransformerDistilled"):
        ChronoBackbone(ChronoConfig(vit="deit_tiny_distilled_patch16_224"))
    for name in ("resnet18", "beit_base_patch16_224"):
        with pytest.raises(ValueError, match=f"{name}.*VisionTransformer or Eva"):
            ChronoBackbone(ChronoConfig(vit=name))


def test_patch_dropout_is_refused(small_config):
    kwargs = small_config().vit_kwargs
    with pytest.raises(ValueError, match="patch_drop_rate"):
        ChronoBackbone(small_config(vit_kwargs={**kwargs, "patch_drop_rate": 0.5}))


# --- Shapes, placements, grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["clip", "token"])
@pytest.mark.parametrize("mixer", ["attention", "conv1d", "conv3d"])
@pytest.mark.parametrize("placement", ["all", "early", "late", "alternate", "none", (0, 2)])
@torch.no_grad()
def test_every_variant_builds_and_runs(small_model, clip, placement, mixer, norm):
    model = small_model(adapter_blocks=placement, mixer=mixer, norm=norm)
    assert tuple(map(int, model.adapters)) == model.config.adapter_indices(3)
    video = clip(2, 3)
    features = model(video)
    assert features.shape == (2, 3, 16, 8, 8)
    torch.testing.assert_close(features.norm(dim=2), torch.ones(2, 3, 8, 8))
    assert torch.equal(features, model.vit_features(video)) == (placement == "none")
    for i in range(2):  # clips of a batch do not see each other
        torch.testing.assert_close(features[i : i + 1], model(video[i : i + 1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 1), (3, 12)])
@torch.no_grad()
def test_any_grid_and_clip_length(small_model, clip, grid, frames):
    features = small_model()(clip(1, frames, 33, 50), grid=grid)
    assert features.shape == (1, frames, 16, *grid) and features.isfinite().all()


@torch.no_grad()
def test_the_grid_argument_overrides_the_configuration(small_model, clip):
    video = clip()
    assert torch.equal(small_model()(video, grid=(5, 6)), small_model(grid=(5, 6))(video))


@torch.no_grad()
def test_prefix_tokens_pass_adapters_by(vit_model, randomise, clip):
    """Class and register tokens reach later blocks without having passed through an adapter."""
    model = vit_model("registers", (6, 6), adapter_blocks=(1,))
    randomise(model.adapters)
    seen = {}
    for i in (1, 2):
        model.vit.blocks[i].register_forward_pre_hook(lambda _, args, i=i: seen.update({("in", i): args[0]}))
        model.vit.blocks[i].register_forward_hook(lambda *args, i=i: seen.update({("out", i): args[-1]}))
    model(frames_for(model, clip))
    before, after = seen["out", 1], seen["in", 2]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])
    adapted = model.adapters["1"](before[:, 5:].view(1, 2, 6, 6, 32)).view(2, 36, 32)
    assert torch.equal(after[:, 5:], adapted)


@torch.no_grad()
def test_token_norm_streams_and_clip_norm_does_not(small_model, clip):
    """Two adapters with a window of 2: a frame depends on 4 frames to either side."""
    video = clip(1, 12)
    other = video.clone()
    other[:, 0] = 1 - other[:, 0]
    for norm, reach in (("token", 4), ("clip", 11)):
        model = small_model(norm=norm)
        moved = (model(video) - model(other)).abs().amax(dim=(0, 2, 3, 4)) > 0
        assert moved[: reach + 1].all() and not moved[reach + 1 :].any()


@torch.no_grad()
def test_vit_features_know_no_time(small_model, clip):
    model, video = small_model(), clip(1, 4)
    alone = torch.cat([model.vit_features(video[:, t : t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(model.vit_features(video), alone, rtol=0, atol=1e-5)
    assert (model(video) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"stem": "conv"}, {"neck": "x2"}, {"stem": "conv", "neck": "x2"}, {}])
@pytest.mark.parametrize("grid", [(8, 8), (5, 7)])
@pytest.mark.parametrize("patch", [4, 8])
@torch.no_grad()
def test_stem_neck_and_projection(small_config, small_model, clip, options, grid, patch):
    vit_kwargs = {**small_config().vit_kwargs, "patch_size": patch}
    model = small_model(**options, out_channels=10, grid=grid, vit_kwargs=vit_kwargs)
    times = 2 if "neck" in options else 1
    features = model(clip(1, 2))
    assert features.shape == (1, 2, 10, times * grid[0], times * grid[1])
    torch.testing.assert_close(features.norm(dim=2), torch.ones_like(features[:, :, 0]))


def test_the_stem_needs_a_patch_size_it_can_reach():
    with pytest.raises(ValueError, match=r"patch size 14.*multiple of 4"):
        ChronoBackbone(ChronoConfig(vit="vit_small_patch14_dinov2.lvd142m", vit_kwargs={"depth": 1}, stem="conv"))


# --- Frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("input_size", [None, (20, 24)])
@torch.no_grad()
def test_frames_are_resized_as_configured(small_model, clip, input_size, antialias):
    model = small_model(input_size=input_size, antialias=antialias, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    video = clip(1, 2, 60, 50)
    frames = video[0]
    for size in (input_size, (32, 32)):
        if size:
            frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    ready = small_model(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    seen = []
    ready.vit.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.vit.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(video)
    torch.testing.assert_close(seen[0], normalised(frames, model.config), rtol=0, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_uint8_is_float_times_255_and_nothing_is_changed_in_place(small_model):
    model = small_model()
    video = torch.randint(256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    before = video.clone()
    from_uint8 = model(video)
    assert torch.equal(video, before)
    floating = video / 255
    before = floating.clone()
    torch.testing.assert_close(model(floating), from_uint8, rtol=0, atol=1e-5)
    assert torch.equal(floating, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_features_have_the_model_dtype_whatever_the_video(small_model, clip, dtype):
    assert small_model()(clip().to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_the_model_runs_in_its_own_dtype(small_model, clip, dtype):
    model, video = small_model(), clip()
    expected = model(video)
    features = copy.deepcopy(model).to(dtype)(video)
    assert features.dtype == dtype
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.1)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_frozen_vit_stays_frozen_and_in_eval_mode(small_model, small_config):
    model = small_model()
    assert not model.training
    model.train()
    assert model.training and model.adapters["0"].training
    assert not any(module.training for module in model.vit.modules())
    assert not any(p.requires_grad for p in model.vit.parameters())
    assert all(p.requires_grad for p in model.adapters.parameters())
    thawed = ChronoBackbone(small_config(freeze_vit=False)).train()
    assert thawed.vit.training and all(p.requires_grad for p in thawed.vit.parameters())


def test_frozen_vit_features_have_no_dropout_in_training(small_config, small_model, clip):
    vit_kwargs = {**small_config().vit_kwargs, "proj_drop_rate": 0.5, "drop_path_rate": 0.5, "pos_drop_rate": 0.5}
    model, video = small_model(vit_kwargs=vit_kwargs), clip()
    expected = model(video)
    assert torch.equal(model.train()(video), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_adapters_and_nothing_frozen(small_model, clip, checkpointing):
    model = small_model().train()
    model.set_grad_checkpointing(checkpointing)
    model(clip()).square().mul(torch.rand(8, 8)).sum().backward()
    for name, parameter in model.adapters.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for p in model.vit.parameters())


def test_the_first_step_of_new_adapters_moves_them(small_config, randomise, clip):
    model = ChronoBackbone(small_config()).train()
    randomise(model.vit)
    model(clip())[:, :, 0].sum().backward()
    assert all(a.conv_out.weight.grad.abs().max() > 0 for a in model.adapters.values())


@pytest.mark.parametrize("freeze_vit", [True, False])
def test_checkpointing_gives_the_same_gradients_and_computes_blocks_again(small_model, clip, freeze_vit):
    model, video, weight = small_model(freeze_vit=freeze_vit), clip(), torch.rand(16, 8, 8)
    trained = [p for p in model.parameters() if p.requires_grad and p is not None]
    calls = []
    for module in (*model.vit.blocks, *model.adapters.values()):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        calls.clear()
        grads = torch.autograd.grad((model(video) * weight).sum(), trained, allow_unused=True)
        results.append((len(calls), grads))
    (plain, expected), (again, grads) = results
    assert plain == 5 and again > plain
    for a, b in zip(grads, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-6)


# --- Compilers and autocast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"norm": "token", "stem": "conv", "neck": "x2"}, {"mixer": "conv3d"}])
@torch.no_grad()
def test_autocast(small_model, clip, options):
    model, video = small_model(**options), clip()
    expected = model(video)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(video)
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=0.1)
    assert not torch.equal(features.float(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dinov2", "registers", "dinov3", "eva02", "rope_mixed"])
@torch.no_grad()
def test_compiles_without_graph_breaks(vit_model, randomise, clip, kind):
    torch._dynamo.reset()
    model = randomise(vit_model(kind, (4, 6), pos_embed_resize="dinov2", adapter_blocks=(0,)))
    video = clip(1, 3, 40, 50)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(video), model(video), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@torch.no_grad()
def test_compiled_grid_argument_and_no_value_checks(small_model, clip, dtype):
    torch._dynamo.reset()
    model = small_model(adapter_blocks=(0,))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    video = (2 * clip() if dtype == torch.float32 else 255 * clip()).to(dtype)
    features = compiled(video, grid=(5, 7))  # values up to 2 are an error for the model itself
    assert features.shape == (1, 3, 16, 5, 7)
    if dtype == torch.uint8:
        torch.testing.assert_close(features, model(video, grid=(5, 7)), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_step(small_model, clip):
    torch._dynamo.reset()
    model, video, weight = small_model(adapter_blocks=(1,)).train(), clip(), torch.rand(16, 8, 8)
    trained = list(model.adapters.parameters())
    expected = torch.autograd.grad((model(video) * weight).sum(), trained)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad((compiled(video) * weight).sum(), trained), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_track(small_model, clip):
    torch._dynamo.reset()
    model, video, queries = small_model(), clip(), grid_queries(3, (32, 32))
    expected = model.track(video, queries)
    tracks = torch.compile(model.track, fullgraph=True, backend="eager")(video, queries)
    torch.testing.assert_close(tracks.xy, expected.xy, rtol=0, atol=1e-3)
    assert torch.equal(tracks.visible, expected.visible)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"norm": "token", "stem": "conv", "neck": "x2"}])
@torch.no_grad()
def test_exports(small_model, clip, options):
    model = small_model(**options)
    video, other = clip(1, 3, 40, 50), clip(1, 3, 40, 50, seed=1)
    exported = torch.export.export(model, (video,)).module()
    torch.testing.assert_close(exported(other), model(other), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compile_in_place_serves_any_number_of_frames(small_model, clip):
    """Blocks share compiled functions, and so do adapters; from the third length on nothing is compiled again.

    But once for 16 frames and more, where PyTorch's convolutions differ, and once for blocks of attention over time.
    """
    torch._dynamo.reset()
    model = small_model()
    clips = [clip(1, frames) for frames in (3, 5, 9, 4, 20, 33, 130, 200)]
    expected = [model(video) for video in clips]
    keys = set(model.state_dict())
    graphs, compiled = [], []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.compile(backend=count, fullgraph=True)
    for video, features in zip(clips, expected, strict=True):
        torch.testing.assert_close(model(video), features, rtol=0, atol=1e-5)
        compiled.append(len(graphs))
    first, *short, middle, middle_again, long, long_again = compiled
    assert 2 <= first <= 3 and len(set(short)) == 1 and set(model.state_dict()) == keys
    assert middle == middle_again <= short[0] + 2 and long == long_again <= middle + 2
    torch._dynamo.reset()


# --- Backends ---------------------------------------------------------------------------------------------------------


def test_the_backend_reaches_every_adapter_and_is_explained(small_model, small_config):
    model = small_model()
    assert model.backend == "auto" and "torch: " in model.backend_info()["temporal attention"]
    model.backend = "torch"
    assert {a.mixer.backend for a in model.adapters.values()} == {"torch"}
    assert ChronoBackbone(small_config(), backend="torch").adapters["0"].mixer.backend == "torch"
    assert ChronoBackbone.from_pretrained("chrono-tiny", backend="torch").backend == "torch"
    assert "no adapters" in small_model(adapter_blocks="none").backend_info()["temporal attention"]


def test_a_backend_by_name_runs_or_raises(small_model, small_config, clip):
    for make in (lambda: small_model(mixer="conv1d"), lambda: small_model(mixer="conv3d")):
        with pytest.raises(ValueError, match="backend='triton' with mixer='conv"):
            make().backend = "triton"
    with pytest.raises(ValueError, match="backend='cuda'; expected one of 'auto', 'torch', 'triton'"):
        ChronoBackbone(small_config(), backend="cuda")
    model = small_model()
    model.backend = "triton"
    with pytest.raises(ValueError, match="backend='triton' cannot run: the kernel is for 16, 32 or 64"):
        model(clip())
    with pytest.raises(ValueError, match="backend='triton' cannot run"):
        model.backend_info()


def test_the_environment_overrides_the_backend(small_model, clip, monkeypatch):
    monkeypatch.setenv("CHRONO_FEATURES_BACKEND", "triton")
    with pytest.raises(ValueError, match="cannot run"):
        small_model()(clip())


# --- track ------------------------------------------------------------------------------------------------------------


def test_track_is_features_and_matching_in_one(small_model, clip):
    from chrono_features import soft_argmax_track

    model = small_model(temperature=7.0, radius=2.0).train()
    video, queries = clip(2, 4, 40, 60), grid_queries(3, (40, 60), t=2).expand(2, -1, -1)
    tracks = model.track(video, queries)
    features = model(video).detach()
    expected = soft_argmax_track(
        features, queries, (40, 60), temperature=7.0, radius=2.0, visibility_head=model.visibility_head
    )
    assert not tracks.xy.requires_grad and not tracks.logits.requires_grad
    for name in ("xy", "similarity", "visible", "logits"):
        torch.testing.assert_close(getattr(tracks, name), getattr(expected, name).detach())
    other = model.track(video, queries, temperature=20.0, grid=(4, 4))
    assert (other.xy - tracks.xy).abs().max() > 0.1


def test_track_of_no_queries(small_model, clip):
    tracks = small_model().track(clip(2, 3), torch.empty(2, 0, 3))
    assert tracks.xy.shape == (2, 0, 3, 2) and tracks.visible.shape == (2, 0, 3) and tracks.logits.shape == (2, 0, 3, 2)


@pytest.fixture
def judging_model(small_model):
    """A model whose confidence is calibrated somehow, and how often it has worked."""
    weights = {"confidence": (0.1, 1.0, 2.0, -0.5, -0.2), "refined_confidence": (-0.3, 1.0, 2.0, -0.5, -0.2, 0.7)}
    model, count = small_model(temperature=7.0, radius=2.0, **weights), []
    model.vit.patch_embed.register_forward_hook(lambda *args: count.append(1))
    return model, count


TRACKING = pytest.mark.parametrize("options", [{}, {"refine": "photometric"}, {"confidence": True}], ids=str)


@TRACKING
def test_track_with_features_that_are_there(judging_model, clip, options):
    model, count = judging_model
    video, queries = clip(2, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    expected = model.track(video, queries, **options)
    features = model(video)
    count.clear()
    tracks = model.track(video, queries, features=features, **options)
    assert not count
    arrays = tracks.numpy()
    assert arrays.keys() == expected.numpy().keys()
    assert all((arrays[name] == value).all() for name, value in expected.numpy().items())
    other = model.track(video, queries, features=features.flip(1), **options)
    assert count == [] and not torch.equal(other.xy, tracks.xy)


def test_track_refines_when_asked(judging_model, clip):
    from chrono_features.refine import refine_photometric

    model, _ = judging_model
    video, queries = clip(2, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    video[:, 1:] = video[:, :1]
    raw = model.track(video, queries, visible_threshold=model.config.refined_visible_threshold)
    assert raw.correlation is None and raw.confidence is None
    tracks = model.track(video, queries, refine="photometric")
    with torch.no_grad():
        expected = refine_photometric(video, model(video), queries, raw, soft_argmax=model.config.soft_argmax)
    assert torch.equal(tracks.xy, expected.xy) and torch.equal(tracks.correlation, expected.correlation)
    assert tracks.confidence is None and torch.equal(tracks.visible, raw.visible | (tracks.correlation >= 0.85))
    assert not torch.equal(tracks.xy, raw.xy) and torch.equal(tracks.similarity, raw.similarity)


def test_visible_is_by_the_thresholds_of_the_configuration(small_model, clip):
    model = small_model(visible_threshold=0.3, refined_visible_threshold=0.45)
    torch.nn.init.normal_(model.visibility_head.linear.weight, std=3, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(model.visibility_head.linear.bias)
    video, queries = clip(2, 4, 40, 60), grid_queries(6, (40, 60), t=2)
    tracks, refined = (model.track(video, queries, refine=refine) for refine in (None, "photometric"))
    seen = (1 - torch.sigmoid(tracks.logits)).prod(-1)
    assert torch.equal(tracks.visible, seen >= 0.3)
    assert torch.equal(refined.visible, (seen >= 0.45) | (refined.correlation >= 0.85))
    assert (tracks.visible != (seen >= 0.5)).any() and (refined.visible != tracks.visible).any()
    assert torch.equal(model.track(video, queries, visible_threshold=0.5).visible, seen >= 0.5)


@pytest.mark.parametrize("refine", [None, "photometric"])
def test_track_tells_its_confidence_when_asked(judging_model, clip, refine):
    from chrono_features.confidence import probability, track_signals

    model, _ = judging_model
    video, queries = clip(2, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    plain = model.track(video, queries, refine=refine)
    tracks = model.track(video, queries, refine=refine, confidence=True)
    weights = model.config.refined_confidence if refine else model.config.confidence
    with torch.no_grad():
        signals = track_signals(model(video), queries, plain, (40, 60), temperature=7.0, radius=2.0)
    torch.testing.assert_close(tracks.confidence, probability(signals, weights))
    thresholds = model.config.visible_threshold, model.config.refined_visible_threshold
    assert torch.equal(tracks.visible, tracks.confidence >= thresholds[refine is not None])
    wanted = float(tracks.confidence.median())
    chosen = model.track(video, queries, refine=refine, confidence=True, visible_threshold=wanted)
    assert torch.equal(chosen.visible, tracks.confidence >= wanted) and not torch.equal(chosen.visible, tracks.visible)
    for name in ("xy", "similarity", "logits"):
        assert torch.equal(getattr(tracks, name), getattr(plain, name)), name


def test_temperature_and_radius_reach_refinement_and_confidence(judging_model, clip):
    model, _ = judging_model
    video, queries = clip(1, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    asked = {"refine": "photometric", "confidence": True, "temperature": 3.0, "radius": 4.0}
    tracks = model.track(video, queries, **asked)
    model.config = model.config.replace(temperature=3.0, radius=4.0)
    expected = model.track(video, queries, refine="photometric", confidence=True)
    assert torch.equal(tracks.xy, expected.xy) and torch.equal(tracks.confidence, expected.confidence)


@TRACKING
def test_track_in_pieces_gives_the_same(judging_model, clip, options):
    model, _ = judging_model
    video, queries = clip(1, 6, 40, 60), grid_queries(3, (40, 60), t=2)
    expected = model.track(video, queries, **options)
    tracks = model.track(video, queries, max_frames_in_memory=2, offload="cpu", **options)
    torch.testing.assert_close(tracks.xy, expected.xy, rtol=0, atol=1e-2)
    if expected.confidence is not None:
        torch.testing.assert_close(tracks.confidence, expected.confidence, rtol=0, atol=1e-3)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def idle_model(small_model):
    """A model that fails the test when it starts to work."""
    model = small_model()

    def work(*args):
        raise AssertionError("worked on bad input")

    model.vit.patch_embed.register_forward_pre_hook(work)
    return model


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"\(2, 3, 32, 32\); expected \(B, T, 3, H, W\)"),
        (torch.zeros(1, 2, 32, 32, 3), r"expected \(B, T, 3, H, W\)"),
        (torch.zeros(1, 2, 1, 32, 32), r"expected \(B, T, 3, H, W\)"),
        (torch.zeros(1, 0, 3, 32, 32), "none of them 0"),
        (torch.zeros(0, 1, 3, 32, 32), "none of them 0"),
        (torch.zeros(1, 2, 3, 0, 32), "none of them 0"),
        (torch.zeros(1, 2, 3, 32, 32, dtype=torch.int64), "int64; expected uint8"),
        (torch.zeros(1, 2, 3, 32, 32, dtype=torch.bool), "bool; expected uint8"),
        (torch.full((1, 2, 3, 32, 32), 1.06), "1.06; expected 0 … 1"),
        (torch.full((1, 2, 3, 32, 32), -0.06), "-0.06 to"),
        (torch.full((1, 2, 3, 32, 32), 255.0), "expected 0 … 1"),
        (torch.full((1, 2, 3, 32, 32), float("inf")), "inf"),
        (torch.full((1, 2, 3, 32, 32), float("nan")), "NaN"),
        ([[0.0]], "list; expected a torch.Tensor"),
    ],
)
def test_bad_videos(idle_model, video, message):
    for use in (idle_model, idle_model.vit_features, lambda v: idle_model.track(v, torch.zeros(1, 1, 3))):
        with pytest.raises(ValueError, match=f"video.*{message}"):
            use(video)


def test_one_nan_is_enough(idle_model, clip):
    video = clip()
    video[0, 1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        idle_model(video)


@pytest.mark.parametrize("value", [-0.0499, 1.0499])
def test_a_little_overshoot_is_accepted(small_model, value):
    assert small_model()(torch.full((1, 1, 3, 32, 32), value)).isfinite().all()


@pytest.mark.parametrize("grid", [(0, 8), (8,), (8, 8, 8), (8.5, 8), 8])
def test_bad_grids(idle_model, clip, grid):
    with pytest.raises(ValueError, match="grid="):
        idle_model(clip(), grid=grid)


@pytest.mark.parametrize(
    "query", [(3, 1, 1), (-1, 1, 1), (0.5, 1, 1), (0, 32.1, 1), (0, 1, -0.1), (0, float("nan"), 1)]
)
def test_bad_queries_are_refused_before_any_work(idle_model, clip, query):
    with pytest.raises(ValueError, match=r"queries\[0, 0\]"):
        idle_model.track(clip(), torch.tensor([[query]]))


@pytest.mark.parametrize("refine", ["other", True, ""])
def test_refinements_that_there_are_not(idle_model, clip, refine):
    with pytest.raises(ValueError, match=rf"refine={refine!r}; expected None or 'photometric'"):
        idle_model.track(clip(), torch.zeros(1, 1, 3), refine=refine)


@pytest.mark.parametrize(("refine", "field"), [(None, "confidence"), ("photometric", "refined_confidence")])
def test_confidence_of_a_model_that_was_not_calibrated(idle_model, clip, refine, field):
    other = {"confidence": (0.0,) * 5, "refined_confidence": (0.0,) * 6, field: None}
    idle_model.config = idle_model.config.replace(**other)
    with pytest.raises(ValueError, match=rf"confidence=True for a model whose {field} is None; expected"):
        idle_model.track(clip(), torch.zeros(1, 1, 3), refine=refine, confidence=True)


# --- Pyramids ---------------------------------------------------------------------------------------------------------


def test_a_pyramid_has_the_features_and_the_tokens_below_the_neck(small_config):
    config = small_config(stem="conv", neck="x2", out_channels=24, vit="vit_tiny_patch16_224", norm="token",
                          vit_kwargs={"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3,
                                      "class_token": False, "global_pool": "", "pos_embed": "none"},
                          grid=(8, 8))  # fmt: skip
    model = ChronoBackbone(config)
    video = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fine, coarse = model.forward_pyramid(video)
    assert torch.equal(fine, model(video))
    assert model.feature_info == [
        {"num_chs": 24, "reduction": 4, "module": "neck"},
        {"num_chs": 48, "reduction": 8, "module": "vit"},
    ]
    for level, info in zip((fine, coarse), model.feature_info, strict=True):
        assert level.shape == (1, 3, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        torch.testing.assert_close(level.norm(dim=2), torch.ones_like(level[:, :, 0]))
    coarse.sum().backward()
    assert model.neck.out.weight.grad is None  # tokens from below it


@pytest.mark.parametrize("out_channels", [None, 24])
def test_a_pyramid_without_a_neck_has_one_level(small_config, out_channels):
    model = ChronoBackbone(small_config(out_channels=out_channels))
    size = tuple(g * p for g, p in zip(model.config.grid, model.patch_size, strict=True))
    video = torch.rand(1, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    (level,) = model.forward_pyramid(video)
    (info,) = model.feature_info
    assert torch.equal(level, model(video))
    assert level.shape[2] == info["num_chs"] and size[0] // level.shape[3] == info["reduction"]


# --- Arguments are checked once ---------------------------------------------------------------------------------------

SYNCHRONISING = ("aten::item", "aten::is_nonzero", "aten::equal")


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({}, 1),  # all rules of queries are asked at once, and found at fault or not
        ({"confidence": True}, 3),  # and whether signals are finite, before and after their sum
    ],
    ids=["plain", "confidence"],
)
def test_a_call_waits_for_the_device_only_so_often(judging_model, clip, options, waits):
    """Each of these operations makes a GPU wait; on a CPU they can be counted."""
    model, _ = judging_model
    video, queries = clip(1, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    model.track(video, queries, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.track(video, queries, **options)
    names = [event.name for event in profile.events()]
    assert sum(names.count(name) for name in SYNCHRONISING) == 2 * waits  # an is_nonzero holds an item


def test_queries_and_features_are_checked_once(judging_model, clip, monkeypatch):
    from chrono_features import backbone, checks, refine, tracking

    calls = []
    for module in (backbone, refine, tracking):
        for name in ("check_queries", "check_features"):
            real = getattr(checks, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.append(name) or real(*a), False)
    model, _ = judging_model
    video, queries = clip(1, 4, 40, 60), grid_queries(3, (40, 60), t=2)
    model.track(video, queries, refine="photometric", confidence=True)
    assert calls == ["check_queries"]
    model.track(video, queries, features=model(video), refine="photometric")
    assert calls == ["check_queries"] * 2 + ["check_features"]
