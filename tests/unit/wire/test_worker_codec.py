"""The Python worker's own codec against msgpack, and what the daemon takes from a worker, hostile ones included."""

from __future__ import annotations

import contextlib
import runpy
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import RemoteProtocolError
from sandboxd.runtime.contexts import read_program
from sandboxd.wire import worker

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=30,
)
SIZES = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536, 100_000]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The worker's names: it is a program, so it is run as a file, without its main part."""
    path = tmp_path_factory.mktemp("worker") / "program.py"
    path.write_bytes(read_program("python"))
    return runpy.run_path(str(path), run_name="worker")


@given(value=VALUES)
def test_what_it_packs_is_msgpack(codec: dict[str, Any], value: object) -> None:
    assert msgpack.unpackb(codec["pack"](value), strict_map_key=False) == value


@given(value=VALUES)
def test_it_reads_msgpack(codec: dict[str, Any], value: object) -> None:
    assert codec["unpack"](msgpack.packb(value, use_bin_type=True)) == value


@pytest.mark.parametrize("size", SIZES)
def test_every_length_of_every_type(codec: dict[str, Any], size: int) -> None:
    for value in ("x" * size, b"x" * size, [1] * size, {str(n): n for n in range(size)}):
        assert msgpack.unpackb(codec["pack"](value), strict_map_key=False) == value
        assert codec["unpack"](msgpack.packb(value)) == value


@given(data=st.binary(max_size=60))
def test_garbage_is_an_error_and_nothing_else(codec: dict[str, Any], data: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError, struct.error, TypeError):
        codec["unpack"](data)


def test_a_lone_surrogate_is_no_end_of_it(codec: dict[str, Any]) -> None:
    assert msgpack.unpackb(codec["pack"]("a\ud800b")) == "a?b"


def test_the_worker_reads_what_the_daemon_sends(codec: dict[str, Any]) -> None:
    message = {"op": "run", "run": 2**50, "code": "é" * 70_000, "env": {"A": "ü"}}
    frame = worker.encode(message)
    assert struct.unpack(">I", frame[:4]) == (len(frame) - 4,)
    assert codec["unpack"](frame[4:]) == message


# --- what the daemon takes ---


def frame(message: object) -> bytes:
    body = msgpack.packb(message)
    return struct.pack(">I", len(body)) + bytes(body)


def result(**fields: Any) -> dict[str, Any]:
    base = {"op": "result", "run": 1, "main": True, "formats": {}, "note": None, "display_id": None, "update": False}
    return base | fields


GOOD = [
    ({"op": "ready", "version": "Python 3.13"}, worker.Ready("Python 3.13")),
    ({"op": "failed", "message": "no"}, worker.Failed("no")),
    (result(formats={"text": "1", "png": b"x"}), worker.Result(1, True, {"text": "1", "png": b"x"}, None, None, False)),
    ({"op": "clear", "run": 1, "wait": True}, worker.Clear(1, True)),
    (
        {"op": "error", "run": 1, "ename": "E", "evalue": "v", "traceback": ["a"], "traceback_ansi": ["b"]},
        worker.Error(1, "E", "v", ["a"], ["b"]),
    ),
    ({"op": "end", "run": 1, "status": "ok", "count": 3}, worker.End(1, "ok", 3)),
    ({"op": "reply", "run": 1, "value": "{}"}, worker.Answer(1, "{}")),
]


@pytest.mark.parametrize(("message", "expected"), GOOD)
def test_frames(message: dict[str, Any], expected: worker.Frame) -> None:
    data = frame(message)
    decoder = worker.WorkerDecoder()
    assert list(decoder.feed(data + data)) == [expected, expected]
    assert [found for byte in data for found in decoder.feed(bytes([byte]))] == [expected]


BAD = [
    frame([]),
    frame({}),
    frame({"op": "end", "run": 1, "status": "won", "count": 1}),
    frame({"op": "end", "run": -1, "status": "ok", "count": 1}),
    frame({"op": "end", "run": True, "status": "ok", "count": 1}),
    frame({"op": "clear", "run": 1, "wait": 1}),
    frame(result(formats=[])),
    frame(result(formats={"png": "text"})),
    frame(result(formats={"text": b"bytes"})),
    frame(result(formats={"unheard-of": "x"})),
    frame(result(formats={"text/../../x y": "x"})),
    frame(result(formats={1: "x"})),
    frame(result(formats={"json": "x" * (worker.MAX_JSON_BYTES + 1)})),
    frame(result(formats={"text": {"a": {}}})),
    frame(result(note=5)),
    frame({"op": "error", "run": 1, "ename": "E", "evalue": "v", "traceback": [1], "traceback_ansi": []}),
    frame({"op": "error", "run": 1, "ename": "E", "evalue": "v", "traceback": ["x"] * 5000, "traceback_ansi": []}),
    frame({"op": "reply", "run": 1, "value": [[]] * 100}),
    struct.pack(">I", 0),
    struct.pack(">I", worker.MAX_FRAME_BYTES + 1),
    struct.pack(">I", 3) + b"\xc1\xc1\xc1",
    struct.pack(">I", 2) + b"\xa1\xff",
    b"GET / HTTP/1.1\r\n",
]


@pytest.mark.parametrize("data", BAD)
def test_frames_that_break_a_rule(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        list(worker.WorkerDecoder().feed(data))


@given(data=st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_broken_rule(data: bytes) -> None:
    decoder = worker.WorkerDecoder()
    with contextlib.suppress(RemoteProtocolError):
        list(decoder.feed(struct.pack(">I", max(1, len(data))) + data))


def test_a_large_result_passes() -> None:
    picture = bytes(10 * 1024 * 1024)
    (found,) = worker.WorkerDecoder().feed(frame(result(formats={"png": picture})))
    assert isinstance(found, worker.Result)
    assert found.formats["png"] == picture


class Room:
    """Where there is room for `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0

    def grow(self, size: int) -> bool:
        if self.held + size > self.size:
            return False
        self.held += size
        return True

    def close(self) -> None:
        self.held = 0


@pytest.mark.parametrize("step", [1000, 300_001, 10**7])
def test_a_large_frame_that_there_is_no_room_for_is_passed_over(step: int) -> None:
    room = Room(400_000)
    decoder = worker.WorkerDecoder(room)
    sizes = (10, 350_000, 500_000, 20, 600_000, 700_000, 300_000)
    data = b"".join(frame(result(formats={"text": "x" * size})) for size in sizes)
    found = [one for start in range(0, len(data), step) for one in decoder.feed(data[start : start + step])]
    shown = [len(str(one.formats["text"])) if isinstance(one, worker.Result) else None for one in found]
    assert shown == [10, 350_000, None, 20, None, None, 300_000]
    assert room.held == 0
    assert not list(decoder.feed(frame(result(formats={"text": "x" * 350_000}))[:-1]))
    assert room.held > 350_000
    decoder.close()
    assert room.held == 0


def test_what_is_announced_and_does_not_come_takes_no_room() -> None:
    room = Room(400_000)
    decoder = worker.WorkerDecoder(room)
    assert not list(decoder.feed(struct.pack(">I", worker.MAX_FRAME_BYTES) + b"x" * 1000))
    assert room.held == 1004
