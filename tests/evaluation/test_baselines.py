import copy
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chrono_features import ChronoBackbone, Tracks
from chrono_features.evaluation import baselines, trackers
from chrono_features.evaluation.baselines import ColourFeatures, PatchFeatures, TimmFeatures, lucas_kanade, static
from chrono_features.evaluation.trackers import BASELINES, Tracker, baseline, from_model, weights_hash
from chrono_features.extras import how_to_install
from chrono_features.tracking import soft_argmax_track

timm = pytest.importorskip("timm")

VIT, REGISTERS, RESNET = "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "resnet18"


def translating(frames: int = 5, size: tuple[int, int] = (64, 80), step: tuple[int, int] = (3, -2)) -> torch.Tensor:
    """A smooth random texture that moves by `step` pixels (x, y) a frame, (1, T, 3, H, W) uint8."""
    margin = frames * max(map(abs, step))
    height, width = (side + 2 * margin for side in size)
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    big = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]
    origins = [(margin - t * step[0], margin - t * step[1]) for t in range(frames)]
    clip = torch.stack([big[:, y : y + size[0], x : x + size[1]] for x, y in origins])
    return (clip[None] * 255).round().byte()


def truth(queries: torch.Tensor, frames: int, step: tuple[int, int] = (3, -2)) -> torch.Tensor:
    moved = (torch.arange(frames) - queries[..., :1])[..., None] * torch.tensor(step, dtype=torch.float32)
    return queries[:, :, None, 1:] + moved


QUERIES = torch.tensor([[[2, 40.0, 32.0], [2, 33.3, 27.8], [0, 30.5, 40.0], [4, 45.0, 30.0]]])


def test_static() -> None:
    tracks = static(translating(), QUERIES)
    assert torch.equal(tracks.xy, QUERIES[:, :, None, 1:].expand(1, 4, 5, 2))
    assert torch.equal(tracks.similarity, torch.ones(1, 4, 5)) and tracks.visible is None


# Lucas-Kanade


@pytest.fixture
def opencv() -> None:
    pytest.importorskip("cv2")


@pytest.mark.usefixtures("opencv")
def test_lucas_kanade_follows_a_texture_both_ways() -> None:
    tracks = lucas_kanade(translating(), QUERIES)
    torch.testing.assert_close(tracks.xy, truth(QUERIES, 5), rtol=0, atol=0.1)
    assert torch.equal(tracks.xy[0, 0, 2], QUERIES[0, 0, 1:])  # as it was asked
    assert tracks.visible.dtype == torch.bool and tracks.visible.all() and tracks.similarity.shape == (1, 4, 5)


@pytest.mark.usefixtures("opencv")
def test_lucas_kanade_takes_points_and_clips_one_by_one() -> None:
    clips = torch.cat([translating(), translating(step=(-1, 2))])
    queries = torch.cat([QUERIES, QUERIES.flip(1)])
    together = lucas_kanade(clips, queries)
    for b in range(2):
        for n in range(4):
            alone = lucas_kanade(clips[b : b + 1], queries[b : b + 1, n : n + 1])
            torch.testing.assert_close(alone.xy[0, 0], together.xy[b, n], rtol=0, atol=1e-4)
            assert torch.equal(alone.visible[0, 0], together.visible[b, n])
    assert lucas_kanade(clips[:1], QUERIES[:, :0]).xy.shape == (1, 0, 5, 2)


@pytest.mark.usefixtures("opencv")
def test_lucas_kanade_gives_up_on_points_that_are_covered() -> None:
    """From frame 3 on other noise covers the left half, until frame 6; only there points are lost, and for good."""
    clip = translating(frames=7, step=(0, 0))
    clip[:, 3:6, :, :, :40] = torch.randint(
        0, 256, (1, 3, 3, 64, 40), generator=torch.Generator().manual_seed(1)
    ).byte()
    queries = torch.tensor([[[0, 15.0, 30.0], [0, 62.0, 30.0], [6, 15.0, 30.0]]])
    tracks = lucas_kanade(clip, queries)
    assert tracks.visible[0].tolist() == [[True] * 3 + [False] * 4, [True] * 7, [False] * 6 + [True]]
    assert torch.isfinite(tracks.xy).all()


def test_opencv_is_named_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("eval"))):
        lucas_kanade(translating(), QUERIES)


# Pixels as features


@pytest.mark.parametrize("kind", [PatchFeatures, ColourFeatures])
def test_pixels_follow_a_video_that_moves_by_whole_cells(kind) -> None:
    """Frames of 4 pixels a cell: what moves by four pixels is the same feature in the next cell."""
    clip = translating(frames=4, size=(48, 64), step=(4, -4))
    features = kind(grid=(12, 16))
    maps = features(clip)
    channels = {PatchFeatures: 3 * 9 * 9, ColourFeatures: 4}[kind]
    assert maps.shape == (1, 4, channels, 12, 16)
    torch.testing.assert_close(maps.norm(dim=2), torch.ones(1, 4, 12, 16))
    inner = maps[:, 0, :, 4:10, 2:8]
    torch.testing.assert_close(maps[:, 3, :, 1:7, 5:11], inner, rtol=0, atol=1e-5)
    queries = torch.tensor([[[1, 30.0, 26.0], [0, 22.0, 34.0]]])  # centres of cells
    tracks = soft_argmax_track(maps, queries, (48, 64), temperature=1e6, radius=features.radius)
    torch.testing.assert_close(tracks.xy, truth(queries, 4, (4, -4)), rtol=0, atol=1e-3)


def test_colours_are_told_apart_by_brightness_too() -> None:
    clip = torch.tensor([[255, 255, 255], [128, 0, 255]]).byte()[None, :, :, None, None].expand(1, 2, 3, 8, 8)
    maps = ColourFeatures(grid=(2, 2))(clip)
    for t, colour in enumerate(([2, 2, 2, 1], [0, -2, 2, 1])):
        expected = F.normalize(torch.tensor(colour).float(), dim=0)
        torch.testing.assert_close(maps[0, t, :, 1, 1], expected, rtol=0, atol=0.01)


def test_patches_lose_their_mean_and_take_any_length() -> None:
    clip = translating(frames=3)
    maps = PatchFeatures(patch=5, grid=(6, 8))(torch.cat([clip, clip.flip(1)]))
    assert maps.shape == (2, 3, 75, 6, 8)
    torch.testing.assert_close(maps.mean(dim=2), torch.zeros(2, 3, 6, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(maps[0].flip(0), maps[1])
    with pytest.raises(ValueError, match="grid="):
        PatchFeatures(grid=(0, 8))


# Features of timm's models


@pytest.fixture
def no_download(monkeypatch):
    """timm makes models with random weights, whatever is asked; the names of those made."""
    made, create = [], timm.create_model

    def random_model(name, pretrained=False, **options):
        made.append((name, pretrained))
        torch.manual_seed(0)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", random_model)
    return made


@pytest.fixture(scope="module")
def models():
    """Features of each kind of network on a grid of 2 x 3, by name and block, made once."""
    kept = {}

    def get(name, block=None):
        if (name, block) not in kept:
            torch.manual_seed(0)
            kept[name, block] = TimmFeatures(name, block, (2, 3), pretrained=False)
        return kept[name, block]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "stride", "channels", "taken"),
    [
        (VIT, None, 16, 192, 11),
        (VIT, 4, 16, 192, 4),
        (REGISTERS, 2, 16, 384, 2),
        (RESNET, None, 8, 128, 2),
        (RESNET, 3, 16, 256, 3),
        (RESNET, 0, 2, 64, 0),
    ],
)
def test_shapes_and_lengths(models, name, block, stride, channels, taken) -> None:
    features = models(name, block)
    assert (features.stride, features.block, features.grid) == (stride, taken, (2, 3))
    maps = features(translating(frames=2, size=(24, 40)))
    assert maps.shape == (1, 2, channels, 2, 3)
    torch.testing.assert_close(maps.norm(dim=2), torch.ones(1, 2, 2, 3))
    assert not features.model.training and not any(p.requires_grad for p in features.parameters())


@pytest.mark.parametrize(("name", "block"), [(VIT, 4), (VIT, None), (REGISTERS, 2), (REGISTERS, None)])
def test_features_of_a_vit_are_what_the_block_returns(models, name, block) -> None:
    """And behind the final norm for the last block only."""
    features = models(name, block)
    model, clip, caught = features.model, translating(frames=2), []
    handle = model.blocks[features.block].register_forward_hook(lambda *values: caught.append(values[-1]))
    try:
        maps = features(clip)
    finally:
        handle.remove()
    (tokens,) = caught
    if block is None:
        tokens = model.norm(tokens)
    patches = tokens[:, model.num_prefix_tokens :]
    assert patches.shape[1] == 6
    expected = F.normalize(patches.transpose(1, 2).unflatten(-1, (2, 3)), dim=1)
    torch.testing.assert_close(maps[0], expected)


def test_features_of_a_convolutional_network_are_those_of_the_stage(models) -> None:
    features, caught = models(RESNET), []
    handle = features.model.layer2.register_forward_hook(lambda *values: caught.append(values[-1]))
    try:
        maps = features(translating(frames=2))
    finally:
        handle.remove()
    torch.testing.assert_close(maps[0], F.normalize(caught[0], dim=1))


@pytest.mark.parametrize(("name", "block"), [(VIT, 0), (RESNET, 0)])
def test_frames_come_from_where_they_lie(models, name, block) -> None:
    """What shows in one corner of the frame changes the features of that corner, rows and columns not mixed up."""
    clip = torch.full((1, 1, 3, 32, 48), 127, dtype=torch.uint8)
    marked = clip.clone()
    marked[..., :10, 38:] = 255
    features = models(name, block)
    change = (features(marked) - features(clip)).norm(dim=2)[0, 0]
    assert change.argmax() == 2  # upper right of 2 x 3


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_how_many_frames_go_together_does_not_matter(models, monkeypatch, name) -> None:
    clips = torch.cat([translating(frames=3), translating(frames=3, step=(1, 1))])
    features = models(name)
    whole = features(clips)
    assert whole.shape[:2] == (2, 3)
    monkeypatch.setattr(baselines, "FRAMES_TOGETHER", 2)
    torch.testing.assert_close(features(clips), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features(clips[1:])[0], whole[1], rtol=1e-4, atol=1e-5)


def test_pixels_are_normalised_as_the_model_wants(models) -> None:
    for name in (VIT, RESNET):
        config, wanted = models(name).config, models(name).model.pretrained_cfg
        assert (config.mean, config.std) == (wanted["mean"], wanted["std"])
    assert models(VIT).config.mean != models(RESNET).config.mean


@pytest.mark.usefixtures("no_download")
def test_what_timm_cannot_give() -> None:
    with pytest.raises(ValueError, match="timm:resnet1: timm has no such model"):
        baseline("timm:resnet1")
    with pytest.raises(ValueError, match=r"timm:resnet18@5: expected a block from 0 to 4"):
        baseline("timm:resnet18@5")
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224@12: expected a block from 0 to 11"):
        baseline(f"timm:{VIT}@12", grid=(2, 2))
    with pytest.raises(ValueError, match="grid="):
        baseline("timm:resnet18", grid=(2, 0))


def test_a_model_without_maps_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"timm:resnet18 \(Linear\) gives no feature maps"):
        TimmFeatures("resnet18")


# Baselines by name


def test_pretrained_weights_are_asked_for(no_download) -> None:
    tracker = baseline("timm:resnet18@1", grid=(4, 6))
    assert no_download == [("resnet18", True)]
    about = tracker.about
    assert tracker.name == "timm:resnet18@1" and len(about.pop("weights")) == 64
    assert about == {"grid": [4, 6], "radius": 5.0, "temperature": 20.0, "block": 1, "stride": 4}


@pytest.mark.parametrize("name", ["patch", "colour", "timm:resnet18"])
@pytest.mark.usefixtures("no_download")
def test_baselines_with_features(name) -> None:
    clip, tracker = translating(), baseline(name, grid=(16, 20))
    maps = tracker.features(clip)
    assert maps.shape[-2:] == (16, 20) == tuple(tracker.about["grid"])
    options = {k: tracker.about[k] for k in ("radius", "temperature")}
    expected = soft_argmax_track(maps, QUERIES, (64, 80), **options)
    for found in (maps, None):
        torch.testing.assert_close(tracker.track(clip, QUERIES, found).xy, expected.xy)
    assert not torch.equal(tracker.track(clip, QUERIES, maps.flip(1)).xy, expected.xy)


@pytest.mark.usefixtures("opencv")
def test_baselines_without_features() -> None:
    for name, function in (("static", static), ("lucas-kanade", lucas_kanade)):
        tracker = baseline(name)
        assert tracker.features is None and tracker.name == name
        assert torch.equal(tracker.track(translating(), QUERIES, None).xy, function(translating(), QUERIES).xy)
    assert "opencv" in baseline("lucas-kanade").about


MINE = """
from chrono_features.evaluation.baselines import static

class Kept:
    still = staticmethod(static)

number = 3
"""


def test_a_tracker_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_trackers.py").write_text(MINE)
    (tmp_path / "my_needs.py").write_text("import not_installed_anywhere")
    for name in ("my_trackers:static", "my_trackers:Kept.still"):
        tracker = baseline(name)
        assert tracker.name == name and tracker.features is None
        tracks = tracker.track(translating(), QUERIES, None)
        assert isinstance(tracks, Tracks) and torch.equal(tracks.xy, static(translating(), QUERIES).xy)
    for name, message in (
        ("my_trackers:moving", "my_trackers has no moving"),
        ("my_trackers:Kept.moving", "my_trackers has no Kept.moving"),
        ("my_trackers:number", "is a int; expected a function"),
        ("not_installed_anywhere:f", "no module not_installed_anywhere"),
        ("my_trackers.inner:f", "no module my_trackers.inner"),
    ):
        with pytest.raises(ValueError, match=message):
            baseline(name)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        baseline("my_needs:f")


@pytest.mark.parametrize(
    "name", ["", "statics", "lucas", "timm:", "timm:resnet18@", "timm:resnet18@x", "a:b:c", "a b:c"]
)
def test_unknown_baselines(name) -> None:
    with pytest.raises(ValueError) as raised:
        baseline(name)
    assert str(raised.value) == f"baseline={name!r}; expected one of {', '.join(BASELINES)}"


# Weights


def test_the_hash_of_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))  # which counts in a single number
    before = weights_hash(network)
    assert before == weights_hash(network) and len(before) == 64
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    twin.load_state_dict(network.state_dict())
    twin[0].weight.data = twin[0].weight.data.t().contiguous().t()
    assert not twin[0].weight.is_contiguous() and weights_hash(twin) == before
    seen = {before, weights_hash(copy.deepcopy(network).double())}
    for change in (
        lambda: network[0].weight.data[3, 2:].add_(1e-6),
        lambda: network[1].running_mean.data[0:1].add_(1),
        lambda: network[1].num_batches_tracked.add_(1),
    ):
        change()
        seen.add(weights_hash(network))
    assert len(seen) == 5
    assert weights_hash(torch.nn.ParameterDict({"a": torch.ones(2)})) != weights_hash(
        torch.nn.ParameterDict({"b": torch.ones(2)})
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_hash_of_weights_is_the_same_on_a_gpu() -> None:
    network = torch.nn.Linear(3, 4)
    assert weights_hash(network) == weights_hash(network.cuda())


# Models


def spied(monkeypatch, name: str) -> list:
    calls, original = [], getattr(ChronoBackbone, name)

    def spy(self, video, *arguments, **options):
        calls.append((arguments, options))
        return original(self, video, *arguments, **options)

    monkeypatch.setattr(ChronoBackbone, name, spy)
    return calls


def test_a_model_tracks_as_it_does_itself(small_model) -> None:
    model, clip = small_model(), translating()
    tracker = from_model("m", model)
    maps = tracker.features(clip)
    torch.testing.assert_close(maps, model(clip))
    expected = model.track(clip, QUERIES)
    for found in (maps, None):
        tracks = tracker.track(clip, QUERIES, found)
        torch.testing.assert_close(tracks.xy, expected.xy)
        torch.testing.assert_close(tracks.logits, expected.logits)
    about = tracker.about
    assert about == {"weights": weights_hash(model), "config": model.config.to_dict(), "adapters": True}


def test_contender_is_the_former_name() -> None:
    with pytest.warns(DeprecationWarning, match="Contender is now called Tracker"):
        assert trackers.Contender is Tracker
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        trackers.Other  # noqa: B018


def test_adapters_off(small_model) -> None:
    model, clip = small_model(), translating()
    tracker = from_model("m", model, adapters=False)
    alone = model.vit_features(clip)
    torch.testing.assert_close(tracker.features(clip), alone)
    assert not torch.allclose(alone, model(clip), atol=1e-3)
    assert tracker.about["adapters"] is False
    torch.testing.assert_close(tracker.track(clip, QUERIES, None).xy, model.track(clip, QUERIES, features=alone).xy)


def test_the_authors_settings(small_model, monkeypatch) -> None:
    """896 x 896 pixels, and similarities in bfloat16, with the model's own features or the ViT's alone."""
    model, clip = small_model(adapter_blocks="none"), translating(frames=2)
    grids = []

    def features(self, video, grid=None, **options):
        grids.append((grid, {k: v for k, v in options.items() if v is not None}))
        return F.normalize(torch.rand(1, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0)), dim=2)

    monkeypatch.setattr(ChronoBackbone, "forward", features)
    monkeypatch.setattr(ChronoBackbone, "vit_features", features)
    tracked = spied(monkeypatch, "track")
    queries = QUERIES[:, 2:3]
    for adapters in (True, False):
        tracker = from_model("m", model, paper=True, adapters=adapters)
        tracker.track(clip, queries, tracker.features(clip))
        tracker.track(clip, queries, None)
        assert tracker.about["correlation_dtype"] == "torch.bfloat16"
    assert grids == [((224, 224), {})] * 4  # patches of 4
    assert [options["correlation_dtype"] for _, options in tracked] == [torch.bfloat16] * 4
    plain = from_model("m", model)
    plain.track(clip, queries, plain.features(clip))
    assert grids[4:] == [(None, {})] and "correlation_dtype" not in tracked[4][1] and "grid" not in plain.about


def test_the_authors_settings_need_patches_that_divide_896(small_model) -> None:
    kwargs = {"img_size": 40, "patch_size": 10, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = small_model(vit_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"paper=True for m, whose patches are \(10, 10\); expected divisors of 896"):
        from_model("m", model, paper=True)
    assert isinstance(from_model("m", model), Tracker)


def test_options_of_a_model(small_model, monkeypatch) -> None:
    model, clip = small_model(), translating()
    forward, tracked = spied(monkeypatch, "forward"), spied(monkeypatch, "track")
    tracker = from_model("m", model, max_frames_in_memory=2, refine="photometric", confidence=False)
    maps = tracker.features(clip)
    tracker.track(clip, QUERIES, maps)
    assert forward == [((None,), {"max_frames_in_memory": 2})]
    ((arguments, options),) = tracked
    assert arguments[0] is QUERIES and options == {"features": maps, "refine": "photometric", "confidence": False}
    assert tracker.about["refine"] == "photometric" and tracker.about["confidence"] is False


def test_features_are_equal_where_they_would_be_the_same(small_model) -> None:
    """Trackers of one model share what they have in common: refinement does not change features, adapters do."""
    model = small_model()
    plain = from_model("m", model).features
    assert plain == from_model("refined", model, refine="photometric").features
    others = [
        from_model("m", small_model()),
        from_model("m", model, adapters=False),
        from_model("m", model, paper=True),
    ]
    assert all(plain != other.features for other in others)


def test_no_gradients(small_model) -> None:
    tracker = from_model("m", small_model(freeze_vit=False))
    assert not tracker.features(translating()).requires_grad
    assert np.isfinite(tracker.track(translating(), QUERIES[:, :0], None).xy.numpy()).all()  # no points at all
