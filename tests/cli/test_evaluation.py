import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_calls import refuse, run, tapvid

from chrono_features import ChronoBackbone
from chrono_features.cli import evaluation as command
from chrono_features.evaluation import baselines


def table_of(output: str) -> str:
    """The lines without progress bars, and without how long anything takes."""
    return "\n".join(line.rstrip() for line in output.splitlines() if "evaluating" not in line and "report" not in line)


def test_eval_prints_tables_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    davis, out = tapvid(tmp_path / "davis.pkl"), tmp_path / "r.json"
    measure = ("eval", "--data", f"davis={davis}", "--out", out, "--mode", "first", "--mode", "strided")
    measure += ("--model", "chrono-vits14", "--baseline", "static", "--device", "cpu")
    output = run(*measure, "--limit", 2)
    for text in (
        "davis, first",
        "davis, strided",
        "davis (2)",
        "mean of all videos (2)",
        "static",
        "<δavg",
        "AJ",
        "OA",
    ):
        assert text in output
    assert "published" not in output  # for all videos only
    assert "2 videos measured; the other 1 would take about 0 s" in " ".join(output.split())
    results = json.loads(out.read_text())
    assert len(results["records"]) == 2 * 2 * 2 and list(results["trackers"]) == ["static", "chrono-vits14"]
    assert results["protocol"]["size"] == [256, 256] and results["protocol"]["dtype"] == "float32"

    with monkeypatch.context() as patch:
        patch.setattr(ChronoBackbone, "track", lambda *_, **__: pytest.fail("tracked again"))
        patch.setattr(baselines.Tracks, "__init__", lambda *_, **__: pytest.fail("tracked again"))
        again = run(*measure, "--limit", 2)
    assert table_of(again) == table_of(output)

    whole = run(*measure)
    assert "davis (3)" in whole and "the other" not in whole
    assert "published" in whole and whole.count("63.0") == whole.count("68.0") == 1  # of the model, by mode
    assert "published" not in run(
        "eval", "--data", f"davis={davis}", "--out", tmp_path / "s.json", "--baseline", "static"
    )


@pytest.mark.slow
def test_eval_writes_a_report(tmp_path: Path) -> None:
    pytest.importorskip("chrono_features.evaluation.report")
    valid = np.ones((4, 6), bool)
    data = tapvid(tmp_path / "real.pkl", ("planar_1", "badja_dog"), valid=valid)
    report = tmp_path / "r.html"
    output = run(
        *("eval", "--data", f"real_tracks={data}", "--out", tmp_path / "r.json", "--report", report),
        *("--model", "chrono-tiny", "--device", "cpu"),
    )
    for group in ("precision/planar (1)", "articulated/badja (1)", "mean of all videos (2)"):
        assert group in output
    assert "PCK" in output
    page = report.read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count("<video") >= 1 and "badja_dog" in page


def test_eval_reports_what_was_skipped(tmp_path: Path) -> None:
    data = tapvid(tmp_path / "real.pkl", ("planar_1", "planar_2"), valid=np.ones((4, 6), bool))
    videos = pickle.loads(data.read_bytes())
    videos["planar_2"]["valid"][:] = False
    data.write_bytes(pickle.dumps(videos))
    output = run("eval", "--data", f"real_tracks={data}", "--out", tmp_path / "r.json", "--baseline", "static")
    assert "real_tracks: planar_2 skipped, no point is visible anywhere" in output and "the other" not in output


def test_eval_measures_a_model_in_several_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "r.json", []
    original = command.from_model

    def spy(name: str, model: ChronoBackbone, **options: object) -> object:
        asked.append((name, model.dtype, {k: v for k, v in options.items() if v}))
        return original(name, model, **options)

    monkeypatch.setattr(command, "from_model", spy)
    measure = ("eval", "--data", f"davis={tapvid(tmp_path / 'davis.pkl', ('goat',))}", "--out", out, "--device", "cpu")
    measure += ("--model", "chrono-tiny", "--without-adapters", "--refine", "--max-frames-in-memory", 4)
    run(*measure, "--size", "64x96", "--dtype", "bfloat16")
    chunks = {"max_frames_in_memory": 4}
    names = ["chrono-tiny, without adapters", "chrono-tiny", "chrono-tiny, refined"]
    options = [chunks, chunks, {"refine": "photometric", **chunks}]
    assert asked == [(n, torch.bfloat16, o) for n, o in zip(names, options, strict=True)]
    results = json.loads(out.read_text())
    assert list(results["trackers"]) == names and results["protocol"]["size"] == [64, 96]
    deltas = {r["tracker"]: r["track_delta"] for r in results["records"]}
    assert deltas[names[0]] != deltas[names[1]] != deltas[names[2]]
    assert "protocol dtype bfloat16, and this is float32" in refuse(*measure, "--size", "64x96")
    assert "protocol size [64, 96], and this is [256, 256]" in refuse(*measure, "--dtype", "bfloat16")


def test_who_is_measured_and_how(model: ChronoBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = [], []

    def load(name: str, **options: object) -> ChronoBackbone:
        loaded.append((name, options))
        return model

    monkeypatch.setattr(ChronoBackbone, "from_pretrained", load)
    monkeypatch.setattr(command, "from_model", lambda name, _, **options: asked.append((name, options)) or name)
    monkeypatch.setattr(command, "baseline", lambda name, grid, device: f"{name} {grid}")
    names = ["chrono-tiny", "dinov2-vits14"]
    found = command.open_trackers(names, ["patch"], grid=(3, 5), paper=True, without_adapters=True)
    assert found == ["patch (3, 5)", *(f"{name}{how}" for name in names for how in (", without adapters", ""))]
    assert loaded == [(name, {"grid": (3, 5)}) for name in names]
    assert all(options["paper"] for _, options in asked) and [o.get("adapters") for _, o in asked] == [False, None] * 2

    asked.clear()
    assert command.open_trackers(names[:1], ["patch"]) == ["patch (64, 64)", "chrono-tiny"]
    assert loaded[-1] == ("chrono-tiny", {}) and not any(asked[0][1].values())
    for weights in (None, (0.0,) * 6):
        model.config = model.config.replace(refined_confidence=weights)
        asked.clear()
        found = command.open_trackers(names[:1], [], confidence=True, refine=True)
        assert found == ["chrono-tiny", "chrono-tiny, confidence", "chrono-tiny, refined"]
        assert [options.get("confidence", False) for _, options in asked] == [False, True, weights is not None]
        assert [options.get("refine") for _, options in asked] == [None, None, "photometric"]


def test_eval_mistakes_are_one_line_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    davis = f"davis={tapvid(tmp_path / 'davis.pkl', ('goat',))}"
    monkeypatch.setattr(ChronoBackbone, "track", lambda *_, **__: pytest.fail("tracked"))
    files = sorted(tmp_path.iterdir())

    def wrong(
        *more: object, data: str = davis, out: Path = tmp_path / "r.json", model: str | None = "chrono-tiny"
    ) -> str:
        models = () if model is None else ("--model", model)
        return refuse("eval", "--data", data, "--out", out, *models, "--device", "cpu", *more)

    assert "--data sintel=x; expected KIND=PATH, KIND being one of davis" in wrong(data="sintel=x")
    assert "--data davis; expected KIND=PATH" in wrong(data="davis")
    assert "none.pkl: no such file" in wrong(data="davis=none.pkl")
    assert "a second davis" in wrong("--data", davis)
    assert "--mode last; expected 'first' or 'strided'" in wrong("--mode", "last")
    assert "--dtype float8; expected one of 'float32', 'bfloat16', 'float16'" in wrong("--dtype", "float8")
    assert "no --model and no --baseline" in wrong(model=None)
    assert "expected a name that ends in .json" in wrong(out=tmp_path / "r.txt")
    assert "does not exist" in wrong(out=tmp_path / "nowhere" / "r.json")
    assert "--report " in wrong("--report", tmp_path / "r.htm")
    assert "--grid 4x; expected" in wrong("--grid", "4x")
    assert "--device tpu9" in wrong("--device", "tpu9")
    assert "--devices 0; expected a positive" in wrong("--devices", 0)
    assert "--baseline statics; expected one of static, lucas-kanade" in wrong("--baseline", "statics")
    assert "no module no_such_module" in wrong("--baseline", "no_such_module:f")
    assert "chrono-tiny, chrono-vits14" in wrong(model="nonsense")
    assert "--confidence for a model" in wrong("--confidence")  # the model is not calibrated
    assert "--limit" in run("eval", "--data", davis, "--out", tmp_path / "r.json", "--limit", 0, code=2)
    assert sorted(tmp_path.iterdir()) == files


def test_frames_that_a_video_does_not_have_are_refused_before_the_work(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.Tracks, "__init__", lambda *_, **__: pytest.fail("tracked already"))
    (clip.parent / "again.mp4").write_bytes(clip.read_bytes())
    rows = ["again.mp4,0,7,5,5,1", "clip.mp4,0,0,5,5,1", "clip.mp4,0,99,5,5,1"]
    (clip.parent / "points.csv").write_text("\n".join(["video,track,t,x,y,visible", *rows]))
    said = refuse("eval", "--data", f"csv={clip.parent}", "--out", clip.parent / "r.json", "--baseline", "static")
    assert "points.csv, line 4: t=99; expected less than 8, the frames of clip.mp4" in said


def test_data_sets_by_kind(tmp_path: Path) -> None:
    davis = tapvid(tmp_path / "davis.pkl")
    data = command.open_all([f"davis={davis}", "synthetic"], size=(32, 48))
    assert list(data) == ["davis", "synthetic"] and data["davis"].kind == "davis"
    assert next(iter(data["davis"])).load().frames.shape == (6, 3, 32, 48)
    odd = tapvid(tmp_path / "a=b.pkl")
    assert command.open_all([f"davis={odd}"])["davis"].path == str(odd)
    for wrong in ("", "=x", "davis=", "DAVIS=x"):
        with pytest.raises(ValueError, match=f"data='{wrong}'; expected KIND=PATH"):
            command.open_all([wrong])
    with pytest.raises(ValueError, match="a second synthetic; expected each kind once"):
        command.open_all(["synthetic", "synthetic"])


def test_fit_confidence_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChronoBackbone, "track", lambda *_, **__: pytest.fail("tracked"))
    call = ("fit-confidence", "chrono-tiny", tmp_path / "out")
    assert "OUT=" in refuse("fit-confidence", "chrono-tiny", tmp_path / "no" / "out", "--photographs", tmp_path)
    assert "is no folder" in refuse(
        "fit-confidence", "chrono-tiny", tmp_path / "out", "--photographs", tmp_path / "none"
    )
    assert "no photographs below" in refuse(
        "fit-confidence", "chrono-tiny", tmp_path / "out", "--photographs", tmp_path
    )
    wrong_device = ("--photographs", tmp_path, "--device", "tpu9")
    assert "--device tpu9" in refuse(*call, *wrong_device)
    assert "--photographs" in run(*call, code=2)
    assert not any(tmp_path.iterdir())
