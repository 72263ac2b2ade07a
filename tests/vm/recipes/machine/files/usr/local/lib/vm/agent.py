"""Runs commands for the machine's host: one at a time, over a virtio-serial port. Python's standard library alone.

Frames in both directions are `type: 1 byte | length: u32 big-endian | bytes`.

    from the host   R  JSON {argv, cwd, env, pty: [rows, columns] or null}: run this
                    I  stdin; an empty one closes it        S  JSON number: signal the command's session
    to the host     H  JSON: up, after each opening of the port     O  output     T  what it wrote to descriptor 3
                    X  JSON {status}: it ended (negative: by that signal)

A host that goes away (the port hangs up) ends its command.
"""

import contextlib
import fcntl
import json
import os
import pty
import selectors
import signal
import struct
import sys
import termios
import time

HEADER = struct.Struct(">cI")
CHUNK = 65536


class Port:
    """The port: whole frames in, whole frames out."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.received = b""

    def send(self, kind, payload=b""):
        data = HEADER.pack(kind, len(payload)) + payload
        while data:
            data = data[os.write(self.fd, data) :]

    def read(self):
        """Return the frames that have come whole, or None at the hang-up."""
        data = os.read(self.fd, CHUNK)
        if not data:
            return None
        self.received += data
        frames = []
        while len(self.received) >= HEADER.size:
            kind, length = HEADER.unpack_from(self.received)
            if len(self.received) < HEADER.size + length:
                break
            frames.append((kind, self.received[HEADER.size : HEADER.size + length]))
            self.received = self.received[HEADER.size + length :]
        return frames


class Command:
    """One running command: its pid, the end of its stdin, and what it may write to."""

    def __init__(self, request):
        size = request.get("pty")
        report, self.report_end = os.pipe2(os.O_CLOEXEC)
        if size:
            master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
            self.stdin, output, ends = master, master, (slave, slave)
        else:
            stdin_end, self.stdin = os.pipe2(os.O_CLOEXEC)
            output, output_end = os.pipe2(os.O_CLOEXEC)
            ends = (stdin_end, output_end)
        self.sources = {output: b"O", report: b"T"}
        self.pid = os.fork()
        if not self.pid:
            self._become(request, ends, terminal=bool(size))
        for fd in {*ends, self.report_end}:
            os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)

    def _become(self, request, ends, terminal):
        try:
            os.setsid()
            if terminal:
                fcntl.ioctl(ends[0], termios.TIOCSCTTY, 0)
            os.dup2(ends[0], 0)
            os.dup2(ends[1], 1)
            os.dup2(ends[1], 2)
            os.dup2(self.report_end, 3)
            os.chdir(request.get("cwd") or "/")
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("0")
            os.execvpe(request["argv"][0], request["argv"], {**os.environ, **request.get("env", {})})
        except BaseException as error:
            os.write(2, f"cannot run {request['argv']}: {error}\n".encode())
        finally:
            os._exit(127)


class Server:
    """Answers one host until it hangs up."""

    def __init__(self, port):
        self.port = port
        self.command = None
        self.selector = selectors.DefaultSelector()
        self.selector.register(port.fd, selectors.EVENT_READ, self.on_port)

    def run(self):
        try:
            going = True
            while going:
                for key, _ in self.selector.select():
                    going = key.data(key.fd)
                    if going is not True:  # a hang-up; or a command ended, and what else was ready is gone
                        break
        finally:
            if self.command is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.command.pid, signal.SIGKILL)
                os.waitpid(self.command.pid, 0)
            self.selector.close()

    def on_port(self, fd):
        frames = self.port.read()
        for kind, payload in frames or ():
            if kind == b"R" and self.command is None:
                self.command = Command(json.loads(payload))
                for source in self.command.sources:
                    self.selector.register(source, selectors.EVENT_READ, self.on_output)
                self.selector.register(self.command.pidfd, selectors.EVENT_READ, self.on_end)
            elif self.command is not None:
                tell(self.command, kind, payload)
        return frames is not None

    def on_output(self, fd):
        if not forward(self.port, self.command, fd):
            self.selector.unregister(fd)
            if self.command.sources.pop(fd) == b"O" and self.command.stdin == fd:
                self.command.stdin = -1
            os.close(fd)
        return True

    def on_end(self, fd):
        self.selector.unregister(fd)
        finish(self.port, self.command, self.selector)
        self.command = None
        return "again"


def tell(command, kind, payload):
    with contextlib.suppress(OSError):
        if kind == b"I" and payload:
            while payload:
                payload = payload[os.write(command.stdin, payload) :]
        elif kind == b"I" and command.stdin >= 0 and command.stdin not in command.sources:
            os.close(command.stdin)
            command.stdin = -1
        elif kind == b"S":
            os.killpg(command.pid, json.loads(payload))


def forward(port, command, fd):
    """Send on what `fd` has; False at its end."""
    try:
        data = os.read(fd, CHUNK)
    except OSError:  # a terminal whose other side is closed
        data = b""
    if data:
        port.send(command.sources[fd], data)
    return bool(data)


def finish(port, command, selector):
    """Drain what it wrote before it ended, without waiting for a child that holds its pipes."""
    for fd in list(command.sources):
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            while forward(port, command, fd):
                pass
        selector.unregister(fd)
        os.close(fd)
    if command.stdin >= 0 and command.stdin not in command.sources:
        os.close(command.stdin)
    _, status = os.waitpid(command.pid, 0)
    os.close(command.pidfd)
    port.send(b"X", json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())


def main():
    while True:
        port = Port(sys.argv[1])
        with contextlib.suppress(OSError):
            port.send(b"H", json.dumps({"uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME)}).encode())
            Server(port).run()
        os.close(port.fd)
        time.sleep(0.2)  # no host: the port reads as ended at once, again and again


if __name__ == "__main__":
    main()
