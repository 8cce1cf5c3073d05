"""Files of results and their parts that others have made, damaged or planted."""

import json
import os

import pytest

from chrono_features.evaluation.store import Store

HEADER = {
    "about": {"device": "cpu"},
    "protocol": {"size": [256, 256]},
    "data": {"d": {"kind": "davis", "path": "x", "fingerprint": {"bytes": 1}}},
    "trackers": {"t": {"weights": "1"}},
}
RECORD = {
    "data": "d", "video": "v", "mode": "first", "tracker": "t", "group": "g", "frames": 3, "points": 2,
    "seconds": {"features": 1.0, "tracking": 0.5}, "metrics": {"average_jaccard": 0.5, "pck_0.2": None},
    "track_delta": [0.5, None], "reliability": [[0.5, 0.5, 3]],
    "worst": [{"track": 0, "delta": 0.1, "query": [0, 1.5, 2], "xy": [[1, 2], [None, 3]], "visible": [0, 1]}],
}  # fmt: skip


def store(out) -> Store:
    return Store(out, HEADER)


def header() -> str:
    return json.dumps({"header": HEADER})


def changed(**changes) -> str:
    return json.dumps({**RECORD, **changes})


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_part_of_an_older_version_is_taken_over(tmp_path) -> None:
    (tmp_path / ".r.json.part0").write_text(f"\n{header()}\n{changed()}\n{changed()[:50]}\n{header()}\n")
    results = store(tmp_path / "r.json").finish()
    assert results["records"] == [RECORD] and names(tmp_path) == ["r.json"]
    assert store(tmp_path / "r.json").records.keys() == {("d", "v", "first", "t")}


TRACK = RECORD["worst"][0]
BROKEN = [
    '"skip"', "7", "null", "[]", "{}", "[" * 10**5, b"\xff", "\ud800".encode("utf-8", "surrogatepass"),
    '{"header": 7}', '{"header": {"data": []}}', '{"header": {"data": {"d": 1}}}',
    '{"skip": "abc"}', '{"skip": [1, 2, 3]}', '{"skip": ["d", "v"]}',
    '{"data": "d"}', changed(data=7), changed(data="other"), changed(tracker="other"), changed(group=None),
    changed(frames=None), changed(frames="3"), changed(metrics={}), changed()[:-1] + ', "video": "w"}',
    changed(extra=json.loads("[" * 70 + "]" * 70)), '{"header": {"data": {"e": {"fingerprint": "x"}}}}',
    '{"header": {"data": {"e": {"kind": 3}}}}', changed(points="2"), changed(points=True), changed(points=10**400),
    changed(seconds=1), changed(seconds={"features": 1}), changed(seconds={"features": -1, "tracking": 1}),
    changed(metrics=[1]), changed(metrics={"a": "b"}), changed(metrics={"a": float("nan")}),
    changed(metrics={"a": 10**400}), changed(track_delta=3), changed(reliability=[[1, 2]]),
    changed(reliability=[[7, 0, 1]]), changed(worst=[1]), changed(worst=[{}]), changed(worst=[{**TRACK, "xy": 3}]),
    changed(worst=[{**TRACK, "visible": [1]}]), changed(worst=[{**TRACK, "delta": None}]),
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_damaged_parts_are_named_before_the_work(tmp_path, line) -> None:
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / ".r.json.part0").write_bytes(
        header().encode() + b"\n" + line + b"\n" + changed(video="w").encode() + b"\n"
    )
    with pytest.raises(ValueError, match=r"(?s)\.r\.json\.part0: line 2[ :].*(remove it|expected)"):
        store(tmp_path / "r.json")
    assert names(tmp_path) == [".r.json.part0"]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_damaged_results_are_named_before_the_work(tmp_path, line) -> None:
    start = json.dumps({**HEADER, "records": []})[:-2].encode()
    (tmp_path / "r.json").write_bytes(start + (line if isinstance(line, bytes) else line.encode()) + b"]}")
    with pytest.raises(ValueError, match=r"out=.*r\.json (holds no results|has a record of)"):
        store(tmp_path / "r.json")


@pytest.mark.parametrize("change", [{"data": 1}, {"trackers": []}, {"records": {}}, {"about": None}])
def test_results_with_other_sections(tmp_path, change) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**HEADER, "records": [], **change}))
    with pytest.raises(ValueError, match=r"r\.json holds no results"):
        store(tmp_path / "r.json")


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "link to nothing"])
@pytest.mark.parametrize("name", [".r.json.part0", ".r.json.part0-01234567"])
def test_what_is_planted_is_neither_read_nor_written(tmp_path, kind, name) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "out").mkdir()
    planted = tmp_path / "out" / name
    if kind == "link":
        planted.symlink_to(victim)
    elif kind == "hard link":
        planted.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(planted)
    elif kind == "folder":
        planted.mkdir()
    else:
        planted.symlink_to(tmp_path / "nothing")
    before = os.lstat(planted)
    results = store(tmp_path / "out" / "r.json")
    results.add(RECORD)
    assert len(names(tmp_path / "out")) == 2
    assert results.finish()["records"] == [RECORD]
    assert victim.read_text() == "mine\n" and not (tmp_path / "nothing").exists()
    assert names(tmp_path / "out") == [name, "r.json"] and os.lstat(planted).st_ino == before.st_ino


def test_names_of_parts_cannot_be_foreseen(tmp_path) -> None:
    found = set()
    for k in range(5):
        (tmp_path / str(k)).mkdir()
        store(tmp_path / str(k) / "r.json").add(RECORD)
        found.update(names(tmp_path / str(k)))
    assert len(found) == 5


def test_two_runs_of_the_same_file_lose_nothing(tmp_path) -> None:
    first, second = store(tmp_path / "r.json"), store(tmp_path / "r.json")
    first.add(RECORD)
    second.add({**RECORD, "video": "w"})
    first.finish()  # takes over what the second has so far
    second.add({**RECORD, "video": "x"})
    again = store(tmp_path / "r.json")
    assert {video for _, video, _, _ in again.records} == {"v", "w", "x"}
    assert [record["video"] for record in second.finish()["records"]] == ["v", "w", "x"]
    assert names(tmp_path) == ["r.json"]


@pytest.mark.parametrize("name", ["x" * 250, "x" * 240 + ".json", "ä" * 120 + ".json"])
def test_long_names(tmp_path, name) -> None:
    out = tmp_path / name
    results = store(out)
    results.add(RECORD)
    assert store(out).records and store(tmp_path / (name[:-6] + "y.json")).records == {}
    results.finish()
    assert names(tmp_path) == [name]


def test_what_is_no_file_is_refused_before_the_work(tmp_path) -> None:
    os.mkfifo(tmp_path / "r.json")
    with pytest.raises(FileExistsError, match=r"r\.json is no regular file"):
        store(tmp_path / "r.json")


def test_a_full_disk_names_the_file(tmp_path) -> None:
    import resource

    results = store(tmp_path / "r.json")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        try:
            results.add(RECORD)
        except OSError as error:
            os._exit(7 if str(error).endswith(f"File too large: '{tmp_path / 'r.json'}'") else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
