"""The launcher's own configuration: written by root, never by the daemon's user."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import ConfigError
from ..spec import DEFAULT_LIMITS, Limits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the launcher was started with.

    Attributes:
        state_dir: holds `pool/`, `records/` (root's) and, unless `rootfs_dir` says otherwise, `rootfs/`.
        runtime_dir: holds `links/` (the inits' sockets), `stage/` (an empty mount point) and `router` (a namespace).
        rootfs_dir: the only place where rootfs are looked up.
        profile_dir: the seccomp profiles that come with sandboxd, `<name>.json`.
        own_profile_dir: the operator's own; None is none.
        storage: "auto", "btrfs" or "directory" (storage/choice.py).
        storage_path: a directory on btrfs to keep sandboxes in; empty is an image of our own.
        storage_bytes: what all sandboxes together may take; 0 is what the filesystem has above the reserve.
        storage_reserve_bytes: what stays free on that filesystem.
        allow_unenforced: whether a limit that this host cannot enforce is listed rather than refused.
        default_limits: of a sandbox that asks for none.
        daemon_uid: who may connect to the inits' sockets.
        daemon_gid: its group.
        templates: whether code contexts may start as children of a process that has their imports ready.
        template_rootfs: imported rootfs that are trusted as root, so that there may be templates of them.
        network: the network mode of a sandbox that asks for none.
        network_ipv4, network_ipv6: the networks that sandboxes' addresses are of.
        network_connections: how many connections a sandbox may have that asks for no number.
        cgroup_parent: the group that the sandboxes' own is made in, as a path from cgroup2's root; "" is that root.
    """

    state_dir: str
    runtime_dir: str
    rootfs_dir: str
    profile_dir: str
    own_profile_dir: str | None = None
    storage: str = "auto"
    storage_path: str = ""
    storage_bytes: int = 0
    storage_reserve_bytes: int = 1 << 30
    allow_unenforced: bool = False
    default_limits: Limits = DEFAULT_LIMITS
    daemon_uid: int = 0
    daemon_gid: int = 0
    templates: bool = True
    template_rootfs: tuple[str, ...] = ()
    network: str = "none"
    network_ipv4: str = "10.213.0.0/16"
    network_ipv6: str = "fd73:6264:73::/64"
    network_connections: int = 4096
    cgroup_parent: str = ""

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Settings:
        """Make settings of what the daemon wrote before it dropped its privileges.

        Raises:
            ConfigError: a key is missing or unknown.
        """
        values = dict(message)
        try:
            values["template_rootfs"] = tuple(values.get("template_rootfs") or ())
            if "default_limits" in values:
                values["default_limits"] = Limits(**values["default_limits"]).merged(DEFAULT_LIMITS)
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"cannot read the launcher's settings: {error}") from None

    @property
    def pool_dir(self) -> str:
        """Where the directory driver keeps the sandboxes' files."""
        return f"{self.state_dir}/pool"

    @property
    def pool_image(self) -> str:
        """The btrfs driver's own filesystem, in a file."""
        return f"{self.state_dir}/pool.btrfs"

    @property
    def pool_mount(self) -> str:
        """Where the launcher, and nobody else, sees what is in the image."""
        return f"{self.runtime_dir}/pool"

    @property
    def records_dir(self) -> str:
        """Where the launcher keeps its records."""
        return f"{self.state_dir}/records"

    @property
    def init_sockets_dir(self) -> str:
        """Where each init listens, as `<id>.sock`."""
        return f"{self.runtime_dir}/links"

    @property
    def stage_dir(self) -> str:
        """An empty directory: the mount point that each creation uses in its own mount namespace."""
        return f"{self.runtime_dir}/stage"

    @property
    def router_file(self) -> str:
        """What keeps the network namespace that sandboxes' veths end in (launcher/router.py)."""
        return f"{self.runtime_dir}/router"

    @property
    def cgroup_name(self) -> str:
        """The cgroup of this state directory's sandboxes; two daemons never share one."""
        # Not before the zygote is forked: OpenSSL would be mapped into every init.
        import hashlib  # noqa: PLC0415

        return f"sandboxd-{hashlib.sha256(self.state_dir.encode()).hexdigest()[:12]}"

    def tree_of(self, rootfs: str) -> str:
        """Return the unpacked root of a rootfs (`images/` lays it out)."""
        return f"{self.rootfs_dir}/{rootfs}/private/tree"
