"""The contenders, one file a kind; `ALL` is the order of every table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.peers.cgit import CGit
from bench.peers.docker import DockerApi, DockerCli
from bench.peers.jupyter import IpyKernel, KernelGateway
from bench.peers.node import NodeCommand, WithoutSpare
from bench.peers.oci import Crun, Runc
from bench.peers.plain import Bwrap, Pipe, Unshare
from bench.peers.podman import Podman
from bench.peers.sandboxd import SandboxdApi, SandboxdCli, SandboxdSdk, SandboxdStarted, SandboxdTcp

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contender import Contender
    from bench.workspace import Workspace

ALL: Final[tuple[Callable[[Workspace], Contender], ...]] = (
    SandboxdSdk,
    SandboxdApi,
    SandboxdCli,
    SandboxdTcp,
    SandboxdStarted,
    WithoutSpare,
    NodeCommand,
    Pipe,
    Unshare,
    Bwrap,
    Crun,
    Runc,
    Podman,
    DockerCli,
    DockerApi,
    IpyKernel,
    KernelGateway,
    CGit,
)
