import errno
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import FILES, invoke, refuse, run, tapvid

import chrono_features
from chrono_features import ChronoBackbone
from chrono_features.__main__ import main
from chrono_features.cli.app import COMMANDS, load
from chrono_features.extras import how_to_install


@pytest.mark.slow
def test_every_command_ends_with_what_it_wrote_and_the_next_step(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chrono_features.training.train", lambda *_, **__: None)
    monkeypatch.setattr(
        "chrono_features.cli.evaluation.fit",
        lambda network, *_: network,  # fits on many clips
    )
    monkeypatch.setattr("chrono_features.evaluation.verification.verify", lambda *_, **__: [("delta", "63.0", None)])
    checkpoint = FILES / "authors_tiny.ckpt"
    davis = tapvid(tmp_path / "davis.pkl")
    folder, out = tmp_path / "a folder", tmp_path / "out"
    commands = {
        out / "t.npz": ("track", clip, "--queries", "0,5,5", "--out", out / "t.npz"),
        out / "o.mp4": ("track", clip, "--queries", "0,5,5", "--render", out / "o.mp4"),
        out / "f.safetensors": ("features", clip, "--out", out / "f.safetensors"),
        out / "p.mp4": ("pca", clip, "--out", out / "p.mp4"),
        folder: ("convert", checkpoint, folder, "--num-heads", 2, "--grid", 8),
        out / "run" / "visibility": ("train", "tiny", "--out", out / "run"),
        out / "fitted": ("fit-confidence", "chrono-tiny", out / "fitted", "--photographs", tmp_path),
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


@pytest.mark.slow
def test_mistakes_are_one_line_before_any_work(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChronoBackbone, "from_pretrained", None)  # not even the model is loaded
    here = clip.parent
    files = sorted(here.iterdir())
    assert "no such file" in refuse("track", here / "none.mp4", "--out", here / "t.npz")
    assert "--out " in refuse("track", clip, "--out", here / "t.txt")
    assert refuse("track", clip, "--model", "chrono-tyni").endswith("; did you mean 'chrono-tiny'?")
    assert "does not exist" in refuse("track", clip, "--out", here / "nowhere" / "t.npz")
    assert "does not exist" in refuse("track", clip, "--render", here / "nowhere" / "t.mp4")
    assert "is the video itself" in refuse("track", clip, "--render", clip)
    assert "is the video itself" in refuse("pca", clip, "--out", clip)
    assert "expected a name that ends in .safetensors" in refuse("features", clip, "--out", here / "f.npz")
    assert "--device tpu9" in refuse("track", clip, "--device", "tpu9", "--out", here / "t.npz")
    assert "--every 0" in refuse("track", clip, "--every", 0, "--out", here / "t.npz")
    for device in ("meta", "gpu", "hpu", "cuda:99", "", "cpu:x"):
        assert f"--device {device} is not available; expected auto, cpu, cuda" in refuse(
            "track", clip, "--device", device, "--out", here / "t.npz"
        )
    for grid in ("grid:60000", "grid:1025", "grid:" + "9" * 5000, "grid:4@" + "9" * 20, "grid:00"):
        assert "expected grid:N, grid:ROWSxCOLUMNS" in refuse("track", clip, "--queries", grid, "--out", here / "t.npz")
    assert "--queries 8,1,1, point 1: t=8; expected a frame index from 0 to 7" in refuse(
        "track", clip, "--queries", "8,1,1", "--out", here / "t.npz"
    )
    assert "point 1: x=65; expected 0 to 64" in refuse("track", clip, "--queries", "0,65,1", "--out", here / "t.npz")
    assert sorted(here.iterdir()) == files


def test_traceback_on_request(clip: Path) -> None:
    arguments = ["--traceback", "track", str(clip), "--every", "0", "--out", str(clip.parent / "t.npz")]
    result = invoke(*arguments)
    assert isinstance(result.exception, ValueError)


def test_errors_of_the_program_are_not_hidden(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ImportError("cannot import name 'x'")

    monkeypatch.setattr(ChronoBackbone, "track", broken)
    result = invoke(*["track", str(clip), "--out", str(clip.parent / "t.npz")])
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


@pytest.mark.slow
def test_help_and_version_load_nothing_heavy() -> None:
    # In a process of its own: this one has imported everything.
    code = (
        "import sys; sys.argv = ['chrono-features', '--help']\n"
        "import chrono_features\n"
        "assert not {'av', 'typer', 'rich', 'accelerate', 'gdown'} & set(sys.modules), 'import chrono_features'\n"
        "from chrono_features.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'av', 'timm', 'accelerate', 'gdown', 'chrono_features.backbone'} & set(sys.modules), 'help'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fit-confidence" in done.stdout
    assert run("--version").strip() == chrono_features.__version__


def test_the_list_of_commands_says_what_they_say_themselves() -> None:
    for name, (_, summary) in COMMANDS.items():
        command = load(name)
        assert command.name == name
        assert command.help.splitlines()[0] == summary


def test_the_former_name_of_a_command_is_answered_by_the_new_one() -> None:
    assert refuse("calibrate", "chrono-tiny", "out") == "calibrate is now called fit-confidence"
    assert "calibrate" not in run("--help")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("track", ""), "VIDEO"),
        (("track", "{clip}", "--out", ""), "--out"),
        (("track", "{clip}", "--render", ""), "--render"),
        (("convert", "", "out"), "CKPT"),
        (("train", "tiny", "--out", ""), "--out"),
        (("eval", "--data", "synthetic", "--out", "", "--baseline", "static"), "--out"),
        (("fit-confidence", "chrono-tiny", ""), "OUT"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(clip: Path, arguments: tuple[str, ...], name: str) -> None:
    said = " ".join(run(*[a.format(clip=clip) for a in arguments], code=2).split())
    assert f"Invalid value for '{name}'" in said and "an empty path" in said


def test_a_closed_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*args: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("chrono_features.cli.models.next_step", closed)
    assert "Broken pipe" not in run("info", "chrono-tiny", code=1)
