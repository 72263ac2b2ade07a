"""`python -I -m sandboxd.launcher --fd N --config-fd M`: started by the daemon alone, as root, before it drops."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import msgpack
import prctl

from .. import stdio
from ..errors import SandboxdError
from ..guest import init
from ..linux.kernel import Kernel
from . import profiles
from .create_child import Deps
from .settings import Settings
from .zygote import Zygote

if TYPE_CHECKING:
    import logging


def _arguments(argv: list[str]) -> tuple[int, int]:
    # Two fixed options from one caller; argparse would stay in the memory of every init.
    if len(argv) != 4 or argv[0] != "--fd" or argv[2] != "--config-fd":
        sys.exit("usage: python -m sandboxd.launcher --fd N --config-fd M (started by `sandboxd serve`)")
    return int(argv[1]), int(argv[3])


def main() -> None:
    """Serve one daemon until it is gone."""
    stdio.open_standard()
    fd, config_fd = _arguments(sys.argv[1:])
    with open(config_fd, "rb") as file:
        settings = Settings.from_message(msgpack.unpackb(file.read()))
    prctl.set_proctitle("sandboxd: launcher")
    prctl.set_name("sandboxd-launch")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal's Ctrl-C reaches the whole group; the launcher ends when its daemon does.
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o022)  # whatever that of who started the daemon: init reaches what is made here
    init.preload()
    connection = socket.socket(fileno=fd)
    kernel = Kernel()
    # The copy of the interpreter that we run from, and whatever else came by.
    if fd > 3:
        kernel.close_range(3, fd - 1)
    kernel.close_range(fd + 1, 2**32 - 1)
    try:
        filters = profiles.compile_all(settings.profile_dir, settings.own_profile_dir)
        zygote = Zygote(kernel, Deps(filters.profiles, init.prepare()))
        _serve(settings, connection, kernel, zygote, filters)
    except SandboxdError as error:
        _log().critical("Cannot start: %s", error)
        sys.exit(1)


def _serve(
    settings: Settings, connection: socket.socket, kernel: Kernel, zygote: Zygote, filters: profiles.Filters
) -> None:
    # Not before the zygote is forked: what the launcher alone needs would be in the memory of every init.
    from .server import Launcher  # noqa: PLC0415

    _log()
    Launcher(settings, connection, kernel, zygote, filters).run()


def _log() -> logging.Logger:
    import logging  # noqa: PLC0415 - as above

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return logging.getLogger("sandboxd.launcher")


if __name__ == "__main__":
    main()
