"""Pictures of tracks, of features and of similarity maps. Drawing needs the `video` extra (Pillow)."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_finite, check_integer, check_probability, check_tensor, is_integer, is_number, refusal
from .config import WIDEST
from .extras import require
from .tracks import Tracks

FAR = 2**15  # pixels
SUPERSAMPLING = 2  # marks are drawn this much larger and averaged down, which smooths their edges
# From dark to bright without a change of direction in lightness, so that it also reads in grey.
HEAT = np.array([(6, 4, 24), (73, 12, 104), (150, 35, 98), (217, 74, 57), (250, 150, 20), (252, 255, 164)], np.float32)


def draw_tracks(
    video: Tensor,  # (T, 3, H, W) uint8
    tracks: Tracks,  # xy (N, T, 2), visible (N, T) or None
    trail: int = 12,
) -> Iterator[np.ndarray]:
    """Draws tracks over their video: discs where visible, rings where occluded, fading trails behind.

    Every point keeps one colour; colours run through the rainbow from the top of the first frame to its bottom. A trail
    is interrupted where its point is occluded, because positions there are guesses.

    Args:
        video: The frames that were tracked; they are not changed.
        tracks: The tracks of one clip, without batch dimension (`tracks[0]`).
        trail: Length of the trails in frames; 0 draws none.

    Returns:
        An iterator over the T frames, each (H, W, 3) uint8.

    Raises:
        ImportError: The `video` extra is not installed.
        ValueError: An argument has the wrong shape or type.
    """
    _check_video("video", video)
    positions: Any = getattr(tracks, "xy", None)
    check_tensor("tracks.xy", positions, "(N, T, 2)")
    if positions.ndim != 3 or positions.shape[1:] != (len(video), 2):
        raise ValueError(f"tracks.xy of shape {tuple(positions.shape)}; expected (N, T, 2) with T={len(video)}")
    check_finite("tracks.xy", positions)
    trail = check_integer("trail", trail, unit=" of frames")
    # Nothing is seen of what is far outside, where Pillow's integers would overflow.
    xy = positions.detach().cpu().double().clamp(-FAR, FAR).numpy()
    visible = np.ones(xy.shape[:2], bool) if tracks.visible is None else tracks.visible.cpu().numpy()
    return _draw_tracks(video, xy, visible, trail)


def point_colours(
    xy: np.ndarray,  # (N, 2)
) -> list[tuple[int, int, int]]:
    """One RGB colour per point: red at the top, over green, to violet at the bottom."""
    rank = np.lexsort((xy[:, 0], xy[:, 1])).argsort()
    hues = rank * (0.83 / max(len(xy) - 1, 1))
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.9, 1.0)) for hue in hues]  # type: ignore[misc]


def principal_components(
    features: Tensor,  # (T, C, h, w)
    count: int = 3,
) -> Tensor:
    """Projects features on their first principal components over the whole clip.

    The components are exact (eigenvectors of the C x C covariance). The sign of each is chosen such that its
    largest entry is positive.

    Returns:
        (T, count, h, w) float32, on the CPU.

    Raises:
        ValueError: `features` is not (T, C, h, w) with at least `count` channels.
    """
    check_integer("count", count, 1, WIDEST)
    check_tensor("features", features, "(T, C, h, w)")
    if features.ndim != 4 or 0 in features.shape or features.shape[1] < count:
        raise ValueError(f"features of shape {tuple(features.shape)}; expected (T, C, h, w) with C of at least {count}")
    check_finite("features", features)
    # Frame by frame, so that the double precision copy is one frame large.
    frames = [frame.flatten(1) for frame in features.detach().cpu()]
    mean = torch.stack([f.double().mean(1) for f in frames]).mean(0)[:, None]
    covariance = sum((f.double() - mean) @ (f.double() - mean).T for f in frames)
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -count:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    projected = torch.stack([(axes.T @ (f.double() - mean)).float() for f in frames])
    return projected.unflatten(2, features.shape[2:])


def pca_frames(
    features: Tensor,  # (T, C, h, w)
    size: tuple[int, int],
) -> Iterator[np.ndarray]:
    """Features as colours: their first three principal components over the whole clip as red, green and blue.

    Each component is stretched between its 1st and 99th percentile over the clip: colours mean the same in every frame.

    Args:
        features: Features of one clip.
        size: (height, width) of the pictures.

    Returns:
        An iterator over the T frames, each (height, width, 3) uint8.

    Raises:
        ValueError: `features` is not (T, C, h, w) with at least 3 channels.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(is_integer(v, 1, FAR) for v in size):
        raise refusal("size", size, "two positive integers (height, width)")
    components = principal_components(features)
    low, high = np.percentile(components.transpose(0, 1).flatten(1).numpy(), (1, 99), axis=1)[:, :, None, None]
    colours = (components - torch.from_numpy(low)) / torch.from_numpy(np.maximum(high - low, 1e-12))
    frames = (_resize(frame, size).clamp(0, 1) * 255 for frame in colours.float())
    return (frame.round().byte().permute(1, 2, 0).numpy() for frame in frames)


def side_by_side(
    columns: Mapping[str, Iterable[np.ndarray]],  # label -> frames (H, W, 3) uint8
) -> Iterator[np.ndarray]:
    """Joins videos of equal height, each under its label; ends with the shortest.

    Raises:
        ImportError: The `video` extra is not installed.
    """
    for frames in zip(*columns.values(), strict=False):
        strip = max(16, frames[0].shape[0] // 14)
        labels = [label_strip(text, frame.shape[1], strip) for text, frame in zip(columns, frames, strict=True)]
        yield np.vstack([np.hstack(labels), np.hstack(frames)])


def similarity_overlay(
    frame: Tensor,  # (3, H, W) uint8
    similarity: Tensor,  # (h, w)
    limits: tuple[float, float] = (0.0, 1.0),
    opacity: float = 0.65,
) -> np.ndarray:
    """A heat map over a greyed frame.

    Args:
        frame: The frame that was searched.
        similarity: Cosine similarity of a query with every cell.
        limits: Similarities of the darkest and the brightest colour.
        opacity: Share of the heat map, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: An argument has the wrong shape or type, or `limits` do not rise.
    """
    _check_video("frame", frame, "(3, H, W)")
    check_tensor("similarity", similarity, "(h, w)")
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"similarity of shape {tuple(similarity.shape)}; expected (h, w), none of them 0")
    check_finite("similarity", similarity)
    pair = isinstance(limits, (tuple, list)) and len(limits) == 2 and all(map(is_number, limits))
    if not pair or not limits[1] > limits[0]:
        raise refusal("limits", limits, "two numbers (low, high) with low < high")
    check_probability("opacity", opacity)
    level = (similarity.detach().cpu().float() - limits[0]) / (limits[1] - limits[0])
    position = _resize(level[None], (frame.shape[1], frame.shape[2]))[0].clamp(0, 1).numpy()
    heat = np.stack([np.interp(position, np.linspace(0, 1, len(HEAT)), channel) for channel in HEAT.T], axis=-1)
    grey = frame.detach().cpu().float().mean(0).numpy()[..., None]
    return np.rint(opacity * heat + (1 - opacity) * grey).astype(np.uint8)


def _draw_tracks(video: Tensor, xy: np.ndarray, visible: np.ndarray, trail: int) -> Iterator[np.ndarray]:
    colours = point_colours(xy[:, 0])
    radius = mark_radius(video.shape[2], video.shape[3])
    for t, frame in enumerate(video):
        canvas = Canvas(frame.cpu().permute(1, 2, 0).numpy())
        for track, seen, colour in zip(xy, visible, colours, strict=True):
            for k in range(max(t - trail, 0), t):
                if seen[k] and seen[k + 1]:
                    canvas.line(track[k], track[k + 1], radius / 2, (*colour, round(220 * (1 - (t - k - 1) / trail))))
        for track, seen, colour in zip(xy, visible, colours, strict=True):
            canvas.disc(track[t], radius, colour) if seen[t] else canvas.ring(track[t], radius, colour)
        yield canvas.picture()


def mark_radius(height: int, width: int) -> float:
    """Radius of a point's mark in pixels, relative to the frame."""
    return max(1.5, 0.007 * (height * width) ** 0.5)


class Canvas:
    """A picture to draw on in its raster coordinates, with smooth edges; untouched pixels stay exactly as they are."""

    def __init__(self, picture: np.ndarray) -> None:
        image = require("PIL.Image", "video")
        small = image.fromarray(picture)
        self.image = small.resize((small.width * SUPERSAMPLING, small.height * SUPERSAMPLING), image.Resampling.NEAREST)
        self.draw = require("PIL.ImageDraw", "video").Draw(self.image, "RGBA")

    def line(self, start: Sequence[float], end: Sequence[float], width: float, colour: tuple[int, ...]) -> None:
        points = [tuple(c * SUPERSAMPLING - 0.5 for c in p) for p in (start, end)]
        self.draw.line(points, fill=colour, width=max(1, round(width * SUPERSAMPLING)))

    def disc(self, centre: Sequence[float], radius: float, colour: tuple[int, ...]) -> None:
        self.draw.ellipse(self._box(centre, radius * 1.25), fill=(0, 0, 0, 110))  # a rim sets it off from its likes
        self.draw.ellipse(self._box(centre, radius), fill=colour)

    def ring(self, centre: Sequence[float], radius: float, colour: tuple[int, ...]) -> None:
        width = max(1, round(radius * SUPERSAMPLING * 0.4))
        self.draw.ellipse(self._box(centre, radius * 1.15), outline=colour, width=width)

    def picture(self) -> np.ndarray:
        return np.asarray(self.image.reduce(SUPERSAMPLING))

    def _box(self, centre: Sequence[float], radius: float) -> tuple[int, int, int, int]:
        # Pillow counts from the centre of the first pixel, includes both ends, and cuts fractions off.
        x, y, r = centre[0] * SUPERSAMPLING - 0.5, centre[1] * SUPERSAMPLING - 0.5, radius * SUPERSAMPLING
        return round(x - r), round(y - r), round(x + r), round(y + r)


def label_strip(text: str, width: int, height: int) -> np.ndarray:
    """A white strip with text at its left, shrunk where it would not fit."""
    image, font = require("PIL.Image", "video"), require("PIL.ImageFont", "video")
    strip = image.new("RGB", (width, height), "white")
    size = 0.7 * height
    length = font.load_default(size).getlength(text)
    letters = font.load_default(max(6, size * min(1, (width - height / 2) / max(length, 1))))
    require("PIL.ImageDraw", "video").Draw(strip).text((height / 4, height / 2), text, "black", letters, anchor="lm")
    return np.asarray(strip)


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(picture[None], size, mode="bilinear", align_corners=False)[0]


def _check_video(name: str, video: Any, shape: str = "(T, 3, H, W)") -> None:
    check_tensor(name, video, shape, (torch.uint8,), f"uint8 {shape}")
    if video.ndim != shape.count(",") + 1 or video.shape[-3:-2] != (3,) or 0 in video.shape:
        raise ValueError(f"{name} is {video.dtype} of shape {tuple(video.shape)}; expected uint8 {shape}")
