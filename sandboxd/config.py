"""The daemon's configuration: a TOML file and the flags of `sandboxd serve`, checked into one frozen value.

Only the command line and `daemon.py` read it. The launcher gets its own part at its start (`launcher_settings`)
and never hears of the daemon's again.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
import urllib.parse
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError, InvalidRequest
from .network import MAX_CONNECTIONS, MODES
from .spec import DEFAULT_LIMITS, Limits, check_rootfs

#: The user and the group that the daemon runs as and lets in, where they exist.
USER: Final = "sandboxd"
GROUP: Final = "sandboxd"
#: 16 characters of a usual alphabet are 80 bits or more; less can be guessed.
MIN_TOKEN_CHARS: Final = 16
MAX_TOKEN_CHARS: Final = 1024
STORAGE: Final = ("auto", "btrfs", "directory")
#: Less than this is not a disk's size; a number of megabytes, most likely.
MIN_BYTES: Final = 1 << 20
#: There are 1,845 ranges of ids, and an address goes with each.
MIN_POOL: Final = 2048
#: A day: more is a mistake.
MAX_SECONDS: Final = 86_400
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set.

    Attributes:
        state_dir: what survives a reboot: the registry, the pool, the rootfs.
        runtime_dir: what does not: the socket and the links to sandboxes.
        socket: the API's unix socket; None is `<runtime_dir>/sandboxd.sock`.
        listen: host and port of the API over TCP; None is no TCP.
        token_file: a file that holds the token that TCP callers must show.
        rootfs_dir: where rootfs are; None is `<state_dir>/rootfs`.
        seccomp_dir: the operator's own seccomp profiles, `<name>.json`, root's alone to write; None is none.
        storage: "btrfs" (limits disks), "directory" (does not), or "auto": btrfs where this host can.
        storage_path: a directory on btrfs to keep sandboxes in; None is an image file in the state directory.
        storage_bytes: what all sandboxes together may take; None is what the disk has above the reserve.
        storage_reserve_bytes: what must stay free on that disk; below it no sandbox is made.
        allow_unenforced: whether limits that the host cannot hold are let through, told as `unenforced`.
        limits: the limits of a sandbox that asks for none.
        previews: whether exposed ports are served at all.
        preview_listen: host and port of the previews' listener; None is 127.0.0.1:8080, or, where another has that
            port, one that is free.
        preview_url: what a front proxy serves previews as, such as https://preview.example.com; None is
            http://localhost with the listener's port. Each preview is a name below its host.
        preview_cert: the certificate chain (PEM) with which the listener speaks TLS; None is plain HTTP.
        preview_key: its key.
        preview_proxies: addresses or networks of front proxies whose X-Forwarded-* are believed.
        preview_wake: whether a request to a preview thaws a frozen sandbox.
        network: the network mode of a sandbox that asks for none: "none", "internet" or "allowlist".
        network_ipv4: the network that sandboxes' addresses are of; nothing else may have them.
        network_ipv6: the same of IPv6.
        network_dns: nameservers (address, or address and port) that names are asked of; empty takes the host's own.
        network_connections: how many connections a sandbox may have at once that asks for no number.
        templates: whether code contexts may start as children of a process that has a rootfs's imports ready.
        template_rootfs: imported rootfs that are trusted for that as if a recipe had built them: as root.
        node_spare_s: after a JavaScript or TypeScript context has started, how many seconds an unused interpreter waits
            in its sandbox for the next one; 0 is none.
        standby_s: while commands follow each other in a sandbox, how many seconds a process waits in it for the next
            one; 0 is none.
        cgroup: the group below which the sandboxes' are made, as a path from cgroup2's root; None is that root.
            The systemd unit gives the one that systemd delegated to sandboxd-cgroups.service.
    """

    state_dir: Path = Path("/var/lib/sandboxd")
    runtime_dir: Path = Path("/run/sandboxd")
    socket: Path | None = None
    listen: tuple[str, int] | None = None
    token_file: Path | None = None
    rootfs_dir: Path | None = None
    seccomp_dir: Path | None = None
    storage: str = "auto"
    storage_path: Path | None = None
    storage_bytes: int | None = None
    storage_reserve_bytes: int = 1 << 30
    allow_unenforced: bool = False
    log_level: str = "info"
    limits: Limits = DEFAULT_LIMITS
    cgroup: str | None = None
    previews: bool = True
    preview_listen: tuple[str, int] | None = None
    preview_url: str | None = None
    preview_cert: Path | None = None
    preview_key: Path | None = None
    preview_proxies: tuple[str, ...] = ()
    preview_wake: bool = False
    network: str = "none"
    network_ipv4: str = "10.213.0.0/16"
    network_ipv6: str = "fd73:6264:73::/64"
    network_dns: tuple[tuple[str, int], ...] = ()
    network_connections: int = 4096
    templates: bool = True
    template_rootfs: tuple[str, ...] = ()
    node_spare_s: int = 60
    standby_s: int = 10

    def __post_init__(self) -> None:
        """Check what no single key can."""
        if self.listen is not None and self.token_file is None:
            raise ConfigError("cannot listen on TCP without a token: set token_file as well", key="token_file")
        if self.storage_path is not None and self.storage == "directory":
            raise ConfigError(
                "cannot use storage_path with storage 'directory': it applies only to btrfs", key="storage_path"
            )

        if (self.preview_cert is None) != (self.preview_key is None):
            raise ConfigError(
                "cannot serve previews over TLS: set both preview_cert and preview_key", key="preview_cert"
            )

    @property
    def socket_path(self) -> Path:
        """Where the unix socket is."""
        return self.socket or self.runtime_dir / "sandboxd.sock"

    @property
    def rootfs_path(self) -> Path:
        """Where rootfs are looked up."""
        return self.rootfs_dir or self.state_dir / "rootfs"

    @property
    def previews_dir(self) -> Path:
        """Where the daemon keeps which previews are gone."""
        return self.state_dir / "previews"

    @property
    def registry_dir(self) -> Path:
        """The daemon's own records."""
        return self.state_dir / "registry"

    @property
    def init_sockets_dir(self) -> Path:
        """Where each init listens."""
        return self.runtime_dir / "links"

    def token(self) -> str | None:
        """Return the token of the token file.

        Raises:
            ConfigError: it cannot be read, or is too short or strange to be a secret.
        """
        if self.token_file is None:
            return None
        try:
            text = self.token_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the token file {self.token_file}: {error}", key="token_file") from None
        if not MIN_TOKEN_CHARS <= len(text) <= MAX_TOKEN_CHARS or not text.isprintable() or " " in text:
            raise ConfigError(
                f"cannot use the token in {self.token_file}: it must be one word of {MIN_TOKEN_CHARS} to "
                f"{MAX_TOKEN_CHARS} characters",
                key="token_file",
            )
        return text


def data_dir(name: str) -> Path:
    """Return where the package's data of that name is: in a wheel inside of it, in a checkout beside it."""
    package = Path(__file__).parent
    inside = package / "_data" / name
    return inside if inside.is_dir() else package.parent / name


def launcher_settings(config: Config, *, daemon_uid: int, daemon_gid: int) -> dict[str, Any]:
    """Return what the launcher is told at its start: plain values, ready for msgpack."""
    return {
        "state_dir": str(config.state_dir),
        "runtime_dir": str(config.runtime_dir),
        "rootfs_dir": str(config.rootfs_path),
        "profile_dir": str(data_dir("seccomp")),
        "own_profile_dir": str(config.seccomp_dir) if config.seccomp_dir else None,
        "storage": config.storage,
        "storage_path": str(config.storage_path or ""),
        "storage_bytes": config.storage_bytes or 0,
        "storage_reserve_bytes": config.storage_reserve_bytes,
        "allow_unenforced": config.allow_unenforced,
        "default_limits": dataclasses.asdict(config.limits),
        "daemon_uid": daemon_uid,
        "daemon_gid": daemon_gid,
        "cgroup_parent": config.cgroup or "",
        "network": config.network,
        "network_ipv4": config.network_ipv4,
        "network_ipv6": config.network_ipv6,
        "network_connections": config.network_connections,
        "templates": config.templates,
        "template_rootfs": list(config.template_rootfs),
    }


def load(file: Path | None, flags: dict[str, Any]) -> Config:
    """Return the configuration of a TOML file with the command line's flags on top; a flag of None says nothing.

    Raises:
        ConfigError: a key is unknown or has the wrong type or value; `key` names it.
    """
    given: dict[str, Any] = {}
    if file is not None:
        try:
            given = tomllib.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the configuration {file}: {error}", key="config") from None
    given = {**given, **{name: value for name, value in flags.items() if value is not None}}
    return Config(**{name: _read(name, value) for name, value in given.items()})


def _read(key: str, value: object) -> Any:  # noqa: ANN401 - a key's own type
    reader = _READERS.get(key)
    if reader is None:
        raise ConfigError(f"cannot understand the key {key!r}: the keys are {', '.join(sorted(_READERS))}", key=key)
    return reader(key, value)


def _path(key: str, value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ConfigError(f"cannot accept {key}: it must be a path", key=key)
    # Absolute at once: the launcher and the daemon may have other working directories.
    return Path(value).absolute()


def _truth(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"cannot accept {key}: it must be true or false", key=key)
    return value


def _address(key: str, value: object) -> tuple[str, int]:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"cannot accept {key}: it must be HOST:PORT", key=key)
    return host, int(port)


def _cgroup(key: str, value: object) -> str:
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) < 2 or parts[0] or not all(parts[1:]) or {".", ".."} & set(parts):
        raise ConfigError(
            f"cannot accept {key}: it must be a cgroup's path from the root of cgroup2, such as /a/b", key=key
        )
    return "/".join(parts)


def _level(key: str, value: object) -> str:
    if value not in LOG_LEVELS:
        raise ConfigError(f"cannot accept {key}: it must be one of {', '.join(LOG_LEVELS)}", key=key)
    return str(value)


def _storage(key: str, value: object) -> str:
    if value not in STORAGE:
        raise ConfigError(f"cannot accept {key}: it must be one of {', '.join(STORAGE)}", key=key)
    return str(value)


def _bytes(key: str, value: object) -> int:
    least = 0 if key == "storage_reserve_bytes" else MIN_BYTES
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
        raise ConfigError(f"cannot accept {key}: it must be a number of bytes, {least} or more", key=key)
    return value


def _seconds(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
        raise ConfigError(f"cannot accept {key}: it must be a number of seconds, 0 to {MAX_SECONDS}", key=key)
    return value


def _url(key: str, value: object) -> str:
    parts = urllib.parse.urlsplit(value if isinstance(value, str) else "")
    try:
        port = parts.port
    except ValueError:
        port = 0
    plain = parts.netloc and not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        raise ConfigError(f"cannot accept {key}: it must be http://HOST[:PORT] or https://HOST[:PORT]", key=key)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _networks(key: str, value: object) -> tuple[str, ...]:
    try:
        if not isinstance(value, list):
            raise TypeError
        return tuple(str(ipaddress.ip_network(item)) for item in value)
    except (TypeError, ValueError):
        raise ConfigError(f"cannot accept {key}: it must be a list of addresses or networks", key=key) from None


def _names(key: str, value: object) -> tuple[str, ...]:
    try:
        if not isinstance(value, list):
            raise TypeError
        return tuple(check_rootfs(name) for name in value)
    except (TypeError, InvalidRequest):
        raise ConfigError(f"cannot accept {key}: it must be a list of rootfs names", key=key) from None


def _mode(key: str, value: object) -> str:
    if value not in MODES:
        raise ConfigError(f"cannot accept {key}: it must be one of {', '.join(MODES)}", key=key)
    return str(value)


def _pool(key: str, value: object) -> str:
    version = int(key[-1])
    try:
        network = ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        network = None
    if network is None or network.version != version or network.num_addresses < MIN_POOL:
        raise ConfigError(f"cannot accept {key}: it must be a network of {MIN_POOL} addresses or more", key=key)
    return str(network)


def _servers(key: str, value: object) -> tuple[tuple[str, int], ...]:
    found = []
    try:
        if not isinstance(value, list):
            raise TypeError
        for item in value:
            try:
                found.append((str(ipaddress.ip_address(item)), 53))
            except ValueError:
                host, port = _address(key, item)
                found.append((str(ipaddress.ip_address(host)), port))
    except (TypeError, ValueError, ConfigError):
        raise ConfigError(
            f"cannot accept {key}: it must be a list of addresses, each with or without a port", key=key
        ) from None
    return tuple(found)


def _connections(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_CONNECTIONS:
        raise ConfigError(f"cannot accept {key}: it must be a number from 1 to {MAX_CONNECTIONS}", key=key)
    return value


def _limits(key: str, value: object) -> Limits:
    if not isinstance(value, dict):
        raise ConfigError(f"cannot accept {key}: it must be a table", key=key)
    known = {field.name for field in dataclasses.fields(Limits)}
    for name in value:
        where = f"{key}.{name}"
        if name not in known:
            raise ConfigError(f"cannot understand the key {where!r}: limits are {', '.join(sorted(known))}", key=where)
    try:
        return Limits(**value).merged(DEFAULT_LIMITS)
    except InvalidRequest as error:
        raise ConfigError(error.message, key=str(error.facts.get("field", key))) from None


_READERS: Final = {
    "state_dir": _path,
    "runtime_dir": _path,
    "socket": _path,
    "listen": _address,
    "token_file": _path,
    "rootfs_dir": _path,
    "seccomp_dir": _path,
    "storage": _storage,
    "storage_path": _path,
    "storage_bytes": _bytes,
    "storage_reserve_bytes": _bytes,
    "allow_unenforced": _truth,
    "log_level": _level,
    "limits": _limits,
    "cgroup": _cgroup,
    "previews": _truth,
    "preview_listen": _address,
    "preview_url": _url,
    "preview_cert": _path,
    "preview_key": _path,
    "preview_proxies": _networks,
    "preview_wake": _truth,
    "network": _mode,
    "network_ipv4": _pool,
    "network_ipv6": _pool,
    "network_dns": _servers,
    "network_connections": _connections,
    "templates": _truth,
    "template_rootfs": _names,
    "node_spare_s": _seconds,
    "standby_s": _seconds,
}
