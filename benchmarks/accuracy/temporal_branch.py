"""Purely temporal branches beside the released adapters, against twins that see one frame.

`python -m benchmarks.accuracy.temporal_branch train OUT --textures PHOTOGRAPHS --seed 0`, then `... score OUT
--textures ...`.

The released `chrono-tiny` is frozen, its adapters see one frame. After every block but the last there is a new branch,
zero at first, at every token: LayerNorm, 1 x 1 down, attention over the frames of a window at the same place with a
learned bias for relative time, 1 x 1 up. The twin's window holds one frame; otherwise it trains alike, on the same
clips, in the same process. Losses: cross-entropy and Huber on tracks, and the regression of every token on the frozen
network's token of the undamaged frame. Frozen weights compute in bfloat16, branches are stored in float32.

Training resumes from OUT, with the same numbers. A line of OUT/log.jsonl every 100 steps; OUT/decayed.pt holds the
averaged branches after the rate has decayed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from chrono_features import ChronoBackbone, soft_argmax_track
from chrono_features.data.synthetic import Variety, load_textures, make_clip
from chrono_features.data.synthetic.draws import chance, integer, log_uniform, uniform
from chrono_features.data.synthetic.photometric import blur
from chrono_features.data.synthetic_clips import FIRST_SEED
from chrono_features.evaluation.metrics import bootstrap_interval
from chrono_features.files import write_beside
from chrono_features.ops.matching import sample_features
from chrono_features.training.augment import augment_colour
from chrono_features.training.batches import draw_queries
from chrono_features.training.losses import grid_cross_entropy, huber_loss

from .. import harness
from .temporal_averaging import GRID, SIZE, Sample, h264, low_light, noise, score
from .temporal_averaging import KINDS as DAMAGED
from .temporal_averaging import synthetic as held_out

CHANNELS, HEADS, WINDOW = 64, 4, (6, 6)
FRAMES_AFTER = 0, 1, 3, 6
CLIPS, FRAMES, TRACKS = 2, (8, 16), 96  # a step
RATE, WARM_UP, DECAY = 1e-3, 50, 0.2  # DECAY: the last share of the steps
AVERAGE = 0.995
WEIGHTS = {"cross_entropy": 1.0, "huber": 0.04, "tokens": 1.0}
SLOW = (0.1, 0.5)
USUAL = (0.7, 2.4)
OCCLUDED = Variety(covers=1.0, blackout=0.3)
LOG_EVERY, SAVE_EVERY = 100, 20
HELD_OUT = {**DAMAGED, "occluded": {"variety": Variety(covers=1.0, blackout=0.5)}}
VALIDATION = {"usual": 6, "H.264, CRF 45": 6, "low light": 6, "slow, noise 0.2": 6, "occluded": 6}


class Branch(nn.Module):
    """x + up(time(down(norm(x)))) at every token alone; the identity at first."""

    def __init__(self, dim: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.norm, self.down = nn.LayerNorm(dim), nn.Linear(dim, CHANNELS)
        self.time_norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.bias = nn.Parameter(torch.zeros(HEADS, sum(WINDOW) + 1))
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.up = nn.Linear(CHANNELS, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self,
        x: Tensor,  # (B, T, h, w, C) bfloat16
        after: int,
    ) -> Tensor:
        before, after = self.window[0], min(self.window[1], after)
        with torch.autocast("cpu", torch.bfloat16):
            y = F.relu(self.down(self.norm(x)))
            b, t, h, w, _ = y.shape
            q, k, v = rearrange(self.qkv(self.time_norm(y)), "b t h w (n k d) -> n (b h w) k t d", n=3, k=HEADS)
            time = torch.arange(t)
            offset = time - time[:, None]  # of the other frame
            bias = self.bias[:, (offset + WINDOW[0]).clamp(0, sum(WINDOW))]
            bias = bias.masked_fill((offset < -before) | (offset > after), -torch.inf)
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # faster than SDPA on so few frames
            mixed = (logits + bias).softmax(-1) @ v
            y = y + self.proj(rearrange(mixed, "(b h w) k t d -> b t h w (k d)", b=b, h=h, w=w))
            return x + self.up(F.relu(y))


class Students(nn.Module):
    """The branches with time and their twins."""

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        open_, closed = ([Branch(dim, window) for _ in range(blocks)] for window in (WINDOW, (0, 0)))
        self.time, self.twin = nn.ModuleList(open_), nn.ModuleList(closed)
        self.twin.load_state_dict(self.time.state_dict())


class Frozen:
    """The released network, in bfloat16, its adapters' windows closed."""

    def __init__(self) -> None:
        self.model = ChronoBackbone.from_pretrained("chrono-tiny", window=(0, 0)).requires_grad_(False).bfloat16()
        self.depth = len(self.model.vit.blocks)

    def begin(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """Up to the first branch, which all share."""
        with torch.no_grad():
            x, fine = self.model.embed(video, GRID)
            return self._block(0, x), fine

    def finish(
        self, x: Tensor, fine: Tensor | None, branches: nn.ModuleList | None, after: int
    ) -> tuple[Tensor, Tensor]:
        """Last tokens, normed, (B, T, h, w, C), and features."""
        for i in range(self.depth):
            x = self._block(i, x) if i else x
            if branches is not None and i < len(branches):
                x = self.model.with_patches(x, branches[i](self.model.patches(x, GRID), after))
        features = self.model.read_out(x, fine, GRID)
        return self.model.vit.norm(self.model.patches(x, GRID)), features

    def _block(self, i: int, x: Tensor) -> Tensor:
        m = self.model
        x = m.run_block(i, x, {})
        return m.with_patches(x, m.adapters[str(i)](m.patches(x, GRID))) if str(i) in m.adapters else x


# Clips for training


def training_clip(seed: int, frames: int, textures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clean and damaged video (T, 3, H, W), queries, tracks, visible."""
    g = torch.Generator().manual_seed(seed)
    slow = chance(g, 1 / 3)
    clip = make_clip(
        seed,
        frames=frames,
        size=SIZE,
        points=TRACKS,
        textures=textures,
        frame_step=log_uniform(g, *(SLOW if slow else USUAL)),
        variety=OCCLUDED if chance(g, 1 / 3) else Variety(),
    )
    clean = augment_colour(clip.frames, g)
    queries = draw_queries(clip.xy, clip.visible, g)
    return clean, damage(clean, g), queries, clip.xy, clip.visible


def damage(video: Tensor, g: Generator) -> Tensor:
    """A quarter stays as it is; others are damaged in all frames, or in some."""
    kind = uniform(g, 0, 1)
    if kind < 0.25:
        return video
    some = chance(g, 0.5)
    bad = torch.rand(len(video), generator=g) < (uniform(g, 0.15, 0.6) if some else 1.0)
    seed = integer(g, 0, 2**31)
    if kind < 0.5:
        damaged = h264(video, 0, integer(g, 32, 45))
    elif kind < 0.65:
        damaged = low_light(video * uniform(g, 0.6, 1.4), seed)
    elif kind < 0.8:
        damaged = blur(video, _kernels(g, len(video)))
    elif kind < 0.85:
        gain = torch.exp(0.6 * torch.randn(len(video), 1, 1, 1, generator=g))
        damaged = (video * gain).clamp(0, 1)
    elif kind < 0.9:
        damaged = torch.full_like(video, uniform(g, 0, 1))  # dropped
        bad = torch.rand(len(video), generator=g) < 0.15
    else:
        damaged = noise(video, seed, log_uniform(g, 0.05, 0.25))
    return torch.where(bad[:, None, None, None], damaged, video)


def _kernels(g: Generator, frames: int) -> Tensor:  # (T, 17, 17)
    """Of each frame alone: a line (motion) or a disc (defocus)."""
    along = torch.arange(17.0) - 8
    y, x = torch.meshgrid(along, along, indexing="ij")
    length = 1 + 6 * torch.rand(frames, 1, 1, generator=g)
    angle = torch.pi * torch.rand(frames, 1, 1, generator=g)
    u, v = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    line = torch.sigmoid((length - u.abs()) * 4) * torch.exp(-(v**2) / 0.5)
    disc = torch.sigmoid((length / 2 - (x**2 + y**2).sqrt()) * 4)
    kernels = line if chance(g, 0.6) else disc
    return kernels / kernels.sum((1, 2), keepdim=True)


# Training


def losses_of(
    frozen: Frozen,
    begun: tuple[Tensor, Tensor | None],
    target: Tensor,
    branches: nn.ModuleList,
    after: int,
    queries: Tensor,
    tracks: Tensor,
    visible: Tensor,
) -> Tensor:
    tokens, features = frozen.finish(*begun, branches, after)
    features = features.float()
    temperature, size = frozen.model.config.temperature, tracks.new_tensor(SIZE[::-1])
    rows, columns = features.shape[-2:]
    found = soft_argmax_track(features, queries, SIZE, temperature=temperature, radius=frozen.model.config.radius)
    scored = visible & (torch.arange(features.shape[1]) != queries[..., :1])
    to_256 = 256 / size
    cells = tracks * tracks.new_tensor([columns, rows]) / size
    own = torch.stack(
        [
            sample_features(f, q[:, 0].long(), q[:, 1:] * q.new_tensor([columns, rows]) / size, torch.float32)
            for f, q in zip(features, queries, strict=True)
        ]
    )
    similarity = torch.einsum("bnc,btchw->bnthw", own.bfloat16(), features.bfloat16()).float()
    parts = {
        "cross_entropy": grid_cross_entropy(similarity, cells, scored, torch.tensor(temperature)),
        "huber": huber_loss(found.xy * to_256, tracks * to_256, visible),
        "tokens": F.smooth_l1_loss(tokens.float(), target, beta=0.5),
    }
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()


def rate_at(step: int, steps: int) -> float:
    """Warm-up, constant, linear decay to zero."""
    return RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


def train(out: Path, textures_path: str, seed: int, steps: int) -> None:
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    textures = load_textures(textures_path, "training")
    frozen = Frozen()
    validation = Clips(frozen, textures_path, VALIDATION, FIRST_SEED + 30_000)
    torch.manual_seed(seed)
    students = Students(frozen.model.vit.embed_dim, frozen.depth - 1)
    average = copy.deepcopy(students)
    optimizer = torch.optim.AdamW(students.parameters(), RATE, weight_decay=1e-4, betas=(0.9, 0.98))
    first, frames_seen = 0, 0
    if (saved := out / "checkpoint.pt").exists():
        state = torch.load(saved, weights_only=True)
        students.load_state_dict(state["students"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, frames_seen = state["step"], state["frames"]
    began, since = time.perf_counter(), frames_seen
    for step in range(first, steps):
        g = torch.Generator().manual_seed(2**32 + seed * 2**20 + step)
        frames = integer(g, *FRAMES)
        after = FRAMES_AFTER[integer(g, 0, len(FRAMES_AFTER) - 1)]
        seeds = [(7 + seed) * 2**24 + step * CLIPS + i for i in range(CLIPS)]
        clean, damaged, *truth = (
            torch.stack(v) for v in zip(*(training_clip(s, frames, textures) for s in seeds), strict=True)
        )
        with torch.no_grad():
            target, _ = frozen.finish(*frozen.begin(clean.bfloat16()), None, 0)
        target, begun = target.float(), frozen.begin(damaged.bfloat16())
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        values = {}
        for name in ("time", "twin"):
            loss = losses_of(frozen, begun, target, getattr(students, name), after, *truth)
            loss.backward()
            nn.utils.clip_grad_norm_(getattr(students, name).parameters(), 1.0)
            values[name] = round(loss.item(), 4)
        optimizer.step()
        optimizer.zero_grad()
        frames_seen += CLIPS * frames
        with torch.no_grad():
            for kept, new in zip(average.parameters(), students.parameters(), strict=True):
                kept.lerp_(new, 1 - min(AVERAGE, (1 + step) / (10 + step)))
        done = step + 1
        if done % LOG_EVERY == 0 or done == steps:
            speed = (frames_seen - since) / (time.perf_counter() - began)
            line = {"step": done, "frames": frames_seen, "frames_per_second": round(speed, 2), "loss": values}
            line |= validate(validation, average)
            with open(out / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        if done % SAVE_EVERY == 0 or done == steps:
            state = {"students": students.state_dict(), "average": average.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": done, "frames": frames_seen}
            with write_beside(saved) as file:
                torch.save(state, file)
    with write_beside(out / "decayed.pt") as file:
        torch.save({"average": average.state_dict(), "steps": steps, "frames": frames_seen}, file)


# Scores


class Clips:
    """Held-out clips of several kinds, and what the frozen network scores on them."""

    def __init__(self, frozen: Frozen, textures: str, kinds: dict[str, int], first: int) -> None:
        self.frozen = frozen
        photographs = load_textures(textures, "validation")
        make = {kind: partial(held_out, **HELD_OUT[kind]) for kind in kinds}
        self.of = {kind: [make[kind](first + i, photographs) for i in range(n)] for kind, n in kinds.items()}
        self.released = self.scores(None, 0)

    @torch.no_grad()
    def scores(self, branches: nn.ModuleList | None, after: int = 6) -> dict[str, list[float]]:
        """<delta_avg of every clip."""
        return {kind: [self._score(clip, branches, after) for clip in clips] for kind, clips in self.of.items()}

    def _score(self, clip: Sample, branches: nn.ModuleList | None, after: int) -> float:
        video, config = clip.video[None], self.frozen.model.config
        _, features = self.frozen.finish(*self.frozen.begin(video), branches, after)
        found = soft_argmax_track(
            features, clip.queries[None], SIZE, temperature=config.temperature, radius=config.radius
        )
        return score(clip, found.xy[0])["<δavg"]


def means(scores: dict[str, list[float]]) -> dict[str, float]:
    return {kind: round(float(np.nanmean(values)), 2) for kind, values in scores.items()}


@contextlib.contextmanager
def closed(branches: nn.ModuleList) -> Iterator[nn.ModuleList]:
    """The branches, each frame seeing itself alone."""
    for branch in branches:
        branch.window = (0, 0)
    try:
        yield branches
    finally:
        for branch in branches:
            branch.window = WINDOW


def validate(clips: Clips, students: Students) -> dict[str, dict[str, float]]:
    found = {"released": means(clips.released), "time": means(clips.scores(students.time))}
    with closed(students.time) as branches:
        found["time, window closed"] = means(clips.scores(branches))
    return found | {"twin": means(clips.scores(students.twin))}


def compare(outs: list[Path], textures: str, clips: int) -> list[harness.Row]:
    """Time against its twin at the end of training, a row for each kind of clip and seed."""
    frozen = Frozen()
    data = Clips(frozen, textures, dict.fromkeys(HELD_OUT, clips), FIRST_SEED + 40_000)
    rows = []
    for out in outs:
        state = torch.load(out / "decayed.pt", weights_only=True)
        students = Students(frozen.model.vit.embed_dim, frozen.depth - 1)
        students.load_state_dict(state["average"])
        time_, causal, twin = data.scores(students.time), data.scores(students.time, 0), data.scores(students.twin)
        with closed(students.time) as branches:
            shut = data.scores(branches)
        for kind in HELD_OUT:
            difference = np.subtract(time_[kind], twin[kind])
            low, high = bootstrap_interval(difference.tolist())
            row: harness.Row = {"clips": kind, "run": out.name, "frames trained": state["frames"]}
            named = {"released": data.released, "twin": twin, "time": time_, "causal": causal, "window closed": shut}
            row |= {name: f"{np.nanmean(scores[kind]):.1f}" for name, scores in named.items()}
            rows.append(row | {"time - twin": f"{np.nanmean(difference):+.2f} ({low:+.2f} … {high:+.2f})"})
    return sorted(rows, key=lambda row: list(HELD_OUT).index(row["clips"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--textures", required=True, help="folder of photographs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=840, help=f"of {CLIPS} clips of {FRAMES[0]} to {FRAMES[1]} frames")
    parser.add_argument("--clips", type=int, default=24, help="of each kind, to score on")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for the .json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "train":
        train(args.folders[0], args.textures, args.seed, args.steps)
    else:
        rows = compare(args.folders, args.textures, args.clips)
        harness.report("temporal_branch", "cpu", {"<δavg on held-out clips": rows}, args.out)


if __name__ == "__main__":
    main()
