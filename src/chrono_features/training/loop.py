"""The training loop: one command for one CPU, one GPU or many (through accelerate), which resumes where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..adapter import AttentionMixer
from ..backbone import ChronoBackbone
from ..checkpoints import DINOV2_VITS
from ..data.synthetic import load_textures
from ..evaluation.protocol import THRESHOLDS
from ..extras import require
from ..files import naming, open_regular, write_beside
from ..ops.matching import bilinear_corners
from ..tracking import soft_argmax_track
from ..weights import load_plain
from .batches import VALIDATION_SEED, Batch, SyntheticBatches
from .losses import grid_cross_entropy, huber_loss, visibility_loss
from .memory import check_memory
from .progress import Show, progress
from .recipes import RECIPES, Recipe, Stage
from .visibility import fit_visibility

LOG_EVERY = 25  # steps
CHECKPOINT_EVERY = 100
VALIDATE_EVERY = 500
VALIDATION_CLIPS = 32
AVERAGE_DECAY = 0.998  # of the moving average of the weights


class Trainee(nn.Module):
    """A backbone, the temperature it learns, and the losses of a stage."""

    def __init__(self, backbone: ChronoBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):  # tokens are channels-last; a quarter faster on CPU
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.log_temperature = nn.Parameter(torch.tensor(math.log(backbone.config.temperature)))

    def forward(self, batch: Batch, stage: Stage, progress: float = 1.0) -> dict[str, Tensor]:
        """Returns the losses, `total` among them, and the share of visible points within each threshold, `delta`.

        Args:
            batch: Clips with tracks.
            stage: Which losses, at what weights.
            progress: How far the stage is, 0 to 1.
        """
        model = self.backbone
        compute = model if stage.adapters else model.vit_features
        features = compute(batch.video, stage.grid)
        height, width = stage.size
        temperature = self.log_temperature.exp()
        tracks = soft_argmax_track(
            features,
            batch.queries,
            stage.size,
            temperature=float(temperature.detach()),
            radius=model.config.radius,
            visibility_head=model.visibility_head,
        )
        to_256 = features.new_tensor([256 / width, 256 / height], dtype=torch.float32)
        xy, target = tracks.xy * to_256, batch.tracks * to_256
        assert tracks.logits is not None
        losses = {
            "huber": huber_loss(xy, target, batch.visible),
            "visibility": visibility_loss(tracks.logits, xy, target, batch.visible, stage.balanced),
        }
        weights = {"huber": stage.huber, "visibility": stage.visibility}
        time = torch.arange(features.shape[1], device=features.device)
        scored = batch.visible & (time != batch.queries[..., :1])  # the query's own frame teaches nothing
        first, last = stage.cross_entropy
        if first or last:
            similarity = _similarity(features, batch.queries, stage.size)
            rows, columns = features.shape[-2:]
            cells = batch.tracks * features.new_tensor([columns / width, rows / height], dtype=torch.float32)
            losses["cross_entropy"] = grid_cross_entropy(similarity, cells, scored, temperature)
            weights["cross_entropy"] = first + progress * (last - first)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        distance = (xy.detach() - target).norm(dim=-1)[scored]
        delta = torch.stack([(distance < t).float().sum() for t in THRESHOLDS]).mean() / max(len(distance), 1)
        return {**losses, "total": total, "delta": delta, "temperature": temperature.detach()}

    def train_for(self, stage: Stage) -> None:
        """Lets the parameters of a stage train, and no others."""
        self.requires_grad_(True)
        self.backbone.vit.requires_grad_(not self.backbone.config.freeze_vit)
        self.backbone.adapters.requires_grad_(stage.adapters)
        self.log_temperature.requires_grad_(any(stage.cross_entropy))

    def compile_blocks(self) -> None:
        """Compiles the ViT's blocks, but no adapters: every change of their window would compile them anew."""
        for block in self.backbone.vit.blocks:
            block.compile()

    def look_ahead(self, frames: int | None) -> None:
        """Sets how many frames after its own the adapters' attention sees; None takes the configuration's."""
        before, after = self.backbone.config.window
        for adapter in self.backbone.adapters.values():
            if isinstance(adapter.mixer, AttentionMixer):
                adapter.mixer.window = (before, after if frames is None else frames)


def _similarity(
    features: Tensor,  # (B, T, C, h, w)
    queries: Tensor,  # (B, N, 3)
    size: tuple[int, int],
) -> Tensor:  # (B, N, T, h, w): the whole volume, which small training grids can afford
    batch, frames, _, rows, columns = features.shape
    cells = queries[..., 1:] * queries.new_tensor([columns / size[1], rows / size[0]])
    frame = torch.arange(batch, device=queries.device)[:, None] * frames + queries[..., 0].long()
    last = features.permute(0, 1, 3, 4, 2).flatten(0, 1)
    corners = bilinear_corners(cells.flatten(0, 1), rows, columns)
    sampled = torch.stack([last[frame.flatten(), y, x] * weight for y, x, weight in corners]).sum(0)
    with torch.autocast(features.device.type, enabled=False):  # half precision rounds what the softmax looks at
        return torch.einsum("bnc,btchw->bnthw", sampled.float().unflatten(0, (batch, -1)), features.float())


def train(
    recipe: Recipe | str,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    textures: str | os.PathLike[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch: int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    tracks: int | None = None,
    resume: bool = True,
    mixed_precision: str | None = None,
    workers: int | None = None,
    compile: bool = False,
    force: bool = False,
) -> ChronoBackbone:
    """Trains a model on synthetic clips and saves it in `out`, with a log and a checkpoint to resume from.

    Args:
        recipe: A `Recipe` or the name of one in `RECIPES`.
        out: Folder for `checkpoint.pt`, logs (`log.jsonl`, and `tensorboard/`) and, at the end of each stage, its
            model: of the moving averages of the weights, the one that was best on clips kept for validation.
        model: What `from_pretrained` takes; needed by recipes without a configuration of their own.
        textures: Folder of at least five photographs, every fifth of which is kept for validation; without it all
            textures are procedural.
        seed: Of weights and clips.
        steps, batch, frames, size, grid, tracks: Override those of every stage, see `Stage`; `frames` is one number,
            the length of all clips.
        resume: Whether to go on from `out`'s checkpoint where there is one.
        mixed_precision: "no", "bf16" or "fp16"; None takes bf16 on CUDA and none elsewhere.
        workers: Processes that make clips while the model trains, on the GPU where there is one. None takes one on a
            CPU and, with GPUs, one for each processor but two, shared among the GPUs. With a GPU they start anew, so a
            script that calls this needs `if __name__ == "__main__":`.
        compile: Whether `torch.compile` compiles the blocks of the ViT.
        force: Whether to train even if the run is estimated to need more memory than there is.

    Returns:
        The trained model, in eval mode.

    Raises:
        ValueError: Unknown recipe, a missing model, an argument out of range, a checkpoint of another run, or a run
            that does not fit into memory.
        ImportError: The train extra is missing.
    """
    sizes = {"steps": steps, "batch": batch, "frames": frames, "size": size, "grid": grid, "tracks": tracks}
    plan = _resolve(recipe, model).override(**sizes)
    if workers is not None and workers < 0:
        raise ValueError(f"workers={workers!r}; expected a whole number from 0, or None")
    for module in ("tensorboard", "rich.progress"):
        require(module, "train")
    Accelerator = require("accelerate", "train").Accelerator
    out = Path(out)
    if mixed_precision is None:
        mixed_precision = "bf16" if torch.cuda.is_available() else "no"
    several_on_cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(  # which would take several processes without a GPU for so many runs of one
        mixed_precision=mixed_precision, cpu=several_on_cpu, log_with="tensorboard", project_dir=out
    )
    if accelerator.device.type == "cpu":
        torch.set_flush_denormal(True)  # zero-initialised layers make denormals, which slow Adam tenfold
    if workers is None:
        workers = _free_processors() if accelerator.device.type == "cuda" else 1
    photographs = None if textures is None else _Photographs(Path(textures))
    setting = {"processes": accelerator.num_processes, "precision": mixed_precision}
    identity = _identity(plan, seed, model, photographs, setting)
    saved = _load_checkpoint(out / "checkpoint.pt", identity) if resume else None
    torch.manual_seed(seed)
    trainee = Trainee(_start(model) if plan.config is None else ChronoBackbone(plan.config))
    if saved:
        trainee.load_state_dict(saved["model"])
    first_stage = saved["stage"] if saved else 0
    with accelerator.autocast():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        trainee.to(accelerator.device)
        check_memory(trainee, plan.stages[first_stage:], accelerator.device, processes, force)
    out.mkdir(parents=True, exist_ok=True)
    if saved is None and accelerator.is_main_process:
        (out / "log.jsonl").unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    accelerator.init_trackers("tensorboard")
    if compile:
        trainee.compile_blocks()
    with _tf32(mixed_precision != "no"):
        for index in range(first_stage, len(plan.stages)):
            run = _StageRun(accelerator, trainee, plan, index, seed, photographs, out, identity)
            run.train(saved if index == first_stage else None, workers)
            run.save_model()
    if plan.visibility is not None:  # the same on every process: all see the same clips
        clips = _clips(plan, len(plan.stages), seed, photographs, accelerator.device)
        with progress(accelerator.is_main_process) as show:
            fit_visibility(trainee.backbone.eval(), _shown(clips, plan.visibility.name, show), plan.visibility)
        if accelerator.is_main_process:
            trainee.backbone.save_pretrained(out / plan.visibility.name)
    for tracker in accelerator.trackers:
        tracker.finish()
    return trainee.backbone.eval()


class _Photographs:
    """Textures for training, and those that are kept for validation."""

    def __init__(self, folder: Path) -> None:
        self.training, self.validation = (load_textures(folder, part) for part in ("training", "validation"))


class _StageRun:
    """One stage of one recipe: optimiser, schedule, log and checkpoints."""

    def __init__(
        self,
        accelerator: Any,
        trainee: Trainee,
        plan: Recipe,
        index: int,
        seed: int,
        photographs: _Photographs | None,
        out: Path,
        identity: str,
    ) -> None:
        self.identity = identity
        self.accelerator, self.trainee, self.plan, self.index, self.seed = accelerator, trainee, plan, index, seed
        self.photographs, self.out = photographs, out
        self.stage = plan.stages[index]
        self.steps_before = sum(stage.steps for stage in plan.stages[:index])
        accelerator.free_memory()  # or a stage would unscale the gradients of the one before
        trainee.train_for(self.stage)
        parameters = [p for p in trainee.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, self.stage.learning_rate, weight_decay=self.stage.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.stage.learning_rate, self.stage.steps, pct_start=self.stage.warm_up, cycle_momentum=False
        )
        self.model, self.optimizer = accelerator.prepare(trainee, optimizer)
        self.trained = {name: p for name, p in trainee.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.best: tuple[float, dict[str, Tensor]] = (-math.inf, {})

    def train(self, saved: dict[str, Any] | None, workers: int) -> None:
        first = 0
        if saved:
            first, self.best = saved["step"], saved["best"]
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.average = {name: saved["average"][name].to(p.device) for name, p in self.trained.items()}
        batches = self._batches(first, workers)
        on_cpu = self.accelerator.device.type == "cpu"
        summary = ""
        with progress(self.accelerator.is_main_process) as show:
            show(self.stage.name, first, self.stage.steps, summary)
            for step, batch in enumerate(batches, start=first + 1):
                losses = self._step(step, batch)
                self._update_average(step)
                if step % LOG_EVERY == 0 or on_cpu:  # reading a number waits for the GPU
                    metrics = {name: float(value) for name, value in losses.items()}
                    summary = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("total", "delta"))
                if step % LOG_EVERY == 0:
                    self._log(step, metrics)
                show(self.stage.name, step, self.stage.steps, summary)
                if step % VALIDATE_EVERY == 0 or step == self.stage.steps:
                    self._validate(step)
                if step % CHECKPOINT_EVERY == 0 or step == self.stage.steps:
                    self._save_checkpoint(step)

    def save_model(self) -> None:
        """Saves the best averaged model, with the temperature that it has learned; the next stage starts from it."""
        if not self.best[1]:
            raise ValueError(f"stage {self.stage.name} diverged: it never had a finite validation score")
        for name, parameter in self.trained.items():
            parameter.data.copy_(self.best[1][name])
        self.trainee.look_ahead(None)
        backbone = self.trainee.backbone
        backbone.config = backbone.config.replace(
            temperature=round(float(self.trainee.log_temperature.detach().exp()), 3)
        )
        if self.accelerator.is_main_process:
            backbone.save_pretrained(self.out / self.stage.name)

    def _batches(self, first: int, workers: int) -> DataLoader[Batch]:
        a = self.accelerator
        ranks = a.process_index, a.num_processes
        data = _clips(self.plan, self.index, self.seed, self.photographs, a.device, *ranks)
        return loader(Subset(data, range(first, self.stage.steps)), workers, a.device.type)

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        self.model.train()
        if self.stage.frames_after:
            draw = torch.Generator().manual_seed(step + 2**31)  # not the draw of the clips' length
            choice = int(torch.randint(len(self.stage.frames_after), (), generator=draw))
            self.trainee.look_ahead(self.stage.frames_after[choice])
        losses = self.model(batch.to(self.accelerator.device), self.stage, (step - 1) / max(self.stage.steps - 1, 1))
        self.accelerator.backward(losses["total"])
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.stage.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))  # a short average at first: it forgets the start soon
        torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)

    def _swap_average(self) -> None:
        """Exchanges the weights and their average."""
        for name, parameter in self.trained.items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Measures the averaged weights on clips and photographs that are never trained on, and keeps the best.

        Better is a greater share of points within 1 … 16 px at 256 x 256.
        """
        stage = dataclasses.replace(self.stage, steps=-(-VALIDATION_CLIPS // self.stage.batch))
        textures = None if self.photographs is None else self.photographs.validation
        device = self.accelerator.device if self.accelerator.device.type == "cuda" else "cpu"
        data = SyntheticBatches(stage, textures, device=device, augment=False)
        data.first = VALIDATION_SEED
        self._swap_average()
        self.trainee.eval()
        self.trainee.look_ahead(None)
        mine = range(self.accelerator.process_index, len(data), self.accelerator.num_processes)
        sums = torch.zeros(2, device=self.accelerator.device)
        for i in mine:
            losses = self.trainee(data[i].to(self.accelerator.device), stage)
            sums += torch.stack([losses["delta"], losses["visibility"]])
        delta, visibility = (self.accelerator.reduce(sums, "sum") / len(data)).tolist()
        self._log(step, {"validation_delta": delta, "validation_visibility": visibility})
        if delta > self.best[0]:
            self.best = delta, {name: p.detach().clone() for name, p in self.trained.items()}
        self._swap_average()

    def _log(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log({f"{self.stage.name}/{k}": v for k, v in values.items()}, step=self.steps_before + step)
        if self.accelerator.is_main_process:
            line = {"stage": self.stage.name, "step": step, **{k: round(v, 5) for k, v in values.items()}}
            log = self.out / "log.jsonl"
            descriptor = open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # a link may lead to any file
            with naming(log), os.fdopen(descriptor, "a") as file:
                file.write(json.dumps(line) + "\n")

    def _save_checkpoint(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "run": self.identity,
            "stage": self.index,
            "step": step,
            "model": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average,
            "best": self.best,
        }
        with write_beside(self.out / "checkpoint.pt") as file:
            torch.save(state, file)


def loader(batches: Dataset[Batch], workers: int, device: str) -> DataLoader[Batch]:
    """Batches on the host, made by some processes ahead of time."""
    on_gpu = device == "cuda"
    return DataLoader(
        batches,
        batch_size=None,
        collate_fn=_on_host,
        num_workers=workers,
        multiprocessing_context="spawn" if on_gpu and workers else None,  # CUDA does not survive a fork
        pin_memory=on_gpu,
    )


def _clips(
    plan: Recipe,
    index: int,
    seed: int,
    photographs: _Photographs | None,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> SyntheticBatches:
    """The clips of a stage, or, after the last, those for the visibility head; made on a GPU where there is one."""
    stages = [*plan.stages, plan.visibility]
    stage, where = stages[index], device if device.type == "cuda" else "cpu"
    assert stage is not None
    textures = None if photographs is None else photographs.training
    return SyntheticBatches(stage, textures, seed * len(stages) + index, rank, world, where)


def _start(model: str | None) -> ChronoBackbone:
    assert model is not None
    overrides: dict[str, Any] = {"adapter_blocks": "all"} if model in DINOV2_VITS else {}
    backbone = ChronoBackbone.from_pretrained(model, **overrides)
    if not backbone.adapters:
        raise ValueError(
            f"model={model!r} has no adapters to train; expected one with adapter_blocks other than 'none'"
        )
    return backbone


def _resolve(recipe: Recipe | str, model: str | None) -> Recipe:
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe!r}; expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if (model is None) == (recipe.config is None):
        expected = "the name of the model to start from" if model is None else f"None: {recipe.name} has its own model"
        raise ValueError(f"model={model!r}; expected {expected}")
    return recipe


def _load_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    saved = load_plain(path)
    if not isinstance(saved, dict) or saved.get("run") != identity:
        raise ValueError(
            f"{path} belongs to another recipe, model, seed or version; expected an empty folder or resume=False"
        )
    return saved


def _identity(
    plan: Recipe, seed: int, model: str | None, photographs: _Photographs | None, setting: dict[str, Any]
) -> str:
    """What has to be the same for a checkpoint to be gone on from."""
    return json.dumps(
        {
            "stages": [dataclasses.asdict(s) for s in (*plan.stages, plan.visibility) if s],
            "config": None if plan.config is None else plan.config.to_dict(),
            "seed": seed,
            "model": model,
            "photographs": 0 if photographs is None else len(photographs.training),
            **setting,
        }
    )


def _free_processors() -> int:
    """For one training process: all that this machine lets it have but two, shared among its training processes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (usable - 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextlib.contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """TF32 for what lower precision leaves in float32: correlations."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _on_host(batch: Any) -> Any:
    return Batch(*(v.cpu() for v in vars(batch).values()))  # from process to process; `to` would not wait for the GPU


def _shown(clips: SyntheticBatches, what: str, show: Show) -> Iterator[Batch]:
    for i in range(len(clips)):
        yield clips[i]
        show(what, i + 1, len(clips), "")
