"""Previews, for synchronous code: a part of `Sandbox`."""

from __future__ import annotations

from . import port_calls
from .verbs import Part, sync_verb


class PortPart(Part):
    """Methods of `Sandbox`."""

    expose_port = sync_verb(port_calls.expose_port)
    unexpose_port = sync_verb(port_calls.unexpose_port)
    get_exposed_ports = sync_verb(port_calls.get_exposed_ports)
    watch_port = sync_verb(port_calls.watch_port)
    create_preview_link = sync_verb(port_calls.create_preview_link)
