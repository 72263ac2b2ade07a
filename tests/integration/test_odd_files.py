"""Files whose times and names are odd, in every list, archive and face: told as near as can be, and never a 500."""

from __future__ import annotations

import base64
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandboxd import ArchiveRefused, Sandbox
from sandboxd.client import Client
from tests.support.daemon import Daemon
from tests.support.zips import raw_zip

pytestmark = pytest.mark.real

#: Seconds that an inode of a tmpfs takes, and what is told of them.
TIMES = {
    "past": (-(1 << 63), "0001-01-01T00:00:00.000Z"),
    "year0": (-62135596801, "0001-01-01T00:00:00.000Z"),
    "year1": (-62135596800, "0001-01-01T00:00:00.000Z"),
    "before": (-1, "1969-12-31T23:59:59.000Z"),
    "after2038": (1 << 33, "2242-03-16T12:56:32.000Z"),
    "year9999": (253402300799, "9999-12-31T23:59:59.000Z"),
    "year10000": (253402300800, "9999-12-31T23:59:59.999Z"),
    "far": (99999999999999, "9999-12-31T23:59:59.999Z"),
    "future": ((1 << 63) - 1, "9999-12-31T23:59:59.999Z"),
}


@pytest.fixture
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://d") as found:
        yield found


@pytest.fixture(scope="module")
def aged(daemon: Daemon) -> Iterator[Sandbox]:
    """A sandbox with files of every odd time, on the disk that takes them all."""
    lines = "".join(
        f"os.utime(open('/dev/shm/t/{name}', 'w').name, (1, {when}))\n" for name, (when, _) in TIMES.items()
    )
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        sandbox.write_file("/t.py", "import os\nos.mkdir('/dev/shm/t')\n" + lines)
        sandbox.exec("python3 /t.py && ln -s x /dev/shm/t/link").check()
        yield sandbox


def test_a_list_tells_every_time(aged: Sandbox, http: httpx.Client) -> None:
    found = http.get(f"/v1/sandboxes/{aged.id}/files/list", params={"path": "/dev/shm/t"}).json()["items"]
    assert {one["name"]: one["modified_at"] for one in found if one["name"] in TIMES} == {
        name: told for name, (_, told) in TIMES.items()
    }
    theirs = http.post(f"/cloudflare/sandboxes/{aged.id}/api/list-files", json={"path": "/dev/shm/t"}).json()["files"]
    assert {one["name"]: one["modifiedAt"] for one in theirs} == {one["name"]: one["modified_at"] for one in found}


@pytest.mark.parametrize("name", TIMES)
def test_one_file_is_told_and_read(aged: Sandbox, http: httpx.Client, name: str) -> None:
    path = f"/dev/shm/t/{name}"
    told = datetime.datetime.fromisoformat(TIMES[name][1])
    assert aged.stat_file(path).modified_at == told
    answer = http.get(f"/v1/sandboxes/{aged.id}/files", params={"path": path})
    assert answer.status_code == 200
    assert answer.headers["last-modified"].endswith("GMT")
    copied = http.post(f"/v1/sandboxes/{aged.id}/files/copy", json={"path": path, "new_path": path + ".copy"})
    assert copied.json()["file"]["modified_at"] == TIMES[name][1]
    aged.delete_file(path + ".copy")


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_archives_of_such_files_go_out_and_in(aged: Sandbox, http: httpx.Client, form: str) -> None:
    data = http.get(f"/v1/sandboxes/{aged.id}/files/archive", params={"path": "/dev/shm/t", "format": form})
    assert data.status_code == 200
    target = {"path": f"/dev/shm/{form}"}
    assert http.put(f"/v1/sandboxes/{aged.id}/files/archive", params=target, content=data.content).status_code == 200
    found = http.get(f"/v1/sandboxes/{aged.id}/files/list", params=target).json()["items"]
    assert len(found) == len(TIMES) + 1
    if form != "zip":  # which has no more than 1980 to 2107
        told = {one["name"]: one["modified_at"] for one in found}
        assert told["year9999"] == TIMES["year9999"][1]


def test_the_cli_shows_them(aged: Sandbox, daemon: Daemon) -> None:
    words = [sys.executable, "-m", "sandboxd", "files", "ls", "-l", aged.id, "/dev/shm/t"]
    env = {**os.environ, "SANDBOXD_URL": daemon.url}
    shown = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "0001-01-01T00:00:00Z" in shown
    assert "9999-12-31T23:59:59Z" in shown


def test_names_that_are_no_utf_8_are_told_by_every_list(client: Client, http: httpx.Client) -> None:
    with Sandbox.create(client=client) as sandbox:
        sandbox.exec(["bash", "-c", r"mkdir d; touch d/$'a\xff' d/$'b\xed\xa0\x80'"]).check()
        box: Any = f"/cloudflare/sandboxes/{sandbox.id}/api"
        theirs = http.post(f"{box}/list-files", json={"path": "/workspace/d"}).json()["files"]
        assert [one["name"] for one in theirs] == ["a\ufffd", "b\ufffd\ufffd\ufffd"]
        ours = http.get(f"/v1/sandboxes/{sandbox.id}/files/list", params={"path": "/workspace/d"}).json()["items"]
        assert ours[0]["path_b64"]
        for name in ("a\udcff", "b\udced\udca0\udc80"):
            assert sandbox.stat_file(f"/workspace/d/{name}").type == "file"
        found = http.post(f"/v1/sandboxes/{sandbox.id}/files/search", json={"path": "/workspace/d", "name": "*"})
        assert len(found.json()["items"]) == 2


def test_a_zip_of_any_maker_is_unpacked_under_its_own_names(sandbox: Sandbox) -> None:
    old = raw_zip("\u00e9.txt".encode("cp437"), system=0)
    for data in (raw_zip("\u65e5\u672c.txt".encode(), system=3), old, raw_zip(b"a\\b", system=10)):
        sandbox.write_archive("/workspace/z", data)
    found = [file.path for file in sandbox.list_files("/workspace/z", recursive=True)]
    assert found == [f"/workspace/z/{name}" for name in ("a", "a/b", "\u00e9.txt", "\u65e5\u672c.txt")]
    for data in (raw_zip(b"", system=3), raw_zip(b"..\\evil", system=0), raw_zip(b"\xff", system=3, flags=0x800)):
        with pytest.raises(ArchiveRefused):
            sandbox.write_archive("/workspace/z", data)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("x.ts", b"let a: number\n", ("text/typescript", False)),
        ("film.ts", b"\x47\0\xff", ("video/mp2t", True)),
        ("x.parquet", b"PAR1", ("application/vnd.apache.parquet", True)),
        ("x.tar.gz", b"\x1f\x8b", ("application/gzip", True)),
        ("Makefile", b"all:\n", ("text/plain", False)),
        ("x.py", b"\xe9\n", ("application/octet-stream", True)),
        ("core", b"\x7fELF\0", ("application/octet-stream", True)),
        ("x.svg", b"<svg/>", ("image/svg+xml", False)),
    ],
)
def test_type_encoding_and_content_agree_in_every_face(
    sandbox: Sandbox, http: httpx.Client, name: str, content: bytes, wanted: tuple[str, bool]
) -> None:
    path = f"/workspace/{name}"
    sandbox.write_file(path, content)
    native = http.get(f"/v1/sandboxes/{sandbox.id}/files", params={"path": path}).headers["content-type"]
    assert native == (wanted[0] if "." in name else "application/octet-stream")  # which says nothing
    box = f"/cloudflare/sandboxes/{sandbox.id}/api"
    whole = http.post(f"{box}/read", json={"path": path}).json()
    events = http.post(f"{box}/read/stream", json={"path": path}).text.split("\n\n")
    head, piece = (json.loads(event.removeprefix("data: ")) for event in events[:2])
    for told, data in ((whole, whole["content"]), (head, piece["data"])):
        assert (told["mimeType"], told["isBinary"]) == wanted
        assert told["encoding"] == ("base64" if wanted[1] else "utf-8")
        assert (base64.b64decode(data) if wanted[1] else data.encode()) == content
    for encoding in ("utf-8", "base64"):
        told = http.post(f"{box}/read", json={"path": path, "encoding": encoding}).json()
        assert (told["encoding"], told["isBinary"], told["mimeType"]) == (encoding, encoding == "base64", wanted[0])
