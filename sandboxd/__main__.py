"""`python -m sandboxd` is the command `sandboxd`."""

from __future__ import annotations

from sandboxd.cli.main import main

main()
