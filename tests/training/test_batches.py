import dataclasses

import pytest
import torch

pytest.importorskip("accelerate")

from tiny_training import STAGE

from chrono_features.data.synthetic import VALIDATION_SEED
from chrono_features.training import batches as data
from chrono_features.training.batches import SyntheticBatches, draw_queries


def test_queries_are_drawn_from_visible_frames():
    generator = torch.Generator().manual_seed(0)
    tracks = torch.rand(200, 7, 2, generator=generator)
    visible = torch.rand(200, 7, generator=generator) < 0.4
    visible[torch.arange(200), torch.randint(7, (200,), generator=generator)] = True
    queries = draw_queries(tracks, visible, generator)
    frame, rows = queries[:, 0].long(), torch.arange(200)
    assert visible[rows, frame].all()
    assert torch.equal(queries[:, 1:], tracks[rows, frame])
    assert len(frame.unique()) == 7


def test_more_views_are_queries_in_other_frames():
    generator = torch.Generator().manual_seed(0)
    tracks = torch.rand(100, 5, 2, generator=generator)
    visible = torch.rand(100, 5, generator=generator) < 0.5
    visible[:50, 0] = True
    visible[50:] = torch.arange(5) == 3  # seen once only
    queries = draw_queries(tracks, visible, generator, views=2).unflatten(0, (2, 100))
    frames = queries[..., 0].long()
    for view in range(2):
        assert visible[torch.arange(100), frames[view]].all()
        assert torch.equal(queries[view, :, 1:], tracks[torch.arange(100), frames[view]])
    twice = visible.sum(dim=1) > 1
    assert (frames[0] != frames[1])[twice].all() and twice.sum() > 40
    assert (frames[:, 50:] == 3).all()


@pytest.mark.slow
def test_a_step_decides_its_batch():
    batches = SyntheticBatches(STAGE, None, seed=1)
    first, again, other = batches[3], SyntheticBatches(STAGE, None, seed=1)[3], batches[4]
    assert torch.equal(first.video, again.video) and torch.equal(first.queries, again.queries)
    assert not torch.equal(first.video, other.video)
    assert first.video.shape == (2, 2, 3, 32, 32) and first.queries.shape == (2, 16, 3)
    assert first.tracks.shape == (2, 16, 2, 2) and first.visible.shape == (2, 16, 2)
    seen = first.visible.gather(2, first.queries[..., :1].long())[..., 0]
    assert seen.all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_their_order_as_bytes_on_the_host(workers):
    batches = SyntheticBatches(dataclasses.replace(STAGE, steps=3), None, seed=1)
    loaded = list(data.loader(batches, workers, "cpu"))
    assert len(loaded) == 3
    for step, batch in enumerate(loaded):
        assert batch.video.dtype == torch.uint8 and batch.video.device.type == "cpu"
        for name, value in vars(batches[step]).items():
            assert torch.equal(getattr(batch, name), value), name


@pytest.mark.slow
def test_a_step_draws_its_frames_and_processes_agree_on_them():
    stage = dataclasses.replace(STAGE, frames=(2, 5), batch=1, tracks=4, views=2)
    mine, other = (SyntheticBatches(stage, None, rank=rank, world=2) for rank in range(2))
    lengths = [mine[step].video.shape[1] for step in range(8)]
    assert set(lengths) <= {2, 3, 4, 5} and len(set(lengths)) > 2
    assert lengths == [other[step].video.shape[1] for step in range(8)]
    assert mine[0].queries.shape == (1, 8, 3) and mine[0].tracks.shape == (1, 8, lengths[0], 2)
    assert torch.equal(mine[0].tracks[:, :4], mine[0].tracks[:, 4:])


def test_processes_and_seeds_see_clips_of_their_own():
    def clips(seed, rank, world):
        own = SyntheticBatches(STAGE, None, seed, rank, world)
        return [own.first + step * own.per_step + i for step in range(STAGE.steps) for i in range(STAGE.batch)]

    two = clips(0, 0, 2) + clips(0, 1, 2)
    assert len(set(two)) == len(two) == 32
    assert not set(clips(0, 0, 1)) & set(clips(1, 0, 1))
    assert max(seed % 2**32 for seed in clips(1000, 7, 8)) < VALIDATION_SEED  # a generator keeps 32 bits
