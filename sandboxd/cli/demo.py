"""`sandboxd demo`: the main job, shown to a newcomer on a running daemon, through the SDK as anybody would use it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sandboxd.cli import demo_program
from sandboxd.cli.failure import Failure, Interrupts
from sandboxd.cli.output import shown_line
from sandboxd.cli.params import client_of
from sandboxd.errors import SandboxNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from sandboxd.client import Client, Sandbox

#: What is asked inside, and what one sees by it.
LOOKS: Final = (
    ("who am I", "id"),
    ("host name", "hostname"),
    ("processes", "ps -eo pid,user,args"),
    ("interfaces", "ls /sys/class/net"),
    ("mounts", "awk '{print $3, $2}' /proc/mounts | head -n 8"),
    ("uid map", "cat /proc/self/uid_map"),
)
LINES: Final = 'for n in 1 2 3 4 5; do echo "line $n"; sleep 0.2; done'
#: Five lines, 0.2 s apart: that they arrive over at least this time (seconds) shows that nothing held them back.
SPREAD_S: Final = 0.6


@click.command()
@click.option("--rootfs", metavar="NAME", help="Root filesystem.  [default: default]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("sandboxd-demo.png"),
    metavar="FILE",
    help="Write the picture to FILE.  [default: ./sandboxd-demo.png]",
)
@click.pass_context
def demo(ctx: click.Context, *, rootfs: str | None, output: Path) -> None:
    """Create a sandbox, look around in it, run a real program, fetch the picture it draws, and destroy the sandbox."""
    from rich.console import Console  # noqa: PLC0415 - `demo --help` needs neither rich nor httpx

    from sandboxd.client import Sandbox  # noqa: PLC0415

    client = client_of(ctx)
    show = Demo(client, Console(highlight=False, soft_wrap=True))
    with Interrupts() as interrupts:
        with show.step("create a sandbox"), interrupts.held():
            sandbox = Sandbox.create(rootfs=rootfs, labels={"made-by": "demo"}, client=client)
        try:
            interrupts.raise_waiting()
            show.say(f"id {sandbox.id}, rootfs {sandbox.info.rootfs}, state {sandbox.info.state}")
            show.tour(sandbox, output)
        finally:
            with show.step("destroy the sandbox"), interrupts.held():
                sandbox.destroy()
        show.check_gone(sandbox)
    show.summary()


class Demo:
    """The tour's steps, what each took, and what was not as it should be."""

    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self._took: list[tuple[str, float]] = []
        self._wrong: list[str] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step's title and keep what it took."""
        self._console.print(f"\n[bold cyan]{len(self._took) + 1}. {title}[/]")
        began = time.perf_counter()
        try:
            yield
        finally:
            self._took.append((title, time.perf_counter() - began))

    def say(self, text: str) -> None:
        """Show a line, without what a terminal would obey."""
        self._console.print(f"   {shown_line(text)}", markup=False)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note `otherwise` if something is not as it should be."""
        if not holds:
            self._wrong.append(otherwise)
            self._console.print(f"   [bold red]unexpected:[/] {otherwise}")

    def tour(self, sandbox: Sandbox, output: Path) -> None:
        """Run the steps between creation and end."""
        with self.step("look around inside"):
            self._look(sandbox)
        with self.step("stream a command's lines as they are printed"):
            self._stream(sandbox)
        with self.step("run a numpy and matplotlib program"):
            self._compute(sandbox)
        with self.step("fetch the picture it drew"):
            self._fetch(sandbox, output)

    def check_gone(self, sandbox: Sandbox) -> None:
        """Ask the daemon for the sandbox that is no more."""
        try:
            sandbox.connect(sandbox.id, client=self._client)
        except SandboxNotFound:
            self.say(f"{sandbox.id} is gone")
        else:
            self.expect(False, "the sandbox is still there")

    def summary(self) -> None:
        """Show what each step took.

        Raises:
            Failure: something was not as it should be.
        """
        from rich.table import Table  # noqa: PLC0415 - `demo --help` needs no rich

        table = Table("step", "took", title="What it took", title_justify="left", header_style="bold")
        table.columns[1].justify = "right"
        for title, seconds in [*self._took, ("all together", sum(took for _, took in self._took))]:
            table.add_row(title, f"{seconds * 1000:,.1f} ms")
        self._console.print()
        self._console.print(table)
        if self._wrong:
            raise Failure(f"the demo found {len(self._wrong)} problems: {'; '.join(self._wrong)}")

    def _look(self, sandbox: Sandbox) -> None:
        seen: dict[str, str] = {}
        for title, command in LOOKS:
            result = sandbox.exec(command)
            seen[title] = result.stdout.strip()
            self.say(f"{title}  ($ {command})")
            for line in seen[title].splitlines():
                self.say(f"    {line}")
            self.expect(result.ok, f"`{command}` ended with {result.describe()}: {result.stderr.strip()}")
        self.expect(seen["who am I"].startswith("uid=0"), "the user inside is not root")
        self.expect(seen["host name"] != socket.gethostname(), "the host name inside is the host's")
        self.expect(seen["interfaces"].split() == ["lo"], "there is an interface besides lo")
        first = next((line.split() for line in seen["processes"].splitlines()[1:]), [])
        self.expect(bool(first) and first[0] == "1", "the process list does not begin at pid 1")
        uid_map = seen["uid map"].split()
        self.expect(len(uid_map) == 3 and uid_map[1] != "0", "root inside is root on the host")

    def _stream(self, sandbox: Sandbox) -> None:
        arrivals: list[float] = []
        began = time.perf_counter()
        with sandbox.exec_stream(LINES) as stream:
            for chunk in stream:
                arrivals.append(time.perf_counter() - began)
                for line in chunk.text.splitlines():
                    self.say(f"{arrivals[-1] * 1000:7.1f} ms  {line}")
            self.expect(stream.wait().ok, f"the loop ended with {stream.wait().describe()}")
        spread = arrivals[-1] - arrivals[0] if arrivals else 0.0
        self.expect(len(arrivals) >= 5 and spread >= SPREAD_S, "the lines did not arrive as they were printed")

    def _compute(self, sandbox: Sandbox) -> None:
        size = sandbox.write_file(demo_program.PATH, demo_program.SOURCE)
        self.say(f"{demo_program.PATH} written: {size} bytes")
        result = sandbox.exec(["python3", demo_program.PATH], timeout=300)
        self.expect(result.ok, f"the program ended with {result.describe()}: {result.stderr.strip()[-500:]}")
        if not result.ok:
            return
        found = json.loads(result.stdout.splitlines()[-1])
        self.say(f"numpy {found['numpy']}, matplotlib {found['matplotlib']}: {found['points']:,} points")
        self.say(f"area of the Mandelbrot set: {found['area']} (known: {demo_program.AREA})")
        off = abs(found["area"] - demo_program.AREA)
        self.expect(off <= demo_program.TOLERANCE, f"the area is off by {off:.4f}")
        peak = result.usage.memory_peak_bytes
        used = "" if result.usage.cpu_s is None else f", {result.usage.cpu_s:.2f} s of CPU time"
        used += "" if peak is None else f", at most {peak / (1 << 20):.0f} MiB of memory"
        self.say(f"took {result.duration_s:.2f} s{used}")

    def _fetch(self, sandbox: Sandbox, output: Path) -> None:
        from sandboxd.cli.cp import save  # noqa: PLC0415 - tempfile and more, for this step only

        data = sandbox.read_file(demo_program.PICTURE)
        size = png_size(data)
        self.expect(size is not None, "the picture is not a PNG")
        save(output, [data])
        if size is not None:
            self.say(f"{output}: a PNG of {size[0]} x {size[1]} pixels, {len(data):,} bytes")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return a whole PNG's width and height in pixels, or None for anything else."""
    whole = data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and data[-8:-4] == b"IEND"
    if not whole:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return int(width), int(height)
