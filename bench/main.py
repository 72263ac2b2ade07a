"""The command line: which figures of which contenders, and where the findings go."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import machine, plot, profiling, report
from bench.contender import Contender, Unavailable
from bench.daemon import Daemon
from bench.figures import clone, contexts, create, files, javascript, memory, processes, sessions, stdout
from bench.figures import exec as exec_figure
from bench.peers import ALL
from bench.report import Findings
from bench.workspace import INTERRUPTIONS, Workspace
from sandboxd.config import Config

FIGURES: Final = (
    *(
        "create",
        "exec",
        "session",
        "start",
        "memory",
        "stdout",
        "follow",
        "echo",
        "contexts",
        "files",
        "clone",
        "javascript",
    ),
)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser("python -m bench", description="Measure sandboxd beside its peers.")
    parser.add_argument("--quick", action="store_true", help="a minute instead of five, with wider spreads")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, default=FIGURES, metavar="FIGURE", help=", ".join(FIGURES)
    )
    names = [_slug(made) for made in ALL]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG, in a sandbox")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the summary, which is printed anyway")
    parser.add_argument("--profile", action="store_true", help="run the daemon under cProfile; figures are then slower")
    parser.add_argument("--rootfs-dir", type=Path, default=Config().rootfs_path, metavar="DIR", help="[%(default)s]")
    parser.add_argument("--rootfs", default="default", metavar="NAME", help="[%(default)s]")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    chosen = options(argv)
    for name in INTERRUPTIONS:  # SIGINT too: a shell's background job starts with it ignored
        signal.signal(name, signal.default_int_handler)
    try:
        if os.geteuid() != 0:
            raise Unavailable("cannot measure: making sandboxes needs root")
        if not (chosen.rootfs_dir / chosen.rootfs / "private" / "tree").is_dir():
            raise Unavailable(f"cannot find the rootfs {chosen.rootfs!r}: make it with `make rootfs`")
        _run_in_workspace(chosen)
    except Unavailable as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything was removed", file=sys.stderr)
        return 130
    return 0


def _run_in_workspace(chosen: argparse.Namespace) -> None:
    with Workspace(chosen.rootfs_dir, chosen.rootfs) as workspace:
        if chosen.profile:
            workspace.profile = Path(f"{workspace.path}.profile")
        try:
            _run(chosen, workspace)
            workspace.close()  # a profile is written when the daemon ends
            if workspace.profile:
                print("\n" + profiling.functions(workspace.profile))
        finally:
            workspace.close()
            if workspace.profile:
                workspace.profile.unlink(missing_ok=True)


def _run(chosen: argparse.Namespace, workspace: Workspace) -> None:
    findings = Findings(machine.facts())
    contenders = _open(chosen.peers, workspace, findings)
    for figure in chosen.only:
        taking_part = {name: each for name, each in contenders.items() if figure in each.figures}
        _measure(figure, taking_part, findings, quick=chosen.quick)
    console = Console(width=None if sys.stdout.isatty() else 110)
    report.print_tables(findings, console)
    print("\n" + report.markdown(findings))
    if findings.phases:
        print("\n" + profiling.phases(findings.phases) + "\n" + profiling.births(workspace.share(Daemon)))
    if chosen.json:
        chosen.json.write_text(json.dumps(findings.to_json(), indent=1) + "\n")
    if chosen.markdown:
        lines = [report.markdown(findings), "", *report.how_to_read(findings)]
        chosen.markdown.write_text("\n".join(lines) + "\n")
    if chosen.plot:
        plot.draw(findings.tables, chosen.plot, workspace)


def _open(wanted: Sequence[str], workspace: Workspace, findings: Findings) -> dict[str, Contender]:
    found: dict[str, Contender] = {}
    for make in ALL:
        if _slug(make) not in wanted:
            continue
        contender = make(workspace)
        _progress(f"starting {contender.name}")
        try:
            contender.open()
        except Unavailable as error:
            findings.absent[contender.name] = str(error)
            _progress(f"  it does not run here: {error}")
            continue
        found[contender.name] = contender
        findings.versions[contender.name] = contender.version
        if contender.note:
            findings.notes[contender.name] = contender.note
    return found


def _measure(figure: str, contenders: Mapping[str, Contender], findings: Findings, *, quick: bool) -> None:
    _progress(f"measuring {figure}: {', '.join(contenders)}")
    began = time.monotonic()
    if figure == "create":
        tables, findings.phases = create.measure(contenders, quick)
    else:
        measure = {
            "exec": exec_figure.measure,
            "session": sessions.measure,
            "start": processes.measure_start,
            "memory": memory.measure,
            "stdout": stdout.measure,
            "follow": processes.measure_follow,
            "echo": processes.measure_echo,
            "contexts": contexts.measure,
            "files": files.measure,
            "clone": clone.measure,
            "javascript": javascript.measure,
        }[figure]
        tables = measure(contenders, quick)
    findings.tables += tables
    _progress(f"  took {time.monotonic() - began:.0f} s")


def _progress(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _slug(made: object) -> str:
    return str(getattr(made, "name", "")).replace(" ", "-").lower()
