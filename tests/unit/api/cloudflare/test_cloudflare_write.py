"""Writes of Cloudflare's clients: content of any size inside JSON, to the disk as it comes."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandboxd.api.cloudflare import container_write
from sandboxd.api.cloudflare.container_write import ContentSplitter
from sandboxd.errors import InvalidRequest
from tests.support.fake_daemon import FakeDaemon, daemon_in
from tests.support.steps import MAX_STEP_S, watched

BOX = "/cloudflare/sandboxes/box/api/write"
MIB = 1024 * 1024


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        yield found


def split(body: bytes, cuts: list[int]) -> tuple[str, Any]:
    splitter = ContentSplitter()
    texts: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        texts += splitter.feed(body[start:end])
    return "".join(texts), json.loads(splitter.finish())


@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_content_is_parted_from_the_rest_wherever_it_is_cut(seed: int, *, is_ascii: bool) -> None:
    chance = random.Random(seed)
    letters = ['"', "\\", "\n", "\0", "a", "é", "€", "😀", "{", "}", ",", ":", "content", "/"]
    content = "".join(chance.choices(letters, k=60))
    nested = {"content": 'no "one" {', "l": [1, ["content", {}], "\\"]}
    rest = {"nested": nested, "path": '/x"}', "sessionId": "content"}
    fields = [("content", content), *rest.items(), ("empty", ""), ("encoding", None)]
    chance.shuffle(fields)
    body = json.dumps(dict(fields), ensure_ascii=is_ascii, indent=chance.choice([None, 1])).encode()
    for _ in range(30):
        cuts = sorted(chance.sample(range(len(body)), chance.randint(0, 12)))
        assert split(body, cuts) == (content, {**dict(fields), "content": ""})
    assert split(body, list(range(1, len(body)))) == (content, {**dict(fields), "content": ""})


NO_TEXTS = [
    *(rb'"\ud800"', rb'"\udc00"', rb'"\ud83d x"', rb'"\x41"', rb'"\u12"'),
    *(b'"\xff"', b'"\xed\xa0\x80"', b'"a\nb"', b'"a" "b"'),
]


@pytest.mark.parametrize("text", NO_TEXTS)
async def test_content_that_is_no_text_is_refused(daemon: FakeDaemon, text: bytes) -> None:
    answer = await daemon.client.post(BOX, content=b'{"path":"/workspace/x","content":' + text + b"}")
    assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
    assert not list(daemon.init.tree.rglob("*x*"))


def test_content_is_there_once() -> None:
    with pytest.raises(InvalidRequest):
        split(b'{"content":"a","content":"b"}', [])


@pytest.mark.parametrize("unit", [b"[", b'"",'])
async def test_a_body_of_the_smallest_units_leaves_the_loop_to_others(daemon: FakeDaemon, unit: bytes) -> None:
    with watched() as steps:
        answer = await daemon.client.post(BOX, content=b'{"x":[' + unit * (400_000 // len(unit)))
    assert answer.status_code == 400
    assert steps.longest < MAX_STEP_S, steps.where


def chunks(head: bytes, piece: bytes, count: int, tail: bytes) -> AsyncIterator[bytes]:
    async def give() -> AsyncIterator[bytes]:
        yield head
        for _ in range(count):
            yield piece
        yield tail

    return give()


def left_over(daemon: FakeDaemon) -> set[str]:
    return {path.name for path in daemon.init.tree.rglob("*") if path.is_file()}


PIECE = "0123456789abcdef" * 4096  # 64 KiB, of base64's letters


@pytest.mark.parametrize(
    ("before", "after", "is_base64", "count"),
    [
        ("", ',"sessionId":"s"', False, 640),  # as the npm client sends it
        ("", ',"sessionId":"s","encoding":"base64"', True, 640),
        ("", ',"encoding":"utf-8"', False, 100),
        ('"encoding":"base64",', "", True, 100),
        ('"encoding":"utf8",', "", False, 100),
    ],
)
async def test_large_content_goes_to_the_disk(
    daemon: FakeDaemon, before: str, after: str, count: int, *, is_base64: bool
) -> None:
    head = f'{{"path":"/workspace/d/large",{before}"content":"'.encode()
    answer = await daemon.client.post(BOX, content=chunks(head, PIECE.encode(), count, f'"{after}}}'.encode()))
    assert answer.status_code == 200, answer.text
    written = (daemon.init.tree / "workspace/d/large").read_bytes()
    assert written == (base64.b64decode(PIECE) if is_base64 else PIECE.encode()) * count
    assert left_over(daemon) == {"large"}


@pytest.mark.slow
async def test_its_memory_is_bounded(daemon: FakeDaemon) -> None:
    head = b'{"path":"/workspace/large","content":"'
    tracemalloc.start()
    try:
        answer = await daemon.client.post(BOX, content=chunks(head, PIECE.encode(), 768, b'"}'))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 200
    assert (daemon.init.tree / "workspace/large").stat().st_size == 48 * MIB
    assert peak < 30 * MIB


async def test_a_text_that_looks_like_base64_at_first_stays_a_text(daemon: FakeDaemon) -> None:
    head = b'{"path":"/workspace/t","content":"'
    for tail, code in (
        (b'!"}', None),
        (b'!","encoding":"base64"}', "VALIDATION_FAILED"),
        (b'A","encoding":"base64"}', "VALIDATION_FAILED"),
    ):
        answer = await daemon.client.post(BOX, content=chunks(head, PIECE.encode(), 80, tail))
        assert answer.json().get("code") == code
        assert left_over(daemon) == {"t"}
        assert (daemon.init.tree / "workspace/t").read_text() == PIECE * 80 + "!"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        *(("", b""), ("aGk=", b"hi"), ("aG\n k=", b"hi")),
        *((text, None) for text in ("aGk", "aGk=aGk=", "a===", "%%%", "é")),
    ],
)
async def test_base64_is_strict_but_for_white_space(daemon: FakeDaemon, content: str, wanted: bytes | None) -> None:
    answer = await daemon.client.post(BOX, json={"path": "/workspace/b", "content": content, "encoding": "base64"})
    assert answer.status_code == (400 if wanted is None else 200)
    assert left_over(daemon) == (set() if wanted is None else {"b"})
    if wanted is not None:
        assert (daemon.init.tree / "workspace/b").read_bytes() == wanted


async def test_what_is_too_large_is_named_by_their_field(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_write, "MAX_WRITE_BYTES", 6 * MIB)
    monkeypatch.setattr(container_write, "MAX_HELD", 5 * MIB)
    for path in ("/workspace/a", "b"):
        answer = await daemon.client.post(BOX, json={"path": path, "content": "x" * 7 * MIB})
        shown = answer.json()
        assert (answer.status_code, shown["code"]) == (413, "FILE_TOO_LARGE")
        assert shown["context"]["actualSize"] > shown["context"]["maxSize"]
    assert not left_over(daemon)
    answer = await daemon.client.post(BOX, json={"path": "/workspace/a", "content": "x", "more": "y" * 5 * MIB})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        {"path": "/workspace/d/", "content": "x" * 5 * MIB},
        {"path": "/workspace/a\0", "content": "x" * 5 * MIB},
        {"content": "x" * 5 * MIB},
        {"path": 3, "content": "x" * 5 * MIB},
        {"path": "/workspace/x", "content": "x" * 5 * MIB, "encoding": "latin-1"},
        {"path": "/workspace/x", "content": 5},
        {"path": "/workspace/x"},
        [{"path": "/workspace/x", "content": "x" * 5 * MIB}],
    ],
)
async def test_a_bad_request_leaves_nothing(daemon: FakeDaemon, body: Any) -> None:
    answer: httpx.Response = await daemon.client.post(BOX, json=body)
    assert answer.status_code in (400, 413), answer.text
    assert not left_over(daemon)


async def test_a_field_that_is_there_twice_puts_nothing_elsewhere(daemon: FakeDaemon) -> None:
    for more in (b'"path":"/workspace/other"', b'"encoding":"utf-8"'):
        head = b'{"path":"/workspace/one","encoding":"base64","content":"'
        answer = await daemon.client.post(BOX, content=chunks(head, PIECE.encode(), 80, b'",' + more + b"}"))
        assert answer.status_code == 400
        assert not left_over(daemon)
