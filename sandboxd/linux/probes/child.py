"""Short-lived children in which things are tried, and the user namespaces that they are given.

A child is made by clone3, in the namespaces asked for, and dies with its parent. It answers with one JSON value over
a pipe; a child that does not answer in time is killed. The doctor has one thread, as `Kernel.clone3` asks for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import prctl

from ..kernel import CLONE_NEWUSER, SECBIT_NO_SETUID_FIXUP, Kernel, SyscallError

#: The slowest trial (compiling a seccomp profile) takes a second on a busy machine.
TIMEOUT_S: Final = 20.0
#: Room for a program's complaint, not for its flood.
MAX_ANSWER: Final = 65_536
#: As a sandbox has it (`spec.ID_RANGE_WIDTH`), and the ids of the trials: nobody's, above the on-disk range.
ID_RANGE_WIDTH: Final = 65_536
DISK_FIRST_ID: Final = 2_000_000_000
TRIAL_FIRST_ID: Final = DISK_FIRST_ID + ID_RANGE_WIDTH


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial gave: a value, or why not.

    Attributes:
        value: what the act returned.
        error: one line, such as "mount merged: EINVAL"; None when it worked.
        code: the errno's name, where a system call failed.
        syscall: the call that failed.
    """

    value: Any = None
    error: str | None = None
    code: str = ""
    syscall: str = ""

    @property
    def ok(self) -> bool:
        """Whether it worked."""
        return self.error is None

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """Return the outcome that an exception is."""
        if isinstance(error, OSError) and error.errno is not None:
            code = errno.errorcode.get(error.errno, str(error.errno))
            syscall = str(getattr(error, "syscall", ""))
            text = str(error) if syscall else f"{error.filename or type(error).__name__}: {code}"
            return cls(error=text, code=code, syscall=syscall)
        return cls(error=f"{type(error).__name__}: {error}")


def attempt(kernel: Kernel, act: Callable[[], Any], *, flags: int = 0, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Run `act` in a child made with the clone3 `flags`; it returns what JSON can hold."""
    return _attempt(kernel, act, flags, None, timeout_s)


def attempt_in_cgroup(kernel: Kernel, act: Callable[[], Any], cgroup_fd: int) -> Outcome:
    """Run `act` in a child that is born in the cgroup behind `cgroup_fd`."""
    return _attempt(kernel, act, 0, cgroup_fd, TIMEOUT_S)


def _attempt(kernel: Kernel, act: Callable[[], Any], flags: int, cgroup_fd: int | None, timeout_s: float) -> Outcome:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid, pidfd = kernel.clone3(flags, cgroup_fd=cgroup_fd)
        except OSError as error:
            return Outcome.of(error)
        if pid == 0:
            _be_child(act, writer)
        os.close(writer)
        writer = -1
        try:
            raw = _read_all(reader, timeout_s)
        finally:
            _end(pid, pidfd)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if raw is None:
        return Outcome(error=f"it did not answer within {timeout_s:g} s")
    try:
        return Outcome(**json.loads(raw))
    except ValueError:
        return Outcome(error="it died before it answered")


def _be_child(act: Callable[[], Any], writer: int) -> None:
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            outcome = Outcome(value=act())
        except Exception as error:  # told to the parent
            outcome = Outcome.of(error)
        os.write(writer, json.dumps(dataclasses.asdict(outcome)).encode()[:MAX_ANSWER])
    finally:
        os._exit(0)


def _read_all(fd: int, timeout_s: float) -> bytes | None:
    """Return what comes until the end, or None if the end does not come in time after the last piece."""
    data = b""
    while len(data) <= MAX_ANSWER:
        if not select.select([fd], [], [], timeout_s)[0]:
            return None
        piece = os.read(fd, MAX_ANSWER)
        if not piece:
            break
        data += piece
    return data


def _end(pid: int, pidfd: int) -> None:
    """Kill the child, which has answered or never will, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    os.waitpid(pid, 0)


@contextlib.contextmanager
def user_namespace(kernel: Kernel, inside: int, outside: int, *, owner: int) -> Iterator[int]:
    """Give a user namespace that maps `inside` on to `outside` on, made by host id `owner` as a creation does it.

    Raises:
        SyscallError: the kernel refused it.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    fds = [ready_read, ready_write, hold_read, hold_write]
    try:
        pid, pidfd = kernel.clone3(0)
        if pid == 0:
            _hold_namespace(kernel, owner, ready_write, hold_read, hold_write)
        try:
            os.close(fds.pop(1))
            # In a process with threads the C library would wait for them in the child, where they are not.
            in_time = select.select([ready_read], [], [], TIMEOUT_S)[0]
            answer = os.read(ready_read, 16) if in_time else str(errno.ETIMEDOUT).encode()
            if answer != b"ok":
                raise SyscallError(int(answer or errno.EIO), "unshare", "CLONE_NEWUSER")
            for name in ("uid_map", "gid_map"):
                fd = kernel.open(f"/proc/{pid}/{name}", os.O_WRONLY)
                try:
                    kernel.write(fd, f"{inside} {outside} {ID_RANGE_WIDTH}".encode())
                finally:
                    os.close(fd)
            namespace = kernel.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        finally:
            _end(pid, pidfd)
    finally:
        for fd in fds:
            os.close(fd)
    try:
        yield namespace
    finally:
        os.close(namespace)


def _hold_namespace(kernel: Kernel, owner: int, ready: int, hold: int, hold_write: int) -> None:
    try:
        os.close(hold_write)
        prctl.set_pdeathsig(signal.SIGKILL)
        if owner:
            kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
            kernel.setresids(owner, owner)
        kernel.unshare(CLONE_NEWUSER)
        os.write(ready, b"ok")
        os.read(hold, 1)
    except OSError as error:
        os.write(ready, str(error.errno).encode())
    finally:
        os._exit(0)
