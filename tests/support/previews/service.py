"""A web service for tests of the preview proxy, run inside a sandbox: `service.py PORT [HOST]`.

It reads requests itself, strictly, and tells what it got byte by byte: a framework would repair what the proxy sends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import sys
import threading
import time


class Reader:
    """A socket with a buffer."""

    def __init__(self, sock):
        self.sock, self.buffer = sock, b""

    def until(self, mark):
        while mark not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def take(self, count):
        while len(self.buffer) < count:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data


def body_of(reader, headers):
    """Yield the body in pieces."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(reader.until(b"\r\n"), 16):
            yield reader.take(size)
            assert reader.take(2) == b"\r\n"
        while row := reader.until(b"\r\n"):
            headers.setdefault("trailers", []).append(row.decode("latin-1"))
        return
    left = int(headers.get("content-length", "0"))
    while left:
        piece = reader.take(min(left, 1 << 16))
        left -= len(piece)
        yield piece


def answer(sock, body, status="200 OK", *extra):
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *extra]
    sock.sendall("\r\n".join([*head, "", ""]).encode() + body)


def frame(opcode, payload):
    size = len(payload)
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([size])
    elif size < 65536:
        head += bytes([126]) + struct.pack("!H", size)
    else:
        head += bytes([127]) + struct.pack("!Q", size)
    return head + payload


def websocket(sock, reader, headers):
    """Echo messages; answer pings; close with the client's code plus one."""
    key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    sock.sendall("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())
    while True:
        first, second = reader.take(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", reader.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", reader.take(8))
        mask = reader.take(4)
        data = reader.take(size)
        data = (int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")).to_bytes(
            size, "big"
        )
        opcode = first & 15
        if opcode == 8:
            (code,) = struct.unpack("!H", data[:2])
            sock.sendall(frame(8, struct.pack("!H", code + 1) + b"bye"))
            return
        sock.sendall(frame(10 if opcode == 9 else opcode, data))


def slow(sock):
    try:
        time.sleep(60)
        answer(sock, b"late")
    except OSError:
        pass


EVENTS = {"cut": 0, "open": 0}


def serve(sock):  # noqa: C901, PLR0912
    EVENTS["open"] += 1
    reader = Reader(sock)
    try:
        while True:
            raw = reader.until(b"\r\n\r\n").decode("latin-1")
            line, *rows = raw.split("\r\n")
            method, target, _ = line.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
            path = target.partition("?")[0]
            if headers.get("expect") and path == "/no":
                answer(sock, b"not wanted", "417 Expectation Failed")
                return
            if headers.get("expect"):
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if path == "/ws":
                websocket(sock, reader, headers)
                return
            if path == "/upgrade":
                sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
                while data := reader.buffer or sock.recv(65536):
                    reader.buffer = b""
                    sock.sendall(data.upper())
                sock.sendall(b"END")
                return
            digest, size = hashlib.sha256(), 0
            for piece in body_of(reader, headers):
                digest.update(piece)
                size += len(piece)
            if path == "/large":
                total = int(target.partition("?")[2])
                sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n".encode())
                block = bytes(range(256)) * 4096
                while total > 0:
                    sock.sendall(block[: min(total, len(block))])
                    total -= len(block)
            elif path == "/chunks":
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
                )
                for n in range(int(target.partition("?")[2])):
                    data = f"data: {n} {time.time()}\n\n".encode()
                    sock.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    time.sleep(0.2)
                sock.sendall(b"0\r\n\r\n")
            elif path == "/trailers":
                told = json.dumps({"rows": rows, "trailers": headers.get("trailers", [])}).encode()
                sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
                sock.sendall(f"{len(told):x}\r\n".encode() + told + b"\r\n0\r\nX-Sum: 7\r\n")
                sock.sendall(b"Set-Cookie: a=1\r\nConnection: close\r\nContent-Length: 5\r\n\r\n")
            elif path == "/rest":
                sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end")
                return
            elif path == "/forever":
                sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                try:
                    sock.settimeout(30)
                    EVENTS["cut"] += sock.recv(1) == b""
                except ConnectionError:
                    EVENTS["cut"] += 1
                return
            elif path == "/bad":
                sock.sendall(base64.urlsafe_b64decode(target.partition("?")[2]))
                return
            elif path == "/events":
                answer(sock, json.dumps(EVENTS).encode())
            elif path == "/cookie":
                answer(sock, b"", "200 OK", "Set-Cookie: a=1; Domain=localhost; Path=/", "Set-Cookie: b=2; HttpOnly")
            elif method == "HEAD":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
            else:
                seen = {"line": line, "rows": rows, "size": size, "sha256": digest.hexdigest(), "body": path}
                answer(sock, json.dumps(seen).encode(), "200 OK", "Content-Type: application/json", "X-Own: 1")
    except (EOFError, OSError):
        pass
    finally:
        sock.close()


def main():
    port = int(sys.argv[1])
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
        print("listening", flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(sock,), daemon=True).start()


main()
