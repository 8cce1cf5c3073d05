"""`examples/webcam.py`, with a file for a camera and without a window."""

import importlib.util
from pathlib import Path

import cv2
import pytest

import chrono_features
from chrono_features.point_tracker import PointTracker

SCRIPT = Path(__file__).parent.parent / "examples" / "webcam.py"


@pytest.fixture
def webcam():
    if not SCRIPT.exists():
        pytest.skip("no examples/ beside the tests")
    spec = importlib.util.spec_from_file_location("webcam_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Window:
    """What the example asks of OpenCV's window, which a headless build does not have."""

    def __init__(self, monkeypatch):
        self.shown = []
        monkeypatch.setattr(cv2, "namedWindow", lambda name: None, raising=False)
        monkeypatch.setattr(cv2, "setMouseCallback", self.set_mouse, raising=False)
        monkeypatch.setattr(cv2, "imshow", lambda name, image: self.shown.append(image.copy()), raising=False)
        monkeypatch.setattr(cv2, "waitKey", self.wait, raising=False)

    def set_mouse(self, name, callback):
        self.click = callback

    def wait(self, milliseconds):
        if len(self.shown) == 2:
            self.click(cv2.EVENT_LBUTTONDOWN, 10, 20, 0, None)
        return 27 if len(self.shown) == 4 else -1


def test_the_webcam_example_draws_points_and_takes_clicks(webcam, monkeypatch, small_model):
    window = Window(monkeypatch)
    model = small_model(norm="token", window=(0, 0))
    monkeypatch.setattr(webcam.ChronoBackbone, "from_pretrained", lambda name, window: model)
    found = []
    call = PointTracker.__call__
    monkeypatch.setattr(PointTracker, "__call__", lambda self, frame: found.append(call(self, frame)) or found[-1])
    webcam.main(str(Path(chrono_features.__file__).parent / "assets" / "bunny.mp4"))
    assert len(window.shown) == 4  # Escape
    assert [len(frame.ids) for frame in found] == [25, 25, 26, 26]
    assert found[2].xy[-1].tolist() == [10.5, 20.5]


def test_a_camera_without_frames_is_named(webcam, tmp_path):
    with pytest.raises(SystemExit, match="gives no frames"):
        webcam.main(str(tmp_path / "nothing.mp4"))
