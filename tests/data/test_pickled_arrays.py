"""Pickles of arrays: good ones survive, and what asks for more is refused."""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pickled_videos import SHARD, item, load_all, write

from chrono_features.data.readers import open_dataset
from chrono_features.data.unpickling import load_arrays

Image = pytest.importorskip("PIL.Image")


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def called(module: str, name: str, *arguments) -> bytes:
    """A pickle that calls what it names, as old or hostile writers would."""
    text = (pickle.dumps(part, 3)[2:-1] for part in (module, name))
    return b"\x80\x04" + b"".join(text) + b"\x93" + pickle.dumps(arguments, 3)[2:-1] + b"R."


HOSTILE = {
    "os.system": lambda touch: pickle.dumps({"goat": item() | {"more": Calls(os.system, touch)}}),
    "posix.system": lambda touch: pickle.dumps(Calls(os.system, touch), 0),
    "builtins.eval": lambda touch: pickle.dumps([Calls(eval, f"__import__('os').system({touch!r})")]),
    "builtins.getattr": lambda touch: pickle.dumps(Calls(getattr, "", "join")),
    "subprocess.Popen": lambda touch: pickle.dumps(Calls(subprocess.Popen, touch)),
    "numpy.load": lambda touch: called("numpy", "load", touch),
    "numpy.core.os.system": lambda touch: called("numpy", "core.os.system", touch),
    "numpy._core.multiarray.os.system": lambda touch: called("numpy._core.multiarray", "os.system", touch),
    "numpy.os.system": lambda touch: called("numpy.os", "system", touch),
    "numpy.testing._private.utils.runstring": lambda touch: called("numpy.testing._private.utils", "runstring", touch),
    "numpy.memmap": lambda touch: called("numpy", "memmap", touch, "uint8", "w+", 0, (8,)),
    "numpy.ndarray.tofile": lambda touch: called("numpy", "ndarray.tofile", touch),
    "_codecs.decode": lambda touch: called("_codecs", "decode", b"x", "zip"),
    "the codec 'zip'": lambda touch: called("_codecs", "encode", b"x", "zip"),
    "copyreg._reconstructor": lambda touch: called("copyreg", "_reconstructor", 1, 2, 3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, name: str) -> None:
    touched = tmp_path / "touched"
    path = tmp_path / "davis.pkl"
    path.write_bytes(HOSTILE[name](f"touch {touched}" if "memmap" not in name else str(touched)))
    what = "(os|posix|nt).system" if name in ("os.system", "posix.system") else name.replace(".", r"\.")
    with pytest.raises(ValueError, match=rf"davis\.pkl: refused, it wants {what}; expected only arrays"):
        load_all("davis", str(path))
    assert not touched.exists()


def test_the_hostile_pickles_would_run(tmp_path: Path) -> None:
    """What the test above is worth."""
    for name in ("os.system", "builtins.eval"):
        touched = tmp_path / name
        pickle.loads(HOSTILE[name](f"touch {touched}"))
        assert touched.exists()


class State:
    """Pickled as a NumPy object in a state of one's own making."""

    def __init__(self, function, arguments, state) -> None:
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def forged(code: str, shape: tuple, data, flags: int = 0) -> State:
    reconstruct = np.zeros(1).__reduce__()[0]
    dtype = State(np.dtype, (code, False, True), (3, "|", None, None, None, -1, -1, flags))
    return State(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ("forgery", "message"),
    [
        (np.array([b"a", None], object), "an array of dtype object"),
        (np.zeros(2, "V8"), "an array of dtype"),
        (np.zeros(2, [("a", "f4")]), "an array of dtype"),
        (forged("O8", (2,), b"A" * 16), "an array of dtype object"),  # NumPy itself takes these for pointers
        (forged("O8", (2,), ["a", "b"], 63), "an array of dtype object"),
        (np.zeros(2).view(np.recarray), r"numpy.*recarray"),
        (np.ma.array([1]), r"numpy\.ma"),
        (np.float32, r"numpy\.float32"),
        (forged("f8", (3,), b"A" * 16), "not a readable pickle"),
        (forged("f8", (-2, -1), b"A" * 16), "not a readable pickle"),
        (forged("f8", (2,), "A" * 16), "not a readable pickle"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, forgery, message: str) -> None:
    path = write(tmp_path / "davis.pkl", {"goat": item(points=forgery)})
    with pytest.raises(ValueError, match=rf"davis\.pkl: .*{message}"):
        load_all("davis", path)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_survive(tmp_path: Path, protocol: int) -> None:
    contents = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(8)[::2],
        np.arange(3, dtype=">f4"),
        np.zeros((0, 2)),
        np.array(3.5),
        np.array([b"ab", b"c"]),
        np.array(["ä", "bc"]),
        np.array([True, False]),
        np.float32(1.5),
        np.int64(7),
        np.str_("x"),
        b"\xff\x00",
        "text",
        None,
        (1, 2.5, {"a": [True]}),
    ]
    data = pickle.dumps(contents, protocol)
    (tmp_path / "a.pkl").write_bytes(data)
    for got, expected in zip(load_arrays(tmp_path / "a.pkl"), pickle.loads(data), strict=True):
        if isinstance(expected, (np.ndarray, np.generic)):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            np.testing.assert_array_equal(got, expected)
        else:
            assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_of_older_and_newer_numpy(tmp_path: Path, core: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = pickle.dumps([array, array[0, 1]], 3).replace(b"numpy._core.", f"numpy.{core}.".encode())
    assert f"numpy.{core}.multiarray".encode() in data
    (tmp_path / "a.pkl").write_bytes(data.replace(b"numpy.core.", f"numpy.{core}.".encode()))
    whole, scalar = load_arrays(tmp_path / "a.pkl")
    np.testing.assert_array_equal(whole, array)
    assert scalar == 1
    (tmp_path / "a.pkl").write_bytes(
        called(f"numpy.{core}.numeric", "_frombuffer", array.T.tobytes(), array.dtype, (3, 2), "F")
    )
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.pkl"), array.T.ravel().reshape((3, 2), order="F"))


@pytest.mark.parametrize("protocol", range(6))
def test_truncated(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / SHARD.format(0)
    small = item(tracks=1, frames=2, video=[b"a", b"b"], rate=np.float32(25))
    data = pickle.dumps([small], protocol)
    for length in range(max(protocol, 1), len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"0000_of_0010\.pkl: truncated"):
            load_arrays(path)
    with pytest.raises(ValueError, match=r"0000_of_0010\.pkl: truncated"):
        next(iter(open_dataset("kinetics", str(path))))


def test_no_pickle_at_all(tmp_path: Path) -> None:
    (tmp_path / "davis.pkl").write_text("this is not a pickle")
    with pytest.raises(ValueError, match=r"davis\.pkl: not a readable pickle"):
        load_all("davis", str(tmp_path / "davis.pkl"))
