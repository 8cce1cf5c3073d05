"""What a query's memory holds, in whole clips and frame by frame."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chrono_features.ops.matching import sample_features
from chrono_features.query_memory import QueryMemory, remember

FRAMES, QUERIES, CHANNELS, SIDE = 7, 5, 6, 9


@pytest.fixture
def clip():
    draws = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(FRAMES, CHANNELS, SIDE, SIDE, generator=draws), dim=1)
    cells = SIDE * torch.rand(QUERIES, FRAMES, 2, generator=draws)
    return features, torch.tensor([0, 2, 3, 6, 3]), cells, torch.rand(QUERIES, FRAMES, generator=draws) < 0.7


def at(features, cells, t):
    return sample_features(features, torch.tensor([t]), cells[None, t], torch.float32)[0]


def expected(features, own, cells, sure):
    """Of one query: its own feature, and the mean over the frames on both sides up to the first that is not sure."""
    frames = []
    for step in (1, -1):
        t = own + step
        while 0 <= t < len(features) and sure[t]:
            frames.append(t)
            t += step
    feature = at(features, cells, own)
    if frames:
        feature = feature + torch.stack([at(features, cells, t) for t in frames]).mean(0)
    return F.normalize(feature, dim=0), len(frames)


def test_it_is_the_mean_up_to_the_first_frame_that_is_not_sure(clip):
    features, own, cells, sure = clip
    memory = remember(*clip)
    found = [expected(features, int(own[n]), cells[n], sure[n]) for n in range(QUERIES)]
    assert len({count for _, count in found}) > 2
    assert memory.added[:, 0].tolist() == [count for _, count in found]
    torch.testing.assert_close(memory.features(), torch.stack([feature for feature, _ in found]))


def test_frame_by_frame_is_the_whole_clip_without_the_frames_before(clip):
    features, own, cells, sure = clip
    after = torch.arange(FRAMES) > own[:, None]
    whole = remember(features, own, cells, sure & after)
    first = torch.stack([at(features, cells[n], int(own[n])) for n in range(QUERIES)])
    stream = QueryMemory.start(first)
    for t in range(FRAMES):
        stream = stream.updated(features[t], cells[:, t], sure[:, t], seen=after[:, t])
    assert torch.equal(stream.added, whole.added) and stream.added.sum() > 0
    torch.testing.assert_close(stream.features(), whole.features())


def test_nothing_to_remember_leaves_the_query_as_it_was(clip):
    features, own, cells, sure = clip
    memory = remember(features, own, cells, torch.zeros_like(sure))
    first = torch.stack([at(features, cells[n], int(own[n])) for n in range(QUERIES)])
    torch.testing.assert_close(memory.features(), F.normalize(first, dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_type_are_averaged_at_least_in_float32(clip, dtype):
    features, own, cells, sure = clip
    found = remember(features.to(dtype), own, cells, sure).features()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.float(), remember(*clip).features(), rtol=0, atol=0.02)
