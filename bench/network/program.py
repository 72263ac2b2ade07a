"""Both ends of the measurement, standard library only: `serve PORT`, or `measure HOST PORT SECONDS`."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PIECE = 1 << 20


def answer(link: socket.socket) -> None:
    kind = link.recv(1)
    try:
        if kind == b"d":
            data = bytes(PIECE)
            while True:
                link.sendall(data)
        elif kind == b"u":
            while link.recv(PIECE):
                pass
        while said := link.recv(64):
            link.sendall(said)
    except OSError:
        link.close()


def serve(port: int) -> None:
    listener = socket.create_server(("", port))
    print("ready", flush=True)
    while True:
        link, _ = listener.accept()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer, args=(link,), daemon=True).start()


def measure(host: str, port: int, seconds: float) -> dict[str, float]:
    found = {}
    for name, kind in (("down MB/s", b"d"), ("up MB/s", b"u"), ("round trip us", b"p")):
        with socket.create_connection((host, port)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(kind)
            buffer, count, began = bytearray(PIECE), 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                if kind == b"d":
                    count += link.recv_into(buffer)
                elif kind == b"u":
                    link.sendall(buffer)
                    count += PIECE
                else:
                    link.sendall(b"x")
                    link.recv(1)
                    count += 1
            spent = time.perf_counter() - began
        found[name] = spent / count * 1e6 if kind == b"p" else count / spent / 1e6
    return found


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
