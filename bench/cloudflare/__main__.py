"""`python -m bench.cloudflare`: what the users of @cloudflare/sandbox wait for, by their real client in Node over TCP.

Their own server is a container image that no package registry has, so it does not run here. Beside ours stand figures
that were seen for it once, on a machine of this kind with nothing else to do: read them as an order of magnitude.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench import stats
from bench.contender import Unavailable
from bench.daemon import Daemon
from bench.workspace import Workspace
from sandboxd.config import Config
from tests.support import cloudflare_client

#: What is measured: its name in the program, what it is, and the figure of the reference in ms where there is one.
ROWS: Final = (
    ("version", "getVersion (a round trip)", None),
    ("exec", "exec 'echo hi', no session", 5.5),
    ("session", "exec 'echo hi' in a session", 13.7),
    ("code", "runCode('1+1')", 4.2),
    ("contexts", "ten contexts at once, 1+1 in each", 1400.0),
    ("stdout", "10 MB of stdout", 3500.0),
)
_QUICK, _FULL = 50, 400


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of every call."""
    directory = cloudflare_client.install()
    program = Path(__file__).with_name("program.mjs")
    shim = cloudflare_client.SHIM
    for path in (program, shim):  # beside node_modules, where their imports are looked up
        shutil.copy(path, directory / path.name)
    with Workspace(Config().rootfs_path, "default") as workspace:
        daemon = Daemon(workspace)
        asked = {"baseUrl": f"{daemon.tcp_url}/cloudflare/sandboxes/bench", "token": daemon.token, "rounds": rounds}
        node = str(cloudflare_client.node_of(directory))
        command = [node, "--import", f"./{shim.name}", program.name, json.dumps(asked)]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(done.stderr[-2000:])
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser("python -m bench.cloudflare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    chosen = parser.parse_args()
    try:
        found = measure(_QUICK if chosen.quick else _FULL)
    except Unavailable as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    table = Table("", "p50, ms", "p90, ms", "the reference, seen once, ms")
    for name, what, reference in ROWS:
        ordered = sorted(found[name])
        shown = [stats.show(stats.percentile(ordered, part)) for part in (0.5, 0.9)]
        table.add_row(what, *shown, "" if reference is None else stats.show(reference))
    Console().print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
