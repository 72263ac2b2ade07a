"""Who stands between the client and the service: nobody, nginx, haproxy, socat, sandboxd's preview proxy."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.contender import Unavailable

_START_S: Final = 10.0

_NGINX: Final = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  upstream service {{ server 127.0.0.1:{service}; keepalive 64; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 100000000;
    location / {{
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_buffering off;
    }}
  }}
}}
"""
_HAPROXY: Final = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option forwardfor
  option splice-auto
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
listen front
  bind 127.0.0.1:{port}
  http-reuse always
  server service 127.0.0.1:{service}
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Door:
    """Where a contender answers: on 127.0.0.1, for requests with that Host."""

    port: int
    host: str


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    """Return when somebody listens.

    Raises:
        Unavailable: nobody does in time.
    """
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
    raise Unavailable(f"does not listen on {port}")


@contextlib.contextmanager
def running(argv: list[str], port: int) -> Iterator[Door]:
    """Run a program that listens on `port` of the host's loopback."""
    if shutil.which(argv[0]) is None:
        raise Unavailable(f"{argv[0]} is not installed")
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port)
            yield Door(port, f"127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def nginx(directory: Path, service: int) -> Iterator[Door]:
    """One worker, upstream connections kept."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, service=service))
    with running(["nginx", "-c", str(config), "-p", str(directory)], port) as door:
        yield door


@contextlib.contextmanager
def haproxy(directory: Path, service: int) -> Iterator[Door]:
    """One thread, upstream connections reused, splicing."""
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port, service=service))
    with running(["haproxy", "-db", "-f", str(config)], port) as door:
        yield door


@contextlib.contextmanager
def socat(directory: Path, service: int) -> Iterator[Door]:
    """A process a connection, bytes only."""
    port = free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=1024"
    with running(["socat", "-b", "262144", listen, f"TCP:127.0.0.1:{service},nodelay"], port) as door:
        yield door
