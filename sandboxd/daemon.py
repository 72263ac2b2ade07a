"""The composition root: from a configuration to a serving daemon.

Order matters. As root and before trio: directories, the lock, the listening sockets, the launcher's exec. Then the
privileges go, and only then trio starts and the first byte of a caller is read. The launcher is a program of its
own behind a socket pair; when it dies, the daemon ends and the service manager starts both again.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import trio

from . import __version__
from .api.access import Policy
from .api.app import Api
from .api.call import DaemonFacts
from .api.http.server import BACKLOG, Server
from .config import GROUP, USER, Config, launcher_settings
from .errors import AlreadyRunning, ConfigError, HostUnsupported, LauncherGone
from .linux import malloc, memfd
from .linux.kernel import Kernel
from .metrics import Metrics
from .metrics.families import connections
from .previewing import PreviewListeners, make_proxy
from .runtime.launcher import Launcher
from .runtime.manager import Manager
from .runtime.trimming import Trimmer

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("sandboxd")

#: include/uapi/linux/memfd.h; the os module has it from Python 3.14.
MFD_EXEC: Final = 0x0010
#: How long the launcher may take to end after its socket closed.
LAUNCHER_END_S: Final = 5.0
#: sun_path with its NUL (unix(7)).
MAX_SOCKET_PATH: Final = 107


def run(config: Config) -> int:
    """Serve until a signal or the launcher's death; return the exit status.

    Raises:
        SandboxdError: it could not start.
    """
    _set_up_logging(config)
    token = config.token()
    identity = Identity()
    _preflight(config)
    _raise_file_limit()
    malloc.set_up()
    _make_directories(config, identity)
    lock = _lock(config)
    sockets = _listen(config, identity)
    previews = PreviewListeners.open(config)
    process, link = _start_launcher(config, identity)
    try:
        identity.assume()
        return trio.run(_serve, config, identity, token, Sockets(sockets, previews, link))
    finally:
        link.close()
        _end_launcher(process)
        with contextlib.suppress(OSError):  # the directory is root's: where privileges went, the next start does it
            config.socket_path.unlink()
        os.close(lock)


class Identity:
    """Who the daemon is to be: the user `sandboxd` where there is one, and whom the socket belongs to."""

    def __init__(self) -> None:
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.user: str | None = None
        self.socket_gid: int | None = None
        try:
            self.socket_gid = grp.getgrnam(GROUP).gr_gid
            entry = pwd.getpwnam(USER)
        except KeyError:
            return
        if os.geteuid() == 0:
            self.uid, self.gid, self.user = entry.pw_uid, entry.pw_gid, USER

    def assume(self) -> None:
        """Become that user for good, or say loudly that the daemon stays root."""
        if self.user is None:
            if os.geteuid() == 0:
                _log.warning("Running as root: there is no user %r to drop to; create one to confine the daemon", USER)
            return
        os.initgroups(self.user, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        Kernel().set_no_new_privs()  # no setuid program of the host's gives anything back
        _log.info("Running as user %s (uid %d)", self.user, self.uid)


def _set_up_logging(config: Config) -> None:
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # hypercorn and quart log what our own edge has told already.
    logging.getLogger("sandboxd.http").setLevel(logging.WARNING)


def _preflight(config: Config) -> None:
    if os.geteuid() != 0:
        raise HostUnsupported(
            "cannot start: creating sandboxes requires root", feature="root", remedy="run 'sandboxd serve' as root"
        )
    if len(str(config.socket_path).encode()) > MAX_SOCKET_PATH:
        raise ConfigError(f"cannot listen on {config.socket_path}: the path is over 107 bytes", key="socket")
    # `<links>/<id>.sock` must fit as well; an id has at most 26 characters.
    if len(str(config.init_sockets_dir).encode()) + 1 + 26 + 5 > MAX_SOCKET_PATH:
        raise ConfigError(
            f"cannot use the runtime directory {config.runtime_dir}: its path is too long for sockets",
            key="runtime_dir",
        )


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_directories(config: Config, identity: Identity) -> None:
    """Make what is missing, and set owner and mode of what is there: a start heals an earlier mistake."""
    rows = (
        (config.state_dir, 0o755, 0, 0),
        (config.state_dir / "pool", 0o700, 0, 0),
        (config.state_dir / "records", 0o700, 0, 0),
        (config.registry_dir, 0o700, identity.uid, identity.gid),
        (config.previews_dir, 0o700, identity.uid, identity.gid),
        (config.runtime_dir, 0o755, 0, 0),
        (config.init_sockets_dir, 0o750, 0, identity.gid),
        (config.runtime_dir / "stage", 0o700, 0, 0),
        (config.runtime_dir / "pool", 0o700, 0, 0),
    )
    for path, mode, uid, gid in rows:
        try:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, uid, gid)
            path.chmod(mode)
        except OSError as error:
            raise ConfigError(f"cannot create the directory {path}: {error.strerror}", key="state_dir") from None


def _lock(config: Config) -> int:
    """Take the state directory for ourselves; the kernel frees it whichever way we end."""
    fd = os.open(config.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyRunning(
            f"cannot start: another daemon uses {config.state_dir}", state_dir=str(config.state_dir)
        ) from None
    return fd


def _listen(config: Config, identity: Identity) -> list[socket.socket]:
    sockets = [_listen_unix(config.socket_path, identity)]
    if config.listen is not None:
        host, port = config.listen
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", key="listen") from None
        sockets.append(sock)
    return sockets


def _listen_unix(path: Path, identity: Identity) -> socket.socket:
    """Bind the socket; a file that a dead daemon left is replaced, one that somebody answers is not."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink(missing_ok=True)
            else:
                raise AlreadyRunning(f"cannot start: another process is listening on {path}", socket=str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror}", key="socket") from None
    finally:
        os.umask(before)
    os.chown(path, identity.uid, identity.socket_gid if identity.socket_gid is not None else identity.gid)
    path.chmod(0o660)
    sock.listen(BACKLOG)
    return sock


def _start_launcher(config: Config, identity: Identity) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the launcher with one end of a socket pair and its settings in a memory file.

    It gets a session of its own, so that a terminal's Ctrl-C ends the daemon alone and the launcher after it.
    """
    settings = launcher_settings(config, daemon_uid=identity.uid, daemon_gid=identity.gid)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    memory = os.memfd_create("sandboxd-launcher-settings", os.MFD_CLOEXEC)
    interpreter = _private_interpreter()
    try:
        os.write(memory, msgpack.packb(settings))
        os.lseek(memory, 0, os.SEEK_SET)
        fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "sandboxd.launcher", "--fd", str(fd), "--config-fd", str(memory)],
            executable=f"/proc/self/fd/{interpreter}",
            pass_fds=(fd, memory, interpreter),
            stdin=subprocess.DEVNULL,
            # Every init comes from forks of the launcher: nothing of the daemon's environment may be in its memory.
            # Not empty, since python-prctl writes the process title over it.
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(memory)
        os.close(interpreter)
        theirs.close()
    return process, ours


def _private_interpreter() -> int:
    """Return a sealed copy of the interpreter in memory, which only root may execute or open.

    Until it executes its program, a command in a sandbox comes from forks of the launcher, so its /proc/self/exe is
    the launcher's: with the host's own binary there, a sandbox could run it, lock it and watch it (CVE-2019-5736).
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create("sandboxd-python", flags | MFD_EXEC)
    except OSError:  # before Linux 6.3 every memfd can be executed, and the flag is unknown
        copy = os.memfd_create("sandboxd-python", flags)
    with open(sys.executable, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        while os.fstat(copy).st_size < size:
            os.sendfile(copy, source.fileno(), None, size)
    os.fchmod(copy, 0o500)
    memfd.seal(copy)
    return copy


def _end_launcher(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LAUNCHER_END_S)
    except subprocess.TimeoutExpired:
        # It may be in the middle of a creation; killing it there would leave half a sandbox to the next sweep.
        _log.warning("The launcher (pid %d) has not ended yet", process.pid)


class Sockets(NamedTuple):
    """What was opened before the privileges went: the API's listeners, the previews', the launcher's link."""

    api: list[socket.socket]
    previews: PreviewListeners
    link: socket.socket


async def _serve(config: Config, identity: Identity, token: str | None, sockets: Sockets) -> int:
    launcher = Launcher(sockets.link)
    tombstones = config.previews_dir / "destroyed.jsonl"
    manager = Manager(
        launcher,
        config.registry_dir,
        config.init_sockets_dir,
        tombstones,
        config.network_dns,
        spare_s=config.node_spare_s,
        standby_s=config.standby_s,
    )
    facts = DaemonFacts(__version__, _config_facts(config))
    policy = Policy(token, frozenset({identity.uid}), identity.socket_gid)
    metrics = Metrics(manager, __version__)
    server = Server(Api(manager, policy, facts, metrics), sockets.api)
    proxy = make_proxy(config, manager.previews, sockets.previews, token)
    metrics.add(connections("sandboxd_http_connections", "Connections to the API", server.statistics))
    if proxy is not None:
        metrics.add(connections("sandboxd_preview_connections", "Connections to the previews", proxy.statistics))
    status = 0

    async def drain() -> None:
        notify("STOPPING=1")
        server.stop()
        if proxy is not None:
            proxy.stop()
            await proxy.drained.wait()
        await server.drained.wait()

    manager.on_shutdown = drain
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            nursery.start_soon(metrics.run)
            nursery.start_soon(Trimmer(manager.budget, malloc.trim).run)
            await nursery.start(server.run)
            _log.info("Listening on %s", " and ".join(_describe(sock) for sock in sockets.api))
            if proxy is not None:
                await nursery.start(proxy.run)
                _log.info("Serving previews at %s", proxy.urls.pattern)
            notify("READY=1")
            await _wait_for_a_signal()
            _log.info("Stopping; sandboxes go on running")
            manager.stop()
            await drain()
            launcher.close()
            nursery.cancel_scope.cancel()
    except* LauncherGone as group:
        _log.error("Stopping: %s", _leaf(group))
        status = 1
    return status


def _leaf(error: BaseException) -> BaseException:
    """Return the first error of nested groups: nurseries wrap what ended them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _config_facts(config: Config) -> dict[str, Any]:
    return {
        "state_dir": str(config.state_dir),
        "runtime_dir": str(config.runtime_dir),
        "rootfs_dir": str(config.rootfs_path),
        "allow_unenforced": config.allow_unenforced,
        "pid": os.getpid(),
    }


def _describe(sock: socket.socket) -> str:
    name = sock.getsockname()
    return str(name) if sock.family == socket.AF_UNIX else f"{name[0]}:{name[1]}"


async def _wait_for_a_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                return
            _log.info("Ignored SIGHUP: the configuration is read at the start only")


def notify(state: str) -> None:
    """Tell the service manager, where there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as error:
        _log.warning("Cannot notify the service manager: %s", error.strerror)
