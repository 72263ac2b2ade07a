"""Every error of sandboxd: one root, one class per kind, facts as attributes.

An error is raised where *sandboxd* or its caller failed. What a program in a sandbox did (exit status,
signal, timeout, out of memory) is never an error but a field of a result.

Each class has a `kind`: the closed, kebab-case word that travels in `application/problem+json`, on the link
between daemon and init, and back into the same class in the SDK (`from_kind`). Messages read "cannot <verb>
<object>: <why>", in lower case and without a full stop; programs test kinds and facts, never text.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Final


class Origin(enum.Flag):
    """Who besides the daemon may report a kind: a sandbox's init, or the child of the template `git` that clones."""

    NOBODY = 0
    INIT = enum.auto()
    CLONE = enum.auto()


class SandboxdError(Exception):
    """The root of every error; `facts` are its machine-readable details.

    Attributes:
        kind: the meaning, a word of the API.
        status: the HTTP status that it is answered with; a class inherits its parent's.
        origin: the peers that may name this very kind; any other would let a hostile one speak for the daemon.
    """

    kind: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    origin: ClassVar[Origin] = Origin.NOBODY

    def __init__(self, message: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
        super().__init__(message)
        self.message = message
        self.facts: dict[str, Any] = facts

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        # Facts read as attributes (`error.step`); only reached when normal look-up failed.
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no fact {name!r}") from None

    def __str__(self) -> str:
        return self.message


# --- the caller's fault ------------------------------------------------------------------------------------


class InvalidRequest(SandboxdError):
    """The request is malformed; `field` names the wrong part, if there is one."""

    kind = "invalid-request"
    status = 400
    origin = Origin.INIT | Origin.CLONE


class UnknownField(InvalidRequest):
    """The request has a field that does not exist."""

    kind = "unknown-field"


class RequestTimeout(InvalidRequest):
    """The rest of the request did not arrive in time."""

    kind = "request-timeout"
    status = 408


class NotAvailable(InvalidRequest):
    """The request asks for a feature that this version does not have."""

    kind = "not-available"
    status = 422
    origin = Origin.INIT


class LimitUnenforceable(InvalidRequest):
    """This host cannot enforce a limit that was requested or is the default: `limits`, `missing`."""

    kind = "limit-unenforceable"
    status = 422


class RootfsNotFound(InvalidRequest):
    """No rootfs has that name: `rootfs`, `available`."""

    kind = "rootfs-not-found"
    status = 422


class ProfileNotFound(InvalidRequest):
    """No seccomp profile has that name: `profile`, `available`."""

    kind = "profile-not-found"
    status = 422


class InterpreterMissing(InvalidRequest):
    """The rootfs lacks what a language needs: `language`."""

    kind = "interpreter-missing"
    status = 422


class NotFound(SandboxdError):
    """The object that the request names does not exist."""

    kind = "not-found"
    status = 404


class RouteNotFound(NotFound):
    """The API has no such path."""

    kind = "route-not-found"


class MethodNotAllowed(NotFound):
    """The path does not support that method."""

    kind = "method-not-allowed"
    status = 405


class SandboxNotFound(NotFound):
    """No sandbox has that id or name."""

    kind = "sandbox-not-found"


class ProcessNotFound(NotFound):
    """No process of the sandbox has that id."""

    kind = "process-not-found"
    origin = Origin.INIT


class ContextNotFound(NotFound):
    """The sandbox has no code context with that id."""

    kind = "context-not-found"
    origin = Origin.INIT


class RunNotFound(NotFound):
    """The code context has no run with that id, or no longer keeps it."""

    kind = "run-not-found"


class SessionNotFound(NotFound):
    """The sandbox has no such session: it was never created, or was deleted."""

    kind = "session-not-found"
    origin = Origin.INIT


class FileNotFound(NotFound):
    """The sandbox has no file at that path."""

    kind = "file-not-found"
    origin = Origin.INIT | Origin.CLONE


class PortNotFound(NotFound):
    """The port is not exposed: `port`."""

    kind = "port-not-found"


class PreviewNotFound(NotFound):
    """There is no such preview, or the token is wrong; the answer does not tell which."""

    kind = "preview-not-found"


class PreviewGone(NotFound):
    """The preview's sandbox was destroyed."""

    kind = "preview-gone"
    status = 410


class Conflict(SandboxdError):
    """The request conflicts with the current state."""

    kind = "conflict"
    status = 409
    origin = Origin.INIT


class NameTaken(Conflict):
    """Another sandbox has that name, or another process that id."""

    kind = "name-taken"
    origin = Origin.INIT


class PortExposed(Conflict):
    """The port is exposed already: `port`."""

    kind = "port-exposed"


class NotAFile(Conflict):
    """The path names something other than a regular file: `type`."""

    kind = "not-a-file"
    origin = Origin.INIT


class FileExists(Conflict):
    """Something already has that name: `path`."""

    kind = "file-exists"
    origin = Origin.INIT | Origin.CLONE


class DirectoryNotEmpty(Conflict):
    """The directory is not empty, and `recursive` was not given: `path`."""

    kind = "directory-not-empty"
    origin = Origin.INIT | Origin.CLONE


class ArchiveRefused(InvalidRequest):
    """The archive is damaged, or a member would leave the directory: `reason`, `member`."""

    kind = "archive-refused"
    status = 422
    origin = Origin.INIT


class ProcessNotRunning(Conflict):
    """The process has ended, or has no stdin to write to."""

    kind = "process-not-running"
    origin = Origin.INIT


class ContextExited(Conflict):
    """The context's interpreter has ended (`reason`, `exit_code`, `signal`); restart or delete the context."""

    kind = "context-exited"


class ContextRestarting(Conflict):
    """The context is being restarted; the runs that waited in it were dropped."""

    kind = "context-restarting"


class SandboxFailed(Conflict):
    """The sandbox's init is gone; only DELETE works on it: `reason`."""

    kind = "sandbox-failed"


class SandboxFrozen(Conflict):
    """The sandbox is frozen: nothing in it runs until it is thawed."""

    kind = "sandbox-frozen"


class SandboxGone(Conflict):
    """The sandbox was destroyed while the request was in progress."""

    kind = "sandbox-gone"


class AlreadyRunning(Conflict):
    """Another daemon serves this state directory or socket."""

    kind = "already-running"


class LimitExceeded(SandboxdError):
    """A limit was reached."""

    kind = "limit-exceeded"
    status = 422
    origin = Origin.INIT | Origin.CLONE


class BodyTooLarge(LimitExceeded):
    """The request's body is over its bound: `limit_bytes`."""

    kind = "body-too-large"
    status = 413


class HeaderTooLarge(LimitExceeded):
    """The request's line and headers are over their bound."""

    kind = "header-too-large"
    status = 431


class RangeNotSatisfiable(LimitExceeded):
    """The requested range begins after the end of the file: `size`."""

    kind = "range-not-satisfiable"
    status = 416


class QuotaExceeded(LimitExceeded):
    """The sandbox's disk limit is reached, or the disk is full."""

    kind = "quota-exceeded"
    status = 507
    origin = Origin.INIT | Origin.CLONE


class AccessDenied(SandboxdError):
    """The caller may not do that."""

    kind = "access-denied"
    status = 403


class Unauthenticated(AccessDenied):
    """The request has no valid token."""

    kind = "unauthenticated"
    status = 401


class FilePermissionDenied(AccessDenied):
    """The sandbox's own permissions do not allow the file operation."""

    kind = "file-permission-denied"
    origin = Origin.INIT | Origin.CLONE


class GitError(SandboxdError):
    """A clone failed."""

    kind = "git-error"
    origin = Origin.CLONE


class GitAuthentication(GitError):
    """The git server requires a login, or rejected this one: `sent` says whether one was given."""

    kind = "git-authentication"
    status = 422  # 401 would read as our own token
    origin = Origin.CLONE


class GitRepositoryNotFound(GitError):
    """There is no git repository at the address, or the server does not show it."""

    kind = "git-repository-not-found"
    status = 404
    origin = Origin.CLONE


class GitRefNotFound(GitError):
    """The repository has no such branch, tag or commit: `ref`, `suggestions` (similar names)."""

    kind = "git-ref-not-found"
    status = 404
    origin = Origin.CLONE


class GitRefused(GitError):
    """The repository contains something that sandboxd does not accept: `reason`, and what it was."""

    kind = "git-refused"
    status = 422
    origin = Origin.CLONE


class GitUnreachable(GitError):
    """The git server cannot be reached, or dropped the connection: `host`, `reason`."""

    kind = "git-unreachable"
    status = 502
    origin = Origin.CLONE


class GitTimeout(GitError):
    """The git server was silent for too long (`stalled`), or the clone took too long: `timeout_s`."""

    kind = "git-timeout"
    status = 504
    origin = Origin.CLONE


class GitProtocolError(GitError):
    """The git server does not speak git's protocol, or sent a damaged pack: `reason`."""

    kind = "git-protocol-error"
    status = 502
    origin = Origin.CLONE


# --- the host's fault ---------------------------------------------------------------------------------------


class LaunchFailed(SandboxdError):
    """A step of a sandbox's creation failed: `step`, `syscall`, `errno` (a name such as "EINVAL"), `hint`."""

    kind = "launch-failed"


class HostUnsupported(SandboxdError):
    """The host lacks something that sandboxd requires: `feature`, `remedy`."""

    kind = "host-unsupported"


class ConfigError(SandboxdError):
    """The configuration is wrong: `key`."""

    kind = "config-error"


class CgroupError(SandboxdError):
    """A cgroup operation failed: `path`, `errno`."""

    kind = "cgroup-error"


class RootfsError(SandboxdError):
    """A rootfs could not be built, read or removed."""

    kind = "rootfs-error"


class StorageFull(SandboxdError):
    """The host has no room for another sandbox."""

    kind = "storage-full"
    status = 507


class ServerBusy(SandboxdError):
    """The daemon is at a limit, or is stopping; try again."""

    kind = "server-busy"
    status = 503
    origin = Origin.INIT


class DaemonUnavailable(SandboxdError):
    """No daemon answers at the address (raised by the SDK)."""

    kind = "daemon-unavailable"
    status = 503


class PortClosed(SandboxdError):
    """Nothing listens on the exposed port: `port`."""

    kind = "port-closed"
    status = 502


class UpstreamBroken(SandboxdError):
    """The service behind a preview dropped the connection, or does not speak HTTP: `port`."""

    kind = "upstream-broken"
    status = 502


class TemplateUnavailable(SandboxdError):
    """No template is ready, and the caller does without one. Used only between the daemon and the launcher."""

    kind = "template-unavailable"
    status = 503


class NetworkUnavailable(SandboxdError):
    """This host cannot provide the network that a sandbox requests: `mode`, `remedy`."""

    kind = "network-unavailable"
    status = 422


class LauncherGone(SandboxdError):
    """The launcher died; the daemon ends with it."""

    kind = "launcher-gone"
    status = 503


class InternalError(SandboxdError):
    """A bug in sandboxd; the daemon's log has the traceback."""

    kind = "internal-error"
    origin = Origin.INIT | Origin.CLONE


class ProtocolError(SandboxdError):
    """One side of a connection broke the protocol; the connection cannot be used any more."""

    kind = "protocol-error"


class LocalProtocolError(ProtocolError):
    """This side broke the protocol: a bug in sandboxd, or in the caller of the SDK."""

    kind = "local-protocol-error"


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol: drop the connection, and kill an init that does so."""

    kind = "remote-protocol-error"


def kinds() -> dict[str, type[SandboxdError]]:
    """Return every kind with its class, the root included."""
    found: dict[str, type[SandboxdError]] = {}
    pending: list[type[SandboxdError]] = [SandboxdError]
    while pending:
        cls = pending.pop()
        found[cls.kind] = cls
        pending.extend(cls.__subclasses__())
    return found


_BY_KIND: Final = kinds()


def kinds_from(origin: Origin) -> frozenset[str]:
    """Return the kinds that a peer may report."""
    return frozenset(kind for kind, cls in _BY_KIND.items() if vars(cls).get("origin", Origin.NOBODY) & origin)


def from_kind(kind: str, message: str, facts: dict[str, Any] | None = None) -> SandboxdError:
    """Return the error that a peer reported; an unknown kind gives a `SandboxdError`."""
    error = _BY_KIND.get(kind, SandboxdError)(message)
    error.facts.update(facts or {})  # not as keywords: a peer names them
    if kind not in _BY_KIND:
        error.facts.setdefault("kind", kind)
    return error
