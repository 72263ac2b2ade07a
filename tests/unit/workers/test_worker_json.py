"""What the Python worker tells as JSON of a dict or list, where a run asks for it."""

from __future__ import annotations

import collections
import enum
import json
import pathlib
import runpy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.runtime.contexts import read_program

ToJson = Callable[[object], str | None]

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    st.lists(LEAVES) | st.dictionaries(LEAVES, LEAVES),
    lambda inner: st.lists(inner | LEAVES) | st.dictionaries(st.text(), inner) | st.tuples(inner).map(list),
)


class Point(NamedTuple):
    x: int
    y: float


class Level(enum.IntEnum):
    LOW = 1


class OwnItems(dict[str, int]):
    def items(self) -> Any:
        while True:
            pass


class OwnIteration(list[int]):
    def __iter__(self) -> Any:
        while True:
            pass


class OwnAttributes(dict[str, int]):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


@pytest.fixture(scope="module")
def to_json(tmp_path_factory: pytest.TempPathFactory) -> ToJson:
    """The worker is a program, so it is run as a file, without its main part."""
    path: pathlib.Path = tmp_path_factory.mktemp("worker") / "program.py"
    path.write_bytes(read_program("python"))
    found: ToJson = runpy.run_path(str(path), run_name="worker")["load"]("shell")["to_json"]
    return found


@given(value=VALUES)
def test_it_is_what_json_takes(to_json: ToJson, value: object) -> None:
    try:
        expected = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        expected = None
    assert to_json(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, {}),
        ([], []),
        ({1: (2, [3]), None: True}, {"1": [2, [3]], "null": True}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ([Point(1, 2.5), Level.LOW], [[1, 2.5], 1]),
    ],
)
def test_a_dict_or_list_of_any_kind_that_is_one(to_json: ToJson, value: object, expected: object) -> None:
    text = to_json(value)
    assert text is not None
    assert json.loads(text) == expected


@pytest.mark.parametrize("value", [None, 1, "a", (1, 2), {1}, Point(1, 2), object()])
def test_other_values_are_told_as_they_are_shown(to_json: ToJson, value: object) -> None:
    assert to_json(value) is None


@pytest.mark.parametrize("kind", [OwnItems, OwnIteration, OwnAttributes])
def test_a_kind_with_ways_of_its_own_is_not_asked(to_json: ToJson, kind: type) -> None:
    value = kind()
    assert to_json(value) is None
    assert to_json([1, [value]]) is None


def holds_itself(width: int) -> list[object]:
    value: list[object] = []
    value += [value] * width
    return value


def doubled() -> list[object]:
    value: list[object] = [1]
    for _ in range(60):
        value = [value, value]
    return value


def deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: holds_itself(1),
        lambda: holds_itself(1000),
        doubled,
        deep,
        lambda: ["x" * 1_000_000] * 1000,
        lambda: {"x" * 5_000_000: 1},
        lambda: [10**4000] * 1_000_000,
        lambda: [0.1234567890123] * 1_000_000,
        lambda: [1] * 5_000_000,
        lambda: ["é" * 1_000_000],  # its escapes are over the bound
    ],
)
def test_what_is_too_large_is_given_up_soon(to_json: ToJson, make: Callable[[], object]) -> None:
    value = make()
    began = time.process_time()
    assert to_json(value) is None
    assert time.process_time() - began < 2


def test_up_to_the_bound_it_is_told(to_json: ToJson) -> None:
    text = to_json([{"n": number, "x": number / 7} for number in range(90_000)])
    assert text is not None
    assert 3_000_000 < len(text) < 4 * 1024 * 1024
    assert to_json(["x" * (4 * 1024 * 1024 - 5)]) is not None
    assert to_json(["x" * (4 * 1024 * 1024 - 4)]) is None
