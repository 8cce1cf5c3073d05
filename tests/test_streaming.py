import copy
import gc
import itertools
from pathlib import Path

import pytest
import torch

from chrono_features import chunking, grid_queries
from chrono_features.ops.clip_norm import clip_moments, frame_moments

VARIANTS = [
    {},
    {"norm": "token"},
    {"mixer": "conv1d", "window": (3, 1)},
    {"mixer": "conv3d", "norm": "token", "window": (0, 2)},
    {"norm": "token", "window": (2, 0)},
    {"adapter_blocks": (2,)},
    {"adapter_blocks": (0,), "window": (9, 9)},
    {"adapter_blocks": "none"},
    {"stem": "conv", "neck": "x2", "out_channels": 6},
    {"neck": "x2", "norm": "token"},
]


@pytest.fixture
def model(small_model):
    return lambda **changes: small_model(**changes).double()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("at_a_time", [1, 4, 11, 100])
@torch.no_grad()
def test_chunks_give_the_features_of_the_whole_clip(model, clip, options, at_a_time):
    network, video = model(**options), clip(1, 11).double()
    features = network(video, max_frames_in_memory=at_a_time)
    torch.testing.assert_close(features, network(video), rtol=0, atol=1e-12)


@torch.no_grad()
def test_float32_and_batches_and_other_grids(small_model, clip):
    network, video = small_model(), clip(3, 7, 40, 50)
    for grid in (None, (5, 7)):
        features = network(video, grid, max_frames_in_memory=6)
        torch.testing.assert_close(features, network(video, grid), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_offloading_changes_nothing_and_leaves_no_files(small_model, clip, tmp_path, dtype):
    network, video = small_model(neck="x2").to(dtype), clip(1, 9)
    kept = network(video, max_frames_in_memory=4)
    for where in (tmp_path, str(tmp_path), "cpu"):
        features = network(video, max_frames_in_memory=4, offload=where)
        assert features.dtype == dtype and torch.equal(features, kept)
        mapped = Path("/proc/self/maps")
        if mapped.exists():
            assert (str(tmp_path) in mapped.read_text()) == (where != "cpu")
            del features
            gc.collect()
            assert str(tmp_path) not in mapped.read_text()
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_folder_holds_the_streams(small_model, clip, tmp_path, monkeypatch):
    """What is offloaded lies in the folder that was named, while it is needed."""
    import tempfile

    folders = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: folders.append(dir) or original(dir=dir))
    small_model()(clip(1, 8), max_frames_in_memory=4, offload=tmp_path)
    assert folders == [tmp_path] * 2  # the features and the stream


@pytest.mark.parametrize("options", [{}, {"norm": "token"}, {"neck": "x2"}])
@torch.no_grad()
def test_iterators_give_the_features_of_the_whole_clip(model, clip, options):
    network, video = model(**options), clip(1, 11).double()
    chunks = list(network.iter_features(iter(video[0]), max_frames_in_memory=4))
    assert all(chunk.shape[1] <= 4 for chunk in chunks)
    torch.testing.assert_close(torch.cat(chunks, dim=1), network(video), rtol=0, atol=1e-12)


@pytest.mark.parametrize("at_a_time", [1, 3, 4])
@torch.no_grad()
def test_streams_of_unknown_length_span_several_pieces_of_memory(model, clip, monkeypatch, at_a_time):
    monkeypatch.setattr(chunking, "STORED_TOGETHER", 1)
    network, video = model(neck="x2"), clip(1, 11).double()
    features = torch.cat(list(network.iter_features(iter(video[0]), max_frames_in_memory=at_a_time)), dim=1)
    torch.testing.assert_close(features, network(video), rtol=0, atol=1e-12)


@pytest.mark.slow
@torch.no_grad()
def test_memory_does_not_grow_with_the_clip(small_model, clip, allocations):
    """But for the stream and the features, which the host keeps outside PyTorch's allocator."""
    network = small_model()
    short, long = clip(1, 20), clip(1, 200)
    peaks = [allocations(lambda v=v: network(v, max_frames_in_memory=4)) for v in (short, long)]
    assert peaks[1] < 1.1 * peaks[0] < allocations(lambda: network(long))


@pytest.mark.slow
@torch.no_grad()
def test_memory_does_not_grow_with_the_depth(small_config, small_model, clip, allocations):
    """Frames held back in one adapter are few; no adapter holds a chunk while the next one is on its way."""
    kwargs, video, peaks = small_config().vit_kwargs, clip(1, 64), []
    for depth in (4, 12):
        network = small_model(norm="token", window=(1, 1), vit_kwargs={**kwargs, "depth": depth})
        peaks.append(allocations(lambda n=network: [None for _ in n.iter_features(video[0], max_frames_in_memory=16)]))
    assert peaks[1] < 1.5 * peaks[0]


@torch.no_grad()
def test_iterators_read_as_they_go(small_model, clip):
    """Features follow the frames with norm="token", and come after all of them with norm="clip"."""
    for norm, expected in (("token", 8), ("clip", 20)):
        read = []
        frames = (read.append(i) or frame for i, frame in enumerate(clip(1, 20)[0]))
        next(small_model(norm=norm).iter_features(frames, max_frames_in_memory=4))
        assert len(read) == expected  # two adapters with two frames after, in chunks of four


@torch.no_grad()
def test_track_in_chunks(small_model, clip, tmp_path):
    network, video, queries = small_model(), clip(2, 7), grid_queries(3, (32, 32), t=2)
    expected = network.track(video, queries)
    for options in ({"max_frames_in_memory": 4}, {"max_frames_in_memory": 3, "offload": tmp_path}):
        tracks = network.track(video, queries, **options)
        torch.testing.assert_close(tracks.xy, expected.xy, rtol=0, atol=1e-3)
        assert torch.equal(tracks.visible, expected.visible)


# --- Streams ----------------------------------------------------------------------------------------------------------


def run(stream, video, sizes=(1,)):
    """All features of a clip, pushed in pieces of these sizes, one after the other."""
    out, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= video.shape[1]:
            break
        out.append(stream(video[:, start : start + size]))
        start += size
    return torch.cat([*out, stream.flush()], dim=1), [o.shape[1] for o in out]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("sizes", [(1,), (3, 1, 5), (20,)])
@torch.no_grad()
def test_streams_give_the_features_of_the_whole_clip(model, clip, options, sizes):
    network, video = model(**options), clip(2, 11).double()
    clip_norm = "adapter_blocks" not in options or options["adapter_blocks"] != "none"
    clip_norm &= options.get("norm", "clip") == "clip"
    stream = network.stream(network.clip_statistics(video) if clip_norm else None)
    for _ in range(2):  # the second clip starts afresh
        features, _ = run(stream, video, sizes)
        torch.testing.assert_close(features, network(video), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_delay_is_what_it_says(model, clip):
    network = model(norm="token", window=(3, 2))
    stream = network.stream()
    assert stream.delay == 4
    _, counts = run(stream, clip(1, 9).double())
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert model(norm="token", window=(3, 0)).stream().delay == 0


@torch.no_grad()
def test_short_clips_and_empty_ones(model, clip):
    network = model(norm="token")
    features, _ = run(network.stream(), clip(1, 2).double())
    torch.testing.assert_close(features, network(clip(1, 2).double()), rtol=0, atol=1e-12)
    assert network.stream().flush().shape == (1, 0, 16, 8, 8)


@torch.no_grad()
def test_reset_forgets(model, clip):
    network, video = model(norm="token"), clip(1, 5).double()
    stream = network.stream(grid=(4, 6))
    stream(clip(3, 3, seed=1).double())
    stream.reset()
    torch.testing.assert_close(run(stream, video)[0], network(video, (4, 6)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"norm": "token", "window": (2, 1), "neck": "x2"}, {"window": (1, 2)}], ids=str)
@pytest.mark.parametrize("method", ["embed", "run_block", "with_patches", "read_out"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@torch.no_grad()
def test_a_call_that_fails_can_be_made_again(model, clip, monkeypatch, options, method, kind):
    network, video = model(**options), clip(2, 7).double()
    stream = network.stream(network.clip_statistics(video) if "norm" not in options else None)
    whole, _ = run(stream, video, (2, 1))
    original, left = getattr(network, method), [0]

    def failing(*args):
        left[0] -= 1
        if not left[0]:
            raise kind("by the test")
        return original(*args)

    monkeypatch.setattr(network, method, failing, raising=True)

    def until_it_works(call, *args):
        done = None
        while done is None:  # fails at every place, one after the other
            left[0] = at = fails[-1] + 1
            try:
                done = call(*args)
            except kind:
                fails.append(at)
        fails.append(0)
        return done

    fails = [0]
    out = [until_it_works(stream, part) for part in (video[:, :2], video[:, 2:3], video[:, 3:5], video[:, 5:])]
    out.append(until_it_works(stream.flush))
    assert torch.equal(torch.cat(out, dim=1), whole) and sum(fails) > 2


@pytest.mark.parametrize("mixer", ["attention", "conv1d"])
@torch.no_grad()
def test_a_forced_causal_stream_knows_no_future(model, clip, mixer):
    network, video = model(norm="token", mixer=mixer), clip(1, 8).double()
    with pytest.raises(ValueError, match=r"causal=True with window=\(2, 2\).*window=\(2, 0\).*force=True"):
        network.stream(causal=True)
    stream = network.stream(causal=True, force=True)
    assert stream.delay == 0
    features, counts = run(stream, video)
    assert counts == [1] * 8
    together, _ = run(stream, video, (8,))  # frames that come together do not see each other's future
    torch.testing.assert_close(together, features, rtol=0, atol=1e-12)
    other = video.clone()
    other[:, 5:] = 1 - other[:, 5:]
    moved = (run(stream, other)[0] - features).abs().amax(dim=(0, 2, 3, 4)) > 1e-9
    assert moved.tolist() == [False] * 5 + [True] * 3
    if mixer == "attention":  # causal windows and weights trained with both sides are the same module
        one_sided = copy.deepcopy(network)
        for adapter in one_sided.adapters.values():
            adapter.mixer.window = (2, 0)
        torch.testing.assert_close(features, one_sided(video), rtol=0, atol=1e-12)


@torch.no_grad()
def test_causal_models_stream_without_force(model, clip):
    network, video = model(norm="token", window=(3, 0)), clip(1, 6).double()
    torch.testing.assert_close(run(network.stream(causal=True), video)[0], network(video), rtol=0, atol=1e-12)


@torch.no_grad()
def test_calibration_holds_the_moments_of_each_adapter(model, clip):
    network, video = model(), clip(2, 6).double()
    seen = []
    for adapter in network.adapters.values():
        adapter.register_forward_pre_hook(lambda _, args: seen.append(clip_moments(frame_moments(args[0]))))
    stats = network.clip_statistics(video, max_frames_in_memory=4)
    network(video)
    expected = torch.stack([torch.stack(tuple(m), dim=-1) for m in seen], dim=1)
    assert stats.shape == (2, 2, 2)
    torch.testing.assert_close(stats, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_one_clips_statistics_serve_a_batch(model, clip):
    network, video = model(), clip(2, 5).double()
    stats = network.clip_statistics(video[:1])
    together, _ = run(network.stream(stats), video)
    alone = torch.cat([run(network.stream(stats), v[None])[0] for v in video])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None])
def test_bad_chunk_sizes(small_model, clip, value):
    with pytest.raises(ValueError, match=f"max_frames_in_memory={value!r}.*; expected a positive integer of frames"):
        small_model()(clip(), max_frames_in_memory=value, offload="cpu")
    with pytest.raises(ValueError, match="max_frames_in_memory"):
        small_model().iter_features(iter(clip()[0]), max_frames_in_memory=value)


def test_bad_folders(small_model, clip, tmp_path):
    for offload in (tmp_path / "missing", "cuda:7"):
        with pytest.raises(ValueError, match="offload=.*existing folder"):
            small_model()(clip(), max_frames_in_memory=2, offload=offload)


def test_bad_frames(small_model, clip):
    network = small_model(norm="token")
    for frames, message in (
        ([], "frames holds no frame"),
        ([clip()[0]], r"frame 0 is \(3, 3, 32, 32\); expected"),
        ([None], "frame 0 is NoneType; expected"),
        ([clip()[0, 0] + 2], "video with values"),
        ([clip()[0, 0], clip(1, 1, 32, 40)[0, 0]], r"frame 1 is .*\(3, 32, 40\); expected .*\(3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            list(network.iter_features(frames))
    with pytest.raises(ValueError, match="frames holds no frame"):
        list(small_model().iter_features([]))


def test_bad_streams(small_model, clip):
    network = small_model()
    for stats in (None, torch.zeros(1, 3, 2), torch.zeros(2, 2)):
        with pytest.raises(
            ValueError, match=r"stats.*expected what model.clip_statistics\(video\) returns, \(B or 1, 2, 2\)"
        ):
            network.stream(stats)
    with pytest.raises(ValueError, match="stats given; expected None"):
        small_model(norm="token").stream(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="norm='token'.*there are no statistics"):
        small_model(norm="token").clip_statistics(clip())
    stream = small_model(norm="token").stream()
    stream(clip(2, 3))
    with pytest.raises(ValueError, match="expected B=2, as of earlier frames"):
        stream(clip(1, 3))
    with pytest.raises(ValueError, match="expected B=2, as of .* stats"):
        network.stream(torch.ones(2, 2, 2))(clip(3, 1))
    with pytest.raises(ValueError, match="grid="):
        network.stream(torch.zeros(1, 2, 2), grid=(0, 1))
