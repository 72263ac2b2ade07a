"""The templates: starts them on demand, has their children enter sandboxes, ends them.

A template is `sandboxd/templates/base.py` in an interpreter that `template_start.py` has confined. It runs code that
the launcher does not trust as itself (a rootfs's Python): from it comes one packet at a time, of a few words, which are
compared or logged and nothing else; to it go names, and descriptors that the launcher has opened. One that does not
answer in time is killed, one that ends is started anew for whoever asks next, and after failures not at once.

Nothing needs a template but for speed: every failure is `TemplateUnavailable`, and whoever asked does without.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import InvalidRequest, SandboxdError, SandboxNotFound, TemplateUnavailable
from ..linux import cgroupfs, seccomp
from ..linux.eventloop import READ, Alarm, EventLoop, is_readable
from ..linux.kernel import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, Kernel, SyscallError, last_capability
from . import rootfs, template_start
from .cgroups import SandboxCgroups
from .control import Answers, Running, id_of
from .plan import SANDBOX_CAPABILITIES
from .profiles import Filters
from .settings import Settings
from .template_start import Start

log = logging.getLogger("sandboxd.launcher")

#: How long the imports may take, on a machine that is busy with others.
LOAD_TIMEOUT_S: Final = 120.0
#: How long a fork may take.
ORDER_TIMEOUT_S: Final = 3.0
#: A template that nobody has asked for this long is ended; it holds some 100 MiB.
IDLE_S: Final = 900.0
#: After a failed start the next one waits this long, twice as long after each further one.
FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 600.0
#: Templates at once, each of another rootfs; the one that was idle longest gives way.
MAX_TEMPLATES: Final = 8
#: Orders that may wait for one.
MAX_ORDERS: Final = 64
#: How soon the group of one that was killed is looked at again, and how long the launcher waits at its own end.
RETRY_S: Final = 0.005
CLOSE_TIMEOUT_S: Final = 2.0
#: What one may take while it loads, where controllers are: its children are born in their sandboxes' groups.
_MEMORY_BYTES: Final = 2 << 30
_PROCESSES: Final = 64
_GROUP_PREFIX: Final = "template-"
#: The order of templates/base.py, NAMESPACES; each with the name that /proc has for it.
NAMESPACES: Final = ("pid", "cgroup", "ipc", "uts", "net", "time", "mnt", "user")
_ANSWER_BYTES: Final = 2048
#: A process's id, or a file job's with its underscore, and a number where the name was taken.
_LEAF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(~[0-9]{1,19})?\Z")


#: How a worker of the daemon's is run (runtime/contexts.py), so that nothing tells the two apart.
PYTHON: Final = (
    "python3",
    "-c",
    "import sys; sys.path[:] = [p for p in sys.path if p]; import os; "
    "exec(compile(os.pread(7, os.fstat(7).st_size, 0), '<sandboxd>', 'exec'), {'__name__': '__main__'})",
)
#: Files of sandboxd that a rootfs's Python runs, by their names there.
SOURCES: Final = {
    "program": "templates/python_program.py",
    "base": "templates/base.py",
    "worker": "workers/python_worker.py",
    "errors": "workers/python_errors.py",
    "shell": "workers/python_shell.py",
    "charts": "workers/python_charts.py",
    "specs": "workers/python_specs.py",
}


class Kinds:
    """What there are templates of."""

    GIT = "git"
    PYTHON = "python"


@dataclasses.dataclass(slots=True)
class _EnterRequest:
    """A child that is to enter a sandbox; `handoff` is ours until it was sent."""

    request: int
    sandbox: Running
    leaf: str
    handoff: int
    deadline: float


@dataclasses.dataclass(slots=True)
class _Template:
    """One template's process."""

    key: tuple[str, str]
    tree: tuple[int, int]
    pidfd: int
    connection: socket.socket
    group: str
    deadline: float
    is_ready: bool = False
    used_at: float = 0.0
    waiting: collections.deque[_EnterRequest] = dataclasses.field(default_factory=collections.deque)
    sent: collections.deque[_EnterRequest] = dataclasses.field(default_factory=collections.deque)


@dataclasses.dataclass(slots=True)
class _Rest:
    """How long no template of a kind is started after failures."""

    until: float
    length: float


class Templates:
    """The operation `enter`, and the templates that it needs."""

    def __init__(
        self,
        loop: EventLoop,
        settings: Settings,
        kernel: Kernel,
        cgroups: SandboxCgroups,
        filters: Filters,
        sandboxes: Mapping[str, Running],
        answers: Answers,
    ) -> None:
        self._loop = loop
        self._alarm = Alarm(loop, self._advance)
        self._settings = settings
        self._kernel = kernel
        self._cgroups = cgroups
        self._filters = filters
        self._sandboxes = sandboxes
        self._answers = answers
        self._templates: dict[tuple[str, str], _Template] = {}
        self._rests: dict[tuple[str, str], _Rest] = {}
        self._program_fd = -1
        self._count = 0
        self._leaving: list[tuple[str, int]] = []  # groups and pidfds of what has ended

    def operations(self) -> dict[str, Callable[[int, dict[str, Any], int], None]]:
        """Return the operations that take a descriptor, by their names."""
        return {"enter": self._enter}

    def _due(self, template: _Template) -> float:
        if template.sent:
            return template.sent[0].deadline
        return template.deadline if not template.is_ready else template.used_at + IDLE_S

    def _advance(self) -> None:
        """End what is late or idle, and give back what ended ones had."""
        self._leaving = [item for item in self._leaving if not self._leave(*item)]
        now = time.monotonic()
        for template in list(self._templates.values()):
            if self._due(template) <= now:
                why = "it does not answer" if template.sent or not template.is_ready else "nobody has used it"
                self._end(template, why, failed=template.is_ready is False or bool(template.sent))
        for template in self._templates.values():
            self._alarm.by(self._due(template))
        if self._leaving:
            self._alarm.after(RETRY_S)

    def sweep(self) -> None:
        """Take away what an earlier launcher left."""
        for name in cgroupfs.children(self._cgroups.root):
            if name.startswith(_GROUP_PREFIX):
                self._let_go(f"{self._cgroups.root}/{name}", -1)

    def close(self) -> None:
        """End every template."""
        for template in list(self._templates.values()):
            self._end(template, "the launcher ends", failed=False)
        self._loop.run_while(lambda: bool(self._leaving), CLOSE_TIMEOUT_S)

    def facts(self) -> list[dict[str, Any]]:
        """Return what there is, for a person."""
        return [{"template": key[0], "rootfs": key[1], "ready": item.is_ready} for key, item in self._templates.items()]

    # --- orders ---

    def _enter(self, request: int, params: dict[str, Any], handoff: int) -> None:
        """Have a child of a template enter a sandbox. `handoff` is ours: a unix socket that we never read."""
        try:
            order, wait = self._order(request, params, handoff)
            key = self._key(params, order.sandbox)
            template = self._templates.get(key)
            if template is not None and template.tree != self._identity(key):
                self._end(template, "its rootfs was replaced", failed=False)
                template = None
            if template is None:
                template = self._start(key)
            if not template.is_ready and not wait:
                raise TemplateUnavailable(f"cannot enter {order.sandbox.record.id}: template {key[0]} is being loaded")
            if len(template.waiting) + len(template.sent) >= MAX_ORDERS:
                raise TemplateUnavailable(f"cannot enter {order.sandbox.record.id}: too many requests are waiting")
        except (SandboxdError, OSError):
            os.close(handoff)
            raise
        template.waiting.append(order)
        self._send_orders(template)

    def _order(self, request: int, params: dict[str, Any], handoff: int) -> tuple[_EnterRequest, bool]:
        if set(params) - {"id", "template", "leaf", "wait"} or not isinstance(params.get("wait", False), bool):
            raise InvalidRequest("cannot enter: unknown parameters", field="params")
        sandbox_id = id_of(params)
        leaf = params.get("leaf")
        if not isinstance(leaf, str):
            raise InvalidRequest("cannot enter: leaf must be text", field="leaf")
        check_leaf(leaf)
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.ended is not None:
            raise SandboxNotFound(f"cannot enter sandbox {sandbox_id}: it is not running", id=sandbox_id)
        if sandbox.record.seccomp not in self._filters.shipped:
            # A template's own filter stays on its children, and allows what the shipped profiles do.
            raise TemplateUnavailable(f"cannot enter {sandbox_id}: its seccomp profile is the operator's own")
        deadline = time.monotonic() + ORDER_TIMEOUT_S
        return _EnterRequest(request, sandbox, leaf, handoff, deadline), params.get("wait", False)

    def _key(self, params: dict[str, Any], sandbox: Running) -> tuple[str, str]:
        kind = params.get("template")
        if kind == Kinds.GIT:
            return kind, ""
        if kind != Kinds.PYTHON:
            raise InvalidRequest("cannot enter: no such template", field="template")
        name = sandbox.record.rootfs
        if not self._settings.templates:
            raise TemplateUnavailable("cannot use a template: the configuration turns them off")
        if not rootfs.is_trusted(self._settings.rootfs_dir, name) and name not in self._settings.template_rootfs:
            raise TemplateUnavailable(
                f"cannot use a template of rootfs {name}: the configuration does not trust it with templates"
            )
        return kind, name

    def _identity(self, key: tuple[str, str]) -> tuple[int, int]:
        if not key[1]:
            return (0, 0)
        try:
            facts = os.stat(self._settings.tree_of(key[1]))
        except OSError:
            return (-1, -1)
        return facts.st_dev, facts.st_ino

    def _send_orders(self, template: _Template) -> None:
        while template.is_ready and template.waiting and not template.sent:
            order = template.waiting.popleft()
            try:
                self._send(template, order)
                template.sent.append(order)
            except (SandboxdError, OSError) as error:
                self._refuse(order, error)
            finally:
                os.close(order.handoff)

    def _send(self, template: _Template, order: _EnterRequest) -> None:
        sandbox = order.sandbox
        opened: list[int] = []
        try:
            opened.append(self._open_leaf(sandbox.record.id, order.leaf))
            for name in NAMESPACES:
                opened.append(self._kernel.open(f"/proc/{sandbox.record.pid}/ns/{name}", os.O_RDONLY))
            if sandbox.ended is not None or is_readable(sandbox.pidfd):  # the pid may be another's by now
                raise SandboxNotFound(f"cannot enter sandbox {sandbox.record.id}: it has ended", id=sandbox.record.id)
            order.deadline = time.monotonic() + ORDER_TIMEOUT_S
            message = json.dumps({"profile": sandbox.record.seccomp}).encode()
            socket.send_fds(template.connection, [message], [order.handoff, *opened])
            template.used_at = time.monotonic()
            self._alarm.by(order.deadline)
        finally:
            for fd in opened:
                os.close(fd)

    def _open_leaf(self, sandbox_id: str, name: str) -> int:
        """Open the leaf that init made, and let templates put a process into it."""
        work = self._kernel.open(f"{self._cgroups.path(sandbox_id)}/work", os.O_RDONLY | os.O_DIRECTORY)
        try:
            flags = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
            leaf = self._kernel.openat2(work, name, os.O_RDONLY | os.O_DIRECTORY, flags)
            try:
                os.chmod("cgroup.procs", 0o664, dir_fd=leaf)
                os.chown("cgroup.procs", -1, template_start.GROUP_ID, dir_fd=leaf)
            except OSError:
                os.close(leaf)
                raise
            return leaf
        finally:
            os.close(work)

    def _refuse(self, order: _EnterRequest, error: Exception) -> None:
        if not isinstance(error, SandboxdError):
            error = TemplateUnavailable(f"cannot enter sandbox {order.sandbox.record.id}: {error}")
        self._answers.fail(order.request, error)

    # --- templates ---

    def _start(self, key: tuple[str, str]) -> _Template:
        """Start one; raises TemplateUnavailable, OSError."""
        rest = self._rests.get(key)
        if rest is not None and time.monotonic() < rest.until:
            raise TemplateUnavailable(f"cannot use template {key[0]}: it failed recently")
        if not self._filters.template:
            raise TemplateUnavailable("cannot use a template: there is no profile 'default' to confine it")
        if len(self._templates) >= MAX_TEMPLATES:
            idle = [item for item in self._templates.values() if not item.sent and not item.waiting]
            if not idle:
                raise TemplateUnavailable("cannot use a template: too many are running")
            self._end(min(idle, key=lambda item: item.used_at), "it gives way to another", failed=False)
        group = self._make_group()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            start = self._plan(key)
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                pid, pidfd = self._kernel.clone3(0, cgroup_fd=fd)
                if pid == 0:
                    template_start.run(self._kernel, start, theirs.fileno(), lambda *what: _tell(theirs, *what))
            finally:
                os.close(fd)
        except BaseException:
            ours.close()
            self._let_go(group, -1)
            raise
        finally:
            theirs.close()
        now = time.monotonic()
        template = _Template(key, self._identity(key), pidfd, ours, group, now + LOAD_TIMEOUT_S, used_at=now)
        ours.setblocking(False)
        with contextlib.suppress(OSError):  # it may be dead already, which is heard below
            ours.send(self._first_message())
        self._templates[key] = template
        self._alarm.by(template.deadline)
        self._loop.watch(ours.fileno(), READ, lambda: self._on_answer(template))
        # Its connection may outlive it: a child that a sandbox has frozen on its way holds it too.
        self._loop.watch(pidfd, READ, lambda: self._on_death(template))
        log.info("Loading template %s", " ".join(key).strip())
        return template

    def _plan(self, key: tuple[str, str]) -> Start:
        kind, name = key
        filters, stage = tuple(self._filters.template), self._settings.stage_dir
        if kind == Kinds.GIT:
            argv = (template_start.INTERPRETER, "-I", "-B", "-m", "sandboxd.templates", kind)
            return Start(
                argv=argv, tree=None, directories=template_start.host_directories(), stage=stage, filters=filters
            )
        tree = self._settings.tree_of(name)
        return Start(argv=PYTHON, tree=tree, stage=stage, filters=filters, program=self._program())

    def _program(self) -> int:
        """Return a descriptor of what a rootfs's Python is to run; the template's is a copy of it, as of any file's."""
        if self._program_fd < 0:
            package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            sources = {}
            for name, path in SOURCES.items():
                with open(f"{package}/{path}") as file:
                    sources[name] = file.read()
            text = f"_SOURCES = {sources!r}\n{sources.pop('program')}"
            self._program_fd = os.memfd_create("sandboxd-template", os.MFD_CLOEXEC)
            os.write(self._program_fd, text.encode())
        return self._program_fd

    def _first_message(self) -> bytes:
        profiles = {name: self._filters.profiles[name] for name in sorted(self._filters.shipped)}
        message = {
            "capabilities": SANDBOX_CAPABILITIES,
            "last_capability": last_capability(),
            "filters": {name: [program.hex() for program in programs] for name, programs in profiles.items()},
            "command_filter": seccomp.COMMAND_FILTER.hex(),
        }
        return json.dumps(message).encode()

    def _make_group(self) -> str:
        """Make the group of one template, so that all that its imports start can be ended with it."""
        taken = set(cgroupfs.children(self._cgroups.root))
        while f"{_GROUP_PREFIX}{self._count}" in taken:
            self._count += 1
        group = f"{self._cgroups.root}/{_GROUP_PREFIX}{self._count}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._cgroups.root)  # somebody may have tidied our empty group away
        os.mkdir(group)
        for name, value in (("memory.max", _MEMORY_BYTES), ("pids.max", _PROCESSES)):
            with contextlib.suppress(OSError):
                cgroupfs.write(f"{group}/{name}", str(value))
        # The kernel asks for the common ancestor's: that of a template's group and of a sandbox's leaf.
        os.chown(f"{self._cgroups.root}/cgroup.procs", -1, template_start.GROUP_ID)
        os.chmod(f"{self._cgroups.root}/cgroup.procs", 0o664)
        return group

    def _leave(self, group: str, pidfd: int) -> bool:
        """Give back what an ended template had; False while something of it is still leaving."""
        try:
            os.rmdir(group)
        except FileNotFoundError:
            pass
        except OSError:
            cgroupfs.kill(group)
            return False
        if pidfd >= 0:
            with contextlib.suppress(ChildProcessError):
                if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
                    return False
            os.close(pidfd)
        return True

    def _let_go(self, group: str, pidfd: int) -> None:
        cgroupfs.kill(group)
        self._leaving.append((group, pidfd))
        self._alarm.after(RETRY_S)

    def _on_answer(self, template: _Template) -> None:
        try:
            answer = template.connection.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if answer == b"ready" and not template.is_ready:
            template.is_ready = True
            self._rests.pop(template.key, None)
            log.info("Template %s is loaded", " ".join(template.key).strip())
        elif answer == b"entered" and template.sent:
            self._answers.reply(template.sent.popleft().request, {})
        elif answer.startswith(b"refused ") and template.sent:
            self._refuse(template.sent.popleft(), TemplateUnavailable(f"cannot enter: {_words(answer)}"))
        else:
            self._end(template, _words(answer) if answer else "it ended", failed=True)
            return
        self._send_orders(template)

    def _on_death(self, template: _Template) -> None:
        try:
            answer = template.connection.recv(_ANSWER_BYTES)
        except OSError:
            answer = b""
        self._end(template, _words(answer) if answer else "it ended", failed=True)

    def _end(self, template: _Template, why: str, *, failed: bool) -> None:
        """End a template with all that it has started; who waits for it does without."""
        del self._templates[template.key]
        name = " ".join(template.key).strip()
        log.log(logging.WARNING if failed else logging.INFO, "Ending template %s: %s", name, why)
        self._loop.unwatch(template.connection.fileno())
        self._loop.unwatch(template.pidfd)
        template.connection.close()
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(template.pidfd, signal.SIGKILL)
        self._let_go(template.group, template.pidfd)
        if failed:
            before = self._rests.get(template.key)
            length = FIRST_REST_S if before is None else min(LONGEST_REST_S, before.length * 2)
            self._rests[template.key] = _Rest(time.monotonic() + length, length)
        error = TemplateUnavailable(f"cannot use template {name}: {why}")
        for order in template.waiting:
            os.close(order.handoff)
        for order in (*template.sent, *template.waiting):
            self._answers.fail(order.request, error)


def check_leaf(name: str) -> str:
    """Return the name of a leaf if it is one as init makes them (guest/leaf_cgroups.py).

    Raises:
        InvalidRequest: it is none.
    """
    if not _LEAF.match(name):
        raise InvalidRequest("cannot enter: no such leaf", field="leaf")
    return name


def _words(answer: bytes) -> str:
    """Return what a stranger said, harmless in a log."""
    return ascii(answer[:400].decode("utf-8", "replace"))


def _tell(connection: socket.socket, step: str, error: OSError) -> None:
    what = error if isinstance(error, SyscallError) else error.strerror
    with contextlib.suppress(OSError):
        connection.send(f"failed step {step}: {what}".encode()[:1000])
