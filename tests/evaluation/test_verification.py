import pickle
from pathlib import Path

import numpy as np
import pytest

from chrono_features.evaluation import verification
from chrono_features.evaluation.summary import published_delta

pytest.importorskip("PIL.Image")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, 32, 40, 3), np.uint8).repeat(3, axis=0)  # nothing moves
    points = ((rng.integers(0, 8, (4, 1, 2)) + 0.5) / 8).astype(np.float32).repeat(3, axis=1)  # centres of cells
    item = {"video": video, "points": points, "occluded": np.zeros((4, 3), bool)}
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({"goat": item, "camel": item}))
    return tmp_path / "davis.pkl"


def test_published_and_measured_stand_side_by_side(small_model, davis, monkeypatch) -> None:
    model = small_model()
    count = f"{sum(p.numel() for p in model.adapters.parameters()):,}"
    rows = verification.compare("chrono-vits14", model)
    assert rows[0] == ("adapter parameters", "16,241,280", count)
    assert rows[1][1:] == ("1", "1.0000 to 1.0000")
    assert [row[1:] for row in rows[2:]] == [("63.0", "not measured: no --davis"), ("68.0", "not measured: no --davis")]

    monkeypatch.setattr(verification, "davis_deltas", lambda *_: {"first": 62.96, "strided": 68.04})
    assert [row[1:] for row in verification.compare("chrono-vits14", model, davis)[2:]] == [
        ("63.0", "63.0"),
        ("68.0", "68.0"),
    ]


def test_davis_is_measured_in_the_authors_settings(small_model, davis, monkeypatch) -> None:
    """In both modes, in percent, from the features that 896 x 896 pixels give."""
    monkeypatch.setattr("chrono_features.evaluation.trackers.PAPER_SIDE", 32)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    records, track_records = [], verification.track_records

    def spy(tracker, clip, modes, cache):
        assert tracker.about["correlation_dtype"] == "torch.bfloat16"
        assert modes == ("first", "strided") and clip.frames.shape[2:] == (256, 256)
        own = list(track_records(tracker, clip, modes, cache))
        records.extend(own)
        return own

    monkeypatch.setattr(verification, "track_records", spy)
    deltas = verification.davis_deltas(small_model(temperature=1e5), davis)
    for mode in ("first", "strided"):
        values = [r["metrics"]["average_pts_within_thresh"] for r in records if r["mode"] == mode]
        assert len(values) == 2 and min(values) > 0 and deltas[mode] == pytest.approx(100 * np.mean(values))


def test_verify_loads_the_authors_weights(small_model, monkeypatch) -> None:
    loaded, model = [], small_model()
    monkeypatch.setattr(verification.ChronoBackbone, "from_pretrained", lambda name: loaded.append(name) or model)
    monkeypatch.setattr(verification, "compare", lambda *arguments: arguments)
    assert verification.verify("chrono-vitb14", "d.pkl") == ("chrono-vitb14", model, "d.pkl") and loaded == [
        "chrono-vitb14"
    ]
    with pytest.raises(ValueError, match="name='chrono-tiny'; expected 'chrono-vits14' or 'chrono-vitb14'"):
        verification.verify("chrono-tiny")


def test_published_numbers() -> None:
    assert published_delta("chrono-vitb14", "davis", "strided") == 70.1
    assert published_delta("dinov2-vits14", "rgb-stacking", "strided") is None
    assert (
        published_delta("chrono-vits14", "davis", "masks")
        is published_delta("chrono-vits14, refined", "davis", "first")
        is None
    )
    assert published_delta("timm:resnet18", "kinetics", "first") == 50.3
