"""What changes a sandbox that is there, for synchronous code: a part of `Sandbox`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import control_calls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import EllipsisType

    from .client import Client
    from .control_calls import Change, LimitsChange, NetworkChange, SandboxStats
    from .models import SandboxInfo


class ControlPart:
    """Methods of `Sandbox`."""

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def client(self) -> Client:
        """The connections that it uses."""
        raise NotImplementedError

    def update(
        self,
        *,
        name: str | EllipsisType | None = ...,
        env: Change = ...,
        cwd: str | EllipsisType | None = ...,
        labels: Change = ...,
        limits: LimitsChange = ...,
        network: NetworkChange = ...,
    ) -> SandboxInfo:
        """Change a sandbox, keep the answer in `info` and return it. What is not given stays as it is.

        Args:
            name: a unique name of your own; None takes it away.
            env: variables of later commands, merged into those that there are; a value of None unsets one.
            cwd: where later commands start; None is the default.
            labels: merged like env.
            limits: in force at once, merged; a value of None in a mapping is the daemon's default again. One of
                memory below what is in use lets the kernel reclaim, then kill (`oom_killed`).
            network: a mapping of other rules for a sandbox that has a network, in force at once; `allow` replaces the
                whole list, and connections that the new one refuses end.

        Raises:
            InvalidRequest: a value is wrong; `field` names it. LimitUnenforceable is of its kind.
            NameTaken: another sandbox has that name.
        """
        self.info = self.client.send(
            control_calls.update(self.id, name=name, env=env, cwd=cwd, labels=labels, limits=limits, network=network)
        )
        return self.info

    def set_env_vars(self, env: Mapping[str, str | None]) -> SandboxInfo:
        """Set variables for later commands; None unsets one."""
        return self.update(env=env)

    def freeze(self) -> SandboxInfo:
        """Stop every process where it is; until `thaw` whatever needs the sandbox raises `SandboxFrozen`."""
        self.info = self.client.send(control_calls.freeze(self.id))
        return self.info

    def thaw(self) -> SandboxInfo:
        """Let every process go on."""
        self.info = self.client.send(control_calls.thaw(self.id))
        return self.info

    def stats(self) -> SandboxStats:
        """Return what the sandbox uses."""
        return self.client.send(control_calls.stats(self.id))
