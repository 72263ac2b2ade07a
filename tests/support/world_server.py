"""Runs in a network namespace of its own and stands for the internet: HTTP on every address, and a nameserver.

`python world_server.py LOG`: says "ready" on its stdout, and logs each name that it is asked for. Zones are the table
below, and a few names that lie.
"""

from __future__ import annotations

import http.server
import pathlib
import socket
import socketserver
import struct
import sys
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

NAMES = {
    "site.example.": ["198.18.0.10"],
    "www.site.example.": ["198.18.0.10"],
    "other.example.": ["198.18.0.11"],
    "six.example.": ["2001:db8:1::10"],
    "rebind.example.": ["10.9.9.9"],
    "meta.example.": ["169.254.169.254"],
    "loop.example.": ["127.0.0.1"],
    "host.example.": ["203.0.113.1"],
    "near.example.": ["203.0.113.2"],
    "mixed.example.": ["198.18.0.10", "10.9.9.9"],
    "many.example.": [f"198.18.{i // 250}.{i % 250 + 1}" for i in range(1000)],
    "short.example.": ["198.18.0.11"],
}
ALIASES = {"alias.example.": "site.example."}
TTL_S = {"short.example.": 1}


def answer(wire: bytes, log: pathlib.Path) -> bytes | None:
    query = dns.message.from_wire(wire)
    asked = query.question[0]
    name = asked.name.to_text().lower()
    with log.open("a") as file:
        file.write(f"{name} {dns.rdatatype.to_text(asked.rdtype)}\n")
    if name == "silent.example.":
        return None
    reply = dns.message.make_response(query, recursion_available=True)
    if name == "liar.example.":
        reply.id ^= 1
    target = ALIASES.get(name, name)
    if target != name:
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", target))
    kind = "AAAA" if asked.rdtype == dns.rdatatype.AAAA else "A"
    rows = [row for row in NAMES.get(target, []) if (":" in row) == (kind == "AAAA")]
    if asked.rdtype == dns.rdatatype.TXT:
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", '"words"'))
    elif rows:
        reply.answer.append(dns.rrset.from_text(target, TTL_S.get(name, 60), "IN", kind, *rows))
    elif target not in NAMES:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire()


def serve_datagrams(log: pathlib.Path) -> None:
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setsockopt(socket.SOL_IP, 8, 1)  # IP_PKTINFO: answer from the address that was asked
    link.bind(("0.0.0.0", 53))
    while True:
        data, control, _, sender = link.recvmsg(4096, 256)
        wire = answer(data, log)
        if wire is None:
            continue
        if len(wire) > 1200:
            reply = dns.message.make_response(dns.message.from_wire(data))
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        local = control[0][2][4:8]
        link.sendmsg([wire], [(socket.SOL_IP, 8, struct.pack("=I4s4s", 0, local, local))], 0, sender)


class Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        size = struct.unpack(">H", self.rfile.read(2))[0]
        wire = answer(self.rfile.read(size), pathlib.Path(sys.argv[1]))
        if wire is not None:
            self.wfile.write(struct.pack(">H", len(wire)) + wire)


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with the caller's address, so that a test sees the translation."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/away.git/"):
            self.send_response(302)
            self.send_header("Location", f"http://169.254.169.254{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = b"x" * int(self.path[7:]) if self.path.startswith("/bytes/") else self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Pages(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


class Streams(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    log = pathlib.Path(sys.argv[1])
    log.touch()
    servers: list[socketserver.TCPServer] = [Pages(("::", port), Page) for port in (80, 8080)]
    servers.append(Streams(("0.0.0.0", 53), Stream))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=serve_datagrams, args=(log,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()  # until whoever started us closes it


if __name__ == "__main__":
    main()
