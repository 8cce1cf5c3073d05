import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import refuse, run, tapvid

from chrono_features import ChronoBackbone
from chrono_features.cli import processes
from chrono_features.extras import how_to_install


def test_several_devices_run_the_same_command_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def launch(arguments: list[str]) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(processes.subprocess, "run", launch)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # that is for the processes to do
    assert processes.relaunched(None, ["eval"]) is processes.relaunched(1, ["eval"]) is None and not calls
    arguments = ["eval", "--data", f"davis={tapvid(tmp_path / 'davis.pkl')}", "--out", str(tmp_path / "r.json")]
    arguments += ["--model", "chrono-tiny", "--devices", "2"]
    monkeypatch.setattr(sys, "argv", ["chrono-features", *arguments])
    run(*arguments, code=3)
    (called,) = calls
    assert called[0] == sys.executable and "--nproc-per-node=2" in called
    assert called[-len(arguments) - 2 :] == ["-m", "chrono_features", *arguments]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.relaunched(2, arguments) is None and len(calls) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert how_to_install("eval") in refuse(*arguments)


def test_processes_share_the_videos_and_the_first_one_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    out, waited = tmp_path / "r.json", []
    measure = ("eval", "--data", f"davis={tapvid(tmp_path / 'davis.pkl')}", "--out", out, "--baseline", "static")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for process in (1, 0):
        state = SimpleNamespace(process_index=process, num_processes=2, wait_for_everyone=lambda: waited.append(1))
        monkeypatch.setattr(accelerate, "PartialState", lambda state=state, **_: state)
        output = run(*measure, "--devices", 2, "--device", "cpu")
        assert out.exists() == ("davis (3)" in output) == (process == 0)
    assert len(waited) == 2 and len(json.loads(out.read_text())["records"]) == 3
