"""Frames in, positions out: the same positions as for the whole clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import chrono_features
from chrono_features import ChronoBackbone, grid_queries
from chrono_features.point_tracker import PointTracker, TrackedFrame
from chrono_features.refine import RefineOptions, refine_photometric
from chrono_features.video import read_video

SIZE = (32, 40)
FRAMES = 9
CONFIDENCE = {"confidence": (0.5, 1.0, 2.0, -1.0, -0.5), "refined_confidence": (0.5, 1.0, 2.0, -1.0, -0.5, 1.5)}


@pytest.fixture
def model(small_model):
    """model(**changes): a small model in float64."""
    return lambda **changes: small_model(**{"norm": "token", **CONFIDENCE, **changes}).double()


@pytest.fixture
def video(clip):
    """A clip that moves, so that points have something to follow."""
    still = torch.nn.functional.interpolate(clip(1, 1, 10, 12)[0], (48, 64), mode="bicubic").clamp(0, 1)[0]
    frames = [still[:, t : t + SIZE[0], 2 * t : 2 * t + SIZE[1]] for t in range(FRAMES)]
    return torch.stack(frames)[None].double()


def queries_at(frames: list[int], seed: int = 0) -> torch.Tensor:  # (N, 3)
    places = torch.rand(len(frames), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    places = places * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat([torch.tensor(frames, dtype=torch.float64)[:, None], places], dim=1)


def live(tracker: PointTracker, video: torch.Tensor) -> list[TrackedFrame]:
    found = [tracker(frame) for frame in video[0]]
    return [frame for frame in found if frame is not None] + tracker.flush()


def assert_equal_tracks(found, tracks, queries, atol=1e-4):
    """From each query frame on."""
    assert [frame.index for frame in found] == list(range(tracks.xy.shape[2]))
    for frame in found:
        expected = (queries[:, 0] <= frame.index).nonzero()[:, 0]
        assert torch.equal(frame.ids, expected)
        torch.testing.assert_close(frame.xy, tracks.xy[0, expected, frame.index], rtol=0, atol=atol)
        torch.testing.assert_close(frame.similarity, tracks.similarity[0, expected, frame.index])
        assert torch.equal(frame.visible, tracks.visible[0, expected, frame.index])


@pytest.mark.parametrize("window", [(2, 2), (2, 0), (0, 0), (1, 3)])
def test_positions_are_those_of_the_whole_clip(model, video, window):
    network = model(window=window)
    queries = queries_at([0, 0, 3, 1, 8, 3])
    tracker = network.point_tracker(queries, image_size=SIZE)
    assert tracker.delay == 2 * window[1]
    found = live(tracker, video)
    assert_equal_tracks(found, network.track(video, queries[None]), queries)


def test_with_statistics_of_the_clip_norms_over_clips_are_exact(model, video):
    network = model(norm="clip")
    queries = queries_at([0, 4])
    tracker = network.point_tracker(queries, image_size=SIZE, stats=network.clip_statistics(video))
    assert_equal_tracks(live(tracker, video), network.track(video, queries[None]), queries)


def test_a_causal_tracker_answers_at_once(model, video):
    network = model(window=(2, 0))
    tracker = network.point_tracker(queries_at([0]), image_size=SIZE, causal=True)
    assert [tracker(frame).index for frame in video[0]] == list(range(FRAMES))
    with pytest.raises(ValueError, match="causal=True"):
        model().point_tracker(image_size=SIZE, causal=True)
    forced = model().point_tracker(queries_at([0]), image_size=SIZE, causal=True, force=True)
    assert forced.delay == 0 and forced(video[0, 0]).index == 0


def test_confidence_is_that_of_the_whole_clip(model, video):
    network = model()
    queries = queries_at([0, 2, 2, 5])
    tracks = network.track(video, queries[None], confidence=True)
    found = live(network.point_tracker(queries, image_size=SIZE, confidence=True), video)
    assert_equal_tracks(found, tracks, queries)
    for frame in found:
        expected = tracks.confidence[0, frame.ids, frame.index]
        torch.testing.assert_close(frame.confidence, expected, rtol=0, atol=1e-5)


def test_refinement_without_memory_is_that_of_the_whole_clip(model, video):
    """With the query memory it sees past frames only, and the whole clip's sees all."""
    network = model()
    queries = queries_at([0, 2, 2, 5])
    options = RefineOptions(query_memory=False)
    plain = network.track(video, queries[None])
    soft_argmax = network.config.soft_argmax
    expected = refine_photometric(video, network(video), queries[None], plain, soft_argmax=soft_argmax, options=options)
    tracker = network.point_tracker(queries, image_size=SIZE, refine="photometric")
    tracker._refiner.options = options
    for frame in live(tracker, video):
        torch.testing.assert_close(frame.xy, expected.xy[0, frame.ids, frame.index], rtol=0, atol=1e-4)
        torch.testing.assert_close(
            frame.correlation, expected.correlation[0, frame.ids, frame.index], rtol=0, atol=1e-6
        )
    assert (expected.xy - plain.xy).abs().max() > 0.1  # it did refine


def test_the_query_memory_searches_again_where_alignment_is_not_sure(model, video):
    network = model()
    queries = queries_at([0] * 6)
    noise = torch.rand(video.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spoilt = video.clone()
    spoilt[:, 5] = 0.3 * video[:, 5] + 0.7 * noise[:, 5]
    with_memory = live(network.point_tracker(queries, image_size=SIZE, refine="photometric", confidence=True), spoilt)
    tracker = network.point_tracker(queries, image_size=SIZE, refine="photometric")
    tracker._refiner.options = replace(tracker._refiner.options, query_memory=False)
    without = live(tracker, spoilt)
    assert torch.equal(with_memory[1].xy, without[1].xy)  # nothing to remember yet
    assert any(not torch.equal(one.xy, two.xy) for one, two in zip(with_memory, without, strict=True))
    assert all(frame.confidence.isfinite().all() for frame in with_memory)


def test_points_are_added_and_dropped_at_any_time(model, video):
    network = model(window=(2, 1))
    tracker = network.point_tracker(image_size=SIZE)
    queries = queries_at(list(range(FRAMES)))
    tracks = network.track(video, queries[None])
    found = []
    for t, frame in enumerate(video[0]):
        assert tracker.add(queries[t : t + 1, 1:]).tolist() == [t]
        if t == 6:
            tracker.drop([1, 2])
        found.append(tracker(frame))
    found = found[tracker.delay :] + tracker.flush()
    for frame in found:
        here = frame.index + tracker.delay >= 6  # when these positions came out
        assert frame.ids.tolist() == [n for n in range(frame.index + 1) if not (here and n in (1, 2))]
        torch.testing.assert_close(frame.xy, tracks.xy[0, frame.ids, frame.index], rtol=0, atol=1e-4)


def test_points_may_be_dropped_before_their_frame(model, video):
    tracker = model(window=(0, 0)).point_tracker(queries_at([0, 3]), image_size=SIZE)
    tracker.drop(torch.tensor([1]))
    assert [frame.ids.tolist() for frame in live(tracker, video)] == [[0]] * FRAMES


@pytest.mark.parametrize("options", [{}, {"refine": "photometric", "confidence": True}])
def test_without_points_frames_pass(model, video, options):
    found = live(model().point_tracker(image_size=SIZE, **options), video)
    assert len(found) == FRAMES and all(frame.xy.shape == (0, 2) for frame in found)


@pytest.mark.parametrize("options", [{}, {"refine": "photometric", "confidence": True}])
def test_its_state_is_plain_tensors(model, video, options):
    network = model()
    tracker = network.point_tracker(queries_at([0, 1, 7]), image_size=SIZE, **options)
    for frame in video[0, :6]:
        tracker(frame)
    state = {key: value.clone() for key, value in tracker.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = network.point_tracker(image_size=SIZE, **options)
    other.load_state_dict(state)
    rest = video[:, 6:]
    for one, two in zip(live(tracker, rest), live(other, rest), strict=True):
        for name, value in vars(one).items():
            assert torch.equal(value, vars(two)[name]) if isinstance(value, torch.Tensor) else value == vars(two)[name]


@pytest.mark.parametrize("options", [{}, {"refine": "photometric", "confidence": True}])
def test_a_call_that_fails_can_be_made_again(model, video, monkeypatch, options):
    network = model(window=(1, 1))
    queries = queries_at([0, 2])
    expected = live(network.point_tracker(queries, image_size=SIZE, **options), video)
    tracker = network.point_tracker(queries, image_size=SIZE, **options)
    found = []
    head = network.visibility_head.forward
    for frame in video[0]:
        monkeypatch.setattr(network.visibility_head, "forward", lambda *_: 1 / 0)
        if len(found) >= tracker.delay:
            with pytest.raises(ZeroDivisionError):
                tracker(frame)
        monkeypatch.setattr(network.visibility_head, "forward", head)
        found.append(tracker(frame))
    found = found[tracker.delay :] + tracker.flush()
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.xy, two.xy) and torch.equal(one.ids, two.ids)


def test_reset_forgets(model, video):
    tracker = model().point_tracker(queries_at([0, 1]), image_size=SIZE)
    before = live(tracker, video)
    assert tracker.add(queries_at([0])[:, 1:]).tolist() == [0]
    after = live(tracker, video)
    torch.testing.assert_close(after[4].xy, before[4].xy[:1])


def test_memory_does_not_grow_with_the_video(small_model, clip):
    network = small_model(norm="token", **CONFIDENCE)
    tracker = network.point_tracker(image_size=SIZE, refine="photometric", confidence=True)
    frame = clip(1, 1, *SIZE)[0, 0]

    def held(frames: int) -> int:
        for _ in range(frames):
            ids = tracker.add(torch.tensor([[5.0, 6.0]]))
            tracker(frame)
            if ids.item() >= 3:
                tracker.drop(ids - 3)
        return sum(value.numel() for value in tracker.state_dict().values())

    assert held(12) == held(12)


def test_half_precision_and_autocast_keep_positions_wide(small_model, clip):
    network = small_model(norm="token").bfloat16()
    tracker = network.point_tracker(queries_at([0]).float(), image_size=SIZE)
    assert live(tracker, clip(1, 3, *SIZE))[-1].xy.dtype == torch.float32


def test_wrong_arguments_are_named(model, video):
    network = model()
    tracker = network.point_tracker(image_size=SIZE)
    with pytest.raises(ValueError, match=r"frame of shape \(3, 30, 40\); expected \(3, 32, 40\), as image_size"):
        tracker(video[0, 0, :, :30])
    with pytest.raises(ValueError, match=r"points of shape \(2, 3\); expected \(N, 2\)"):
        tracker.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x from 0 to 40"):
        tracker.add(torch.tensor([[41.0, 1.0]]))
    with pytest.raises(ValueError, match=r"ids=\[7\]; expected ids of points that are tracked"):
        tracker.drop([7])
    with pytest.raises(ValueError, match=r"queries of shape .*; expected \(N, 3\)"):
        network.point_tracker(torch.zeros(2, 2), image_size=SIZE)
    with pytest.raises(ValueError, match="image_size="):
        network.point_tracker(image_size=(0, 3))
    with pytest.raises(ValueError, match="refine='lucas'"):
        network.point_tracker(image_size=SIZE, refine="lucas")
    with pytest.raises(ValueError, match="confidence=True for a model whose confidence is None"):
        model(confidence=None).point_tracker(image_size=SIZE, confidence=True)
    with pytest.raises(ValueError, match="visible_threshold=2"):
        network.point_tracker(image_size=SIZE, visible_threshold=2)
    with pytest.raises(KeyError):
        tracker.load_state_dict({})
    assert live(tracker, video[:, :2])[0].index == 0  # none of these was a frame


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"window": (0, 0)}, {"window": (1, 1)}])
def test_the_bundled_model_on_the_bundled_clip_in_float32(options):
    """Positions differ by less than 0.01 px but where the two best similarities nearly tie."""
    video = read_video(Path(chrono_features.__file__).parent / "assets" / "bunny.mp4", end=14).frames[None]
    size = video.shape[-2:]
    network = ChronoBackbone.from_pretrained("chrono-tiny", grid=(16, 16), **options)
    queries = torch.cat([grid_queries(4, size, t)[0] for t in (0, 5)])
    tracks = network.track(video, queries[None])
    tracker = network.point_tracker(queries, image_size=size)
    far = 0
    for frame in live(tracker, video):
        distance = (frame.xy - tracks.xy[0, frame.ids, frame.index]).norm(dim=-1)
        far += int((distance > 0.01).sum())
    assert far <= 2
