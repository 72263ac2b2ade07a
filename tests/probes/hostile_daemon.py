"""`sandboxd` whose launcher is `hostile_launcher.py`; the daemon's own code is the real one."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

from sandboxd.cli.main import main

HERE = pathlib.Path(__file__).parent
real = subprocess.Popen


def popen(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start the other launcher with what the real one would have got."""
    if "sandboxd.launcher" in argv:
        argv = [sys.executable, str(HERE / "hostile_launcher.py"), *argv[argv.index("--fd") :]]
        options["env"] = {**options["env"], "PYTHONPATH": str(HERE.parents[1])}
    return real(argv, **options)


subprocess.Popen = popen  # type: ignore[assignment,misc]

if __name__ == "__main__":
    main()
