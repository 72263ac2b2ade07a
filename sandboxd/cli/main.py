"""The command `sandboxd`: which verbs there are, and what happens when one fails.

A verb's module is imported when the verb is called: `sandboxd ls` loads no daemon, `sandboxd --help` loads nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sandboxd import __version__, stdio
from sandboxd.cli import output
from sandboxd.cli.failure import Failure, Interrupted, guarded, one_sentence
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Each verb, in the order in which a newcomer meets them: where it is, and its line in the help.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "demo": ("sandboxd.cli.demo:demo", "Give a tour of a sandbox on a running daemon."),
    "run": ("sandboxd.cli.run:run", "Run one command in a sandbox of its own."),
    "create": ("sandboxd.cli.create:create", "Create a sandbox and print its id."),
    "exec": ("sandboxd.cli.exec:exec_", "Run a command in a sandbox."),
    "session": ("sandboxd.cli.sessions:session", "Manage sessions, whose commands share a shell's state."),
    "shell": ("sandboxd.cli.shell:shell", "Open a terminal in a sandbox."),
    "code": ("sandboxd.cli.code:code", "Run code in an interpreter that keeps its state."),
    "contexts": ("sandboxd.cli.code:contexts", "Manage those interpreters (code contexts)."),
    "start": ("sandboxd.cli.processes:start", "Start a process in the background."),
    "ps": ("sandboxd.cli.processes:ps", "List the processes of a sandbox."),
    "logs": ("sandboxd.cli.processes:logs", "Show or follow what a process prints."),
    "kill": ("sandboxd.cli.processes:kill", "Send processes a signal, or remove them."),
    "wait": ("sandboxd.cli.processes:wait", "Wait for a process to end, a port to open, or a line in a log."),
    "expose": ("sandboxd.cli.ports:expose", "Expose a port of a sandbox and print its URL."),
    "unexpose": ("sandboxd.cli.ports:unexpose", "Stop exposing a port."),
    "ports": ("sandboxd.cli.ports:ports", "List the exposed ports of a sandbox."),
    "ls": ("sandboxd.cli.ls:ls", "List sandboxes."),
    "cp": ("sandboxd.cli.cp:cp", "Copy files and directories into or out of a sandbox."),
    "clone": ("sandboxd.cli.clone:clone", "Clone a git repository into a sandbox."),
    "files": ("sandboxd.cli.files:files", "Inspect and change the files of a sandbox."),
    "update": ("sandboxd.cli.update:update", "Change a sandbox's limits, variables, labels or name."),
    "freeze": ("sandboxd.cli.freeze:freeze", "Freeze sandboxes: stop every process where it is."),
    "thaw": ("sandboxd.cli.freeze:thaw", "Let frozen sandboxes continue."),
    "stats": ("sandboxd.cli.stats:stats", "Show what sandboxes use."),
    "events": ("sandboxd.cli.events:events", "Print what happens to sandboxes, as it happens."),
    "metrics": ("sandboxd.cli.metrics:metrics", "Print the daemon's metrics in the Prometheus text format."),
    "rm": ("sandboxd.cli.rm:rm", "Destroy sandboxes."),
    "info": ("sandboxd.cli.info:info", "Show the daemon, or one sandbox."),
    "rootfs": ("sandboxd.cli.rootfs:rootfs", "Build, import, list and remove root filesystems."),
    "doctor": ("sandboxd.cli.doctor:doctor", "Check this host, and say how to fix what is missing."),
    "serve": ("sandboxd.cli.serve:serve", "Run the daemon."),
    "version": ("sandboxd.cli.version:version", "Print the versions of this program and of the daemon."),
}

#: Verbs that are no clients of the daemon, and import what they like.
DAEMON_VERBS: Final = frozenset({"serve", "rootfs"})
#: What httpx and httpcore load where it is installed and do without where it is not: a command line of their own with
#: half of rich, HTTP/2, and trio, which this synchronous client never uses. 160 ms of 300 for each call. Only in a
#: process that is ours alone: in a program that uses the SDK this is not ours to say.
UNWANTED: Final = ("httpx._main", "h2", "trio")


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; sandboxd's errors become one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every verb's name."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb and return its command."""
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        if ctx.obj is not None and ctx.obj.get("own_process") and cmd_name not in DAEMON_VERBS:
            for name in UNWANTED:
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # "cannot be imported"
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is wrong otherwise
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs from the table, so that help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        """Run the verb; an error becomes a sentence on stderr and an exit status, never a traceback."""
        try:
            return super().invoke(ctx)
        except SandboxdError as error:
            raise Failure(one_sentence(error)) from error
        except Interrupted as signal:
            for note in getattr(signal, "__notes__", []):
                output.say(f"sandboxd: {note}", err=True)
            ctx.exit(128 + signal.number)
        except (output.OutputClosed, output.OutputFailed):
            raise
        except OSError as error:
            # Our own input is a folder, say. What a verb opens for its user it explains itself.
            what = f"{error.filename}: " if error.filename else ""
            raise Failure(f"cannot go on: {what}{error.strerror or error}") from error
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url", envvar="SANDBOXD_URL", metavar="URL", help="Address of the daemon: unix:///path or http://host:port."
)
@click.option("--token", envvar="SANDBOXD_TOKEN", metavar="TOKEN", help="Token for a daemon on TCP.")
@click.version_option(__version__, "--version", message="sandboxd %(version)s")
@click.pass_context
def cli(ctx: click.Context, url: str | None, token: str | None) -> None:
    """Isolated sandboxes on this machine, in milliseconds.

    The daemon's address is --url, else SANDBOXD_URL, else unix:///run/sandboxd/sandboxd.sock.
    """
    ctx.obj = {**(ctx.obj or {}), "url": url, "token": token}


def main() -> None:
    """Run the command line and exit."""
    stdio.open_standard()
    guarded(lambda: cli(prog_name="sandboxd", obj={"own_process": True}))


if __name__ == "__main__":
    main()
