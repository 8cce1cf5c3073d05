import dataclasses
import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from tiny_training import CLIPS, CONFIG, RECIPE, STAGE, run

from chrono_features import ChronoBackbone, grid_queries
from chrono_features.extras import how_to_install
from chrono_features.training import RECIPES, Recipe, Stage, devices, stage_run, train, validation
from chrono_features.training import batches as data
from chrono_features.training.batches import SyntheticBatches
from chrono_features.training.stage_run import StageRun
from chrono_features.training.trainee import Trainee


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Frequent checkpoints, a short validation, no clip made twice, and a process left as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_run, "CHECKPOINT_EVERY", 3)
        patch.setattr(stage_run, "LOG_EVERY", 1)
        patch.setattr(stage_run, "VALIDATE_EVERY", 3)
        patch.setattr(validation, "VALIDATION_CLIPS", 1)
        patch.setattr(data, "make_clip", functools.cache(data.make_clip))
        yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run(out), out


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
def test_a_run_saves_each_stage(uninterrupted):
    model, out = uninterrupted
    assert not model.training
    assert same(ChronoBackbone.from_pretrained(out / "clips"), model)
    pairs = ChronoBackbone.from_pretrained(out / "pairs")
    assert not pairs.adapters["0"].conv_out.weight.any() and model.adapters["0"].conv_out.weight.any()
    assert model.config.temperature != 20.0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(x["stage"], x["step"]) for x in lines if "total" in x] == [("pairs", i + 1) for i in range(8)] + [
        ("clips", i + 1) for i in range(4)
    ]
    assert [x["step"] for x in lines if "validation_delta" in x] == [3, 6, 8, 3, 4]


def test_the_best_average_is_kept(uninterrupted, tmp_path, monkeypatch):
    """Not the last weights, and of the averages the one that was best on clips kept for validation."""
    scores = iter([0.7, 0.9, 0.8])
    states = []

    def score(self, batch, stage, progress=1.0):
        states.append({name: value.clone() for name, value in self.state_dict().items()})
        return {"delta": torch.tensor(next(scores)), "visibility": torch.tensor(1.0)}

    training = Trainee.forward
    monkeypatch.setattr(Trainee, "forward", lambda self, *a: training(self, *a) if self.training else score(self, *a))
    model = run(tmp_path, dataclasses.replace(RECIPE, stages=(STAGE,)))
    assert len(states) == 3
    best = {name.removeprefix("backbone."): value for name, value in states[1].items() if "backbone" in name}
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert any(not torch.equal(value, states[2][name]) for name, value in last.items())


@pytest.mark.slow
def test_the_average_of_a_short_stage_has_left_its_start(tmp_path):
    model = run(tmp_path, dataclasses.replace(RECIPE, stages=(STAGE,)))
    torch.manual_seed(0)
    start = ChronoBackbone(CONFIG).state_dict()
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    moved, behind = (
        sum(float((last[f"backbone.{name}"] - value).square().sum()) for name, value in weights.items())
        for weights in (start, model.state_dict())
    )
    assert 0 < behind < 0.25 * moved


def test_a_diverged_run_says_so(tmp_path, monkeypatch):
    forward = Trainee.forward

    def diverged(self, *args):
        return {**forward(self, *args), "delta": torch.tensor(math.nan)}

    monkeypatch.setattr(Trainee, "forward", diverged)
    with pytest.raises(ValueError, match="stage pairs diverged"):
        run(tmp_path, dataclasses.replace(RECIPE, stages=(STAGE,)))


def test_processors_are_shared_among_training_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(18), raising=False)
    assert devices.default_workers(torch.device("cuda")) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert devices.default_workers(torch.device("cuda")) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert devices.default_workers(torch.device("cuda")) == 1


def test_tf32_is_what_it_was_after_training():
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError), devices.tf32(True):
        assert matmul.allow_tf32
        raise KeyError
    assert matmul.allow_tf32 == before
    with devices.tf32(False):
        assert matmul.allow_tf32 == before


@pytest.mark.slow
def test_blocks_are_compiled_when_asked(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    run(tmp_path / "plain")
    assert not compiled
    run(tmp_path / "compiled", compile=True)
    assert compiled == ["Block"] * RECIPE.config.vit_kwargs["depth"]


def test_a_run_is_logged_for_tensorboard(uninterrupted):
    assert list((uninterrupted[1] / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_validation_sees_other_photographs(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    for i in range(5):
        image.new("RGB", (32, 32), (0, 255 if i == 4 else 0, 100)).save(tmp_path / f"{i}.png")
    seen = {True: set(), False: set()}
    make = data.make_clip

    def remember(*args, textures, **options):
        seen[options["frame_step"] == 0.5].add(int(textures[:, 1].max()))
        return make(*args, textures=textures, **options)

    monkeypatch.setattr(data, "make_clip", remember)
    build = SyntheticBatches.__init__

    def mark(self, stage, textures, *args, augment=True, **options):  # validation clips by their speed
        stage = dataclasses.replace(stage, gap=(1.0, 1.0) if augment else (0.5, 0.5))
        build(self, stage, textures, *args, augment=augment, **options)

    monkeypatch.setattr(SyntheticBatches, "__init__", mark)
    run(tmp_path / "out", dataclasses.replace(RECIPE, stages=(STAGE,)), steps=2, textures=tmp_path)
    assert seen == {True: {255}, False: {0}}


def test_look_ahead_sets_the_window_of_attention():
    trainee = Trainee(ChronoBackbone(CONFIG.replace(window=(4, 2))))
    video = torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for adapter in trainee.backbone.adapters.values():
        torch.nn.init.normal_(adapter.conv_out.weight)

    def first_frame(video):
        return trainee.backbone(video)[:, 0]

    changed = video.clone()
    changed[:, 2] = 0
    for frames, sees_it in ((None, True), (0, False), (1, False), (5, True), (None, True)):
        trainee.look_ahead(frames)
        assert torch.equal(first_frame(video), first_frame(changed)) != sees_it


@pytest.mark.slow
def test_frames_after_are_drawn_at_every_step(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(Trainee, "look_ahead", lambda self, frames: used.append(frames))
    run(tmp_path, dataclasses.replace(RECIPE, stages=(dataclasses.replace(CLIPS, steps=8),)))
    training = [frames for frames in used if frames is not None]  # validation and saving take the configuration's
    assert len(training) == 8 and set(training) == {0, 6} and used[-2:] == [None, None]


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("steps_alive", [2, 5, 11])
def test_a_killed_run_resumes_to_the_same_weights_and_log(uninterrupted, tmp_path, monkeypatch, steps_alive):
    """Killed before the first checkpoint, between two, and in the second stage."""
    step, count = StageRun._step, []

    def mortal(self, number, batch):
        count.append(1)
        if len(count) > steps_alive:
            raise Killed
        return step(self, number, batch)

    monkeypatch.setattr(StageRun, "_step", mortal)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.setattr(StageRun, "_step", step)
    assert same(run(tmp_path), uninterrupted[0])
    expected = (uninterrupted[1] / "log.jsonl").read_text()
    assert (tmp_path / "log.jsonl").read_text() == expected  # steps after the checkpoint are not logged twice


def logged_for_tensorboard(out):
    """Steps at which TensorBoard shows the total of the first stage."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("pairs/total")]


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, stages=(STAGE,))
    update = stage_run.AveragedWeights.update

    def mortal(self, step):
        update(self, step)
        if step == 6:  # 4 and 5 are logged, the checkpoint is of 3
            raise Killed

    monkeypatch.setattr(stage_run.AveragedWeights, "update", mortal)
    with pytest.raises(Killed):
        run(tmp_path, recipe)
    monkeypatch.setattr(stage_run.AveragedWeights, "update", update)
    run(tmp_path, recipe)
    assert logged_for_tensorboard(tmp_path) == list(range(1, 9))


def test_a_resumed_log_drops_half_a_line_and_follows_no_link(uninterrupted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted[1], out)
    log = out / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"stage": "clips", "st')
    run(out)
    assert log.read_text() == whole
    other = tmp_path / "other"
    other.write_text("precious\n")
    log.unlink()
    log.symlink_to(other)
    with pytest.raises(FileExistsError, match=r"log\.jsonl is no regular file"):
        run(out)
    assert other.read_text() == "precious\n"


def test_a_finished_run_does_not_train_again(uninterrupted, monkeypatch):
    model, out = uninterrupted
    monkeypatch.setattr(StageRun, "_step", None)
    assert same(run(out), model)


def test_the_checkpoint_of_another_run_is_refused(uninterrupted):
    _, out = uninterrupted
    before = (out / "checkpoint.pt").read_bytes()
    for options in (
        {"seed": 1},
        {"steps": 3},
        {"recipe": dataclasses.replace(RECIPE, config=CONFIG.replace(radius=4.0))},
    ):
        with pytest.raises(ValueError, match=r"checkpoint\.pt belongs to another.*resume=False"):
            run(out, **options)
    assert (out / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_starting_over(tmp_path):
    one = dataclasses.replace(RECIPE, stages=(dataclasses.replace(STAGE, steps=2),))
    first = run(tmp_path, one)
    assert same(run(tmp_path, one, resume=False), first)
    assert not same(run(tmp_path, one, resume=False, seed=1), first)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "total" in x] == [1, 2]  # of the last run


def test_training_lowers_the_loss():
    """Some steps on one batch."""
    torch.manual_seed(0)
    trainee = Trainee(ChronoBackbone(CONFIG)).train()
    batch = SyntheticBatches(CLIPS, None)[0]
    optimizer = torch.optim.AdamW(trainee.parameters(), 3e-3)
    totals = []
    for _ in range(20):
        losses = trainee(batch, CLIPS)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses["total"].item())
    assert totals[-1] < 0.8 * totals[0]


def test_the_total_is_the_weighted_sum():
    torch.manual_seed(0)
    stage = dataclasses.replace(CLIPS, cross_entropy=(0.3, 0.1), huber=0.7, visibility=1.1)
    losses = Trainee(ChronoBackbone(CONFIG))(SyntheticBatches(stage, None)[0], stage, progress=0.25)
    expected = 0.25 * losses["cross_entropy"] + 0.7 * losses["huber"] + 1.1 * losses["visibility"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert "cross_entropy" not in Trainee(ChronoBackbone(CONFIG))(
        SyntheticBatches(stage, None)[0], dataclasses.replace(stage, cross_entropy=(0.0, 0.0))
    )


@pytest.mark.parametrize("mixer", ["conv1d", "conv3d"])
def test_every_mixer_trains(mixer):
    trainee = Trainee(ChronoBackbone(CONFIG.replace(mixer=mixer))).train()
    trainee(SyntheticBatches(CLIPS, None)[0], CLIPS)["total"].backward()
    assert all(a.mixer.conv.weight.grad is not None for a in trainee.backbone.adapters.values())


def test_a_frozen_vit_is_not_trained(tmp_path, small_config, monkeypatch):
    config = small_config()
    start = {}
    build = Trainee.__init__

    def remember(self, backbone):
        build(self, backbone)
        start.update({k: v.clone() for k, v in backbone.state_dict().items()})

    monkeypatch.setattr(Trainee, "__init__", remember)
    model = run(tmp_path, Recipe("frozen", (dataclasses.replace(CLIPS, steps=2),), config))
    moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, start[k])}
    assert moved == {"adapters", "visibility_head"}


FITTED = Stage("visibility", 3, (3, 5), (1, 6), (32, 32), (8, 8), 1, 48, 0.0)


@pytest.mark.slow
def test_a_recipe_ends_with_the_visibility_head(tmp_path):
    recipe = dataclasses.replace(RECIPE, stages=(dataclasses.replace(STAGE, steps=3),), visibility=FITTED)
    model = run(tmp_path, recipe)
    assert same(ChronoBackbone.from_pretrained(tmp_path / "visibility"), model)
    stage = ChronoBackbone.from_pretrained(tmp_path / "pairs")
    assert not torch.equal(stage.visibility_head.linear.bias, model.visibility_head.linear.bias)
    assert same(run(tmp_path, recipe), model)  # a finished run ends alike
    with pytest.raises(ValueError, match="belongs to another"):
        run(tmp_path, dataclasses.replace(recipe, visibility=None))


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """Each on clips of its own, through averages, validation and a second stage."""
    script = tmp_path / "run.py"
    script.write_text(
        "import dataclasses, sys, torch\n"
        "from pathlib import Path\n"
        "from chrono_features.training import stage_run, train, validation\n"
        "from chrono_features.training.trainee import Trainee\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tiny_training import RECIPE\n"
        "stage_run.VALIDATE_EVERY, validation.VALIDATION_CLIPS, stage_run.LOG_EVERY = 2, 6, 1\n"
        "forward, one = Trainee.forward, {'delta': torch.tensor(1.0)}\n"
        "Trainee.forward = lambda self, *a: {**forward(self, *a), **({} if self.training else one)}\n"
        "stages = tuple(dataclasses.replace(s, steps=3) for s in RECIPE.stages)\n"
        "out = Path(sys.argv[1])\n"
        "model = train(dataclasses.replace(RECIPE, stages=stages), out, workers=0)\n"
        "torch.save(model.state_dict(), out / f'rank{torch.distributed.get_rank()}.pt')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    out = tmp_path / "out"
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, timeout=300, env=_one_thread())
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "total" in x] == [1, 2, 3] * 2  # one process writes
    assert [x["validation_delta"] for x in lines if "validation_delta" in x] == [1.0] * 4  # a mean over both
    alone = run(tmp_path / "alone", dataclasses.replace(RECIPE, stages=(dataclasses.replace(STAGE, steps=3),)))
    assert not same(ChronoBackbone.from_pretrained(out / "pairs"), alone)  # which saw half of the clips


def _one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_a_negative_number_of_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="workers=-1; expected an integer, 0 or more"):
        train(RECIPE, tmp_path / "run", workers=-1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", -1),
        ("mixed_precision", "fp8"),
        ("workers", 1.5),
        ("resume", "yes"),
        ("compile", None),
        ("force", 1),
        ("steps", True),
        ("frames", 1),
        ("size", 64),
        ("grid", (8, 0)),
    ],
)
def test_arguments_are_checked_before_any_work(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}={re.escape(repr(value))}; expected "):
        train(RECIPE, tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


def test_recipes_that_need_a_model_say_so(tmp_path):
    with pytest.raises(ValueError, match="model=None; expected the name of the model"):
        train("adapters", tmp_path)
    with pytest.raises(ValueError, match="tiny has its own model"):
        train("tiny", tmp_path, model="chrono-tiny")
    with pytest.raises(ValueError, match=r"recipe='huge'; expected one of tiny, adapters"):
        train("huge", tmp_path)
    with pytest.raises(ValueError, match="steps=0"):
        train("tiny", tmp_path, steps=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.config])
def test_recipes_with_a_model_build_it(name):
    recipe = RECIPES[name]
    model = ChronoBackbone(recipe.config)
    for stage in recipe.stages:
        video, queries = torch.rand(1, 1, 3, *stage.size), grid_queries(2, stage.size)
        assert model.track(video, queries, grid=stage.grid).xy.shape == (1, 4, 1, 2)


def test_a_missing_accelerate_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("train"))):
        train("tiny", tmp_path)
