"""A dockerd of the benchmark's own: private data root, socket, network namespace and cgroup parent."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from bench.contender import Unavailable
from bench.http import UnixConnection
from bench.workspace import Workspace, wait_until

_START_S = 30.0
_DEVICES = ("proc", "sys", "dev", "run", "tmp", "root", "usr", "workspace")


class Dockerd:
    """Serves on `socket` an image of the rootfs; made by `Workspace.share(Dockerd)`.

    Importing 1 GB takes docker a minute, so the image holds what is small and links, and /usr is bound read-only
    from the tree: containers run the same files as everybody.
    """

    image = "bench:latest"

    def __init__(self, workspace: Workspace) -> None:
        home = workspace.directory("docker")
        self.socket = home / "docker.sock"
        self.bind = f"{workspace.tree}/usr:/usr:ro"
        config = home / "daemon.json"
        config.write_text(json.dumps({"deprecated-key-path": str(home / "key.json")}))
        # dockerd writes to /run and /opt, and switches ip_forward on: all of it in a den.
        self.den = workspace.den(covers=("/run", "/opt"), net=True)
        private = ["--data-root", home / "data", "--exec-root", home / "exec", "--pidfile", home / "pid"]
        modest = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        where = ["--config-file", config, "--host", f"unix://{self.socket}", f"--cgroup-parent=/{workspace.cgroup}"]
        log = home / "log"
        pid = self.den.spawn(["dockerd", *map(str, [*private, *modest, *where])], log)
        workspace.defer(lambda: self.den.stop(pid))
        wait_until(lambda: self._answers() or self.den.ended(pid), _START_S)
        if not self._answers():
            raise Unavailable(f"dockerd does not start: {_last_words(log)}")
        self.connection = UnixConnection(str(self.socket))
        self.version = f"Docker {self.connection.ask('GET', '/version')['Version']}"
        self._import(workspace.tree)

    def _answers(self) -> bool:
        probe = UnixConnection(str(self.socket), timeout_s=5)
        try:
            return probe.open("GET", "/_ping").status == 200
        except Unavailable:
            return False
        finally:
            probe.close()

    def _import(self, tree: Path) -> None:
        repository, _, tag = self.image.partition(":")
        path = f"/images/create?fromSrc=-&repo={repository}&tag={tag}"
        answer = self.connection.open("POST", path, raw=small_image(tree)).read().decode()
        if '"error"' in answer:
            raise Unavailable(f"dockerd does not import the image: {answer[-300:]}")


def small_image(tree: Path) -> bytes:
    """Return a tar of the tree without what lies in /usr: its links, /etc, and empty directories to mount on."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(tree.iterdir()):
            if path.is_symlink():
                archive.add(path, path.name, recursive=False)
            elif path.name == "etc":
                archive.add(path, path.name)
            elif path.name in _DEVICES:
                archive.add(path, path.name, recursive=False)
    return buffer.getvalue()


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][-300:] if lines else "it says nothing"
