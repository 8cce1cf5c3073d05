import subprocess
import sys
import warnings

import pytest
import torch

pytest.importorskip("accelerate")

import dataclasses

from tiny_training import CLIPS, CONFIG, RECIPE, STAGE, run

from chrono_features import ChronoBackbone
from chrono_features.training import RECIPES, loop, memory, train, validation
from chrono_features.training.memory import MemoryWarning, _container_limits, check_memory, device_memory, step_memory
from chrono_features.training.trainee import Trainee

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "VALIDATION_CLIPS", 1)
        yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def trainee():
    torch.manual_seed(0)
    return Trainee(ChronoBackbone(CONFIG))


def changed(**changes):
    return dataclasses.replace(CLIPS, **changes)


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_memory_grows_with_clips_frames_tokens_and_tracks(trainee):
    fixed, clips = step_memory(trainee, changed(frames=(4, 4)), CPU)
    for changes, least in (
        ({"batch": 2 * CLIPS.batch}, 2.0),
        ({"frames": (4, 8)}, 2.0),  # the longest clips decide
        ({"grid": (16, 16)}, 1.5),
        ({"tracks": 8 * CLIPS.tracks}, 1.1),
    ):
        assert step_memory(trainee, changed(**{"frames": (4, 4), **changes}), CPU)[1] >= least * clips, changes
    without = step_memory(trainee, changed(frames=(4, 4), adapters=False), CPU)
    assert without[1] < clips and without[0] < fixed


@pytest.mark.slow
def test_the_estimate_covers_what_a_step_takes(tmp_path):
    """In a process of its own, which sees its peak."""
    script = tmp_path / "step.py"
    script.write_text(
        "import re, resource, sys, torch\n"
        "from chrono_features import ChronoBackbone\n"
        "from chrono_features.training import RECIPES, memory\n"
        "from chrono_features.training.trainee import Trainee\n"
        "from chrono_features.training.batches import Batch\n"
        "recipe = RECIPES['tiny'].override(batch=3, frames=6, size=(128, 128), grid=(16, 16), tracks=64)\n"
        "stage = recipe.stages[1]\n"
        "trainee = Trainee(ChronoBackbone(recipe.config))\n"
        "def peak():\n"
        "    if sys.platform == 'linux':  # where getrusage still has the peak of the process before exec\n"
        "        return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
        "before = peak()\n"
        "fixed, clips = memory.step_memory(trainee, stage, torch.device('cpu'))\n"
        "small = memory._stand_in(stage)\n"
        "repeat = lambda v, axis: v.repeat_interleave(3, 0).repeat_interleave(3, axis)\n"
        "tracks, visible = repeat(small.tracks, 2), repeat(small.visible, 2)\n"
        "batch = Batch(repeat(small.video, 1), small.queries.repeat(3, 1, 1), tracks, visible)\n"
        "optimizer = torch.optim.AdamW(trainee.parameters())\n"
        "trainee(batch, stage)['total'].backward()\n"
        "optimizer.step()\n"
        "print(peak() - before, fixed - memory.PROCESS + clips, peak(), fixed + clips)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    step, estimate, process, whole = map(float, done.stdout.split())
    assert 0.7 < estimate / step < 1.5
    assert process < 1.2 * whole


@pytest.mark.slow
def test_the_released_recipe_needs_a_large_gpu():
    recipe = RECIPES["tiny"]
    trainee = Trainee(ChronoBackbone(recipe.config))
    needs = [sum(step_memory(trainee, stage, CPU)) / 1e9 for stage in recipe.stages]
    assert 8 < needs[0] < 25 and 60 < needs[1] < 120  # as float32


# --- the decision -----------------------------------------------------------------------------------------------------


def decide(trainee, monkeypatch, share, stages=(STAGE, CLIPS), processes=1, **options):
    """Checks a run that takes such a share of the memory there is."""
    need = max(sum(step_memory(trainee, stage, CPU)) for stage in stages)
    monkeypatch.setattr(memory, "device_memory", lambda device: need * processes / share)
    check_memory(trainee, stages, CPU, processes, **{"force": False, **options})


def test_a_run_that_fits_is_silent(trainee, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decide(trainee, monkeypatch, 0.65)
        check_memory(trainee, (), CPU, 1, False)
        monkeypatch.setattr(memory, "device_memory", lambda device: None)
        check_memory(trainee, (CLIPS,), CPU, 1, False)


def test_a_run_that_may_not_fit_warns(trainee, monkeypatch):
    with pytest.warns(MemoryWarning, match=r"about 1\.\d GB of the 1\.\d GB of this machine.*--frames"):
        decide(trainee, monkeypatch, 0.9)


def test_a_run_that_does_not_fit_is_refused(trainee, monkeypatch):
    wanted = r"stage clips has 2 clips of 4 frames, 32 x 32 pixels, 8 x 8 tokens and 16 tracks.*--batch.*--force"
    with pytest.raises(ValueError, match=wanted):
        decide(trainee, monkeypatch, 1.1)
    with pytest.warns(MemoryWarning, match="stage clips"):
        decide(trainee, monkeypatch, 1.1, force=True)


def test_processes_share_a_machine(trainee, monkeypatch):
    with pytest.raises(ValueError, match="in each of 2 processes"):
        decide(trainee, monkeypatch, 1.1, processes=2)


def test_the_batch_that_is_proposed_fits(trainee, monkeypatch):
    large = dataclasses.replace(CLIPS, batch=4096, frames=(8, 8))
    fixed, clips = step_memory(trainee, large, CPU)
    there = fixed + clips / 2
    monkeypatch.setattr(memory, "device_memory", lambda device: there)
    with pytest.raises(ValueError) as error:
        check_memory(trainee, (large,), CPU, 1, False)
    proposed = int(str(error.value).split("--batch ")[1].split(")")[0])
    assert 1 < proposed < 2048
    for batch, fits in ((proposed, True), (proposed + 1, False)):
        need = sum(step_memory(trainee, dataclasses.replace(large, batch=batch), CPU))
        assert (need <= memory.WARN_ABOVE * there) is fits


def test_a_refused_run_leaves_everything_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: 2**20)
    with pytest.raises(ValueError, match="training takes about"):
        run(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "log.jsonl").write_text("of an earlier run\n")
    with pytest.raises(ValueError, match="training takes about"):
        run(tmp_path / "old", resume=False)
    assert (tmp_path / "old" / "log.jsonl").read_text() == "of an earlier run\n"


@pytest.mark.slow
def test_the_estimate_changes_no_run(tmp_path, monkeypatch):
    with pytest.warns(MemoryWarning), monkeypatch.context() as patch:
        patch.setattr(memory, "device_memory", lambda device: 2**20)
        forced = run(tmp_path / "forced", RECIPE, steps=1, force=True).state_dict()
    monkeypatch.setattr(loop, "check_memory", lambda *_: None)
    plain = run(tmp_path / "plain", RECIPE, steps=1).state_dict()
    assert all(torch.equal(forced[name], plain[name]) for name in plain)


# --- the memory there is ----------------------------------------------------------------------------------------------


def test_this_machine():
    there = device_memory(CPU)
    assert there is None or 2**28 < there < 2**50


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "4000000000\n"}, [4000000000]),
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n", "memory.max": "9000\n"}, [5000, 9000]),
        ("4:memory:/x\n1:cpu:/x\n", {"memory/memory.limit_in_bytes": "7000\n"}, [7000]),
        ("2:cpu,memory:/\n0::/\n", {"memory/memory.limit_in_bytes": "7000\n"}, [7000]),
        ("3:cpuset:/\n", {"memory/memory.limit_in_bytes": "7000\n"}, []),
    ],
)
def test_limits_of_containers(tmp_path, own, files, expected):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _container_limits(tmp_path, tmp_path / "own") == expected
    assert _container_limits(tmp_path, tmp_path / "missing") == []


# --- smaller runs, and what they show ---------------------------------------------------------------------------------


def test_sizes_can_be_overridden():
    recipe = RECIPES["tiny"].override(steps=3, batch=2, frames=5, size=(64, 96), grid=(8, 12), tracks=7)
    for stage in (*recipe.stages, recipe.visibility):
        got = stage.steps, stage.batch, stage.frames, stage.size, stage.grid, stage.tracks
        assert got == (3, 2, (5, 5), (64, 96), (8, 12), 7)
    assert RECIPES["adapters"].override(batch=2).visibility is None
    assert RECIPES["tiny"].override() == RECIPES["tiny"].override(batch=None) == RECIPES["tiny"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "a positive integer"), ("batch", 0, "a positive integer"),
        ("batch", 2.0, "a positive integer"), ("batch", True, "a positive integer"),
        ("tracks", -1, "a positive integer"),
        ("frames", 1, "an integer, 2 or more"), ("frames", (8, 24), "an integer, 2 or more"),
        ("size", 64, "two positive integers"), ("size", (64, 0), "two positive"), ("grid", (8, 8, 8), "two positive"),
    ],
)  # fmt: skip
def test_sizes_out_of_range(tmp_path, name, value, expected):
    with pytest.raises(ValueError, match=f"{name}=.*; expected {expected}"):
        train("tiny", tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_line_per_step_where_there_is_no_terminal(tmp_path, capsys):
    head = dataclasses.replace(STAGE, name="visibility", batch=4)
    run(tmp_path, dataclasses.replace(RECIPE, visibility=head), steps=3)
    lines = capsys.readouterr().err.splitlines()
    for name in ("pairs", "clips"):
        steps = [line for line in lines if line.startswith(f"{name} ")]
        assert [line.split()[1] for line in steps] == ["0/3", "1/3", "2/3", "3/3"]
        assert all("total" in line and "delta" in line and line.endswith(" left") for line in steps[1:])
    assert [line.split()[1] for line in lines if line.startswith("visibility ")] == ["1/3", "2/3", "3/3"]
