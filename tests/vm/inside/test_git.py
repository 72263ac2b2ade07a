"""Clones where the kernel holds the sandbox's memory."""

from __future__ import annotations

import pytest

from sandboxd import LimitExceeded, Sandbox
from sandboxd.client import Client
from tests.vm.inside.support import Service, group_of, keyed

MIB = 1 << 20
#: A repository whose one file has so many MiB of zeros; made in pieces, since git itself would hold all of it.
MAKE = """
import hashlib, os, subprocess, sys, zlib
size = int(sys.argv[1]) << 20
head, piece = b"blob %d\\0" % size, bytes(1 << 20)
digest, packer, parts = hashlib.sha1(head), zlib.compressobj(1), []
parts.append(packer.compress(head))
for _ in range(size >> 20):
    digest.update(piece)
    parts.append(packer.compress(piece))
name = digest.hexdigest()
run = lambda *words, data="": subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=a", *words], input=data, capture_output=True, text=True, check=True
).stdout.strip()
run("init", "-q", "-b", "main", ".")
os.makedirs(f".git/objects/{name[:2]}", exist_ok=True)
open(f".git/objects/{name[:2]}/{name[2:]}", "wb").write(b"".join(parts) + packer.flush())
tree = run("mktree", data=f"100644 blob {name}\\tzeros\\n")
run("update-ref", "refs/heads/main", run("commit-tree", "-m", "x", tree))
"""


def make(sandbox: Sandbox, folder: str, mebibytes: int) -> None:
    sandbox.mkdir(folder)
    sandbox.exec(["python3", "-c", MAKE, str(mebibytes)], cwd=folder).check()


def test_a_clone_has_the_memory_of_its_sandbox(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 96 * MIB}) as sandbox:
        make(sandbox, "/workspace/small", 4)
        make(sandbox, "/workspace/large", 300)
        found = sandbox.git_checkout("/workspace/small", target_dir="a")
        assert found.files == 1
        assert sandbox.stat_file("/workspace/a/zeros").size == 4 * MIB
        with pytest.raises(LimitExceeded):
            sandbox.git_checkout("/workspace/large", target_dir="b")
        assert sandbox.exec("ls -A /workspace").stdout.split() == ["a", "large", "small"]
        assert keyed(group_of(service, sandbox) / "memory.events").get("oom_group_kill", 0) <= 1
        assert sandbox.git_checkout("/workspace/small", target_dir="c").commit == found.commit
