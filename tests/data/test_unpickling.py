"""Pickles that were made to do harm. What readers make of good and of broken ones is in test_tapvid.py."""

import pickle
import pickletools
import random
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from chrono_features.data.readers import open_dataset
from chrono_features.data.unpickling import OPCODES, load_arrays


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"


def raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


EMPTY = named("numpy._core.multiarray", "_reconstruct") + b")R"
BYTE = named("numpy", "dtype") + short("u1") + b"\x85R"
STATE = b"(K\x01K\x04\x85" + BYTE + b"\x89" + raw(b"ABCD") + b"t"
ARRAY = EMPTY + STATE + b"b"
FROM_BUFFER = named("numpy._core.numeric", "_frombuffer")
HARM = {
    "an array as a buffer": (FROM_BUFFER + b"(" + ARRAY + BYTE + b"K\x04\x85" + short("C") + b"tR.", "of ndarray"),
    "a second state of an array": (ARRAY + STATE + b"b.", "sets the state of a ndarray"),
    "a second state of a dtype": (BYTE + (b"(K\x03" + short("<") + b"tb") * 2 + b".", "no dtype's"),
    "the state of a function": (FROM_BUFFER + b"}" + b"b.", "sets the state of a _Global"),
    "the state of a dict": (b"}}b.", "sets the state of a dict"),
    "an item of an array": (ARRAY + b"K\x00K\x01s.", "sets items of a ndarray"),
    "an item of a list": (b"]K\x00K\x01s.", "sets items of a list"),
    "an item of bytes": (b"\x96\x04\0\0\0\0\0\0\0ABCDK\x00K\x01s.", "sets items of a bytes"),
    "more of an array": (ARRAY + b"K\x01a.", "appends to a ndarray"),
    "more of a dict": (b"}(K\x01e.", "appends to a dict"),
    "a call of an array": (ARRAY + b")R.", "calls a ndarray"),
    "a call of numpy.ndarray": (named("numpy", "ndarray") + b")R.", "calls a numpy.ndarray"),
    "a global as a value": (b"]" + FROM_BUFFER + b"a.", "holds numpy._core.numeric._frombuffer"),
    "an array without a state": (b"]" + EMPTY + b"a.", "holds a part of an array"),
    "a dtype as a value": (BYTE + b".", "holds a part of an array"),
    "an array as a key": (b"}" + ARRAY + b"K\x01s.", "key of type ndarray"),
    "a tuple as a key": (b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.", "key of type tuple"),
    "a float as a key": (b"}G" + bytes(8) + b"K\x01s.", "key of type float"),
    "True as a key": (b"}\x88K\x01s.", "key of type bool"),
    "a key twice": (b"}(K\x01K\x01K\x01K\x02u.", "the key 1 twice"),
    "deep nesting": (b")" + b"\x85" * 300_000 + b".", "nested deeper than 32"),
    "nesting of lists and dicts": (b"](" * 40 + b"}" + b"e" * 40 + b".", "nested deeper than 32"),
    "a memo index beyond the file": (bytes.fromhex("80047d720084d7172e"), "memoises at 400000000 in 9 bytes"),
    "a memo index in text": (b"}p99999999999\n.", "memoises at 99999999999"),
    "a negative memo index": (b"}p-1\n.", "memoises at -1"),
    "bytes beyond the file": (b"\x8e" + struct.pack("<Q", 2**40) + b"A.", "truncated after 11 bytes"),
    "bytes beyond any memory": (b"\x8e" + struct.pack("<Q", 2**62) + b"A.", "truncated after 11 bytes"),
    "text beyond the file": (b"X" + struct.pack("<I", 2**32 - 1) + b"A.", "truncated after 7 bytes"),
    "a number beyond the file": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"A.", "truncated after 7 bytes"),
    "text that is encoded again and again": (
        b"X" + struct.pack("<I", 50_000) + b"A" * 50_000 + b"q\x000]" + b"c_codecs\nencode\nq\x010"
        + (b"h\x01h\x00" + short("latin1") + b"\x86Ra") * 3 + b".",
        "unpacks to more encoded text than its",
    ),
    "booleans that are none": (
        FROM_BUFFER + b"(" + raw(b"\x01\xff") + named("numpy", "dtype") + short("b1") + b"\x85R" + b"K\x02\x85"
        + short("C") + b"tR.",
        "booleans other than 0 and 1",
    ),
    "a shape of more than the data": (ARRAY.replace(b"K\x04\x85", b"J\0\0\0\x7f\x85") + b".", "not a readable pickle"),
    "a shape of text": (ARRAY.replace(b"K\x04\x85", short("4") + b"\x85") + b".", "shape is none"),
    "a dtype of fields": (ARRAY.replace(short("u1"), short("f4,f4")) + b".", "dtype 'f4,f4'"),
    "an array of bytes that is built again and again": (
        raw(bytes(50_000)) + b"q\x000]"
        + (FROM_BUFFER + b"(h\x00" + BYTE + b"J\x50\xc3\0\0\x85" + short("C") + b"tRa") * 3 + b".",
        "unpacks to more arrays than its",
    ),
    "two states of an array that is on the stack twice": (
        EMPTY + b"q\x00h\x00" + STATE + b"b0" + STATE + b"b.",
        "of an array twice",
    ),
    "a stop alone": (b".", "not a readable pickle"),
}  # fmt: skip


# Each file in a process of its own, whose peak of memory is not that of an earlier one
MEASURE = """
import os, resource, sys
from chrono_features.data.unpickling import load_arrays

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for path in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        before = peak()
        try:
            load_arrays(path)
            message = "loaded"
        except ValueError as error:
            message = str(error)
        print(peak() - before, ascii(message), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """By the name of a harm: kB that its refusal takes, and the message."""
    paths = []
    for data, _ in HARM.values():
        paths.append(tmp_path_factory.mktemp("harm") / "davis.pkl")
        paths[-1].write_bytes(data)
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {name: (int(kilobytes), message) for name, (kilobytes, _, message) in zip(HARM, lines, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(refusals, name):
    kilobytes, message = refusals[name]
    assert re.search(rf"davis\.pkl: .*({HARM[name][1]})", message)
    assert kilobytes < 100_000


def test_what_harm_is_made_of_is_harmless_when_whole(tmp_path):
    (tmp_path / "a.pkl").write_bytes(ARRAY + b".")
    assert load_arrays(tmp_path / "a.pkl").tolist() == [65, 66, 67, 68]


@pytest.mark.slow
def test_freed_memory_is_out_of_reach(data):
    """In a process of its own: this pickle overwrote the items of a live tuple."""
    code = "import sys; from chrono_features.data.unpickling import load_arrays; load_arrays(sys.argv[1])"
    hostile = data / "hostile" / "uaf_small.pkl"
    ended = subprocess.run([sys.executable, "-c", code, hostile], capture_output=True, text=True)
    assert ended.returncode == 1 and "uaf_small.pkl: not a readable pickle" in ended.stderr


@pytest.mark.parametrize("opcode", sorted(opcode.name for opcode in pickletools.opcodes if opcode.name not in OPCODES))
def test_other_opcodes_are_refused_by_name(tmp_path, opcode):
    known = next(o for o in pickletools.opcodes if o.name == opcode)
    argument = b"''\n''\n" if known.arg and known.arg.n == pickletools.UP_TO_NEWLINE else bytes(8)
    (tmp_path / "a.pkl").write_bytes(b"](" + known.code.encode("latin1") + argument + b".")
    with pytest.raises(ValueError, match=rf"it uses the opcode {opcode};"):
        load_arrays(tmp_path / "a.pkl")


def test_what_is_allowed_is_what_pickles_of_arrays_need():
    numbers = [True, False, None, 1.5, 300, 70_000, 2**40, 2**3000]
    strings = [b"", b"a", b"a" * 300, bytearray(b"a"), "é", "a" * 300, ["x", "x"]]
    containers = [[1, [2]], {"a": 1}, {1: {}, 2: 3}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    arrays = [np.zeros(3), np.zeros(3)[0], np.zeros((2, 2)).T]
    values = [*numbers, *strings, *containers, *arrays, [f"{i}" for i in range(300)] * 2]
    dumps = [pickle.dumps(value, protocol) for protocol in range(6) for value in values]
    used = {opcode.name for data in dumps for opcode, _, _ in pickletools.genops(data)}
    assert used <= OPCODES.keys()
    assert OPCODES.keys() - used == {"BINBYTES8", "BINUNICODE8", "POP", "POP_MARK"}


@pytest.mark.parametrize("protocol", range(6))
def test_values_survive_every_protocol(tmp_path, protocol):
    once = ["twice"]
    values = {"a": [once, once, 2**3000, -1, 1.5, (), (1,), bytes(300)], 7: {"x" * 300: None}, "": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(values, protocol))
    assert load_arrays(tmp_path / "a.pkl") == values


def test_arrays_cannot_be_changed(tmp_path):
    for protocol in range(6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.arange(2000), protocol))
        array = load_arrays(tmp_path / "a.pkl")
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_names_that_only_look_different(tmp_path):
    video = {
        "video": np.zeros((2, 4, 4, 3), np.uint8),
        "points": np.zeros((1, 2, 2)),
        "occluded": np.zeros((1, 2), bool),
    }
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({1: video, "1": video}))
    with pytest.raises(ValueError, match=r"davis\.pkl: keys '1' and 1; expected one video of that name"):
        list(open_dataset("davis", str(tmp_path / "davis.pkl")))
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({"\ud800": video}))
    with pytest.raises(ValueError, match=r"davis\.pkl: key '\\ud800'; expected text that UTF-8 can hold"):
        list(open_dataset("davis", str(tmp_path / "davis.pkl")))


@pytest.mark.parametrize("protocol", range(6))
def test_damage_is_an_error_that_names_the_file(tmp_path, protocol):
    drawn = random.Random(protocol)
    whole = pickle.dumps({"a": [np.arange(3.0), np.float32(1), b"xy", "text"], "b": np.ones((2, 2), bool)}, protocol)
    path, refused = tmp_path / "a.pkl", 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        path.write_bytes(data)
        try:
            load_arrays(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 100
