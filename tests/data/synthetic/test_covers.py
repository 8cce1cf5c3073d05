import dataclasses

import pytest
import torch
from small_scenes import ALL_OF_IT, KINDS, generator

from chrono_features.data.synthetic import (
    Variety,
    covers,
    make_clip,
)
from chrono_features.data.synthetic.shapes import Blob
from chrono_features.data.synthetic.textures import TextureSource


def one_cover() -> covers.Covers:
    """A disc of radius 10 pixels, in frame 0 at (20, 10), in frame 1 at (30, 20), gone in frame 2; frame 3 is blank."""
    return covers.Covers(
        shapes=(Blob(0.25, (), ()),),
        pictures=(torch.ones(3, 8, 8),),
        centre=torch.tensor([[[20.0, 10.0], [30.0, 20.0], [30.0, 20.0], [0.0, 0.0]]]).double(),
        present=torch.tensor([[True, True, False, False]]),
        blank=torch.tensor([False, False, False, True]),
        instead=torch.full((3, 8, 8), 0.5),
        size=(30, 40),
    )


def test_what_a_cover_hides_by_hand():
    xy = torch.tensor([[20.0, 10.0], [29.9, 10.0], [30.1, 10.0], [30.0, 20.0]]).double()
    hidden = covers.hidden(one_cover(), torch.arange(4), xy.expand(4, -1, -1))
    assert hidden.tolist() == [
        [True, True, False, False],
        [False, False, False, True],
        [False] * 4,
        [True] * 4,
    ]
    assert covers.hidden(one_cover(), torch.tensor([1]), xy[None]).tolist() == [hidden[1].tolist()]


def test_covers_are_painted_where_they_hide():
    cover, black = one_cover(), torch.zeros(4, 3, 30, 40)
    pasted = covers.paste(cover, black)
    assert not black.any()
    y, x = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    centres = torch.stack((x, y), dim=-1).flatten(0, 1).double()
    hidden = covers.hidden(cover, torch.arange(4), centres.expand(4, -1, -1)).view(4, 30, 40)
    assert torch.equal((pasted > 0).all(dim=1), hidden)
    assert (pasted[:2][:, 0][hidden[:2]] == 1).all() and (pasted[3] == 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("scene", KINDS)
def test_covered_points_are_not_visible(scene):
    variety, hidden = Variety(covers=1.0, blackout=1.0), 0
    for seed in range(6):
        without, covered = (
            make_clip(seed, scene=scene, frames=6, size=(40, 56), variety=v, anchor=2, photometric=False)
            for v in (dataclasses.replace(variety, covers=0.0, blackout=0.0), variety)
        )
        assert covered.visible[:, 2].all()
        covers_nothing = (without.frames == covered.frames).all(dim=1).float().mean(dim=(1, 2))
        assert covers_nothing[2] > 0.1 and covers_nothing.min() == 0  # what is not covered is the same picture
        free = make_clip(seed, scene=scene, frames=6, size=(40, 56), points=16, variety=variety)
        assert free.visible.any(dim=1).all()
        hidden += int((~free.visible).all(dim=0).sum())
    assert hidden > 6  # frames in which nothing is seen


def test_covers_leave_most_of_the_picture():
    for seed in range(30):
        draws = generator(seed)
        source = TextureSource(draws, None, 0.0, 1)
        made = covers.random_covers(draws, source, torch.arange(6).double(), (40, 56), ALL_OF_IT, anchor=3)
        assert not made.blank[3] and int(made.blank.sum()) <= 2
        where = torch.rand(1, 500, 2, generator=draws).double() * torch.tensor([56.0, 40.0])
        assert covers.hidden(made, torch.tensor([3]), where).float().mean() < 0.8
