"""The command `sandboxd`: which verbs there are, and what happens when one fails.

A verb's module is imported when the verb is called: `sandboxd ls` loads no daemon, `sandboxd --help` loads nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from sandboxd import __version__, stdio
from sandboxd.cli import output
from sandboxd.cli.failure import USAGE, Failure, Interrupted, guarded, one_sentence, unexpected
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Each verb, in the order in which a newcomer meets them: where it is, and its line in the help.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "demo": ("sandboxd.cli.demo:demo", "Take a tour: create a sandbox, run a program in it, destroy it."),
    "run": ("sandboxd.cli.run:run", "Run a command in a new sandbox."),
    "create": ("sandboxd.cli.create:create", "Create a sandbox and print its id."),
    "exec": ("sandboxd.cli.exec:exec_", "Run a command in a sandbox."),
    "session": ("sandboxd.cli.sessions:session", "Manage sessions, which keep a shell's state between commands."),
    "shell": ("sandboxd.cli.shell:shell", "Open a terminal in a sandbox."),
    "code": ("sandboxd.cli.code:code", "Run code in an interpreter that keeps its state."),
    "contexts": ("sandboxd.cli.code:contexts", "Manage code contexts, the interpreters of `sandboxd code`."),
    "process": ("sandboxd.cli.processes:process", "Start, list, follow, signal and wait for background processes."),
    "expose": ("sandboxd.cli.ports:expose", "Expose a port of a sandbox and print its URL."),
    "unexpose": ("sandboxd.cli.ports:unexpose", "Stop exposing a port."),
    "ports": ("sandboxd.cli.ports:ports", "List the exposed ports of a sandbox."),
    "ls": ("sandboxd.cli.ls:ls", "List sandboxes."),
    "cp": ("sandboxd.cli.cp:cp", "Copy files and directories into or out of a sandbox."),
    "clone": ("sandboxd.cli.clone:clone", "Clone a git repository into a sandbox."),
    "files": ("sandboxd.cli.files:files", "Inspect and change the files of a sandbox."),
    "update": ("sandboxd.cli.update:update", "Change a sandbox's limits, environment, labels or name."),
    "freeze": ("sandboxd.cli.freeze:freeze", "Freeze sandboxes: suspend all their processes."),
    "thaw": ("sandboxd.cli.freeze:thaw", "Resume frozen sandboxes."),
    "stats": ("sandboxd.cli.stats:stats", "Show the resource usage of sandboxes."),
    "events": ("sandboxd.cli.events:events", "Print sandbox events as they happen."),
    "metrics": ("sandboxd.cli.metrics:metrics", "Print the daemon's metrics in the Prometheus text format."),
    "rm": ("sandboxd.cli.rm:rm", "Destroy sandboxes."),
    "info": ("sandboxd.cli.info:info", "Show details of the daemon or of one sandbox."),
    "rootfs": ("sandboxd.cli.rootfs:rootfs", "Build, import, list and remove root filesystems."),
    "doctor": ("sandboxd.cli.doctor:doctor", "Check this host, and suggest a fix for each problem."),
    "shim": ("sandboxd.cli.shim:shim", "Print a loader shim that lets another vendor's client run here."),
    "serve": ("sandboxd.cli.serve:serve", "Run the daemon."),
    "version": ("sandboxd.cli.version:version", "Print the version of this program and of the daemon."),
}

#: Verbs of earlier versions, which took the same options and arguments: what each is called now.
RENAMED: Final[Mapping[str, str]] = {
    "start": "process start",
    "ps": "process ls",
    "logs": "process logs",
    "kill": "process kill",
    "wait": "process wait",
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
        try:
            command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            raise _not_installed(cmd_name, error) from error
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is wrong otherwise
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; one that has another name now is answered with what to type, and runs nothing."""
        if args[0] in RENAMED:
            raise Failure(_renamed(ctx, args), USAGE)
        return super().resolve_command(ctx, args)

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
        except ModuleNotFoundError as error:
            raise _not_installed(ctx.invoked_subcommand or "", error) from error
        except Interrupted as signal:
            for note in getattr(signal, "__notes__", []):
                output.say(f"sandboxd: {note}", err=True)
            ctx.exit(128 + signal.number)
        except (output.OutputClosed, output.OutputFailed):
            raise
        except OSError as error:
            # What a verb opens for its user it explains itself.
            raise unexpected(error) from error
        except KeyboardInterrupt:
            ctx.exit(130)


def _not_installed(verb: str, error: ModuleNotFoundError) -> Exception:
    """Return what to tell whoever has installed the client only; a module of ours that is missing is a bug."""
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "sandboxd"):
        return error
    return Failure(
        f"cannot run `sandboxd {verb}`: {missing} is not installed; the daemon and its tools need Linux and "
        "`pip install 'sandboxd[daemon]'`"
    )


def _renamed(ctx: click.Context, args: list[str]) -> str:
    now = RENAMED[args[0]].split()
    words = ["sandboxd", *now, *args[1:]]
    for option, secret in (("token", True), ("url", False)):
        if ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            words[1:1] = [f"--{option}", "TOKEN" if secret else ctx.params[option]]
    return f"`{args[0]}` is now `sandboxd {' '.join(now)}`; type: {' '.join(map(output.quoted, words))}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url", envvar="SANDBOXD_URL", metavar="URL", help="Address of the daemon: unix:///path or http://host:port."
)
@click.option("--token", envvar="SANDBOXD_TOKEN", metavar="TOKEN", help="Bearer token, required by a daemon on TCP.")
@click.version_option(__version__, "--version", message="sandboxd %(version)s")
@click.pass_context
def cli(ctx: click.Context, url: str | None, token: str | None) -> None:
    """Create isolated sandboxes on this machine in milliseconds.

    The daemon's address is --url, else SANDBOXD_URL, else unix:///run/sandboxd/sandboxd.sock.
    """
    ctx.obj = {**(ctx.obj or {}), "url": url, "token": token}


def main() -> None:
    """Run the command line and exit."""
    stdio.open_standard()
    guarded(lambda: cli(prog_name="sandboxd", obj={"own_process": True}))


if __name__ == "__main__":
    main()
