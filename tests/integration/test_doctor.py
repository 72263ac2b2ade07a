"""The doctor on this very host: as root, as nobody, on a terminal, and when it is interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.linux import cgroupfs, procfs
from sandboxd.linux.kernel import Kernel
from sandboxd.linux.probes import access, rootfs
from sandboxd.linux.probes.feature import Status

NOBODY = 65534
#: The console script, which a test's environment need not have on its PATH.
SANDBOXD = [sys.executable, "-m", "sandboxd"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts are tried as root")


@pytest.fixture
def host(tmp_path: Path) -> list[str]:
    """The options of a daemon of the test's own, with a rootfs that is whole to the eye."""
    tree = tmp_path / "state/rootfs/default/private/tree"
    for name in ("bin", "dev", "etc", "proc", "sys"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/sh").symlink_to("/bin/busybox")
    (tree / "bin/busybox").write_text("")
    facts = {"format": 1, "name": "default", "recipe": "default", "trusted": True, "built_at": "2030-01-01"}
    (tree.parents[1] / "rootfs.json").write_text(json.dumps(facts))
    return ["--state-dir", str(tmp_path / "state"), "--runtime-dir", str(tmp_path / "run/sandboxd")]


def doctor(*options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SANDBOXD, "doctor", *options], capture_output=True, text=True, check=False, timeout=120, **how
    )


def told(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str | None]]:
    assert "Traceback" not in result.stderr
    report = json.loads(result.stdout)
    assert set(report) == {"ok", "summary", "features"}
    assert report["ok"] == (result.returncode == 0)
    features = {item["name"]: item for item in report["features"]}
    assert len(features) == len(report["features"])
    assert {item["status"] for item in features.values()} <= set(Status)
    for item in features.values():
        assert item["found"]
        assert item["means"]
        assert item["remedy"] or item["status"] in {"ok", "unknown"}
    return features


def entries(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@needs_root
def test_this_host_as_root(host: list[str], tmp_path: Path) -> None:
    before = entries(tmp_path), procfs.mounts()
    result = doctor("--json", *host)
    assert (entries(tmp_path), procfs.mounts()) == before
    found = told(result)
    assert result.returncode == 0, result.stdout
    essential = ["root", "kernel", "overlay", "cgroup2", "clone-into-cgroup", "seccomp:default", "rootfs", "state-dir"]
    essential += [f"namespace:{kind}" for kind in ("mount", "pid", "net", "ipc", "uts", "cgroup", "user", "time")]
    assert {name: found[name]["status"] for name in essential} == dict.fromkeys(essential, "ok")
    mount = cgroupfs.find_mount(procfs.mounts())
    assert mount is not None
    for name in ("memory", "pids", "cpu", "io"):
        offered = name in cgroupfs.controllers(mount)
        assert found[f"cgroup:{name}"]["status"] == ("ok" if offered else "degraded")
    summary = json.loads(result.stdout)["summary"]
    assert summary.startswith("sandboxes: yes")
    if not {"memory", "pids", "cpu"} & cgroupfs.controllers(mount):
        assert "limits: not enforceable here (cgroup2 has no memory, pids, cpu)" in summary
    assert json.loads(doctor("--json", *host).stdout)["summary"] == summary


@needs_root
def test_without_a_rootfs_no_sandbox_can_be_made(host: list[str], tmp_path: Path) -> None:
    result = doctor("--json", *host, "--rootfs-dir", str(tmp_path / "nothing"))
    assert told(result)["rootfs"]["status"] == "missing"
    assert result.returncode == 1
    assert json.loads(result.stdout)["summary"].startswith("sandboxes: no (rootfs)")


@needs_root
def test_the_configuration_counts(host: list[str], tmp_path: Path) -> None:
    file = tmp_path / "sandboxd.toml"
    file.write_text("allow_unenforced = true\n")
    assert "sandboxes: yes;" in doctor("--config", str(file), *host).stdout
    file.write_text("colour = true\n")
    wrong = doctor("--config", str(file), *host)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "colour" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@needs_root
def test_as_nobody_it_says_what_it_cannot_try(host: list[str]) -> None:
    package = str(Path(access.__file__))
    stopped = access.obstacle(package, NOBODY, ()) or access.obstacle(sys.executable, NOBODY, ())
    if stopped:
        pytest.skip(f"nobody cannot read {stopped}")
    result = doctor("--json", *host, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
    found = told(result)
    assert result.returncode == 1
    assert found["root"]["status"] == "missing"
    for name in ("overlay", "clone-into-cgroup", "nftables", "namespace:mount", "namespace:user"):
        assert found[name]["status"] == "unknown"
        assert "root" in str(found[name]["found"])
    # What needs no root is told all the same.
    for name in ("kernel", "cgroup2", "seccomp", "libseccomp", "seccomp:default"):
        assert found[name]["status"] == "ok"
    assert json.loads(result.stdout)["summary"].startswith("sandboxes: unknown")


@needs_root
def test_the_way_to_a_file_is_judged_as_the_kernel_does(tmp_path: Path) -> None:
    """`tmp_path` lies in a directory that is its owner's alone."""
    paths = ["/", "/etc/passwd", "/etc/shadow", "/root", str(tmp_path), "/proc/1/environ", "/tmp", sys.executable]
    program = "import os, sys; print(*(int(os.access(p, os.R_OK)) for p in sys.argv[1:]))"
    answer = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program, *paths],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    mine = [int(access.obstacle(path, NOBODY, (NOBODY,)) is None) for path in paths]
    assert dict(zip(paths, mine, strict=True)) == dict(zip(paths, map(int, answer.stdout.split()), strict=True))
    assert {0, 1} <= set(mine)


@needs_root
def test_text_for_pipes_and_for_terminals(host: list[str]) -> None:
    plain = doctor(*host)
    assert "\x1b" not in plain.stdout
    assert plain.stdout.splitlines()[-1].startswith("sandboxes: ")
    assert any(line.split()[:2] == ["ok", "overlay"] for line in plain.stdout.splitlines())
    main, terminal = pty.openpty()
    command = [*SANDBOXD, "doctor", *host]
    with subprocess.Popen(command, stdout=terminal, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(terminal)
        seen = b""
        with pytest.raises(OSError, match="Input/output error"):  # how Linux tells the end of a terminal
            while True:
                seen += os.read(main, 65_536)
        os.close(main)
    assert process.returncode == 0
    assert b"\x1b[" in seen
    assert b"sandboxes: yes" in seen


#: In a process of its own: pytest has a thread (faulthandler's), and the doctor has none.
FAILING_TRIAL = """
import errno, sys
from sandboxd.linux.kernel import Kernel, SyscallError
from sandboxd.linux.probes import overlay

directory, failing = sys.argv[1:]

def refuse(*_, **__):
    raise SyscallError(errno.EPERM, failing)

setattr(Kernel, failing, refuse)
facts = overlay.gather(Kernel(), directory, "ext4", None, root=True)
print(facts.outcome.syscall, facts.outcome.code, overlay.evaluate(facts)[0].status)
"""


@needs_root
@pytest.mark.parametrize("failing", ["chown", "clone3", "unshare", "open_tree", "mount_setattr", "move_mount", "mount"])
def test_a_trial_that_fails_says_where_and_leaves_nothing(tmp_path: Path, failing: str) -> None:
    command = [sys.executable, "-c", FAILING_TRIAL, str(tmp_path), failing]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.stdout, result.stderr) == (f"{failing} EPERM missing\n", "")
    assert os.listdir(tmp_path) == []


def fake_nft(directory: Path, text: str) -> dict[str, str]:
    (directory / "nft").write_text(f"#!/bin/sh\n{text}\n")
    (directory / "nft").chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}


@needs_root
def test_nft_is_given_rules_in_a_namespace_of_its_own(host: list[str], tmp_path: Path) -> None:
    env = fake_nft(tmp_path, f"cat >{tmp_path}/rules; readlink /proc/self/ns/net >&2; exit 1")
    found = told(doctor("--json", *host, env=env))
    assert found["nft"]["found"] == f"{tmp_path}/nft"
    if "net:[" in str(found["nftables"]["found"]):  # this kernel has nftables
        assert os.readlink("/proc/self/ns/net") not in str(found["nftables"]["found"])
        assert "masquerade" in (tmp_path / "rules").read_text()
        assert found["nftables"]["status"] == "missing"
        assert told(doctor("--json", *host, env=fake_nft(tmp_path, "cat >/dev/null")))["nftables"]["status"] == "ok"


@needs_root
def test_an_interrupted_doctor_leaves_no_process_and_no_file(host: list[str], tmp_path: Path) -> None:
    before = entries(tmp_path / "state")
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    env = fake_nft(tmp_path, f"exec 3>{alive}; echo here >&3; exec sleep 600")
    if "unknown" in str(told(doctor("--json", *host, env=env | {"PATH": os.environ["PATH"]}))["nftables"]["status"]):
        pytest.skip("nftables cannot be tried here")
    with (
        subprocess.Popen([*SANDBOXD, "doctor", *host], env=env, stdout=subprocess.DEVNULL) as process,
        open(alive, "rb") as reader,  # opens when nft has started
    ):
        assert reader.readline() == b"here\n"
        process.send_signal(signal.SIGTERM)
        assert reader.read() == b""  # its last holder is gone
    assert process.returncode == 128 + signal.SIGTERM
    assert entries(tmp_path / "state") == before


def test_a_rootfs_that_a_birth_would_refuse(tmp_path: Path) -> None:
    for name in ("good", "link", "bare", "other"):
        tree = tmp_path / name / "private/tree"
        tree.mkdir(parents=True)
        (tree.parents[1] / "rootfs.json").write_text(json.dumps({"name": name}))
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".building-x-1").mkdir()
    for name in ("good", "link", "other"):
        (tmp_path / name / "private/tree/bin").mkdir()
        (tmp_path / name / "private/tree/bin/sh").write_text("")
    (tmp_path / "link/private/tree/proc").symlink_to("/proc")
    (tmp_path / "other/rootfs.json").write_text("[]")
    facts = rootfs.gather(Kernel(), str(tmp_path))
    found = {item.name: (item.facts is not None, item.tree, item.why) for item in facts.found}
    assert found == {
        "bare": (True, True, "it has no /bin/sh"),
        "good": (True, True, ""),
        "link": (True, False, "its /proc is not a directory, so a sandbox's own cannot be mounted there"),
        "other": (False, True, "its rootfs.json names another rootfs"),
    }
    assert rootfs.trees(facts) == [f"{tmp_path}/{name}/private/tree" for name in ("bare", "good")]
