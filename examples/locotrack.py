"""Train LocoTrack on its own ResNet or on Chrono features, on the same clips for as many steps, and compare them.

    git clone https://github.com/cvlab-kaist/locotrack
    pip install '.[train,eval]'     # in a clone of the chrono-features repository
    python examples/locotrack.py train runs/own --features own --checkout locotrack
    python examples/locotrack.py train runs/chrono --features chrono-tiny --checkout locotrack
    python examples/locotrack.py evaluate runs/own runs/chrono --checkout locotrack --data davis=tapvid_davis.pkl

The defaults are the size of LocoTrack's paper: for GPUs, `accelerate launch examples/locotrack.py train ...`. A run
that was stopped resumes when the same command is called again.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Subset

from chrono_features import ChronoBackbone, Tracks
from chrono_features.cli.evaluation import open_all
from chrono_features.cli.tables import print_tables
from chrono_features.data.synthetic import load_textures
from chrono_features.evaluation.run import evaluate as measure
from chrono_features.evaluation.trackers import from_tracker, weights_hash
from chrono_features.files import write_beside
from chrono_features.progress import progress
from chrono_features.refiners import swap_backbone, trainable_report, tyx_from_txy
from chrono_features.training import Stage
from chrono_features.training.batches import Batch, SyntheticBatches, loader
from chrono_features.training.losses import huber_loss, visibility_loss

OWN = "own"
HUBER_WEIGHT = 0.05  # of TAPIR's loss, as LocoTrack's
LOG_EVERY, CHECKPOINT_EVERY = 25, 100  # steps

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Checkout = Annotated[Path, typer.Option(help="A clone of LocoTrack's repository.", exists=True, file_okay=False)]


@dataclass(frozen=True)
class Setting:
    """What a run depends on; kept in its folder, and the same for a run to resume from its checkpoint."""

    features: str
    model_size: str
    size: int
    frames: int
    points: int
    batch: int
    steps: int
    learning_rate: float
    seed: int
    textures: str | None


class Trainee(nn.Module):
    """LocoTrack and its loss: one forward, as DistributedDataParallel wants it."""

    def __init__(self, tracker: nn.Module, size: int) -> None:
        super().__init__()
        self.tracker = tracker
        self.size = size

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """TAPIR's loss (Doersch et al. 2023), summed over the first estimate and all refinements of it."""
        out = run_tracker(self.tracker, batch.video, batch.queries, self.size)
        each = ("unrefined_tracks", "unrefined_occlusion", "unrefined_expected_dist")
        estimates = list(zip(*(out[name] for name in each), strict=True))
        estimates.append((out["tracks"], out["occlusion"], out["expected_dist"]))
        to_256 = 256 / self.size
        target = batch.tracks * to_256
        losses: dict[str, Tensor] = {}
        for xy, occluded, far in estimates:
            logits, xy = torch.stack([occluded, far], dim=-1), xy * to_256
            losses["huber"] = losses.get("huber", 0) + huber_loss(xy, target, batch.visible)
            losses["visibility"] = losses.get("visibility", 0) + visibility_loss(logits, xy, target, batch.visible)
        losses["total"] = HUBER_WEIGHT * losses["huber"] + losses["visibility"]
        first, last = (
            (xy.detach() * to_256 - target).norm(dim=-1)[batch.visible].median()
            for xy in (estimates[0][0], estimates[-1][0])
        )
        shown = {"first estimate, px": first, "last estimate, px": last}  # medians
        return {**losses, **shown}


def build(setting: Setting, checkout: Path) -> nn.Module:
    """LocoTrack of the user's checkout, with its own ResNet or with frozen features of a model's."""
    code = checkout / "locotrack_pytorch"
    if not (code / "models" / "locotrack_model.py").is_file():
        raise ValueError(f"--checkout {checkout}; expected a clone of LocoTrack, with locotrack_pytorch/models in it")
    sys.path.insert(0, str(code))
    locotrack = importlib.import_module("models.locotrack_model").LocoTrack
    torch.manual_seed(setting.seed)  # equal weights outside of the backbone
    tracker = locotrack(model_size=setting.model_size, initial_resolution=(setting.size, setting.size))
    if setting.features != OWN:
        swap_backbone(tracker, ChronoBackbone.from_pretrained(setting.features), freeze="backbone")
    return tracker


def run_tracker(
    tracker: nn.Module,
    video: Tensor,  # (B, T, 3, H, W) uint8
    queries: Tensor,  # (B, N, 3) (t, x, y) in pixels of the video
    size: int,
) -> dict[str, Any]:
    """LocoTrack's own call on frames of size x size; positions are in their pixels."""
    height, width = video.shape[-2:]
    frames = video.flatten(0, 1) / 255
    if (height, width) != (size, size):
        frames = F.interpolate(frames, (size, size), mode="bilinear", align_corners=False, antialias=True)
    frames = frames.unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2) * 2 - 1
    scaled = queries * queries.new_tensor([1, size / width, size / height])
    return tracker(frames, tyx_from_txy(scaled), refinement_resolutions=[(size, size)])


def batches(setting: Setting, rank: int, world: int, device: torch.device) -> SyntheticBatches:
    stage = Stage(
        "clips",
        setting.steps,
        (setting.frames, setting.frames),
        (0.7, 3),
        (setting.size, setting.size),
        (1, 1),
        setting.batch,
        setting.points,
        setting.learning_rate,
    )
    textures = None if setting.textures is None else load_textures(setting.textures, "training")
    where = device if device.type == "cuda" else "cpu"
    return SyntheticBatches(stage, textures, setting.seed, rank, world, where)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    checkout: Checkout,
    features: Annotated[str, typer.Option(help="own, or a model: chrono-tiny, a folder, ...")],
    textures: Annotated[Path | None, typer.Option(help="Photographs; a fifth of them is left out.")] = None,
    model_size: Annotated[str, typer.Option(help="LocoTrack's: small or base.")] = "small",
    size: Annotated[int, typer.Option(help="Height and width of the frames.")] = 256,
    frames: int = 24,
    points: int = 256,
    batch: Annotated[int, typer.Option(help="Clips a step and process.")] = 1,
    steps: int = 300_000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    workers: Annotated[int, typer.Option(help="Processes that make clips.")] = 1,
) -> None:
    """Train, with a log and a checkpoint; resumes where it was stopped."""
    photographs = None if textures is None else str(textures)
    setting = Setting(features, model_size, size, frames, points, batch, steps, learning_rate, seed, photographs)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and (saved := read_setting(out)) != setting:
        raise ValueError(f"{out} holds a run of {saved}; expected {setting}, or another folder")
    tracker = build(setting, checkout)
    accelerator = Accelerator()
    data = batches(setting, accelerator.process_index, accelerator.num_processes, accelerator.device)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        with write_beside(out / "run.json") as file:
            file.write(json.dumps(asdict(setting), indent=1).encode())
        if features != OWN:
            trainable_report(tracker)
    trained = [parameter for parameter in tracker.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=1e-3, betas=(0.9, 0.95))
    warm_up = min(max(0.003, 20 / steps), 0.3)  # LocoTrack's, but for short runs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=warm_up)
    parts = {"tracker": tracker, "optimizer": optimizer, "schedule": schedule}
    first = load(checkpoint, parts) if checkpoint.exists() else 0
    trainee, optimizer = accelerator.prepare(Trainee(tracker, size), optimizer)
    rows = loader(Subset(data, range(first, steps)), workers, accelerator.device.type)
    is_main = accelerator.is_main_process
    with progress(features, enabled=is_main) as update:
        update(first, steps)
        for step, clips in enumerate(rows, start=first + 1):
            losses = trainee(clips.to(accelerator.device))
            accelerator.backward(losses["total"])
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            update(step, steps)
            if not is_main:
                continue
            if step % LOG_EVERY == 0:
                values = {name: round(float(value.detach()), 4) for name, value in losses.items()}
                with open(out / "log.jsonl", "a") as file:
                    file.write(json.dumps({"step": step, **values}) + "\n")
            if step % CHECKPOINT_EVERY == 0 or step == steps:
                states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                with write_beside(checkpoint) as file:
                    torch.save({"step": step, "tracker": tracker.state_dict(), **states}, file)


def load(checkpoint: Path, parts: dict[str, Any]) -> int:
    """Load the states of a run's parts; returns the number of steps that were done."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    checkout: Checkout,
    data: Annotated[list[str], typer.Option(help="KIND=PATH, as of chrono-features eval; several times.")],
    out: Annotated[Path, typer.Option(help="Results, JSON; a run that was stopped resumes.")] = Path("locotrack.json"),
    size: Annotated[int | None, typer.Option(help="Side of the frames.  [default: as trained]")] = None,
) -> None:
    """Measure the trackers of runs, *first* at 256 x 256, and print tables by group."""
    device = Accelerator().device
    trackers = []
    for run in runs:
        setting = read_setting(run)
        tracker = build(setting, checkout).to(device).eval()
        state = torch.load(run / "checkpoint.pt", map_location=device, weights_only=True)
        tracker.load_state_dict(state["tracker"])
        about = {**asdict(setting), "trained_steps": state["step"], "weights": weights_hash(tracker)}
        trackers.append(from_tracker(run.name, as_tracker(tracker, size or setting.size), **about, evaluated_at=size))
    with progress("evaluating") as update:
        results = measure(
            trackers, open_all(data), out, device=device, on_video=lambda _, done, total: update(done, total)
        )
    print_tables(results)


def as_tracker(tracker: nn.Module, size: int) -> Callable[[Tensor, Tensor], Tracks]:
    """LocoTrack as this library's evaluation calls trackers."""
    return partial(_track, tracker, size)


def _track(
    tracker: nn.Module,
    size: int,
    video: Tensor,  # (B, T, 3, H, W) uint8
    queries: Tensor,  # (B, N, 3)
) -> Tracks:
    out = run_tracker(tracker, video, queries, size)
    seen = (1 - out["occlusion"].sigmoid()) * (1 - out["expected_dist"].sigmoid())
    xy = out["tracks"] * queries.new_tensor([video.shape[-1] / size, video.shape[-2] / size])
    return Tracks(xy, torch.ones_like(seen), seen > 0.5)


def read_setting(run: Path) -> Setting:
    if not (run / "checkpoint.pt").exists():
        raise ValueError(f"{run} holds no checkpoint.pt; expected the folder of a run that `train` wrote")
    return Setting(**json.loads((run / "run.json").read_text()))


if __name__ == "__main__":
    app()
