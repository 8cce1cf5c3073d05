import contextlib
import os
from pathlib import Path

import pytest
import torch
from cli_calls import MEDIA, SIZE, refuse, run
from safetensors import safe_open
from safetensors.torch import load_file

import chrono_features
from chrono_features import ChronoBackbone, Tracks
from chrono_features.video import read_video


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


@pytest.mark.slow
def test_demo_replaces_nothing(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    monkeypatch.setattr("chrono_features.cli.video.resources.as_file", lambda _: contextlib.nullcontext(clip))
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


def test_names_that_no_encoding_has_and_names_of_250_bytes(clip: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9.npz"), "x" * 246 + ".npz"):
        printed = run("track", clip, "--queries", "0,5,5", "--out", clip.parent / name)
        assert name.encode(errors="backslashreplace").decode() in printed.replace("\n", "")
        assert Tracks.load(clip.parent / name).xy.shape == (1, 8, 2)


def test_an_unknown_model_is_refused_before_the_video_is_read(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chrono_features.video.read_video", lambda *_, **__: pytest.fail("read"))
    assert "chrono-tiny, chrono-vits14" in refuse("track", clip, "--model", "nonsense")
    assert "chrono-tiny, chrono-vits14" in refuse("pca", clip, "--out", clip.parent / "pca.mp4", "--model", "nonsense")


def test_damage_is_named_in_the_command_line_s_words(tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    shown = run("track", MEDIA / "mid_concealed.mp4", "--out", out, "--queries", "grid:2", code=2)
    assert "first bad frame is 50" in shown and "--end 50" in shown and "--on-damage warn" in shown
    assert "end=" not in shown and "errors=" not in shown and not out.exists()
    options = ("--start", 45, "--end", 53, "--queries", "grid:2", "--out", out)
    shown = run("track", MEDIA / "mid_concealed.mp4", *options, "--on-damage", "warn")
    assert "warning: " in shown and "frame 50 is damaged" in shown
    assert Tracks.load(out).xy.shape == (4, 8, 2)
    assert "--on-damage ignore" in run("track", MEDIA / "upright.mp4", "--out", out, "--on-damage", "ignore", code=2)


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
        assert message in run(name, MEDIA / "upright.mp4", "--out", out, *options, code=2)
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
