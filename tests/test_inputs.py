"""Videos as people have them in memory."""

import numpy as np
import pytest
import torch

from chrono_features import as_video, grid_queries

T, H, W = 2, 5, 7
PIXELS = np.random.default_rng(0).integers(0, 256, (T, H, W, 3), np.uint8)
EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[None]


@pytest.mark.parametrize(
    "frames",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)),
        list(PIXELS),
        tuple(torch.from_numpy(PIXELS)),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in PIXELS],
        np.concatenate([PIXELS, np.full((T, H, W, 1), 9, np.uint8)], -1),
        PIXELS[:, ::-1][:, ::-1],
    ],
)
def test_layouts_and_containers_give_the_same_video(frames):
    video = as_video(frames)
    assert torch.equal(video, EXPECTED) and video.is_contiguous() and video.dtype == torch.uint8


def test_pil_images():
    image = pytest.importorskip("PIL.Image")
    assert torch.equal(as_video([image.fromarray(frame) for frame in PIXELS]), EXPECTED)
    assert torch.equal(as_video([image.fromarray(frame).convert("RGBA") for frame in PIXELS]), EXPECTED)
    grey = [image.fromarray(frame[..., 0]) for frame in PIXELS]
    assert torch.equal(as_video(grey), EXPECTED[:, :, :1].expand_as(EXPECTED))
    wide = image.fromarray(PIXELS[0, ..., 0].astype(np.uint16) * 257)
    torch.testing.assert_close(as_video([wide])[0, 0, 0], EXPECTED[0, 0, 0] / 255)


def test_bgr_is_turned_round_and_the_input_stays():
    given = PIXELS[..., ::-1].copy()
    video = as_video(given, bgr=True)
    assert torch.equal(video, EXPECTED)
    video.zero_()
    assert given.any()
    alpha = np.concatenate([given, np.zeros((T, H, W, 1), np.uint8)], -1)
    assert torch.equal(as_video(alpha, bgr=True), EXPECTED)


def test_grey():
    grey = PIXELS[..., 0]
    for frames in (grey, grey[..., None], grey[:, None], list(grey)):
        assert torch.equal(as_video(frames), EXPECTED[:, :, :1].expand_as(EXPECTED))


def test_batches():
    both = np.stack([PIXELS, PIXELS[::-1]])
    assert torch.equal(as_video(both), torch.cat([EXPECTED, EXPECTED.flip(1)]))


@pytest.mark.parametrize(
    ("frames", "range"),
    [
        (PIXELS.astype(np.float32) / 255, None),
        (PIXELS.astype(np.float64), (0, 255)),
        (PIXELS.astype(np.int64), (0, 255)),
        (PIXELS, (0, 255)),
        (PIXELS.astype(np.uint16) * 257, None),
        ((PIXELS.astype(np.uint16) * 257).astype(">u2"), None),
        (PIXELS.astype(np.float32) / 127.5 - 1, (-1, 1)),
        (torch.from_numpy(PIXELS).half(), (0, 255)),
    ],
)
def test_values_become_0_to_1(frames, range):
    video = as_video(frames, range=range)
    assert video.is_floating_point()
    torch.testing.assert_close(video.float(), EXPECTED / 255, rtol=0, atol=1e-3 if video.dtype == torch.half else 1e-6)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (PIXELS.astype(np.float32), {}, r"values from 0 to 249; expected .*, or another range"),
        (PIXELS.astype(np.float32) * np.nan, {}, "values from nan"),
        (PIXELS.astype(np.int32), {}, r"type torch.int32; expected range="),
        (PIXELS, {"range": (0, 100)}, r"values from 0 to 249; expected \(0, 100\)"),
        (PIXELS, {"range": (1, 1)}, r"range=\(1, 1\); expected None or two numbers"),
        (PIXELS, {"range": 255}, "range=255"),
        (PIXELS > 9, {}, "bool values"),
        ("video.mp4", {}, "frames of type str; expected a NumPy array"),
        ([], {}, r"frames=\[\]"),
        (
            [PIXELS[0], PIXELS[0, :3]],
            {},
            r"frames\[1\] is torch.uint8 of \(3, 7, 3\); expected torch.uint8 of \(5, 7, 3\)",
        ),
        ([PIXELS], {}, r"frames\[0\] is .*expected \(H, W, C\)"),
        (PIXELS[0], {}, "layout= says which"),
        (EXPECTED[0, 0], {}, "layout= says which"),
        (np.zeros((2, 3, 5, 3), np.uint8), {}, "layout= says which"),
        (np.zeros((2, 5, 5, 2), np.uint8), {}, "C being 1, 3 or 4"),
        (PIXELS, {"layout": "TCHW"}, "expected 1, 3 or 4 channels, as layout='TCHW'"),
        (PIXELS, {"layout": "THW"}, "expected 3 dimensions"),
        (PIXELS, {"layout": "HWC"}, "layout='HWC'; expected None"),
        (PIXELS[:0], {}, "none of them 0"),
        (PIXELS, {"bgr": 1}, "bgr=1; expected True or False"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_the_cure(frames, options, message):
    with pytest.raises(ValueError, match=message):
        as_video(frames, **options)


def test_layout_settles_what_the_shape_leaves_open():
    assert as_video(np.zeros((2, 3, 5, 3), np.uint8), layout="TCHW").shape == (1, 2, 3, 5, 3)
    assert as_video(np.zeros((2, 3, 5, 3), np.uint8), layout="THWC").shape == (1, 2, 3, 3, 5)
    assert as_video(np.zeros((3, 4, 5), np.uint8), layout="THW").shape == (1, 3, 3, 4, 5)


def test_strict_calls_name_it(small_model):
    model = small_model()
    with pytest.raises(ValueError, match="as_video"):
        model(PIXELS)
    with pytest.raises(ValueError, match="as_video"):
        model(torch.from_numpy(PIXELS)[None])
    with pytest.raises(ValueError, match="as_video"):
        model(EXPECTED.float())


def test_queries_as_lists_and_arrays(small_model):
    model = small_model(norm="token")
    video = as_video(np.repeat(np.repeat(PIXELS, 6, 1), 6, 2))
    expected = model.track(video, torch.tensor([[[0, 3.0, 4.0], [1, 8.5, 2.0]]]))
    for queries in ([[0, 3, 4], [1, 8.5, 2]], [[[0, 3, 4], [1, 8.5, 2]]], np.array([[0, 3, 4], [1, 8.5, 2]])):
        assert torch.equal(model.track(video, queries).xy, expected.xy)
    assert model.track(video, grid_queries(2, (30, 42))[0]).xy.shape == (1, 4, T, 2)
    with pytest.raises(ValueError, match="queries=.*rows of the same length"):
        model.track(video, [[0, 1, 2], [0, 1]])
