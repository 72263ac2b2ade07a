"""What a caller may ask of git: a frozen value and pure checks, as spec.py (which every init has in its memory)."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

from .errors import InvalidRequest, NotAvailable
from .spec import MAX_PATH_BYTES, check_path, check_seconds, check_text

MAX_URL_BYTES: Final = 2048
MAX_LOGIN_CHARS: Final = 4096
MAX_SPARSE: Final = 256
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]/:@]+)(:[0-9]{1,5})?\Z")


def _fail(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot accept {field}: {why}", field=field)


def check_git_url(value: str, field: str = "url") -> tuple[str, str | None, str | None]:
    """Return (address, user name, password) of a repository: the address has no user in it, so it may be shown.

    Taken are https, http and git addresses, and absolute paths of the sandbox (file:// says the same).
    """
    check_text(value, field, limit=MAX_URL_BYTES)
    if any(ord(character) <= 32 or ord(character) == 127 for character in value):
        raise _fail(field, "an address must not contain spaces or control characters")
    path = value.removeprefix("file://")
    if path.startswith("/"):
        return check_path(path, field), None, None
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() == "ssh":
        if separator or re.match(r"[^/:]+@[^/:]+:", value):
            raise NotAvailable(f"cannot accept {field}: ssh is not supported; use https with a token", field=field)
        raise _fail(field, "it must be an https, http or git address, or an absolute path")
    if scheme.lower() not in ("https", "http", "git"):
        raise _fail(field, f"the scheme {scheme[:20]!r} is not supported; use https, http or git")
    place, slash, path = rest.partition("/")
    if "?" in rest or "#" in rest:
        raise _fail(field, "the address of a repository must not have a query or a fragment")
    user, at, host = place.rpartition("@")
    if not slash or not path.strip("/") or not _HOST.match(host) or host.startswith("-"):
        raise _fail(field, "it must name a host and a repository")
    name, _, password = user.partition(":")
    clean = f"{scheme.lower()}://{host}/{path}"
    return clean, urllib.parse.unquote(name) if at else None, urllib.parse.unquote(password) if password else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CloneSpec:
    """A clone as asked for. The user name and password of `url` are taken out of it, and never shown.

    Attributes:
        url: https, http, git, or an absolute path.
        ref: a branch, a tag or a commit of 40 digits; None is the repository's default branch.
        target_dir: absolute, or beside the sandbox's cwd; None is the repository's name there.
        depth: how many commits of history; None is all.
        single_branch: only what belongs to `ref`; None is whether there is a depth.
        sparse: the directories to check out; none is all.
        token: instead of a password.
        timeout_s: of all of it.
    """

    url: str
    ref: str | None = None
    target_dir: str | None = None
    depth: int | None = None
    single_branch: bool | None = None
    submodules: bool = False
    sparse: tuple[str, ...] = ()
    username: str | None = dataclasses.field(default=None, repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)
    token: dataclasses.InitVar[str | None] = None
    timeout_s: float | None = None

    def __post_init__(self, token: str | None) -> None:
        """Check every field, and put the defaults in."""
        url, username, password = check_git_url(self.url)
        if token is not None and self.password is not None:
            raise _fail("token", "give a token or a password, not both")
        given = token if token is not None else self.password
        secret = given if given is not None else password
        name = self.username if self.username is not None else username
        if secret is not None and name is None:
            name = "x-access-token"  # what GitHub, GitLab, Gitea and Bitbucket take beside a token
        for field, value in (("username", name), ("password", secret)):
            if value is not None and (len(value) > MAX_LOGIN_CHARS or any(ord(c) < 32 for c in value)):
                raise _fail(field, f"it must have at most {MAX_LOGIN_CHARS} characters, and no control characters")
        if name is not None and ":" in name:
            raise _fail("username", "it must not contain a colon")
        if name is not None and not url.startswith(("https://", "http://")):
            raise _fail("username", "only https and http support logins")
        for name_, value_ in (("url", url), ("username", name), ("password", secret)):
            object.__setattr__(self, name_, value_)
        self._check_rest()

    def _check_rest(self) -> None:
        if self.ref is not None:
            check_text(self.ref, "branch", limit=1024)
            if not self.ref or self.ref.startswith("-") or any(c in " ~^:?*[\\\x7f" or ord(c) < 32 for c in self.ref):
                raise _fail("branch", "it is not the name of a branch, a tag or a commit")
        if self.depth is not None and not 1 <= self.depth <= 2**31 - 1:
            raise _fail("depth", "it must be at least 1")
        if len(self.sparse) > MAX_SPARSE:
            raise _fail("sparse", f"it has more than {MAX_SPARSE} directories")
        object.__setattr__(self, "sparse", tuple(_sparse_directory(directory) for directory in self.sparse))
        check_seconds(self.timeout_s, "timeout_s")
        if self.target_dir is not None and not self.target_dir.startswith("/"):
            check_path("/" + self.target_dir, "target_dir")
        elif self.target_dir is not None:
            check_path(self.target_dir, "target_dir")
        if self.target_dir is not None and not self.target_dir.strip("/."):
            raise _fail("target_dir", "it must name a directory below the root")
        if self.target_dir is None and not self.repository:
            raise _fail("target_dir", "the address does not imply one; specify it")

    @property
    def repository(self) -> str:
        """The last part of the address, as git names a clone after it; empty where there is none."""
        last = self.url.rstrip("/").removesuffix("/.git").rpartition("/")[2].removesuffix(".git")
        name = urllib.parse.unquote(last).replace("/", "-")
        unfit = name in ("", ".", "..") or len(name.encode()) > 255 or any(ord(character) < 32 for character in name)
        return "" if unfit else name

    def target(self, cwd: str) -> str:
        """Return where the clone comes to be, absolute, with no `.` and no empty parts."""
        wanted = self.target_dir if self.target_dir is not None else self.repository
        path = wanted if wanted.startswith("/") else f"{cwd}/{wanted}"
        return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _sparse_directory(directory: str) -> str:
    check_text(directory, "sparse", limit=MAX_PATH_BYTES)
    parts = [part for part in directory.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or any(character in directory for character in "*?[]!\\#\n"):
        raise _fail("sparse", "each entry must be a directory of the repository, without patterns")
    return "/".join(parts)
