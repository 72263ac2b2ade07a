"""Previews, for code on trio or asyncio: a part of `AsyncSandbox`."""

from __future__ import annotations

from . import port_calls
from .verbs import AsyncPart, async_verb


class AsyncPortPart(AsyncPart):
    """Methods of `AsyncSandbox`."""

    expose_port = async_verb(port_calls.expose_port)
    unexpose_port = async_verb(port_calls.unexpose_port)
    get_exposed_ports = async_verb(port_calls.get_exposed_ports)
    watch_port = async_verb(port_calls.watch_port)
    create_preview_link = async_verb(port_calls.create_preview_link)
