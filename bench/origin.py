"""A git server inside a sandbox, and who clones from it there: both contenders meet the same one."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import git_history
from bench.contender import Unavailable
from bench.daemon import Daemon
from sandboxd import Sandbox

if TYPE_CHECKING:
    from bench.workspace import Workspace

#: Some 38,000 objects, 8 MB packed, 2,100 files.
FILES, COMMITS = 2000, 4000
_PORT = 8418
_SET_UP = """
set -e
git init -q --bare -b main /srv/git/history.git
git -C /srv/git/history.git fast-import --quiet </srv/stream
rm /srv/stream
git -C /srv/git/history.git repack -q -a -d -f
"""


class Origin:
    """One sandbox with a repository and `git http-backend` behind a web server. By `Workspace.share(Origin)`."""

    def __init__(self, workspace: Workspace) -> None:
        daemon = workspace.share(Daemon)
        self._numbers = itertools.count()
        self.sandbox = Sandbox.create(client=daemon.client)
        workspace.defer(self.sandbox.destroy)
        self.url = f"http://127.0.0.1:{_PORT}/history.git"
        if self.sandbox.exec(["git", "--version"]).exit_code != 0:
            raise Unavailable("the rootfs has no git")
        self.sandbox.write_file("/srv/stream", git_history.stream(files=FILES, commits=COMMITS))
        self.sandbox.exec(_SET_UP, timeout=300).check()
        self.sandbox.write_file("/srv/server.py", Path(__file__).with_name("git_server_program.py").read_bytes())
        process = self.sandbox.start_process(["python3", "/srv/server.py", str(_PORT), "/srv/git"])
        if not self.sandbox.wait_for_port(process, _PORT, timeout=30):
            raise Unavailable("the web server does not start")

    def timed(self, depth: int | None, *, by_git: bool) -> float:
        """Clone with C git in the sandbox, or with sandboxd; return the seconds."""
        target = f"/workspace/clone-{next(self._numbers)}"
        more = [] if depth is None else ["--depth", str(depth)]
        began = time.perf_counter()
        if by_git:
            self.sandbox.exec(["git", "clone", "-q", *more, self.url, target]).check()
        else:
            self.sandbox.git_checkout(self.url, target_dir=target, depth=depth)
        elapsed = time.perf_counter() - began
        clean = self.sandbox.exec(f'cd {target} && test -z "$(git status --porcelain)" && rm -rf {target}')
        if clean.exit_code != 0:
            raise Unavailable("its clone is not clean")
        return elapsed
