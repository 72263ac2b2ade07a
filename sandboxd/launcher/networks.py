"""What can be asked for a sandbox that has a network: other rules, and addresses that a name was answered with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import Conflict, InvalidRequest, SandboxdError, StorageFull
from ..network import NetworkSpec
from .control import Answers, Running, running_of
from .records import RecordStore
from .veth import Veths


class Networks:
    """The operations `network` and `permit`."""

    def __init__(self, sandboxes: Mapping[str, Running], veths: Veths, records: RecordStore, answers: Answers) -> None:
        self._sandboxes = sandboxes
        self._veths = veths
        self._records = records
        self._answers = answers

    def operations(self) -> dict[str, Callable[[int, dict[str, Any]], dict[str, Any] | None]]:
        """Return the operations by their names."""
        return {"network": self._network, "permit": self._permit}

    def _network(self, request: int, params: dict[str, Any]) -> None:
        """Give a sandbox that has a network other rules; answered when they are in force."""
        sandbox = running_of(self._sandboxes, params, {"id", "network"})
        sandbox_id = sandbox.record.id
        spec = self._veths.check(network_of(params.get("network")))
        if not spec.has_veth or sandbox_id not in self._veths:
            raise Conflict(
                f"cannot change the network of sandbox {sandbox_id}: a network can be neither added to "
                "nor removed from an existing sandbox",
                id=sandbox_id,
            )

        def changed(error: SandboxdError | None) -> None:
            if error:
                self._answers.fail(request, error)
                return
            record = dataclasses.replace(
                sandbox.record, network=dataclasses.asdict(spec), generation=sandbox.record.generation + 1
            )
            try:
                self._records.save(record)
            except OSError as failure:
                why = StorageFull(f"cannot record the network of sandbox {sandbox_id}: {failure}")
                self._answers.fail(request, why)
                return
            sandbox.record = record
            self._answers.reply(request, {"network": record.network})

        self._veths.change(sandbox_id, spec, changed)

    def _permit(self, request: int, params: dict[str, Any]) -> None:
        """Let addresses that a name was answered with be reached; answered when they are."""
        sandbox = running_of(self._sandboxes, params, {"id", "items"})

        def done(error: SandboxdError | None) -> None:
            if error:
                self._answers.fail(request, error)
            else:
                self._answers.reply(request, {})

        self._veths.permit(sandbox.record.id, params.get("items"), done)


def network_of(given: object) -> NetworkSpec:
    """Return the network that a message says, checked again.

    Raises:
        InvalidRequest: it is none.
    """
    if given is None:
        return NetworkSpec()
    if not isinstance(given, dict):
        raise InvalidRequest("cannot read the network: it must be a map", field="network")
    try:
        return NetworkSpec(**{**given, "allow": tuple(given.get("allow") or ())})
    except TypeError:
        raise InvalidRequest(
            "cannot read the network: it must be a map of a network's fields", field="network"
        ) from None
