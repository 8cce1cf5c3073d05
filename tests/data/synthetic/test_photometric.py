import dataclasses

import torch
from small_scenes import ALL_OF_IT, SMALL, generator

from chrono_features.data.synthetic import (
    make_clip,
    photometric,
    procedural_textures,
)
from chrono_features.data.synthetic.variety import NOTHING


def test_blur_takes_each_frame_by_its_kernel():
    video = torch.rand(2, 3, 9, 11, generator=generator(0))
    kernels = torch.zeros(2, 3, 3)
    kernels[0, 1, 1], kernels[1, 1, 2] = 1, 1  # nothing; a shift to the left
    blurred = photometric.blur(video, kernels)
    assert torch.equal(blurred[0], video[0])
    assert torch.equal(blurred[1, :, :, :-1], video[1, :, :, 1:])
    assert torch.equal(blurred[1, :, :, -1], video[1, :, :, -1])  # the border is repeated


def test_grain_is_strong_and_another_in_every_frame():
    grey, times = torch.full((3, 3, 48, 64), 0.5), torch.arange(3).double()
    grainy = dataclasses.replace(NOTHING, grain=1.0)
    for seed in range(4):
        deviation = [
            photometric.add_photometrics(generator(seed), grey, times, variety).std(dim=(2, 3))
            for variety in (NOTHING, grainy)
        ]
        assert deviation[0].max() < 0.04 and deviation[1].min() > 0.06
        frames = photometric.add_photometrics(generator(seed), grey, times, grainy).flatten(1)
        assert (torch.corrcoef(frames) - torch.eye(3)).abs().max() < 0.05


def test_grain_moves_no_point():
    clips = [make_clip(3, variety=dataclasses.replace(ALL_OF_IT, grain=grain), **SMALL) for grain in (0.0, 1.0)]
    assert torch.equal(clips[0].xy, clips[1].xy) and torch.equal(clips[0].visible, clips[1].visible)
    assert not torch.equal(clips[0].frames, clips[1].frames)


def test_noise_is_normal_and_another_in_every_frame():
    video = torch.empty(6, 3, 32, 40)
    noise = photometric._noise(generator(0), video)
    assert noise.shape == video.shape and noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03
    likeness = torch.corrcoef(noise.flatten(1)) - torch.eye(6)
    assert likeness.abs().max() < 0.1
    across = torch.corrcoef(torch.stack((noise[..., 1:].flatten(), noise[..., :-1].flatten())))[0, 1]
    assert across.abs() < 0.05


def test_compression_rounds_blocks():
    video = torch.rand(2, 3, 20, 13, generator=generator(0))
    assert torch.allclose(photometric.compress(video, 1e-6), video, atol=1e-4)
    coarse = photometric.compress(video, 0.1)
    assert coarse.shape == video.shape and coarse.min() >= 0 and coarse.max() <= 1
    assert 0.02 < (coarse - video).abs().mean() < 0.3
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert (photometric.compress(grey, 0.1) - grey).abs().max() < 0.05
    rough = photometric.compress(video[:, :, :16, :8], 1.0)  # nothing but the blocks' means is left
    assert rough.unflatten(2, (2, 8)).std(dim=(3, 4)).max() < 0.2


def test_photometrics_keep_their_range_and_their_picture():
    video = procedural_textures(3, 48, generator(0))
    times = torch.arange(3).double()
    for seed in range(8):
        changed = photometric.add_photometrics(generator(seed), video, times, ALL_OF_IT)
        assert changed.shape == video.shape and changed.min() >= 0 and changed.max() <= 1
        likeness = torch.corrcoef(torch.stack((changed.flatten(), video.flatten())))[0, 1]
        assert 0.4 < likeness < 0.9999
