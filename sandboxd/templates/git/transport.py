"""Fetching a pack: dulwich's clients, bounded, and their failures by name.

The protocols are dulwich's (smart HTTP with version 2, git://; local.py takes a repository from the disk). Here are the
addresses that are taken, redirections (as in C git: only of the first request), credentials (dulwich sends them to the
origin that they were given for and to no other; they are in memory alone), timeouts, and what a server may make us
keep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final

import urllib3
import urllib3.exceptions
from dulwich import client as dulwich_client
from dulwich.errors import GitProtocolError as DulwichProtocolError
from dulwich.errors import HangupException, NotGitRepository
from dulwich.protocol import Protocol, pkt_line

from ...errors import (
    FilePermissionDenied,
    GitAuthentication,
    GitProtocolError,
    GitRefused,
    GitRepositoryNotFound,
    GitTimeout,
    GitUnreachable,
    SandboxdError,
)
from . import local, names
from .objects import check_format

SCHEMES: Final = ("https", "http", "git")
#: What a server may say of its references, before the pack: some million names.
MAX_REFS_BYTES: Final = 128 * 1024 * 1024
#: Without what hosts keep beside branches and tags: refs/pull of a large repository are many.
PREFIXES: Final = (b"HEAD", b"refs/heads/", b"refs/tags/")
MAX_REDIRECTS: Final = 5
CONNECT_S: Final = 20.0
#: Whose certificates to trust: the sandbox's own list, where there is one.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_FETCH: Final = pkt_line(b"command=fetch\n")
#: What servers say when they have no such object, or no such repository.
_NO_OBJECT: Final = re.compile(r"not our ref|unadvertised object|no such (ref|remote)", re.IGNORECASE)
_NOT_THERE: Final = re.compile(r"not found|not exported|access denied", re.IGNORECASE)

Refs = dict[bytes, bytes]
#: Takes the references and returns the objects wanted.
Choose = Callable[[Refs], list[bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a repository is: without credentials, so that it can be written down and shown."""

    url: str
    scheme: str
    host: str
    port: int | None
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """Who asks. Never shown."""

    username: str
    password: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """What came beside the pack."""

    refs: Refs
    symrefs: dict[bytes, bytes]
    shallow: list[bytes]


class _Walker:
    """Tells the server what we have: nothing."""

    def __init__(self) -> None:
        self.shallow: set[bytes] = set()
        self.unshallow: set[bytes] = set()

    def __next__(self) -> None:
        return None

    def ack(self, sha: bytes) -> None:
        """Nothing was offered."""

    def nak(self) -> None:
        """As expected."""

    def update_shallow(self, new: set[bytes], old: set[bytes]) -> None:
        """Take where the history was cut."""
        self.shallow |= new


def parse(url: str) -> Address:
    """Return the parts of an address that was checked by `spec.check_git_url`.

    Raises:
        GitRefused: it is of a kind that is not taken (a submodule's, or a redirection's).
    """
    if url.startswith("/"):
        return Address(url, "", "", None, url)
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise GitRefused("cannot use the address of a repository: it is not a URL", reason="address") from None
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise GitRefused(
            f"cannot use an address of scheme {parts.scheme[:20]!r}: the schemes are {', '.join(SCHEMES)}",
            reason="address",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    return Address(f"{parts.scheme}://{place}{parts.path}", parts.scheme, parts.hostname, port, parts.path)


class Transport:
    """Fetches from any address, with one set of certificates and timeouts.

    Attributes:
        context: made before the sandbox was entered, so that OpenSSL's configuration and libraries are the host's.
    """

    def __init__(self, context: ssl.SSLContext, login: Login | None, login_origin: Address, stall_s: float) -> None:
        self._context = context
        self._login = login
        self._origin = (login_origin.scheme, login_origin.host, login_origin.port)
        self._stall_s = stall_s
        socket.setdefaulttimeout(stall_s)
        names.install()

    def fetch(
        self,
        address: Address,
        choose: Choose,
        sink: Callable[[bytes], int],
        progress: Callable[[bytes], None],
        depth: int | None,
    ) -> Fetched:
        """Fetch what `choose` wants into `sink`.

        Raises:
            SandboxdError: why it cannot be done.
        """
        walker = _Walker()
        seen: dict[bytes, bytes] = {}

        def wants(refs: Refs, depth: int | None = None) -> list[bytes]:
            seen.update({name: value for name, value in refs.items() if not name.endswith(b"^{}")})
            return choose(seen)

        if not address.scheme:
            with self._named(address):
                symrefs, ends = local.fetch(address.path, wants, sink, progress, depth)
            return Fetched(seen, symrefs, ends)
        client, path = self._client(address)
        with self._named(address):
            done = client.fetch_pack(
                path,
                wants,
                walker,
                sink,
                progress=progress,
                depth=depth,
                ref_prefix=list(PREFIXES),
                # git:// has no way to ask for small deltas in version 2 (dulwich does not send the argument)
                protocol_version=0 if address.scheme == "git" else None,
            )
        check_format(done.object_format)
        shallow = sorted({*walker.shallow, *(done.new_shallow or ())})
        return Fetched(seen, dict(done.symrefs or {}), shallow)

    def _client(self, address: Address) -> tuple[Any, str]:
        if address.scheme == "git":
            return _TcpClient(address.host, port=address.port, thin_packs=False, include_tags=True), address.path
        login = self._login if (address.scheme, address.host, address.port) == self._origin else None
        if address.scheme == "https":
            self._trust()
        pool = _Pool(
            ssl_context=self._context,
            timeout=urllib3.Timeout(connect=min(CONNECT_S, self._stall_s), read=self._stall_s),
            headers={"User-Agent": "git/sandboxd"},
        )
        return _HttpClient(address.url, pool, login), ""

    def _trust(self) -> None:
        for bundle in _BUNDLES:
            with contextlib.suppress(OSError, ssl.SSLError):
                if os.path.isfile(bundle):
                    self._context.load_verify_locations(bundle)
                    return

    @contextlib.contextmanager
    def _named(self, address: Address) -> Iterator[None]:
        """Give every failure of a fetch its name."""
        try:
            yield
        except (SandboxdError, MemoryError):
            raise
        except Exception as error:
            raise self._meaning(address, error) from None

    def _meaning(self, address: Address, error: Exception) -> SandboxdError:
        where = address.url
        causes = list(_causes(error))
        for cause in causes:  # first: urllib3's own class for a refused connection is one of timeouts
            if isinstance(cause, PermissionError) and not address.scheme:
                return FilePermissionDenied(f"cannot clone {where}: {cause.strerror}", path=where)
            if isinstance(cause, OSError) and cause.errno is not None and address.scheme:
                return _unreachable(address, cause)
        if any(isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError) for cause in causes):
            return GitTimeout(
                f"cannot clone {where}: the server sent nothing for {self._stall_s:g} s",
                stalled=True,
                timeout_s=self._stall_s,
            )
        if isinstance(error, NotGitRepository | FileNotFoundError | NotADirectoryError):
            return not_found(where)
        text = str(error)
        if isinstance(error, DulwichProtocolError) and _NOT_THERE.search(text):
            return not_found(where)
        if isinstance(error, HangupException | urllib3.exceptions.ProtocolError):
            return GitUnreachable(f"cannot clone {where}: the server hung up", host=address.host, reason="hung-up")
        if not address.scheme:
            return GitRefused(
                f"cannot clone {where}: the repository is damaged ({type(error).__name__}: {text:.200})",
                reason="damaged",
            )
        return GitProtocolError(
            f"cannot clone {where}: the server does not speak git ({type(error).__name__}: {text:.200})",
            reason="no-such-object" if _NO_OBJECT.search(text) else "protocol",
        )


def _unreachable(address: Address, cause: OSError) -> GitUnreachable:
    reason, why = "connection", cause.strerror
    if isinstance(cause, ssl.SSLError):
        reason, why = "tls", getattr(cause, "verify_message", "") or cause.reason or "TLS failed"
    elif isinstance(cause, socket.gaierror):
        reason, why = "name", f"the name cannot be resolved ({cause.strerror})"
    return GitUnreachable(f"cannot clone {address.url}: {why}", host=address.host, reason=reason)


def not_found(where: str) -> GitRepositoryNotFound:
    """Return the error for an address where nothing is."""
    return GitRepositoryNotFound(f"cannot clone {where}: there is no git repository at that address", url=where)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came of; urllib3 keeps the cause in `reason` as well."""
    seen = 0
    while error is not None and seen < 16:
        seen += 1
        yield error
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__


class _TcpClient(dulwich_client.TCPGitClient):
    """git://, with a bound on what comes before the pack."""

    def _connect(
        self, cmd: bytes, path: str | bytes, protocol_version: int | None = None
    ) -> tuple[Protocol, Callable[[], bool], Any]:
        protocol, can_read, stderr = super()._connect(cmd, path, protocol_version)
        plain, left = protocol.read, MAX_REFS_BYTES

        def read(size: int) -> bytes:
            nonlocal left
            data = plain(size)
            if not self.has_refs:
                left -= len(data)
                if left < 0:
                    raise GitProtocolError("cannot accept the references: there are too many", reason="references")
            return data

        protocol.read = read
        return protocol, can_read, stderr

    has_refs = False

    def _negotiate_upload_pack_capabilities(self, server_capabilities: set[bytes]) -> Any:  # noqa: ANN401 - as there
        self.has_refs = True
        return super()._negotiate_upload_pack_capabilities(server_capabilities)


class _Pool(urllib3.PoolManager):
    """Connections that try once, and follow redirections of the first request alone."""

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - urllib3's
        """Make a request."""
        follow = MAX_REDIRECTS if method == "GET" else 0
        kwargs["retries"] = urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=follow, raise_on_redirect=bool(follow)
        )
        return super().request(method, url, *args, **kwargs)


class _HttpClient(dulwich_client.Urllib3HttpGitClient):
    """Smart HTTP: one redirection of the first request, no plain files ("dumb" servers), named refusals."""

    def __init__(self, url: str, pool: urllib3.PoolManager, login: Login | None) -> None:
        super().__init__(
            url,
            pool_manager=pool,
            thin_packs=False,
            include_tags=True,
            username=login.username if login else None,
            password=login.password if login else None,
        )
        self._has_login = login is not None

    def _smart_request(self, service: str, url: str, data: Any) -> Any:  # noqa: ANN401 - dulwich's
        if self.protocol_version == 2 and isinstance(data, bytes) and data.startswith(_FETCH):
            # Arguments that dulwich does not send in version 2: without the first, bases are named by 20 bytes each.
            more = pkt_line(b"ofs-delta\n") + pkt_line(b"include-tag\n")
            data = data.replace(b"0001", b"0001" + more, 1)
        return super()._smart_request(service, url, data)

    def _http_request(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        raise_for_status: bool = True,
    ) -> Any:  # noqa: ANN401 - dulwich's
        response, read = super()._http_request(url, headers, data, raise_for_status=False)
        if response.status != 200:
            response.close()
            raise self._refusal(url, response.status)
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(url, response.redirect_location))
        if parts.scheme not in ("http", "https"):
            raise GitRefused("cannot follow a redirection to another kind of address", reason="redirection")
        if data is None and not (response.content_type or "").startswith("application/x-git-"):
            response.close()
            raise not_found(_printable_url(url))
        is_fetch = isinstance(data, bytes) and data.startswith(_FETCH)
        return response, _refusing(read) if is_fetch else _bounded(read)

    def _refusal(self, url: str, status: int) -> SandboxdError:
        where = _printable_url(url)
        if status in (401, 403, 407):
            why = "the server rejected the user name and password" if self._has_login else "the server requires a login"
            return GitAuthentication(f"cannot clone {where}: {why}", sent=self._has_login, status=status)
        if status in (404, 410):
            return not_found(where)
        return GitProtocolError(f"cannot clone {where}: the server answered {status}", reason="status", status=status)


def _printable_url(url: str) -> str:
    """Return the repository's address, of a request's."""
    return url.partition("?")[0].removesuffix("/info/refs").removesuffix("/git-upload-pack")


def _refusing(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Hear of an error that comes in the place of a fetch's first line; dulwich takes it for an odd line."""
    reads = 0

    def take(size: int) -> bytes:
        nonlocal reads
        data = read(size)
        reads += 1
        if reads == 2 and data.startswith(b"ERR "):  # after the line's length
            raise DulwichProtocolError(data[4:].decode("utf-8", "replace"))
        return data

    return take


def _bounded(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    left = MAX_REFS_BYTES

    def take(size: int) -> bytes:
        nonlocal left
        data = read(size)
        left -= len(data)
        if left < 0:
            raise GitProtocolError("cannot accept the references: there are too many", reason="references")
        return data

    return take
