"""What a caller may ask for: frozen value types and pure checks, standard library only.

The API's edge (`api/v1/models.py`) checks shapes and types; these classes check meaning and bounds. The launcher
makes the same values again from the daemon's message, so nothing reaches a kernel call unchecked.
All raise `InvalidRequest` with the fact `field`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from typing import Any, Final, Self

from .errors import InvalidRequest
from .network import NetworkSpec

#: The kernel's MAX_ARG_STRLEN (include/uapi/linux/binfmts.h: 32 pages): one argument or `NAME=value`, its NUL included.
MAX_ARG_BYTES: Final = 131_072
#: execve(2) allows a quarter of the stack limit (8 MiB here) for arguments and environment together.
MAX_ARGS_TOTAL_BYTES: Final = 2 * 1024 * 1024 - 65_536
MAX_JSON_BODY_BYTES: Final = 4 * 1024 * 1024
#: A line for a shell: as long as a request may be. One that no argument can hold is read from a file (guest/lines.py).
MAX_LINE_BYTES: Final = MAX_JSON_BODY_BYTES
#: Whose lines may be that long.
_SHELLS: Final = ("/bin/sh", "/bin/bash")
MAX_PATH_BYTES: Final = 4095  # PATH_MAX without the NUL
MAX_ENV_ENTRIES: Final = 1024
#: One run of a code context; what is longer belongs in a file.
MAX_CODE_BYTES: Final = 1024 * 1024
LANGUAGES: Final = {
    "python": "python",
    "py": "python",
    "javascript": "javascript",
    "js": "javascript",
    "typescript": "typescript",
    "ts": "typescript",
}
MAX_LABELS: Final = 64
#: How long a process's tree may take to end after a signal that asks it to; what is left then is killed.
STOP_GRACE_S: Final = 5.0
MAX_TERMINAL_SIDE: Final = 2000
#: Processes and threads of one sandbox: the classic pid_max, and the ceiling of its user namespace.
MAX_PIDS: Final = 32_768
#: A width of 65,536 ids holds every id that a distribution ships, nobody (65534) included.
ID_RANGE_WIDTH: Final = 65_536

_ID = re.compile(r"[a-z0-9]{20,26}\Z")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_ROOTFS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_PROCESS_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SESSION_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_PROBE_PATH = re.compile(r"/[!-~]{0,1023}\Z")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_MODE = re.compile(r"[0-7]{3,4}\Z")
_UMASK = re.compile(r"[0-7]{1,4}\Z")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: Base32's letters: an id is a DNS label and a Cloudflare-style id too.
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"


def new_id() -> str:
    """Return a fresh id: 20 letters of 5 random bits each, so 100 bits that nobody guesses."""
    return "".join(_ID_ALPHABET[byte & 31] for byte in os.urandom(20))


def _fail(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot accept {field}: {why}", field=field)


def check_id(value: str, field: str = "id") -> str:
    """Return `value` if it is a sandbox id (`[a-z0-9]{20,26}`)."""
    if not _ID.match(value):
        raise _fail(field, "an id is 20 to 26 characters of a-z and 0-9")
    return value


def check_name(value: str, field: str = "name") -> str:
    """Return `value` if it is a sandbox's name (a DNS label)."""
    if not _NAME.match(value):
        raise _fail(field, "a name is 1 to 63 characters of a-z, 0-9 and inner dashes")
    return value


def check_rootfs(value: str, field: str = "rootfs") -> str:
    """Return `value` if it may name a rootfs."""
    if not _ROOTFS.match(value) or ".." in value:
        raise _fail(field, "a rootfs name is 1 to 64 characters of a-z, 0-9, dot, dash and underscore")
    return value


def check_profile(value: str, field: str = "seccomp") -> str:
    """Return `value` if it may name a seccomp profile."""
    if not _PROFILE.match(value):
        raise _fail(field, "a profile's name is 1 to 32 characters of a-z, 0-9 and dash")
    return value


def check_process_id(value: str, field: str = "id") -> str:
    """Return `value` if it may name a process."""
    if not _PROCESS_ID.match(value):
        raise _fail(field, "a process id is 1 to 64 characters: letters, digits, dot, dash and underscore")
    return value


def check_session_id(value: str, field: str = "session") -> str:
    """Return `value` if it may name a session."""
    if not _SESSION_ID.match(value):
        raise _fail(field, "a session id is 1 to 128 characters: letters, digits, dot, dash and underscore")
    return value


def check_text(value: str, field: str, *, limit: int = MAX_ARG_BYTES - 1) -> str:
    """Return `value` if the kernel can take it as a C string of at most `limit` bytes."""
    if "\0" in value:
        raise _fail(field, "it has a NUL byte")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _fail(field, "it has a lone surrogate, which is not valid UTF-8") from None
    if size > limit:
        raise _fail(field, f"it is {size} bytes, the limit is {limit}")
    return value


def check_path(value: str, field: str = "path") -> str:
    """Return `value` if it is an absolute path without `..` parts that the kernel can take.

    `..` is refused rather than resolved: a client that sends it has joined paths without looking, and what
    it would mean beside symlinks differs between clients and the kernel.
    """
    check_text(value, field, limit=MAX_PATH_BYTES)
    if not value.startswith("/"):
        raise _fail(field, "the path must be absolute")
    if ".." in value.split("/"):
        raise _fail(field, "the path must not contain '..'")
    return value


def name_bytes(name: str) -> bytes:
    """Return a file's name or path as the kernel has it."""
    return name.encode("utf-8", "surrogateescape")


def name_text(name: bytes) -> str:
    """Return a file's name as text; what is no UTF-8 becomes surrogates, which `name_bytes` turns back."""
    return name.decode("utf-8", "surrogateescape")


def check_file_path(value: str | bytes, field: str = "path") -> str:
    """Return a file's absolute path, `.` and empty parts taken out; bytes that are no UTF-8 become surrogates.

    Names are bytes to the kernel. Text is UTF-8; bytes are taken as they are (`name_bytes` gives them back).
    """
    if isinstance(value, str):
        check_path(value, field)
    else:
        # What no text can say; the rest of the checks see it with surrogates.
        if b"\0" in value:
            raise _fail(field, "it has a NUL byte")
        if len(value) > MAX_PATH_BYTES:
            raise _fail(field, f"it is {len(value)} bytes, the limit is {MAX_PATH_BYTES}")
        value = name_text(value)
    parts = value.split("/")
    if parts[0] or not value:
        raise _fail(field, "the path must be absolute")
    if ".." in parts:
        raise _fail(field, "the path must not contain '..'")
    return "/" + "/".join(part for part in parts if part not in ("", "."))


def check_mode(value: str | None, field: str = "mode") -> int | None:
    """Return the permission bits that an octal text such as "755" or "0644" names."""
    if value is None:
        return None
    if not _MODE.match(value):
        raise _fail(field, "a mode is three or four octal digits, such as 755 or 0644")
    return int(value, 8)


def check_umask(value: str, field: str = "umask") -> str:
    """Return `value` if it is an octal text of permission bits, such as "027" or "0027"."""
    if not _UMASK.match(value) or int(value, 8) > 0o777:
        raise _fail(field, "a umask is one to four octal digits, at most 0777, such as 0027")
    return value


def check_user(value: str | int, field: str = "user") -> str | int:
    """Return a user's name, or its uid as an int; digits in a string are a uid too.

    Strict on purpose (CVE-2026-30892): no `user:group`, no sign, no space, nothing outside the mapped range.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < ID_RANGE_WIDTH):
        raise _fail(field, f"a uid is 0 to {ID_RANGE_WIDTH - 1}")
    if isinstance(value, str) and not _USER.match(value):
        raise _fail(field, "a user is a name such as 'root', or a uid")
    return value


def check_env(env: dict[str, str], field: str = "env") -> dict[str, str]:
    """Return `env` if execve(2) can take it."""
    if len(env) > MAX_ENV_ENTRIES:
        raise _fail(field, f"it has {len(env)} entries, the limit is {MAX_ENV_ENTRIES}")
    for name, value in env.items():
        where = f"{field}.{name[:64]}"
        if not _ENV_NAME.match(name):
            raise _fail(where, "a variable's name is letters, digits and underscores, not starting with a digit")
        check_text(value, where, limit=MAX_ARG_BYTES - 2 - len(name))
    if sum(len(k) + len(v.encode()) + 2 for k, v in env.items()) > MAX_ARGS_TOTAL_BYTES:
        raise _fail(field, f"all variables together are over {MAX_ARGS_TOTAL_BYTES} bytes")
    return env


def check_labels(labels: dict[str, str], field: str = "labels") -> dict[str, str]:
    """Return `labels` if they are few and short."""
    if len(labels) > MAX_LABELS:
        raise _fail(field, f"it has {len(labels)} entries, the limit is {MAX_LABELS}")
    for name, value in labels.items():
        check_text(name, field, limit=63)
        check_text(value, f"{field}.{name}", limit=255)
    return labels


def check_seconds(value: float | None, field: str) -> float | None:
    """Return `value` if it is None or a positive, finite number of seconds below ten years."""
    if value is not None and not 0 < value <= 315_360_000:
        raise _fail(field, "it must be above 0 and at most 315360000 seconds")
    return value


def check_size(cols: int, rows: int) -> tuple[int, int]:
    """Return a terminal's columns and rows if they are 1 to 2000 each; programs allocate their product."""
    for field, value in (("cols", cols), ("rows", rows)):
        if not 1 <= value <= MAX_TERMINAL_SIDE:
            raise _fail(field, f"it must be 1 to {MAX_TERMINAL_SIDE}")
    return cols, rows


def check_port(value: int, field: str = "port") -> int:
    """Return `value` if it is a TCP port."""
    if isinstance(value, bool) or not 1 <= value <= 65_535:
        raise _fail(field, "a port is 1 to 65535")
    return value


def check_probe_path(value: str, field: str = "path") -> str:
    """Return `value` if it may stand in an HTTP request line: it is put there as it is."""
    if not _PROBE_PATH.match(value):
        raise _fail(field, "a path begins with a slash and has at most 1024 visible ASCII characters")
    return value


def check_signal(value: int | str, field: str = "signal") -> int:
    """Return the number of a signal given as TERM, SIGTERM or 15."""
    if isinstance(value, str):
        name = value.upper().removeprefix("SIG")
        if name.isascii() and name.isdigit() and len(name) < 4:
            value = int(name)
        elif f"SIG{name}" in signal.Signals.__members__:
            return int(signal.Signals[f"SIG{name}"])
        else:
            raise _fail(field, f"there is no signal {value[:40]!r}")
    if isinstance(value, bool) or not 1 <= value < signal.NSIG:
        raise _fail(field, f"a signal is 1 to {signal.NSIG - 1}, or a name such as TERM")
    return value


def _check_number(field: str, value: object, kinds: tuple[type, ...], low: float, high: float) -> None:
    """Refuse what is no number of one of `kinds` from `low` to `high`; True is no 1, and NaN is within no bounds."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _fail(field, "it must be a whole number" if float not in kinds else "it must be a number")
    if not low <= value <= high:  # type: ignore[operator]  # a number: the line above looked
        raise _fail(field, f"it must be {low} to {high}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IoLimits:
    """How fast a sandbox may read and write its disks; None is "no limit", since no default can fit every disk.

    Attributes:
        read_bytes_per_s, write_bytes_per_s: bytes in a second.
        read_iops, write_iops: operations in a second.
    """

    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None

    def __post_init__(self) -> None:
        """Check every bound; the lower ones let a shell still start within seconds."""
        for item in dataclasses.fields(self):
            value, low = getattr(self, item.name), 4096 if "bytes" in item.name else 1
            if value is not None:
                _check_number(f"limits.io.{item.name}", value, (int,), low, 1 << 50)

    def __bool__(self) -> bool:
        return self != IoLimits()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sandbox may use. None means the configuration's default, never "no limit" (but for `io`).

    Attributes:
        memory_bytes: RAM of everything inside together; swap is never given.
        cpus: processors, fractions allowed.
        pids: processes and threads.
        disk_bytes: what the sandbox's own files may take.
        io: how fast its disks are; a mapping of its fields is taken too.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    io: IoLimits | None = None

    def __post_init__(self) -> None:
        """Check every bound; the lower ones are what init and a shell need."""
        bounds = (
            ("memory_bytes", self.memory_bytes, (int,), 16 * 1024 * 1024, 1 << 50),
            ("cpus", self.cpus, (int, float), 0.01, 4096),
            ("pids", self.pids, (int,), 4, MAX_PIDS),
            ("disk_bytes", self.disk_bytes, (int,), 1024 * 1024, 1 << 50),
        )
        for name, value, kinds, low, high in bounds:
            if value is not None:
                _check_number(f"limits.{name}", value, kinds, low, high)
        if isinstance(self.io, dict):
            try:
                object.__setattr__(self, "io", IoLimits(**self.io))
            except TypeError:
                known = ", ".join(item.name for item in dataclasses.fields(IoLimits))
                raise _fail("limits.io", f"its fields are {known}") from None
        if self.io is not None and not isinstance(self.io, IoLimits):
            raise _fail("limits.io", "it must be an object")
        if not self.io:
            object.__setattr__(self, "io", None)

    def merged(self, default: Limits) -> Limits:
        """Return these limits with `default`'s where they say nothing."""
        chosen = {}
        for item in dataclasses.fields(self):
            own = getattr(self, item.name)
            chosen[item.name] = own if own is not None else getattr(default, item.name)
        return Limits(**chosen)


#: The limits of a sandbox that asks for none, where the configuration says nothing else.
DEFAULT_LIMITS: Final = Limits(memory_bytes=2 << 30, cpus=2.0, pids=1024, disk_bytes=8 << 30)


#: The directory of the user's own files, which every creation makes.
WORKSPACE: Final = "/workspace"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """A sandbox as asked for, every default filled in."""

    name: str | None = None
    rootfs: str = "default"
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    cwd: str = WORKSPACE
    user: str | int = "root"
    limits: Limits = dataclasses.field(default_factory=Limits)
    network: NetworkSpec = dataclasses.field(default_factory=NetworkSpec)
    seccomp: str = "default"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        if self.name is not None:
            check_name(self.name)
        check_rootfs(self.rootfs)
        check_env(self.env)
        check_path(self.cwd, "cwd")
        object.__setattr__(self, "user", check_user(self.user))
        check_labels(self.labels)
        check_profile(self.seccomp)

    @property
    def has_own_place(self) -> bool:
        """Whether commands start in a directory, or as a user, that not every sandbox has."""
        return self.cwd != WORKSPACE or self.user not in ("root", 0)


def check_language(value: str, field: str = "language") -> str:
    """Return the full name of a language that contexts have; short names and any case are taken."""
    found = LANGUAGES.get(value.lower())
    if found is None:
        raise _fail(field, "the languages are python, javascript and typescript")
    return found


def check_code(value: str, field: str = "code") -> str:
    """Return `value` if it is text that an interpreter can be given."""
    return check_text(value, field, limit=MAX_CODE_BYTES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """A code context as asked for.

    Attributes:
        language: python, javascript or typescript.
        cwd: absolute; None is the sandbox's.
        env: variables on top of the sandbox's.
    """

    language: str = "python"
    cwd: str | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "language", check_language(self.language))
        if self.cwd is not None:
            check_path(self.cwd, "cwd")
        check_env(self.env)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """Where and as whom something starts: what commands and sessions share, and how it goes over the link.

    On the link a spec is a map with a key for each field. Inits outlive daemons, so either side may be older than the
    other. This rule lets them understand each other: the reader ignores a key that it does not know, and a field whose
    key is missing, or null, has its default. So a field may be added if its default means what was before it, and none
    may ever be renamed or change the form of its value. An init would silently do without a field of `LATER` that it
    does not know. So it says which it knows, in its answer to `configure`, and is never asked for another one.

    Attributes:
        env: variables on top of the sandbox's.
        cwd: absolute; None is the sandbox's.
        user: name or uid; None is the sandbox's.
        umask: octal; None is 0022.
    """

    #: Fields that the first inits did not know.
    LATER = frozenset({"umask"})
    #: Fields whose keys are left out where they have their default; those of `LATER` are, too.
    OPTIONAL = frozenset[str]()

    env: dict[str, str] = dataclasses.field(default_factory=dict)
    cwd: str | None = None
    user: str | int | None = None
    umask: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_env(self.env)
        if self.cwd is not None:
            check_path(self.cwd, "cwd")
        if self.user is not None:
            object.__setattr__(self, "user", check_user(self.user))
        if self.umask is not None:
            check_umask(self.umask)

    def to_message(self) -> dict[str, Any]:
        """Return what goes over the link."""
        message = {}
        for name, field in self.__dataclass_fields__.items():
            value = getattr(self, name)
            if value is not field.default or (name not in self.OPTIONAL and name not in self.LATER):
                message[name] = list(value) if isinstance(value, tuple) else value
        return message

    def later(self) -> list[str]:
        """Return the fields of `LATER` that say something: what init must know."""
        return [name for name in self.LATER if getattr(self, name) is not self.__dataclass_fields__[name].default]

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Self:
        """Return what came over the link, checked; keys that are none of its own may be in the message.

        Raises:
            InvalidRequest: a value is out of its bounds.
            TypeError: the message lacks a field that has no default, or a value has the wrong type.
        """
        found: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = message.get(name)
            if value is not None:
                found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec(StartSpec):
    """A session as asked for; it begins in `cwd`.

    Attributes:
        id: None lets one be chosen; the link has the chosen one, as `session`.
        shell: "bash" or "sh"; None is bash where the rootfs has it.
    """

    OPTIONAL = frozenset({"id"})

    id: str | None = None
    shell: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.id is not None:
            check_session_id(self.id, "id")
        StartSpec.__post_init__(self)
        if self.shell not in (None, "bash", "sh"):
            raise _fail("shell", "it must be bash or sh")


def _check_argument(value: str) -> str:
    size = len(value.encode("utf-8", "surrogatepass")) if len(value) * 4 >= MAX_ARG_BYTES else 0
    if size >= MAX_ARG_BYTES:
        why = (
            f"an argument is {size} bytes, and the kernel accepts {MAX_ARG_BYTES - 1}: pass the command as one string, "
            "which a shell runs at any length, or pass the data on stdin or in a file"
        )
        raise InvalidRequest(f"cannot accept command: {why}", field="command", limit_bytes=MAX_ARG_BYTES - 1)
    return check_text(value, "command")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec(StartSpec):
    """One command to run: what exec, processes and terminals share.

    Attributes:
        argv: the program and its arguments, looked up in the command's own PATH.
        stdin: bytes to feed and then close; True leaves the pipe open for later writes; None is /dev/null.
        timeout_s: after it the whole process tree is killed; None means never.
        keep_orphans: whether processes that outlive the main one go on.
        session: whose shell's state it begins with; `argv` is then one of `shell`.
        restart: whether it is started again when it fails.
        terminal: columns and rows of the terminal that it gets for its standard streams; None gives pipes.
        linger_s: how long a terminal that nobody looks at any more goes on; None is for ever.
    """

    OPTIONAL = frozenset({"restart", "terminal", "linger_s"})

    argv: tuple[str, ...]
    stdin: bytes | bool | None = None
    timeout_s: float | None = None
    keep_orphans: bool = False
    session: str | None = None
    restart: bool = False
    terminal: tuple[int, int] | None = None
    linger_s: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if not self.argv or not self.argv[0]:
            raise _fail("command", "it is empty")
        total = 0
        for argument in self.argv if self.long_line is None else self.argv[:-1]:
            total += len(_check_argument(argument)) + 1
        if total > MAX_ARGS_TOTAL_BYTES:
            raise _fail("command", f"all arguments together are over {MAX_ARGS_TOTAL_BYTES} bytes")
        StartSpec.__post_init__(self)
        if self.stdin is False:
            object.__setattr__(self, "stdin", None)
        check_seconds(self.timeout_s, "timeout_s")
        check_seconds(self.linger_s, "linger_s")
        if self.terminal is not None:
            check_size(*self.terminal)
        if self.session is not None:
            check_session_id(self.session)
            for field in ("user", "umask"):
                if getattr(self, field) is not None:
                    raise _fail(field, "the session has its own")
            if self.argv[:-1] != self.shell("")[:-1]:
                raise _fail("command", "in a session it must be one string, which the session's shell runs")

    @property
    def long_line(self) -> str | None:
        """The line that a shell is to run, where it is too long for an argument; None where it is none, or is not."""
        if len(self.argv) != 4 or self.argv[0] not in _SHELLS or self.argv[1:3] != ("-c", "--"):
            return None
        line = self.argv[3]
        # No character is over four bytes: a short line needs no encoding.
        if len(line) * 4 < MAX_ARG_BYTES or len(line.encode("utf-8", "surrogatepass")) < MAX_ARG_BYTES:
            return None
        return check_text(line, "command", limit=MAX_LINE_BYTES)

    @classmethod
    def shell(cls, line: str) -> tuple[str, ...]:
        """Return the argv that runs `line` under `sh -c`."""
        return ("/bin/sh", "-c", "--", line)
