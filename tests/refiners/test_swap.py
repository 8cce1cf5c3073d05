"""Contracts with trackers, by stand-ins that call their network as the trackers do; and the trackers themselves, where
CHRONO_TEST_LOCOTRACK, CHRONO_TEST_TAPNET or CHRONO_TEST_COTRACKER name a checkout."""

import copy
import os
import pickle
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from chrono_features import ChronoBackbone, ChronoConfig
from chrono_features.refiners import (
    FeatureProvider,
    features_from,
    from_tapir,
    swap_backbone,
    to_cotracker,
    to_tapir,
    trainable_report,
    unswap_backbone,
)

STEM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "class_token": False,
        "global_pool": "", "pos_embed": "none"}  # fmt: skip
SMALL = ChronoConfig(
    vit="vit_tiny_patch16_224", vit_kwargs=STEM, grid=(4, 4), stem="conv", neck="x2", out_channels=12, norm="token",
    adapter_channels=8, adapter_heads=2, window=(2, 2),
)  # fmt: skip


def small_chrono(**changes):
    torch.manual_seed(0)
    model = ChronoBackbone(SMALL.replace(**changes))
    for adapter in model.adapters.values():
        nn.init.normal_(adapter.conv_out.weight, std=0.3)
    return model


# --- training on several devices --------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def three_steps(module):
    """Every parameter that trains has to take part in each step, or the next one is refused."""
    parallel = nn.parallel.DistributedDataParallel(module.train())
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1e-3)
    before = [p.detach().clone() for p in module.parameters()]
    for _ in range(3):
        out = parallel(torch.rand(1, 3, 3, 32, 32))
        sum(o.square().sum() for o in (out if isinstance(out, (list, tuple)) else [out])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("changes", [{}, {"norm": "clip"}, {"mixer": "conv3d"}, {"freeze_vit": False}], ids=str)
@pytest.mark.parametrize("levels", [1, 3])
def test_a_provider_trains_in_parallel(one_process, changes, levels):
    chrono = small_chrono(**changes)
    assert any(three_steps(FeatureProvider(chrono, 4, 5, levels=levels)))
    assert all(p.requires_grad for p in chrono.adapters.parameters())


@pytest.mark.parametrize("changes", [{}, {"neck": None, "out_channels": None}, {"freeze_vit": False}], ids=str)
def test_the_backbone_trains_in_parallel_without_its_visibility_head(one_process, changes):
    model = small_chrono(**changes)
    model.visibility_head.requires_grad_(False)
    assert any(three_steps(model))


# --- features for any tracker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape"), [("BCHW", (6, 5, 8, 12)), ("BTCHW", (2, 3, 5, 8, 12)), ("BTHWC", (2, 3, 8, 12, 5))]
)
def test_layouts(layout, shape):
    provider = FeatureProvider(small_chrono(), 4, 5, layout, normalised=True)
    video = torch.rand(2, 3, 3, 32, 48)
    maps = provider(video)
    assert maps.shape == shape
    channels = {"BCHW": 1, "BTCHW": 2, "BTHWC": 4}[layout]
    torch.testing.assert_close(maps.norm(dim=channels), torch.ones_like(maps.select(channels, 0)))
    with torch.no_grad():
        provider.heads[0].weight.mul_(3), provider.heads[0].bias.mul_(3)
    torch.testing.assert_close(provider(video), maps)


def test_levels_have_their_strides_and_widths():
    chrono = small_chrono()
    provider = FeatureProvider(chrono, 2, (3, 4, 5), "BTCHW", levels=3)
    maps = provider(torch.rand(1, 2, 3, 32, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(3, 16, 32), (4, 8, 16), (5, 4, 8)]
    assert provider.heads[2].in_channels == 24 and provider.heads[0].in_channels == provider.heads[1].in_channels == 12
    assert provider.grid((32, 64)) == (4, 8)  # tokens of 8 pixels, their features at stride 4: no finer than that
    assert FeatureProvider(chrono, 8).grid((32, 64)) == (2, 4)


def test_a_level_is_the_backbones_own_when_the_head_does_nothing():
    chrono = small_chrono()
    provider = FeatureProvider(chrono, 4, 12, "BTCHW")
    with torch.no_grad():
        provider.heads[0].weight.copy_(torch.eye(12)[..., None, None])
        provider.heads[0].bias.zero_()
    video = torch.rand(1, 3, 3, 32, 32)
    torch.testing.assert_close(provider(video), chrono(video) * 12**0.5)
    other = video.clone()
    other[:, 2] = 0
    assert not torch.allclose(provider(other)[:, 0], provider(video)[:, 0])  # frames see each other


def test_a_backbone_without_a_neck():
    config = ChronoConfig("vit_tiny_patch16_224", {**STEM, "pos_embed": "learn"}, grid=(4, 4), adapter_heads=2)
    provider = FeatureProvider(ChronoBackbone(config), 4, 6, "BTCHW", levels=2)
    assert provider.grid((32, 32)) == (8, 8)
    assert [m.shape[-1] for m in provider(torch.rand(1, 2, 3, 32, 32))] == [8, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stride": 0}, "stride=0"),
        ({"levels": 2, "channels": (3,)}, "channels=.3,.; expected .* 2 of them"),
        ({"layout": "HWC"}, "layout='HWC'; expected one of BCHW"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        FeatureProvider(small_chrono(), **wrong)


def test_sides_that_the_stride_does_not_divide():
    with pytest.raises(ValueError, match=r"30 x 32 pixels; expected multiples of 8"):
        FeatureProvider(small_chrono(), 4, 4, levels=2)(torch.rand(1, 1, 3, 30, 32))


# --- stand-ins --------------------------------------------------------------------------------------------------------


class Grids(NamedTuple):
    lowres: tuple
    hires: tuple
    highest: tuple
    resolutions: tuple


class GridsWithoutHighest(NamedTuple):
    lowres: tuple
    hires: tuple
    resolutions: tuple


class _ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, c, s, stride=s) for c, s in ((64, 2), (128, 4), (256, 8)))

    def forward(self, frames):
        return [conv(frames) for conv in self.convs]


class _GridTracker(nn.Module):
    """Takes (B, T, H, W, 3) in [-1, 1] and queries (t, y, x); asks `get_feature_grids` for features."""

    initial_resolution = (32, 32)

    def __init__(self):
        super().__init__()
        self.resnet_torch = _ResNet()
        self.torch_pips_mixer = nn.Linear(384, 2)

    def grids(self, video, resolutions):
        levels = []
        for size in resolutions:
            frames = nn.functional.interpolate(video.flatten(0, 1).permute(0, 3, 1, 2), size, mode="bilinear")
            maps = [m.unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2) for m in self.resnet_torch(frames)]
            levels.append([m / m.norm(dim=-1, keepdim=True) for m in maps])
        return [tuple(level) for level in zip(*levels, strict=True)]

    def forward(self, video, query_points, is_training=False):
        grids = self.get_feature_grids(video, is_training)
        t, y, x = (query_points[0] * query_points.new_tensor([1, 1 / 8, 1 / 8])).long().unbind(-1)
        low = grids.lowres[-1][0][t, y, x]
        high = grids.hires[-1][0][t, 2 * y, 2 * x]
        highest = grids.highest[-1].mean() if isinstance(grids, Grids) else 0
        return self.torch_pips_mixer(torch.cat([low, high], dim=-1)) + highest


class LocoTrack(_GridTracker):
    def __init__(self, extra_convs=False):
        super().__init__()
        self.extra_convs = nn.Conv2d(256, 256, 1) if extra_convs else None

    def get_feature_grids(self, video, is_training=False, refinement_resolutions=None):
        sizes = refinement_resolutions or utils.generate_default_resolutions(video.shape[2:4], (32, 32))
        highest, hires, lowres = self.grids(video, sizes)
        return FeatureGrids(lowres, hires, highest, tuple(sizes))


class TAPIR(_GridTracker):
    def __init__(self):
        super().__init__()
        self.extra_convs = nn.Conv2d(256, 256, 1)

    def get_feature_grids(self, video, is_training, refinement_resolutions=None):
        sizes = refinement_resolutions or utils.generate_default_resolutions(video.shape[2:4], (32, 32))
        _, hires, lowres = self.grids(video, [self.initial_resolution, *sizes])
        return GridsWithoutHighest(lowres, hires, (self.initial_resolution, *sizes))


FeatureGrids = Grids
utils = types.SimpleNamespace(generate_default_resolutions=lambda size, initial: [tuple(size)])


class _CoTracker(nn.Module):
    """Takes 0 … 255 and queries (t, x, y); hands its network (B * T, 3, H, W) in [-1, 1], in pieces, padded."""

    stride, latent_dim, window_len, piece = 4, 128, 4, 200

    def __init__(self):
        super().__init__()
        self.fnet = nn.Conv2d(3, 128, 4, stride=4)
        self.updateformer = nn.Linear(128, 2)
        self.online_ind = 0

    def forward(self, video, queries, iters=4, is_online=False):
        batch, frames, _, height, width = video.shape
        video = 2 * (video / 255) - 1
        missing = self.window_len - frames if is_online else -frames % self.window_len
        video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        maps = [
            self.fnet(piece.reshape(-1, 3, height, width)).unflatten(0, (batch, -1))
            for piece in video.split(self.piece, dim=1)
        ]
        self.maps = torch.cat(maps, dim=1)
        assert self.maps.shape[2:] == (self.latent_dim, height // self.stride, width // self.stride)
        if is_online:
            self.online_ind += self.window_len // 2
        return self.updateformer(self.maps.mean(dim=(3, 4)))[:, :frames]


class CoTracker2(_CoTracker):
    pass


class CoTrackerThreeOffline(_CoTracker):
    piece = 3


class CoTrackerThreeOnline(_CoTracker):
    pass


GRID_TRACKERS = [LocoTrack, TAPIR]
COTRACKERS = [CoTracker2, CoTrackerThreeOffline, CoTrackerThreeOnline]


def call(tracker, video):
    """The tracker's own call with a video in [0, 1]."""
    if isinstance(tracker, _GridTracker):
        return tracker(video.movedim(2, -1) * 2 - 1, torch.tensor([[[0.0, 4.0, 4.0], [2.0, 20.0, 12.0]]]))
    return tracker(255 * video, torch.zeros(len(video), 1, 3))


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """TAPIR's own FeatureGrids has another shape than LocoTrack's; in reality they are in different modules."""
    module = types.ModuleType("standin_tapir")
    module.FeatureGrids, module.utils, module.TAPIR = GridsWithoutHighest, utils, TAPIR
    monkeypatch.setitem(sys.modules, "standin_tapir", module)
    monkeypatch.setattr(TAPIR, "__module__", "standin_tapir")


# --- swapping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRID_TRACKERS + COTRACKERS)
def test_a_swapped_tracker_runs_trains_and_comes_back(kind):
    torch.manual_seed(1)
    tracker, chrono, video = kind(), small_chrono(freeze_vit=False), torch.rand(1, 4, 3, 32, 32)
    before, names = call(tracker, video), set(tracker.state_dict())
    assert swap_backbone(tracker, chrono, freeze=None) is tracker
    out = call(tracker, video)
    assert out.shape == before.shape and not torch.allclose(out, before)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in chrono.adapters["0"].parameters())
    inputs = [p for n, p in tracker.named_parameters() if "provider" in n and p.requires_grad]
    assert all(p.grad is not None for p in inputs)  # DistributedDataParallel asks for it
    inside = {id(p) for p in tracker.parameters()}
    assert {id(p) for p in chrono.adapters.parameters()} <= inside
    assert any("heads" in name for name in tracker.state_dict())
    unswap_backbone(tracker)
    assert torch.equal(call(tracker, video), before) and set(tracker.state_dict()) == names
    assert all(p.requires_grad for p in tracker.parameters())
    with pytest.raises(ValueError, match="was not swapped"):
        unswap_backbone(tracker)


@pytest.mark.parametrize("kind", [LocoTrack, CoTrackerThreeOffline])
def test_what_is_frozen(kind):
    tracker, chrono = kind(), small_chrono()
    flags = [p.requires_grad for p in chrono.parameters()]
    for freeze, chrono_trains, rest_trains in (("backbone", False, True), ("all but heads", False, False)):
        swap_backbone(tracker, chrono, freeze=freeze)
        trains = {name: p.requires_grad for name, p in tracker.named_parameters()}
        heads = [name for name in trains if ".heads." in name]
        inside = [name for name in trains if ".chrono." in name]
        rest = [name for name in trains if name not in (*heads, *inside)]
        assert heads and all(trains[n] for n in heads)
        assert inside and all(trains[n] == chrono_trains for n in inside)
        assert rest and all(trains[n] == rest_trains for n in rest)
        unswap_backbone(tracker)
        assert [p.requires_grad for p in chrono.parameters()] == flags
    with pytest.raises(ValueError, match="freeze='heads'; expected one of None, 'backbone', 'all but heads'"):
        swap_backbone(tracker, chrono, freeze="heads")


def test_a_report_says_what_to_retrain(capsys):
    tracker = swap_backbone(LocoTrack(), small_chrono())
    trainable_report(tracker)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "chrono" and lines[1].split()[2] == "0"
    assert "new: must be trained" in lines[2] and int(lines[2].split()[3].replace(",", "")) > 0
    assert lines[3].startswith("torch_pips_mixer") and "must be retrained" in lines[3]
    assert "resnet" not in "".join(lines)


def test_other_trackers_are_refused():
    with pytest.raises(ValueError, match="tracker of type Linear; expected one of LocoTrack, .* FeatureProvider"):
        swap_backbone(nn.Linear(1, 1), small_chrono())
    predictor = type("CoTrackerPredictor", (nn.Module,), {})()
    with pytest.raises(ValueError, match=r"CoTrackerPredictor; expected the tracker inside of it: predictor\.model"):
        swap_backbone(predictor, small_chrono())
    with pytest.raises(ValueError, match="chrono of type Linear"):
        swap_backbone(LocoTrack(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"tracker in torch.float16, chrono in torch.float32; .*autocast"):
        swap_backbone(LocoTrack().half(), small_chrono())
    tracker = swap_backbone(LocoTrack(), small_chrono())
    with pytest.raises(ValueError, match="swapped already"):
        swap_backbone(tracker, small_chrono())
    with pytest.raises(ValueError, match="has been swapped"):
        features_from(tracker)


def test_a_subclass_of_a_tracker_is_one():
    tracker = type("MyLocoTrack", (LocoTrack,), {})()
    assert call(swap_backbone(tracker, small_chrono()), torch.rand(1, 3, 3, 32, 32)).shape == (2, 2)


def test_grids_are_of_the_tracker_and_of_unit_length():
    tracker = swap_backbone(LocoTrack(), small_chrono())
    video = torch.rand(1, 3, 24, 40, 3) * 2 - 1
    grids = tracker.get_feature_grids(video, False, [(32, 32), (48, 64), (32, 32)])
    assert isinstance(grids, Grids) and grids.resolutions == ((32, 32), (48, 64), (32, 32))
    assert [m.shape for m in grids.lowres] == [(1, 3, 4, 4, 256), (1, 3, 6, 8, 256), (1, 3, 4, 4, 256)]
    assert [m.shape[2:] for m in grids.hires][:2] == [(8, 8, 128), (12, 16, 128)]
    assert [m.shape[2:] for m in grids.highest][:2] == [(16, 16, 64), (24, 32, 64)]
    for level in grids[:3]:
        torch.testing.assert_close(level[1].norm(dim=-1), torch.ones(level[1].shape[:-1]))
    frames = torch.rand(1, 3, 3, 32, 32)
    expected = tracker.resnet_torch.provider(frames)
    passes = []
    tracker.resnet_torch.provider.register_forward_hook(lambda *_: passes.append(1))
    grids = tracker.get_feature_grids(frames.movedim(2, -1) * 2 - 1, False, [(32, 32), (16, 16), (32, 32)])
    assert len(passes) == 2  # a resolution is computed once
    for level, maps in zip((grids.highest, grids.hires, grids.lowres), expected, strict=True):
        torch.testing.assert_close(level[0], maps, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="resolution 20 x 32; expected multiples of 8"):
        tracker.get_feature_grids(video, False, [(20, 32)])


def test_tapir_has_a_level_more():
    tracker = swap_backbone(TAPIR(), small_chrono())
    assert tracker.extra_convs is None
    grids = tracker.get_feature_grids(torch.rand(1, 2, 48, 48, 3), False)
    assert isinstance(grids, GridsWithoutHighest) and grids.resolutions == ((32, 32), (48, 48))
    assert [m.shape[2:] for m in grids.lowres] == [(4, 4, 256), (6, 6, 256)]
    assert isinstance(unswap_backbone(tracker).extra_convs, nn.Conv2d)


@pytest.mark.parametrize(("kind", "frames"), [(CoTracker2, 8), (CoTracker2, 6), (CoTrackerThreeOffline, 7)])
@torch.no_grad()
def test_pieces_of_a_clip_are_answered_from_one_pass(kind, frames):
    tracker, chrono = swap_backbone(kind(), small_chrono()), None
    chrono = tracker.fnet.provider.chrono
    video = torch.rand(2, frames, 3, 32, 48)
    passes = []
    handle = chrono.vit.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    tracker(255 * video, torch.zeros(2, 1, 3))
    handle.remove()
    assert len(passes) == 1
    expected = tracker.fnet.provider(video)
    torch.testing.assert_close(tracker.maps[:, :frames], expected, atol=1e-5, rtol=1e-5)
    padded = tracker.maps[:, frames:]
    torch.testing.assert_close(padded, expected[:, -1:].expand_as(padded), atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="outside of the tracker's forward"):
        tracker.fnet(torch.rand(2, 3, 32, 48))


@pytest.mark.parametrize("window", [(2, 0), (2, 2)])
@torch.no_grad()
def test_online_windows_agree_with_one_pass_where_the_model_is_causal(window):
    tracker = swap_backbone(CoTrackerThreeOnline(), small_chrono(window=window))
    video = torch.rand(1, 16, 3, 32, 32)
    whole = tracker.fnet.provider(video)
    for _ in range(2):  # a second video begins anew
        tracker.online_ind = 0
        for start in range(0, 14, 2):
            tracker(255 * video[:, start : start + 4], torch.zeros(1, 1, 3), is_online=True)
            there = tracker.maps[:, : min(4, 16 - start)]
            apart = (there - whole[:, start : start + 4]).abs().amax(dim=(0, 2, 3, 4))
            if window == (2, 0):
                assert apart.max() < 1e-5
            elif start + 4 < 16:
                assert apart[-1] > 1e-4  # the frames after are not there yet
        assert tracker.fnet._past.shape[1] == tracker.fnet.memory == 2 * 2  # adapters x window: no more is kept
    video = torch.rand(1, 4, 3, 32, 32)
    tracker.online_ind = 0
    tracker(255 * video, torch.zeros(1, 1, 3), is_online=True)
    torch.testing.assert_close(tracker.maps, tracker.fnet.provider(video), atol=1e-5, rtol=1e-5)


def test_a_clip_without_a_window_is_refused():
    tracker = swap_backbone(CoTrackerThreeOnline(), small_chrono())
    with pytest.raises(ValueError, match="video of length 2; expected at least 3 frames"):
        tracker(torch.rand(1, 2, 3, 32, 32), torch.zeros(1, 1, 3))


@pytest.mark.parametrize("kind", [LocoTrack, CoTrackerThreeOffline])
def test_a_copy_of_a_swapped_tracker_is_on_its_own(kind):
    tracker, video = swap_backbone(kind(), small_chrono()), torch.rand(1, 4, 3, 32, 32)
    twin = copy.deepcopy(tracker)
    out = call(twin, video)
    torch.testing.assert_close(out, call(tracker, video))
    with torch.no_grad():
        for p in tracker.parameters():
            p.zero_()
    torch.testing.assert_close(call(twin, video), out)


@pytest.mark.parametrize("kind", [LocoTrack, TAPIR, CoTrackerThreeOffline])
def test_a_swapped_tracker_can_be_stored(kind):
    tracker, video = swap_backbone(kind(), small_chrono()), torch.rand(1, 4, 3, 32, 32)
    loaded = pickle.loads(pickle.dumps(tracker))
    torch.testing.assert_close(call(loaded, video), call(tracker, video))
    with torch.no_grad():
        for p in tracker.parameters():
            p.zero_()
    assert call(loaded, video).any()
    call(unswap_backbone(loaded), video)


@pytest.mark.parametrize("kind", GRID_TRACKERS + COTRACKERS)
def test_forward_may_be_called_by_name(kind):
    """As CoTracker's predictors do."""
    tracker, video = swap_backbone(kind(), small_chrono()), torch.rand(1, 4, 3, 32, 32)
    expected = call(tracker, video)
    kind.__call__, original = (lambda self, *a, **k: self.forward(*a, **k)), kind.__call__
    try:
        torch.testing.assert_close(call(tracker, video), expected)
    finally:
        kind.__call__ = original


@torch.no_grad()
def test_a_window_that_failed_can_be_tried_again():
    tracker, video = swap_backbone(CoTrackerThreeOnline(), small_chrono(window=(2, 0))), torch.rand(1, 8, 3, 32, 32)
    whole, working = tracker.fnet.provider(video), tracker.updateformer
    for start in (0, 2, 4):
        piece = 255 * video[:, start : start + 4], torch.zeros(1, 1, 3)
        tracker.updateformer = None
        with pytest.raises(TypeError):
            tracker(*piece, is_online=True)
        assert tracker.fnet._maps is None
        tracker.updateformer = working
        tracker(*piece, is_online=True)
        torch.testing.assert_close(tracker.maps, whole[:, start : start + 4], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_what_happens_to_a_swapped_tracker_happens_to_its_own_network():
    tracker = swap_backbone(LocoTrack(extra_convs=True), small_chrono()).eval().double()
    assert tracker.extra_convs is None
    unswap_backbone(tracker)
    assert not tracker.resnet_torch.training and tracker.resnet_torch.convs[0].weight.dtype == torch.float64
    assert isinstance(tracker.extra_convs, nn.Conv2d)


@pytest.mark.parametrize(("kind", "stride", "channels"), [(LocoTrack, 8, 256), (TAPIR, 8, 256), (CoTracker2, 4, 128)])
def test_features_of_a_trackers_own_network(kind, stride, channels):
    tracker, video = kind(), torch.rand(1, 3, 3, 32, 48)
    features = features_from(tracker)(video)
    assert features.shape == (1, 3, channels, 32 // stride, 48 // stride)
    torch.testing.assert_close(features.norm(dim=2), torch.ones(1, 3, *features.shape[3:]))
    if kind is CoTracker2:
        own = tracker.fnet(video[0] * 2 - 1)
    else:
        own = tracker.get_feature_grids(video.movedim(2, -1) * 2 - 1, False).lowres[-1][0].movedim(-1, 1)
    torch.testing.assert_close(features[0], own / own.norm(dim=1, keepdim=True))
    as_bytes = (255 * video).round().byte()
    torch.testing.assert_close(features_from(tracker)(as_bytes), features_from(tracker)(as_bytes / 255))


# --- recipes of the documentation -------------------------------------------------------------------------------------

RECIPES = Path(__file__).parents[2] / "docs" / "refiners.md"


@pytest.fixture(scope="module")
def recipes():
    if not RECIPES.exists():
        pytest.skip("no docs beside the tests")
    code = next(c for c in re.findall(r"```python\n(.*?)```", RECIPES.read_text(), re.S) if "class Flattened" in c)
    names: dict = {}
    exec(code, names)
    return types.SimpleNamespace(**names)


@torch.no_grad()
def test_pips_flattens_clips_of_its_own_length(recipes):
    """(B * S, 3, H, W) in [-1, 1] to (B * S, 128, H / stride, W / stride)."""
    chrono, video = small_chrono(), torch.rand(2, 4, 3, 32, 48)
    for into, options in ((recipes.into_pips, {}), (recipes.into_pips2, {"frames": 4})):
        tracker = nn.Module()
        tracker.S, tracker.stride = 4, 8
        into(tracker, chrono, **options)
        maps = tracker.fnet((2 * video - 1).flatten(0, 1))
        assert maps.shape == (8, 128, 4, 6)
        torch.testing.assert_close(maps, tracker.fnet.provider(video), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_track_on_takes_tokens_of_four_levels(recipes):
    tracker, video = nn.Module(), torch.rand(1, 2, 3, 64, 96)
    recipes.into_track_on(tracker, small_chrono())
    levels = tracker.backbone(video)
    assert [level.shape for level in levels] == [(1, 2, 16 * 24 // 4**i, 256) for i in range(4)]
    maps = tracker.backbone.provider(video)
    torch.testing.assert_close(levels[1][0, 1, 13], maps[1][0, 1, 1, 1])  # row by row: 12 tokens each


@torch.no_grad()
def test_alltracker_normalises_as_imagenet(recipes):
    tracker, video = nn.Module(), torch.rand(2, 3, 3, 32, 32)
    recipes.into_alltracker(tracker, small_chrono(), frames=3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = tracker.dot_conv(tracker.cnn(((video - mean) / std).flatten(0, 1)))
    assert maps.shape == (6, 256, 4, 4)
    torch.testing.assert_close(maps, tracker.cnn.provider(video), atol=1e-4, rtol=1e-4)


# --- the trackers themselves ------------------------------------------------------------------------------------------


def _real(which):
    variable = {"locotrack": "LOCOTRACK", "tapir": "TAPNET", "bootstapir": "TAPNET"}.get(which, "COTRACKER")
    checkout = os.environ.get(f"CHRONO_TEST_{variable}")
    if not checkout:
        pytest.skip(f"CHRONO_TEST_{variable} names no checkout")
    sys.path.insert(0, os.path.join(checkout, "locotrack_pytorch") if which == "locotrack" else checkout)
    if which == "locotrack":
        from models.locotrack_model import LocoTrack as Real

        return Real(model_size="small")
    if which in ("tapir", "bootstapir"):
        from tapnet.torch.tapir_model import TAPIR as Real

        boots = which == "bootstapir"
        return Real(pyramid_level=int(boots), extra_convs=boots)
    if which == "cotracker2":
        from cotracker.models.core.cotracker.cotracker import CoTracker2 as Real

        return Real(window_len=8)
    if which == "cotracker3 offline":
        from cotracker.models.core.cotracker.cotracker3_offline import CoTrackerThreeOffline as Real

        return Real(window_len=60)
    from cotracker.models.core.cotracker.cotracker3_online import CoTrackerThreeOnline as Real

    return Real(window_len=16)


REAL = ["locotrack", "tapir", "bootstapir", "cotracker2", "cotracker3 offline", "cotracker3 online"]


@pytest.mark.parametrize("which", REAL)
def test_the_tracker_itself(which):
    torch.manual_seed(0)
    tracker = _real(which).eval()
    frames = int(os.environ.get("CHRONO_TEST_FRAMES", "16"))
    video = torch.rand(1, frames, 3, 256, 256)
    queries = torch.tensor([[[0.0, 40.0, 50.0], [3.0, 200.0, 100.0]]])

    def answer():
        torch.manual_seed(1)
        if which in ("locotrack", "tapir", "bootstapir"):
            out = tracker(video.movedim(2, -1) * 2 - 1, to_tapir(queries))
            if "unrefined_tracks" in out:  # before refinement a query's own position is in its frame
                start = from_tapir({**out, "tracks": out["unrefined_tracks"][0]})
                torch.testing.assert_close(start.xy[0, [0, 1], [0, 3]], queries[0, :, 1:], atol=1e-3, rtol=0)
            return out["tracks"], out["occlusion"]
        return tracker(255 * video, to_cotracker(queries))[:2]

    with torch.no_grad():
        before = answer()
    chrono = ChronoBackbone.from_pretrained("chrono-tiny", grid=(32, 32))
    swap_backbone(tracker, chrono, freeze=None)
    out = answer()
    assert [o.shape for o in out] == [b.shape for b in before] and all(o.isfinite().all() for o in out)
    out[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in chrono.adapters["0"].parameters())
    unswap_backbone(tracker)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(answer(), before, strict=True))
    assert features_from(tracker)(video[:, :2]).shape[2] in (128, 256)
