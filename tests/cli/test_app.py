import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import chrono_features
from chrono_features import ChronoBackbone, ChronoConfig, Tracks
from chrono_features.__main__ import main
from chrono_features.extras import how_to_install
from chrono_features.video import read_video, write_video

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("av")

from chrono_features.cli import evaluation as command  # noqa: E402
from chrono_features.cli.app import app, check_output, parse_grid, parse_queries, pick_device  # noqa: E402
from chrono_features.evaluation import baselines  # noqa: E402

TINY = ChronoConfig(
    vit="vit_tiny_patch16_224",
    vit_kwargs={"embed_dim": 24, "depth": 2, "num_heads": 2},
    grid=(4, 6),
    adapter_channels=8,
    adapter_heads=2,
    norm="token",
)
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> ChronoBackbone:
    """The command line loads this one whatever the name."""
    torch.manual_seed(0)
    network = ChronoBackbone(TINY)
    with torch.no_grad():
        for adapter in network.adapters.values():  # a new adapter does nothing
            adapter.conv_out.weight.normal_(std=0.5)
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", classmethod(lambda cls, name, **options: network))
    return network


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    big = np.kron(rng.integers(0, 256, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", [big[: SIZE[0], 2 * t : SIZE[1] + 2 * t] for t in range(8)], fps=20)
    return tmp_path / "clip.mp4"


def run(*arguments: object, code: int = 0) -> str:
    """What the command prints, on both streams."""
    result = typer_testing.CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def refuse(*arguments: object) -> str:
    """The one line that a wrong call prints."""
    lines = [line for line in run(*arguments, code=2).splitlines() if line.strip()]
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_track_writes_tracks_and_overlay(clip: Path, model: ChronoBackbone) -> None:
    out, overlay = clip.parent / "tracks.npz", clip.parent / "overlay.mp4"
    output = run(
        "track", clip, "--queries", "grid:3@1", "--out", out, "--render", overlay, "--every", 2, "--device", "cpu"
    )
    assert str(out) in output and str(overlay) in output
    video = read_video(clip, every=2)
    expected = model.track(video.frames[None], chrono_features.grid_queries(3, SIZE, t=1))[0]
    tracks = Tracks.load(out)
    assert tracks.xy.shape == (9, 4, 2)
    torch.testing.assert_close(tracks.xy, expected.xy)
    assert torch.equal(tracks.visible, expected.visible)
    drawn = read_video(overlay)
    assert drawn.frames.shape == video.frames.shape and drawn.fps == pytest.approx(10)
    assert (drawn.frames.int() - video.frames.int()).abs().amax() > 100  # there are marks


def test_track_selects_frames(clip: Path) -> None:
    out = clip.parent / "tracks.npz"
    selection = ("--start", 1, "--end", 7, "--every", 2, "--max-frames", 2)
    run("track", clip, "--queries", "1,5,5;0,63.5,47.5", "--out", out, *selection)
    tracks = Tracks.load(out)
    assert tracks.xy.shape == (2, 2, 2)
    assert tracks.xy[0, 1].tolist() == [5, 5] and tracks.xy[1, 0].tolist() == [63.5, 47.5]


def test_track_without_outputs_writes_tracks_npz(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    run("track", clip, "--queries", "0,5,5", "--render", "overlay.mp4")
    assert not Path("tracks.npz").exists()
    run("track", clip, "--queries", "0,5,5")
    assert Path("tracks.npz").exists()


def test_a_name_that_nobody_typed_replaces_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    Path("tracks.npz").write_text("of an earlier run")
    Path("tracks-2.npz").symlink_to("nowhere")
    assert f"wrote {clip.parent / 'tracks-3.npz'}: 1 point, " in run("track", clip, "--queries", "0,5,5")
    assert "tracks-4.npz" in run("track", clip, "--queries", "0,5,5")
    assert Path("tracks.npz").read_text() == "of an earlier run" and not Path("nowhere").exists()
    run("track", clip, "--queries", "0,5,5", "--out", "tracks.npz")  # typed
    assert Tracks.load("tracks.npz").xy.shape == (1, 8, 2)


def test_demo_replaces_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    monkeypatch.setattr("chrono_features.cli.app.resources.as_file", lambda _: contextlib.nullcontext(clip))
    Path("chrono_demo.mp4").mkdir()
    assert f"wrote {clip.parent / 'chrono_demo-2.mp4'}: 256 points, 8 frames" in run("demo", "--device", "cpu")
    first = Path("chrono_demo-2.mp4").read_bytes()
    assert "chrono_demo-3.mp4" in run("demo", "--device", "cpu")
    assert Path("chrono_demo-2.mp4").read_bytes() == first
    Path("mine.mp4").write_text("old")
    assert "mine.mp4" in run("demo", "--device", "cpu", "--out", "mine.mp4")
    assert read_video("mine.mp4").frames.shape == (8, 3, *SIZE)


def test_a_run_that_was_faster_is_not_replaced(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    track = ChronoBackbone.track

    def slow(*args: object, **kwargs: object) -> Tracks:
        Path("tracks.npz").write_text("of a faster run")
        return track(*args, **kwargs)

    monkeypatch.setattr(ChronoBackbone, "track", slow)
    assert "tracks-2.npz" in run("track", clip, "--queries", "0,5,5")
    assert Path("tracks.npz").read_text() == "of a faster run"


def test_every_command_ends_with_what_it_wrote_and_the_next_step(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chrono_features import training

    monkeypatch.setattr(training, "train", lambda *_, **__: None)
    monkeypatch.setattr(
        "chrono_features.evaluation.fit_confidence.fit_confidence",
        lambda network, *_: network,  # fits on many clips
    )
    monkeypatch.setattr("chrono_features.evaluation.verification.verify", lambda *_, **__: [("delta", "63.0", None)])
    checkpoint = Path(__file__).parents[1] / "files" / "authors_tiny.ckpt"
    davis = tapvid(tmp_path / "davis.pkl")
    folder, out = tmp_path / "a folder", tmp_path / "out"
    commands = {
        out / "t.npz": ("track", clip, "--queries", "0,5,5", "--out", out / "t.npz"),
        out / "o.mp4": ("track", clip, "--queries", "0,5,5", "--render", out / "o.mp4"),
        out / "f.safetensors": ("features", clip, "--out", out / "f.safetensors"),
        out / "p.mp4": ("pca", clip, "--out", out / "p.mp4"),
        folder: ("convert", checkpoint, folder, "--num-heads", 2, "--grid", 8),
        out / "run" / "visibility": ("train", "tiny", "--out", out / "run"),
        out / "calibrated": ("calibrate", "chrono-tiny", out / "calibrated", "--photographs", tmp_path),
        out / "r.json": ("eval", "--data", f"davis={davis}", "--baseline", "static", "--out", out / "r.json"),
        None: ("info", "chrono-tiny"),
        "": ("verify", "chrono-vits14"),
    }
    out.mkdir()
    for wrote, arguments in commands.items():
        lines = run(*arguments).splitlines()
        assert lines[-1].startswith("next: "), arguments
        if wrote:
            assert any(line.startswith(f"wrote {wrote}: ") for line in lines[-3:]), arguments
    assert f"--model '{folder}'" in run("info", folder)  # quoted for a shell


def test_demo_tracks_the_clip_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "chrono_demo.mp4" in run("demo")
    clip = read_video(Path(chrono_features.__file__).parent / "assets" / "bunny.mp4")
    drawn = read_video("chrono_demo.mp4")
    assert clip.frames.shape == drawn.frames.shape == (48, 3, 270, 480)
    assert drawn.fps == clip.fps == 24


def test_features(clip: Path, model: ChronoBackbone) -> None:
    out = clip.parent / "feats.safetensors"
    assert "5 frames, 24 channels, grid 4 x 6" in run("features", clip, "--out", out, "--start", 3)
    with safe_open(out, "pt") as file:
        saved, about = file.get_tensor("features"), file.metadata()
    with torch.inference_mode():
        torch.testing.assert_close(saved, model(read_video(clip, start=3).frames[None])[0])
    assert about == {"model": "chrono-tiny", "fps": "20", "start": "3", "every": "1", "height": "48", "width": "64"}


def test_long_videos_go_through_in_chunks(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, chunks = clip.parent / "once", clip.parent / "chunks"
    seen = []
    original = ChronoBackbone.embed
    monkeypatch.setattr(ChronoBackbone, "embed", lambda self, v, g: seen.append(v.shape[1]) or original(self, v, g))
    for out, options in ((once, ()), (chunks, ("--max-frames-in-memory", 3))):
        run("features", clip, "--out", out.with_suffix(".safetensors"), *options)
        run("track", clip, "--queries", "grid:3@1", "--out", out.with_suffix(".npz"), *options)
    assert seen == [8, 8, 3, 3, 2, 3, 3, 2]
    a, b = (load_file(out.with_suffix(".safetensors"))["features"] for out in (once, chunks))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    a, b = (Tracks.load(out.with_suffix(".npz")).xy for out in (once, chunks))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-2)
    assert "--max-frames-in-memory" in run("track", clip, "--max-frames-in-memory", 0, code=2)


def test_pca_alone_and_beside_the_vit(clip: Path) -> None:
    out = clip.parent / "pca.mp4"
    run("pca", clip, "--out", out)
    alone = read_video(out).frames
    assert alone.shape == (8, 3, 48, 64)
    run("pca", clip, "--out", out, "--beside-vit")
    both = read_video(out).frames
    assert both.shape[0] == 8 and both.shape[3] == 128 and both.shape[2] > 48
    left, right = (half.int() for half in both[:, :, -48:].split(64, dim=3))
    assert (right - alone.int()).abs().float().mean() < 4  # compression
    assert (left - right).abs().float().mean() > 10


def test_info(model: ChronoBackbone) -> None:
    output = run("info", "chrono-tiny")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in output
    assert f"{sum(p.numel() for p in model.adapters.parameters()):,}" in output
    assert "vit_tiny_patch16_224" in output and "[4, 6]" in output


def test_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Converted:
        def save_pretrained(self, folder: Path) -> None:
            calls.append(folder)

    def load(path: Path, num_heads: int | None, grid: tuple[int, int]) -> Converted:
        calls.append((path, num_heads, grid))
        return Converted()

    pretrained = pytest.importorskip("chrono_features.pretrained")
    monkeypatch.setattr(pretrained, "load_authors_checkpoint", load)
    checkpoint, out = tmp_path / "a.ckpt", tmp_path / "out"
    assert "CKPT=" in refuse("convert", checkpoint, out)
    checkpoint.touch()
    run("convert", checkpoint, out, "--num-heads", 2, "--grid", "8x12")
    assert calls == [(checkpoint, 2, (8, 12)), out]
    assert "--grid 0" in refuse("convert", checkpoint, out, "--grid", "0")


def test_train_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    from chrono_features import training

    calls = []
    monkeypatch.setattr(training, "train", lambda recipe, out, **options: calls.append((recipe, out, options)))
    options = ("--textures", tmp_path, "--steps", 5, "--seed", 3, "--no-resume", "--model", "chrono-tiny", "--compile")
    run("train", "adapters", "--out", tmp_path / "run", *options)
    assert calls[0][:2] == ("adapters", tmp_path / "run")
    assert calls[0][2] == {
        "model": "chrono-tiny",
        "textures": tmp_path,
        "steps": 5,
        "seed": 3,
        "resume": False,
        "mixed_precision": None,
        "workers": None,
        "compile": True,
    }
    sizes = ("--batch", 2, "--frames", 8, "--size", "64x96", "--grid", 8, "--tracks", 16, "--force")
    run("train", "tiny", "--out", tmp_path / "run", *sizes)
    wanted = {"batch": 2, "frames": 8, "size": (64, 96), "grid": (8, 8), "tracks": 16, "force": True}
    assert wanted.items() <= calls[1][2].items()
    assert "--size 0" in refuse("train", "tiny", "--out", tmp_path, "--size", "0")
    assert "--textures " in refuse("train", "tiny", "--out", tmp_path, "--textures", tmp_path / "nowhere")


def test_verify_prints_published_beside_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = pytest.importorskip("chrono_features.pretrained")
    rows = [("adapter parameters", 16_241_280, 16_241_280), ("DAVIS AJ", "0.1", None)]
    monkeypatch.setattr(pretrained, "verify", lambda name, davis: rows, raising=False)
    output = run("verify", "chrono-vits14")
    assert output.count("16241280") == 2 and "DAVIS AJ" in output
    assert "--davis " in refuse("verify", "chrono-vits14", "--davis", tmp_path / "nowhere")


def test_queries_as_text() -> None:
    assert parse_queries("0,1.5,2; 3,4,5;")(SIZE).tolist() == [[[0, 1.5, 2], [3, 4, 5]]]
    assert torch.equal(parse_queries("grid:4")(SIZE), chrono_features.grid_queries(4, SIZE))
    assert torch.equal(parse_queries("grid:4@5")(SIZE), chrono_features.grid_queries(4, SIZE, t=5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid:", "expected grid:N"),
        ("grid:0", "expected grid:N"),
        ("grid:4@x", "expected grid:N"),
        ("", "point 1: ''; expected three numbers t,x,y"),
        ("0,1,2;3,4", "point 2: '3,4'"),
        ("0,1,2,3", "point 1"),
        ("0,a,2", "point 1: '0,a,2'"),
        ("0,nan,2", "point 1"),
    ],
)
def test_bad_queries_as_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"queries='{text}'.*{message}"):
        parse_queries(text)


def test_queries_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\ufefft, x, y\r\n0,1,2\r\n\r\n3,4.5,5\r\n", encoding="utf-8")
    assert parse_queries(str(path))(SIZE).tolist() == [[[0, 1, 2], [3, 4.5, 5]]]
    path.write_text("t,x,y\n")
    assert parse_queries(str(path))(SIZE).shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y,t\n1,2,3\n", r"line 1: 'x,y,t'; expected the header t,x,y"),
        ("1,2,3\n", "line 1"),
        ("", "line 1: ''"),
        ("t,x,y\n0,1,2\n0,1\n", r"line 3: '0,1'; expected three numbers"),
        ("t,x,y\n\n0,1,two\n", "line 3: '0,1,two'"),
        ("t,x,y\n0,1,inf\n", "line 2"),
    ],
)
def test_bad_csv_rows_are_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"points\.csv, {message}"):
        parse_queries(str(path))


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"points\.csv.*expected a text file"):
        parse_queries(str(tmp_path / "points.csv"))
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        parse_queries(str(tmp_path / "none.csv"))


def test_mistakes_are_one_line_before_any_work(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # not even the model is loaded
    here = clip.parent
    files = sorted(here.iterdir())
    assert "no such file" in refuse("track", here / "none.mp4", "--out", here / "t.npz")
    assert "--out " in refuse("track", clip, "--out", here / "t.txt")
    assert refuse("track", clip, "--model", "chrono-tyni").startswith("--model chrono-tyni; expected one of")
    assert "does not exist" in refuse("track", clip, "--out", here / "nowhere" / "t.npz")
    assert "does not exist" in refuse("track", clip, "--render", here / "nowhere" / "t.mp4")
    assert "is the video itself" in refuse("track", clip, "--render", clip)
    assert "is the video itself" in refuse("pca", clip, "--out", clip)
    assert "expected a name that ends in .safetensors" in refuse("features", clip, "--out", here / "f.npz")
    assert "--device tpu9" in refuse("track", clip, "--device", "tpu9", "--out", here / "t.npz")
    assert "--every 0" in refuse("track", clip, "--every", 0, "--out", here / "t.npz")
    for device in ("meta", "hpu", "cuda:99", "", "cpu:x"):
        assert f"--device {device} is not available" in refuse(
            "track", clip, "--device", device, "--out", here / "t.npz"
        )
    for grid in ("grid:60000", "grid:1025", "grid:" + "9" * 5000, "grid:4@" + "9" * 20, "grid:00"):
        assert "expected grid:N or grid:N@FRAME" in refuse("track", clip, "--queries", grid, "--out", here / "t.npz")
    assert "frame index" in refuse("track", clip, "--queries", "8,1,1", "--out", here / "t.npz")
    assert "x from 0 to 64" in refuse("track", clip, "--queries", "0,65,1", "--out", here / "t.npz")
    assert sorted(here.iterdir()) == files


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "links in a circle"])
def test_outputs_in_the_place_of_something_else(clip: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # not even the model is loaded
    here = clip.parent
    for name in ("t.npz", "f.safetensors", "r.json", "m"):
        if kind == "links in a circle":
            (here / name).symlink_to(here / name)
        else:
            os.mkfifo(here / ("pipe" + name if "link" in kind else name))
            if "link" in kind:
                (here / name).symlink_to(here / ("pipe" + name))
    (here / "x.ckpt").touch()
    assert "--out " in refuse("track", clip, "--out", here / "t.npz")
    assert "--out " in refuse("features", clip, "--out", here / "f.safetensors")
    assert "--out " in refuse("eval", "--data", "davis=x", "--out", here / "r.json", "--baseline", "static")
    assert "OUT=" in refuse("convert", here / "x.ckpt", here / "m")


def test_names_that_no_encoding_has_and_names_of_250_bytes(clip: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9.npz"), "x" * 246 + ".npz"):
        printed = run("track", clip, "--queries", "0,5,5", "--out", clip.parent / name)
        assert name.encode(errors="backslashreplace").decode() in printed.replace("\n", "")
        assert Tracks.load(clip.parent / name).xy.shape == (1, 8, 2)


def test_names_of_others_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"data": "d", "mode": "first", "group": "\x1b[2J\x07g", "tracker": "t\x9b1m", "videos": 1, "metrics": {}}
    about = {"data": {"d": {"kind": "csv", "total": None}}, "protocol": {"size": [256, 256]}}
    command.print_tables({**about, "summary": [row | {"interval": (None, None)}]})
    printed = capsys.readouterr().out
    assert "\\x1b[2J\\x07g" in printed and "t\\x9b1m" in printed and not set("\x1b\x07\x9b") & set(printed)
    told = refuse("track", "\x1b[2Jm.mp4", "--queries", "grid:3")
    assert "\\x1b[2Jm.mp4" in told and "\x1b[2J" not in told


def test_groups_and_models_are_names_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[/y]").mkdir(parents=True)  # a folder is a model's name
    (tmp_path / "images").mkdir()
    for t in range(3):
        Image.fromarray(np.full((32, 32, 3), 60 * t, np.uint8)).save(tmp_path / "images" / f"{t}.png")
    table = "video,track,t,x,y,visible,group\n" + "".join(f"images,0,{t},5,5,1,[/x] :smile: [red]\n" for t in range(3))
    (tmp_path / "points.csv").write_text(table)
    out, report = tmp_path / "r.json", tmp_path / "r.html"
    measure = ("eval", "--data", f"csv={tmp_path}", "--out", out, "--baseline", "static", "--report", report)
    printed = run(*measure, "--model", "[/y]", "--device", "cpu")
    assert "[/x] :smile: [red] (1)" in printed and "[/y]" in printed
    assert "[/x] :smile: [red]" in report.read_text()


def test_frames_that_a_video_does_not_have_are_refused_before_the_work(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.Tracks, "__init__", lambda *_, **__: pytest.fail("tracked already"))
    (clip.parent / "again.mp4").write_bytes(clip.read_bytes())
    rows = ["again.mp4,0,7,5,5,1", "clip.mp4,0,0,5,5,1", "clip.mp4,0,99,5,5,1"]
    (clip.parent / "points.csv").write_text("\n".join(["video,track,t,x,y,visible", *rows]))
    said = refuse("eval", "--data", f"csv={clip.parent}", "--out", clip.parent / "r.json", "--baseline", "static")
    assert "points.csv, line 4: t=99; expected less than 8, the frames of clip.mp4" in said


def test_traceback_on_request(clip: Path) -> None:
    arguments = ["--traceback", "track", str(clip), "--every", "0", "--out", str(clip.parent / "t.npz")]
    result = typer_testing.CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ValueError)


def test_errors_of_the_program_are_not_hidden(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ImportError("cannot import name 'x'")

    monkeypatch.setattr(ChronoBackbone, "track", broken)
    result = typer_testing.CliRunner().invoke(app, ["track", str(clip), "--out", str(clip.parent / "t.npz")])
    assert isinstance(result.exception, ImportError)


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("av", ["track", "{clip}", "--out", "{folder}/t.npz"], "video"),
        ("PIL.ImageDraw", ["track", "{clip}", "--render", "{folder}/t.mp4"], "video"),
        ("accelerate", ["train", "tiny", "--out", "{folder}/run"], "train"),
        ("tensorboard", ["train", "tiny", "--out", "{folder}/run"], "train"),
    ],
)
def test_missing_extras_are_named(
    clip: Path, monkeypatch: pytest.MonkeyPatch, package: str, arguments: list, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refuse(*[a.format(clip=clip, folder=clip.parent) for a in arguments])
    assert how_to_install(extra) in line
    assert not (clip.parent / "run").exists()


@pytest.mark.parametrize("package", ["typer", "rich.progress"])
def test_missing_cli_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, package: str) -> None:
    monkeypatch.delitem(sys.modules, "chrono_features.cli.app")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    name = package.partition(".")[0]
    assert capsys.readouterr().err == f"{name} is missing; expected {how_to_install('cli')}\n"


def test_help_and_version_load_nothing_heavy() -> None:
    # In a process of its own: this one has imported everything.
    code = (
        "import sys; sys.argv = ['chrono-features', 'track', '--help']\n"
        "import chrono_features\n"
        "assert not {'av', 'typer', 'rich', 'accelerate', 'gdown'} & set(sys.modules), 'import chrono_features'\n"
        "from chrono_features.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'av', 'accelerate', 'gdown', 'chrono_features.video'} & set(sys.modules), 'help'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--queries" in done.stdout
    assert run("--version").strip() == chrono_features.__version__


def test_devices_and_grids() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(ValueError, match="device='cuda:99'"):
        pick_device("cuda:99")
    assert parse_grid("64") == (64, 64) and parse_grid("48x64") == (48, 64)
    for bad in ("", "0", "4x", "4x0", "-4", "a"):
        with pytest.raises(ValueError, match="grid="):
            parse_grid(bad)


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(ValueError, match=r"out=.*is a folder"):
        check_output("out", tmp_path / "a.npz", [".npz"])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="not writable"):
        check_output("out", tmp_path / "b.npz", [".npz"])


def test_an_unknown_model_is_refused_before_the_video_is_read(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chrono_features.video.read_video", lambda *_, **__: pytest.fail("read"))
    assert "chrono-tiny, chrono-vits14" in refuse("track", clip, "--model", "nonsense")
    assert "chrono-tiny, chrono-vits14" in refuse("pca", clip, "--out", clip.parent / "pca.mp4", "--model", "nonsense")


def tapvid(path: Path, names: tuple[str, ...] = ("goat", "camel", "dog"), **more: np.ndarray) -> Path:
    """Videos in TAP-Vid's layout: a texture that moves to the left, and four points of it."""
    videos, rng = {}, np.random.default_rng(0)
    for name in names:
        big = np.kron(rng.integers(0, 256, (6, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        frames = np.stack([big[: SIZE[0], 2 * t : SIZE[1] + 2 * t] for t in range(6)])
        points = rng.uniform(0.3, 0.7, (4, 1, 2)) - np.arange(6)[:, None] * (2 / SIZE[1], 0)
        videos[name] = {"video": frames, "points": points, "occluded": np.zeros((4, 6), bool), **more}
    path.write_bytes(pickle.dumps(videos))
    return path


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
    names = ["chrono-tiny, adapters off", "chrono-tiny", "chrono-tiny, refined"]
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
    assert found == ["patch (3, 5)", *(f"{name}{how}" for name in names for how in (", adapters off", ""))]
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
    assert "--dtype float8; expected one of float32, bfloat16, float16" in wrong("--dtype", "float8")
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


def test_several_devices_run_the_same_command_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def launch(arguments: list[str]) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(command.subprocess, "run", launch)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # that is for the processes to do
    assert command.relaunched(None, ["eval"]) is command.relaunched(1, ["eval"]) is None and not calls
    arguments = ["eval", "--data", f"davis={tapvid(tmp_path / 'davis.pkl')}", "--out", str(tmp_path / "r.json")]
    arguments += ["--model", "chrono-tiny", "--devices", "2"]
    monkeypatch.setattr(sys, "argv", ["chrono-features", *arguments])
    run(*arguments, code=3)
    (called,) = calls
    assert called[0] == sys.executable and "--nproc-per-node=2" in called
    assert called[-len(arguments) - 2 :] == ["-m", "chrono_features", *arguments]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.relaunched(2, arguments) is None and len(calls) == 1
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


def test_how_long_the_rest_would_take() -> None:
    record = {"data": "d", "video": "v0", "seconds": {"tracking": 40.0, "features": 20.0}}
    results = {"data": {"d": {"skipped": {"v1": "dark"}}}, "records": [record, {**record, "data": "other"}]}

    def left(total: int | None) -> str:
        return command.whats_left(results, {"d": SimpleNamespace(total=lambda: total)})

    assert left(2) == left(None) == "d: v1 skipped, dark"
    for total, text in ((3, "1 would take about 60 s"), (4, "2 would take about 2.0 min"), (122, "about 2.0 h")):
        assert "1 videos measured; the other" in left(total) and text in left(total)


def test_calibrate_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChronoBackbone, "track", lambda *_, **__: pytest.fail("tracked"))
    assert "OUT=" in refuse("calibrate", "chrono-tiny", tmp_path / "no" / "out", "--photographs", tmp_path)
    assert "is no folder" in refuse("calibrate", "chrono-tiny", tmp_path / "out", "--photographs", tmp_path / "none")
    assert "no photographs below" in refuse("calibrate", "chrono-tiny", tmp_path / "out", "--photographs", tmp_path)
    wrong_device = ("--photographs", tmp_path, "--device", "tpu9")
    assert "--device tpu9" in refuse("calibrate", "chrono-tiny", tmp_path / "out", *wrong_device)
    assert "--photographs" in run("calibrate", "chrono-tiny", tmp_path / "out", code=2)
    assert not any(tmp_path.iterdir())


def media(name: str) -> Path:
    return Path(__file__).parents[1] / "files" / "media" / name


def test_damage_is_named_in_the_command_line_s_words(tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    shown = run("track", media("mid_concealed.mp4"), "--out", out, "--queries", "grid:2", code=2)
    assert "first bad frame is 50" in shown and "--end 50" in shown and "--on-damage warn" in shown
    assert "end=" not in shown and "errors=" not in shown and not out.exists()
    options = ("--start", 45, "--end", 53, "--queries", "grid:2", "--out", out)
    shown = run("track", media("mid_concealed.mp4"), *options, "--on-damage", "warn")
    assert "warning: " in shown and "frame 50 is damaged" in shown
    assert Tracks.load(out).xy.shape == (4, 8, 2)
    assert "--on-damage ignore" in run("track", media("upright.mp4"), "--out", out, "--on-damage", "ignore", code=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", 10), "--start 10; expected a frame of"),
        (("--end", 0), "--end 0; expected"),
        (("--max-frames", 0), "--max-frames 0; expected"),
        (("--stream", 7), "--stream 7; expected one of 0"),
        (("--fps", 7), "--fps 7.0; expected no rate"),
    ],
)
def test_arguments_of_reading_are_named_as_options(tmp_path: Path, options: tuple, message: str) -> None:
    for name in ("track", "features", "pca"):
        out = tmp_path / {"track": "a.npz", "features": "a.safetensors", "pca": "a.mp4"}[name]
        assert message in run(name, media("upright.mp4"), "--out", out, *options, code=2)
        assert not out.exists()


def test_the_rate_of_a_folder_of_images(tmp_path: Path, clip: Path) -> None:
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for t, frame in enumerate(read_video(clip).frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frames" / f"{t + 5}.png")
    run("track", tmp_path / "frames", "--fps", 10, "--queries", "grid:2", "--render", tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4").fps == 10


def test_a_url_is_named_whole(tmp_path: Path) -> None:
    shown = run("track", "https://example.org/a.mp4", "--out", tmp_path / "t.npz", code=2)
    assert "https://example.org/a.mp4: URLs are not read" in shown
