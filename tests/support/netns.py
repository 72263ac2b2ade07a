"""Sockets inside a sandbox's network, made from the host: what a server in there would listen on."""

from __future__ import annotations

import os
import pathlib
import socket
import threading

from sandboxd import Sandbox
from sandboxd.linux.kernel import Kernel
from tests.support.daemon import Daemon

_CLONE_NEWNET = 0x40000000


def init_pid(daemon: Daemon, sandbox: Sandbox) -> int:
    """Return the host's pid of a sandbox's init."""
    text = pathlib.Path(daemon.cgroup(), sandbox.id, "init", "cgroup.procs").read_text()
    return int(text.split()[0])


def listen_in(daemon: Daemon, sandbox: Sandbox) -> socket.socket:
    """Return a socket that listens on 127.0.0.1 inside the sandbox, at a port that the kernel chose."""
    made: list[socket.socket] = []
    namespace = os.open(f"/proc/{init_pid(daemon, sandbox)}/ns/net", os.O_RDONLY)

    def enter() -> None:  # the namespace is this thread's alone
        Kernel().setns(namespace, _CLONE_NEWNET)
        made.append(socket.create_server(("127.0.0.1", 0)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    os.close(namespace)
    return made[0]
