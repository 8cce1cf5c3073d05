"""What averaging features over time could gain, without training: `python -m benchmarks.accuracy.temporal_averaging`.

Single-frame features (window closed, bfloat16) of a model are averaged over neighbouring frames in several ways, and
points are tracked with them by soft-argmax. Averages replace the query's feature (*query*), the features that are
searched (*map*), or *both*. Clips are synthetic, clean and damaged, and with `--real PATH` the first frames of the real
videos of `real_tracks`.

Queries are uniform in time. A position counts where the point is visible, more than three frames from its query.
Columns: <delta_avg at 256 x 256; the difference from no averaging with its 95 % interval (paired bootstrap over
videos); the share of positions more than 16 px off; <delta_avg within three frames of an occlusion.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from unittest import mock

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chrono_features import ChronoBackbone, soft_argmax_track
from chrono_features.data.readers import open_dataset
from chrono_features.data.synthetic import Variety, load_textures, make_clip, scene
from chrono_features.data.synthetic.variety import USUAL
from chrono_features.data.synthetic_clips import FIRST_SEED
from chrono_features.evaluation.metrics import bootstrap_interval
from chrono_features.training.batches import draw_queries

from .. import harness

SIZE, GRID, FRAMES, POINTS = (192, 192), (24, 24), 16, 96
REAL_GRID, REAL_FRAMES = (24, 24), 24
SLOW = 0.3  # time between frames; usual clips draw 0.6 to 2.4
SUB_FRAMES = 5
NEAR_QUERY = NEAR_OCCLUSION = 3  # frames
SEARCH = 6  # cells that a token may move between neighbouring frames
KEPT, MEMORY = 0.7, 8  # correlation and frames of the query that is averaged along its refined track
THRESHOLDS = torch.tensor([1.0, 2, 4, 8, 16])


@dataclass(frozen=True)
class Sample:
    """A clip, its tracks, and where the point in every cell of every frame goes."""

    name: str
    video: Tensor  # (T, 3, H, W) uint8
    xy: Tensor  # (N, T, 2) pixels
    visible: Tensor  # (N, T) bool
    known: Tensor  # (N, T) bool
    queries: Tensor  # (N, 3) (t, x, y)
    places: Tensor | None = None  # (T, h * w, T, 2) pixels
    seen: Tensor | None = None  # (T, h * w, T) bool


# Clips


class _EveryCell(scene._Shot):
    """A shot whose tracks begin at the centre of every cell of FRAMES frames."""

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        columns, rows = 2 * GRID[1], 2 * GRID[0]
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) * self.size[1] / columns
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) * self.size[0] / rows
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        times = len(self.times) // FRAMES
        frame = torch.arange(times // 2, len(self.times), times)
        return cells.expand(len(frame), -1, 2), frame, torch.ones(len(frame) * len(cells), dtype=torch.bool)

    def choose(self, moving: Tensor, near: Tensor | None, free: Tensor) -> Tensor:
        return torch.arange(len(moving))


def synthetic(
    seed: int,
    textures: Tensor,
    step: float | None = None,
    damage: Callable[[Tensor, int], Tensor] | None = None,
    blurred: bool = False,
    variety: Variety = USUAL,
) -> Sample:
    """A held-out clip; `blurred` averages sub-frames, and then no frame may show something else."""
    times = SUB_FRAMES if blurred else 1
    make = partial(
        make_clip,
        seed,
        frames=FRAMES * times,
        size=SIZE,
        scene=("raycast", "layers")[seed % 2],
        textures=textures,
        frame_step=None if step is None else step / times,
        variety=variety,
    )
    middle = slice(times // 2, None, times)
    clip = make(points=POINTS)
    video = clip.frames.unflatten(0, (FRAMES, times)).mean(1)
    xy, visible = clip.xy[:, middle], clip.visible[:, middle]
    keep = visible.any(1)
    xy, visible = xy[keep], visible[keep]
    with mock.patch.object(scene, "_Shot", _EveryCell):
        cells = make(points=1, photometric=False)
    places = cells.xy[:, middle].unflatten(0, (FRAMES, -1))
    seen = cells.visible[:, middle].unflatten(0, (FRAMES, -1))
    video = video if damage is None else damage(video, seed)
    queries = draw_queries(xy, visible, torch.Generator().manual_seed(seed))
    frames = (255 * video).round().byte()
    return Sample(str(seed), frames, xy, visible, torch.ones_like(visible), queries, places, seen)


def real(path: str, damage: Callable[[Tensor, int], Tensor] | None) -> Iterator[Sample]:
    for index, entry in enumerate(open_dataset("real_tracks", path)):
        video = entry.load()
        clean = video.frames[:REAL_FRAMES]
        frames = clean if damage is None else (255 * damage(clean / 255, index)).round().byte()
        visible, known = video.visible[:, :REAL_FRAMES], video.valid[:, :REAL_FRAMES]
        keep = (visible & known).any(1)
        xy, visible, known = video.xy.float()[keep, :REAL_FRAMES], visible[keep], known[keep]
        queries = draw_queries(xy, visible & known, torch.Generator().manual_seed(index))
        yield Sample(video.name, frames, xy, visible, known, queries)


def noise(video: Tensor, seed: int, deviation: float) -> Tensor:
    grain = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    return (video + deviation * grain).clamp(0, 1)


def h264(video: Tensor, seed: int, crf: int) -> Tensor:
    """Encoded and decoded by x264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.height, stream.width = video.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for frame in (255 * video).round().byte().permute(0, 2, 3, 1).numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file) as source:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in source.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2) / 255


def low_light(video: Tensor, seed: int) -> Tensor:
    """A tenth of the light, lifted again by the sensor's gain: shot noise of up to 20 electrons, read noise of 2."""
    generator = torch.Generator().manual_seed(seed)
    electrons = torch.poisson(20 * video.clamp(0, 1) ** 2.2, generator=generator)
    electrons = electrons + 2 * torch.randn(video.shape, generator=generator)
    return (electrons.clamp(min=0) / 20).clamp(max=1) ** (1 / 2.2) * 0.7


def motion_blur(video: Tensor, seed: int) -> Tensor:
    """Each frame averaged along its optical flow over a whole frame's time: for videos without sub-frames."""
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = (255 * video.mean(1)).round().byte().numpy()
    height, width = video.shape[-2:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    blurred = []
    for t, frame in enumerate(video.permute(0, 2, 3, 1).numpy()):
        after = min(t + 1, len(video) - 1)
        flow = flow_of.calc(grey[after - 1], grey[after], None)
        shares = np.linspace(-0.5, 0.5, 9, dtype=np.float32)
        views = [cv2.remap(frame, x + s * flow[..., 0], y + s * flow[..., 1], cv2.INTER_LINEAR) for s in shares]
        blurred.append(torch.from_numpy(np.mean(views, axis=0)))
    return torch.stack(blurred).permute(0, 3, 1, 2)


KINDS: dict[str, dict] = {
    "usual": {},
    "slow": {"step": SLOW},
    "slow, noise 0.1": {"step": SLOW, "damage": partial(noise, deviation=0.1)},
    "slow, noise 0.2": {"step": SLOW, "damage": partial(noise, deviation=0.2)},
    "H.264, CRF 38": {"damage": partial(h264, crf=38)},
    "H.264, CRF 45": {"damage": partial(h264, crf=45)},
    "motion blur": {"blurred": True, "step": 1.5, "variety": Variety(blackout=0.0)},
    "low light": {"damage": low_light},
}
REAL_KINDS: dict[str, Callable[[Tensor, int], Tensor] | None] = {
    "real": None,
    "real, CRF 45": partial(h264, crf=45),
    "real, motion blur": motion_blur,
    "real, low light": low_light,
}


# Averages of features over time


def same_place(features: Tensor, reach: int, sharpness: float = 0.0) -> Tensor:  # (T, C, h, w)
    """Averaged over the same cell of neighbouring frames; `sharpness` favours those that are alike."""
    total, weights = torch.zeros_like(features), torch.zeros_like(features[:, :1])
    for by in range(-reach, reach + 1):
        own, other = _pair(len(features), by)
        likeness = (features[own] * features[other]).sum(1, keepdim=True)
        weight = torch.exp(sharpness * (likeness - 1))
        total[own] += weight * features[other]
        weights[own] += weight
    return F.normalize(total / weights, dim=1)


def along_true_motion(features: Tensor, sample: Sample, reach: int) -> Tensor:
    """Averaged over where the point in a cell really is, where it is seen there."""
    assert sample.places is not None and sample.seen is not None
    total = features.clone()
    for by in (b for b in range(-reach, reach + 1) if b):
        own, other = _pair(len(features), by)
        frame, its = torch.arange(len(features))[own], torch.arange(len(features))[other]
        found = _sampled(features[other], _cells(sample.places[frame, :, its], features, sample))
        total[own] += (found * sample.seen[frame, :, its][:, None]).unflatten(-1, features.shape[-2:])
    return F.normalize(total, dim=1)


def along_predicted_motion(features: Tensor, motion: dict[int, Tensor], reach: int) -> Tensor:
    """Averaged over where local soft-argmax between neighbouring frames leads, one frame after the other."""
    total = features.clone()
    rows, columns = features.shape[-2:]
    here = _centres(rows, columns)
    for direction in (1, -1):
        places = here.expand(len(features), -1, 2)
        for by in range(1, reach + 1):
            _, reached = _pair(len(features), direction * (by - 1))
            field = motion[direction].transpose(1, 2).unflatten(-1, (rows, columns))[reached]
            places = places + _sampled(field, places).transpose(1, 2)
            own, other = _pair(len(features), direction * by)
            places = places[: len(features) - by] if direction == 1 else places[1:]
            total[own] += _sampled(features[other], places).unflatten(-1, (rows, columns))
    return F.normalize(total, dim=1)


def local_motion(features: Tensor, temperature: float, radius: float) -> dict[int, Tensor]:
    """Displacement (T, h * w, 2) in cells to the next frame (1) and the one before (-1); 0 beyond the clip."""
    frames, _, rows, columns = features.shape
    centres = _centres(rows, columns)
    far = (centres[:, None] - centres[None]).square().sum(-1) > SEARCH**2
    flat = features.flatten(2)
    motion = {1: torch.zeros(frames, rows * columns, 2), -1: torch.zeros(frames, rows * columns, 2)}
    for t in range(frames - 1):
        similarity = flat[t].T @ flat[t + 1]
        for direction, of, values in ((1, t, similarity), (-1, t + 1, similarity.T)):
            values = values.masked_fill(far, -torch.inf)
            best = values.argmax(1)
            outside = (centres[best][:, None] - centres[None]).square().sum(-1) >= radius**2
            weights = (temperature * values).masked_fill(outside, -torch.inf).softmax(1)
            motion[direction][of] = weights @ centres - centres
    return motion


def _pair(frames: int, by: int) -> tuple[slice, slice]:
    """The frames that have one `by` later, and those."""
    return slice(max(0, -by), frames - max(0, by)), slice(max(0, by), frames - max(0, -by))


def _centres(rows: int, columns: int) -> Tensor:  # (h * w, 2) (x, y) in cells
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _cells(places: Tensor, features: Tensor, sample: Sample) -> Tensor:
    height, width = sample.video.shape[-2:]
    return places * places.new_tensor([features.shape[-1] / width, features.shape[-2] / height])


def _sampled(
    maps: Tensor,  # (T, C, h, w)
    cells: Tensor,  # (T, P, 2)
) -> Tensor:  # (T, C, P)
    grid = 2 * cells / cells.new_tensor([maps.shape[-1], maps.shape[-2]]) - 1
    return F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0]


# Scores


def measure(model: ChronoBackbone, sample: Sample, grid: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Scores of every way to average, by name."""
    temperature, radius = model.config.temperature, model.config.radius
    height, width = sample.video.shape[-2:]

    def features_of(video: Tensor) -> Tensor:
        return torch.cat([model(part[None], grid)[0] for part in video.split(16)]).float()

    plain = features_of(sample.video)
    neighbours = torch.stack([sample.video[_clamped(len(sample.video), by)] for by in (-1, 0, 1)])
    volumes = {"median of pixels ±1": features_of(neighbours.median(0).values)}
    volumes |= {f"same place ±{reach}": same_place(plain, reach) for reach in (1, 3, 6)}
    volumes |= {"same place ±3, by similarity": same_place(plain, 3, sharpness=20)}
    if sample.places is not None:
        volumes |= {f"true motion ±{reach}": along_true_motion(plain, sample, reach) for reach in (1, 3, 6)}
    motion = local_motion(plain, temperature, radius)
    volumes |= {f"predicted motion ±{reach}": along_predicted_motion(plain, motion, reach) for reach in (1, 3)}

    def at_queries(volume: Tensor) -> Tensor:  # (N, C)
        cells = _cells(sample.queries[:, 1:], volume, sample)
        return torch.cat(
            [
                _sampled(volume[t][None], c[None, None])[0].T
                for t, c in zip(sample.queries[:, 0].long(), cells, strict=True)
            ]
        )

    def track(volume: Tensor, own: Tensor) -> Tensor:
        found = soft_argmax_track(
            volume[None], None, (height, width), query_features=own[None], temperature=temperature, radius=radius
        )
        return found.xy[0]

    def along(places: Tensor, use: Tensor) -> Tensor:  # (N, T, 2), (N, T) -> (N, C)
        found = _sampled(plain, _cells(places.transpose(0, 1), plain, sample)).permute(2, 0, 1)
        return F.normalize((found * use[..., None]).sum(1), dim=-1)

    own = at_queries(plain)
    rows = {"nothing": track(plain, own)}
    for name, volume in volumes.items():
        averaged = at_queries(volume)
        rows |= {
            f"{name}: query": track(plain, averaged),
            f"{name}: map": track(volume, own),
            f"{name}: both": track(volume, averaged),
        }
    off = (torch.arange(len(plain)) - sample.queries[:, :1]).abs()  # (N, T)
    for reach in (1, 3, 8):
        rows[f"query's own true track ±{reach}"] = track(plain, along(sample.xy, sample.visible & (off <= reach)))
    first = rows["nothing"].where(off[..., None] > 0, sample.queries[:, None, 1:])
    rows["query's own predicted track ±3"] = track(plain, along(first, off <= 3))
    refined = model.track(sample.video[None], sample.queries[None], features=plain[None], refine="photometric")
    assert refined.correlation is not None
    holds = unbroken(refined.correlation[0] >= KEPT, sample.queries[:, 0].long()) & (off <= MEMORY)
    rows[f"query's own refined track ±{MEMORY}, correlation ≥ {KEPT}"] = track(plain, along(refined.xy[0], holds))
    return {name: score(sample, xy) for name, xy in rows.items()}


def unbroken(good: Tensor, frames: Tensor) -> Tensor:  # (N, T) bool, (N,) -> (N, T) bool
    """Frames that are joined to the query's by good ones only."""
    time = torch.arange(good.shape[1])
    own = time == frames[:, None]
    good = good | own
    after = (good | (time < frames[:, None])).long().cumprod(1).bool() & (time >= frames[:, None])
    before = (good | (time > frames[:, None])).flip(1).long().cumprod(1).flip(1).bool() & (time <= frames[:, None])
    return after | before


def _clamped(frames: int, by: int) -> Tensor:
    return (torch.arange(frames) + by).clamp(0, frames - 1)


def score(sample: Sample, xy: Tensor) -> dict[str, float]:
    height, width = sample.video.shape[-2:]
    distance = ((xy - sample.xy) * xy.new_tensor([256 / width, 256 / height])).norm(dim=-1)
    off = (torch.arange(xy.shape[1]) - sample.queries[:, :1]).abs()
    counted = sample.visible & sample.known & (off > NEAR_QUERY)
    hidden = (~sample.visible & sample.known).float()[:, None]
    near = F.max_pool1d(hidden, 2 * NEAR_OCCLUSION + 1, stride=1, padding=NEAR_OCCLUSION)[:, 0] > 0
    within = (distance[..., None] < THRESHOLDS).float().mean(-1)
    return {
        "<δavg": 100 * within[counted].mean().item(),
        "gross": 100 * (distance[counted] > 16).float().mean().item(),
        "near occlusion": 100 * within[counted & near].mean().item(),
    }


# The command


@torch.no_grad()
def kind_scores(kind: str, clips: int, textures: str, data: str | None, name: str) -> list[dict[str, dict[str, float]]]:
    torch.set_num_threads(1)
    model = ChronoBackbone.from_pretrained(name, window=(0, 0)).bfloat16()
    if kind in REAL_KINDS:
        assert data is not None
        return [measure(model, sample, REAL_GRID) for sample in real(data, REAL_KINDS[kind])]
    photographs = load_textures(textures, "validation")
    seeds = range(FIRST_SEED + 20_000, FIRST_SEED + 20_000 + clips)
    return [measure(model, synthetic(seed, photographs, **KINDS[kind]), GRID) for seed in seeds]


def rows_of(videos: list[dict[str, dict[str, float]]]) -> list[harness.Row]:
    rows = []
    plain = [video["nothing"]["<δavg"] for video in videos]
    for name in videos[0]:
        values = [video[name]["<δavg"] for video in videos]
        difference = [a - b for a, b in zip(values, plain, strict=True)]
        low, high = bootstrap_interval(difference)
        row: harness.Row = {"what": name, "<δavg": f"{np.nanmean(values):.1f}"}
        row["difference"] = "" if name == "nothing" else f"{np.nanmean(difference):+.1f} ({low:+.1f} … {high:+.1f})"
        for metric in ("gross", "near occlusion"):
            row[metric] = f"{np.nanmean([video[name][metric] for video in videos]):.1f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--textures", required=True, help="folder of photographs")
    parser.add_argument("--real", help="real_tracks.pkl")
    parser.add_argument("--clips", type=int, default=16, help="synthetic clips of each kind")
    parser.add_argument("--model", default="chrono-tiny")
    parser.add_argument("--kinds", nargs="+", default=None)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    kinds = args.kinds or [*KINDS, *(REAL_KINDS if args.real else {})]
    work = partial(kind_scores, clips=args.clips, textures=args.textures, data=args.real, name=args.model)
    tables = {}
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        for kind, videos in zip(kinds, pool.map(work, kinds), strict=True):
            tables[kind] = rows_of(videos)
            (args.out / "temporal_averaging.part.json").write_text(json.dumps(tables))  # a later kind may fail
            print(f"{kind}: {len(videos)} videos", flush=True)
    (args.out / "temporal_averaging.part.json").unlink()
    harness.report("temporal_averaging", args.device, tables, args.out)


if __name__ == "__main__":
    main()
