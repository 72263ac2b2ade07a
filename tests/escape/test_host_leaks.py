"""What a sandbox might share with the host: cgroups, sockets, names, volumes, planted configuration, secrets."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from tests.escape.conftest import host_pid
from tests.support.daemon import Daemon, children_of

pytestmark = pytest.mark.real

Python = Callable[..., str]


# --- cgroups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", 1000])
def test_nothing_of_the_cgroup_tree_takes_a_change(python: Python, user: str | int) -> None:
    source = """
import os
tried = 0
for top, directories, files in os.walk('/sys/fs/cgroup'):
    for name in files:
        tried += 1
        try:
            os.close(os.open(f'{top}/{name}', os.O_WRONLY))
            print('opened', top, name)
        except OSError:
            pass
    for action in (lambda: os.mkdir(f'{top}/x'), lambda: os.rename(top, top + 'x'), lambda: os.chmod(top, 0o777),
                   lambda: os.rmdir(f'{top}/work')):
        try:
            action()
            print('changed', top)
        except OSError:
            pass
    for name in ('release_agent', 'notify_on_release', 'devices.allow'):
        if os.path.exists(f'{top}/{name}'):
            print('there is', top, name)
print(tried > 10, '0::/' in open('/proc/self/cgroup').read(), os.path.exists('/sys/fs/cgroup/memory'))
"""
    assert python(source, user=user).splitlines()[-1:] == ["True True False"]
    assert len(python(source, user=user).splitlines()) == 1


def test_no_path_of_the_hosts_tree_is_told(daemon: Daemon, python: Python) -> None:
    told = python(
        "print(open('/proc/self/cgroup').read(), open('/proc/1/cgroup').read(), open('/proc/self/mountinfo').read())"
    )
    assert daemon.cgroup().name not in told
    # v1 hierarchies, where the host has them, are seen from outside of every namespace root.
    assert not [line for line in told.splitlines() if re.match(r" ?\d+:[^:]*:/\.\./.*sandboxd", line)]


# --- sockets and descriptors ---------------------------------------------------------------------------------


def test_a_folders_descriptor_leads_nowhere_else(python: Python) -> None:
    source = """
import array, os, socket
one, other = socket.socketpair()
for path in ('/', '/proc/self', '/proc/1', '/sys/fs/cgroup', '/dev', '/workspace'):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    one.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
    _, ((_, _, raw),), _, _ = other.recvmsg(1, 100)
    got = array.array('i', raw)[0]
    here = got
    for _ in range(50):
        here = os.open('..', os.O_PATH | os.O_DIRECTORY, dir_fd=here)
    facts, root = os.fstat(here), os.stat('/')
    print((facts.st_dev, facts.st_ino) == (root.st_dev, root.st_ino), end=' ')
"""
    assert python(source).split() == ["True"] * 6


def test_no_address_of_the_host_answers(python: Python) -> None:
    addresses = {
        (item.family, item.address.partition("%")[0])
        for items in psutil.net_if_addrs().values()
        for item in items
        if item.family in (socket.AF_INET, socket.AF_INET6)
    }
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        for family, address in addresses:  # the control: from the host each of them answers
            if not address.startswith("fe80"):
                with socket.socket(family) as control:
                    control.settimeout(2)
                    control.connect((address, port))
        source = f"""
import socket
for family, address in {[(int(family), address) for family, address in sorted(addresses)]}:
    with socket.socket(family) as sock:
        sock.settimeout(1)
        try:
            sock.connect((address, {port}))
            print('allowed', address)
        except OSError:
            pass
for family, kind in ((2, 1), (2, 2), (10, 1), (10, 2)):
    for name in ('example.com', 'localhost.localdomain', 'metadata.google.internal'):
        try:
            found = socket.getaddrinfo(name, 80)
            print('resolved', name, found)
        except OSError:
            pass
"""
        assert python(source) == ""


# --- names that a kernel may share ---------------------------------------------------------------------------

MAKE = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
made = [libc.shmget(0x5d5d, 4096, 0o1666), libc.semget(0x5d5d, 1, 0o1666), libc.msgget(0x5d5d, 0o1666),
        libc.mq_open(b'/5d5d', os.O_RDWR | os.O_CREAT, 0o666, 0), os.open('/dev/shm/5d5d', os.O_RDWR | os.O_CREAT)]
sock = socket.socket(socket.AF_UNIX)
sock.bind(b'\\0' + b'5d5d')
sock.listen()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('127.0.0.1', 5555))
tcp = socket.create_server(('127.0.0.1', 5556))
sys.stdout.write('made\\n' if min(made) >= 0 else str(made)); sys.stdout.flush()
time.sleep(60)
"""
LOOK = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
print([libc.shmget(0x5d5d, 0, 0), libc.semget(0x5d5d, 0, 0), libc.msgget(0x5d5d, 0),
       libc.mq_open(b'/5d5d', os.O_RDONLY), os.path.exists('/dev/shm/5d5d')])
for family, address in ((1, b'\\0' + b'5d5d'), (2, ('127.0.0.1', 5556))):
    sock = socket.socket(family)
    try:
        sock.connect(address)
        print('connected', address)
    except OSError:
        pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('127.0.0.1', 5555))
print(len([pid for pid in os.listdir('/proc') if pid.isdigit()]) < 5)
"""


def test_names_are_each_sandboxs_own(sandbox: Sandbox, neighbour: Sandbox) -> None:
    with sandbox.exec_stream(["python3", "-u", "-c", MAKE]) as stream:
        assert next(iter(stream)).text == "made\n"
        own = sandbox.exec(["python3", "-c", LOOK]).stdout
        assert "-1" not in own.splitlines()[0], "the control: inside they are found"
        expected = "[-1, -1, -1, -1, False]\nTrue\n"
        assert neighbour.exec(["python3", "-c", LOOK]).stdout == expected
        on_the_host = subprocess.run([sys.executable, "-I", "-c", LOOK], capture_output=True, text=True, check=False)
        assert on_the_host.stdout.splitlines()[0] == "[-1, -1, -1, -1, False]"
        assert "connected" not in on_the_host.stdout
        sandbox.exec("pkill -9 python3")


def test_what_of_the_host_is_masked(run: Callable[[str], str]) -> None:
    for name in ("kallsyms", "keys", "key-users", "timer_list", "sched_debug", "interrupts", "modules", "swaps"):
        assert run(f"cat /proc/{name} 2>/dev/null | wc -c") == "0", name
    assert run("dmesg >/dev/null 2>&1 || echo refused") == "refused"
    # /proc/locks has those of the caller's own pid namespace alone.
    with open("/proc/self/exe", "rb") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
        inode = os.fstat(file.fileno()).st_ino
        assert f":{inode} " in pathlib.Path("/proc/locks").read_text(), "the control"
        assert f":{inode} " not in run("cat /proc/locks")


# --- what a caller, or what is inside, may make the host do ----------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["volumes", "mounts", "binds", "devices", "privileged", "cap_add", "pid", "security_opt", "rootfs_dir", "user_ns"],
)
def test_there_is_no_way_to_ask_for_a_host_path(daemon: Daemon, field: str) -> None:
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://sandboxd") as http:
        for value in ("/", ["/etc:/etc"], {"/": "/host"}, True):
            answer = http.post("/v1/sandboxes", json={field: value})
            assert answer.status_code == 400, answer.text
            assert answer.json()["kind"] == "unknown-field"
        for rootfs in ("/", "/etc", "../../etc", str(daemon.state_dir), "default/../../..", ".", ".."):
            answer = http.post("/v1/sandboxes", json={"rootfs": rootfs})
            assert (answer.status_code, answer.json()["kind"]) == (400, "invalid-request"), answer.text


PLANT = r"""
cd /workspace
mark='import os; open("@", "w")'
for directory in $(python3 -c 'import site, sys; print(*sys.path[1:], *site.getsitepackages())') /workspace / /root; do
    mkdir -p "$directory" 2>/dev/null
    for name in sitecustomize usercustomize sandboxd msgpack prctl; do
        echo "$mark" > "$directory/$name.py" 2>/dev/null
    done
    echo "$mark" > "$directory/x.pth" 2>/dev/null
done
for file in /etc/profile /etc/bash.bashrc /root/.bashrc /root/.profile /etc/environment /etc/sandboxd/config.toml; do
    mkdir -p $(dirname $file); echo 'touch @' >> $file
done
printf '[core]\n\tfsmonitor = touch @\n\thooksPath = /workspace/hooks\n' > /root/.gitconfig
printf '[alias]\n\tstatus = !touch @\n' >> /root/.gitconfig
cp /root/.gitconfig /etc/gitconfig
mkdir -p /etc/ld.so.conf.d && echo /workspace > /etc/ld.so.conf.d/evil.conf
echo /workspace/evil.so > /etc/ld.so.preload
true
"""


def test_what_is_planted_is_never_read_by_the_host(own_daemon: Daemon, tmp_path: pathlib.Path) -> None:
    """The marker's path exists inside too, so whoever runs it leaves it on his own side."""
    marker = tmp_path / "marker"
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        sandbox.exec(f"mkdir -p {tmp_path} && chmod 777 {tmp_path}").check()
        sandbox.exec(["bash", "-c", PLANT.replace("@", str(marker))]).check()
        sandbox.write_file("/workspace/ok", "1")
        before = own_daemon.launcher_pid()
        assert sandbox.exec(["python3", "-c", "1"]).exit_code == 0
        assert sandbox.exec(["test", "-e", str(marker)]).exit_code == 0, "the control: inside it runs"
        own_daemon.stop()
        own_daemon.start()
        assert own_daemon.launcher_pid() != before
        again = Sandbox.connect(sandbox.id, client=client)
        assert again.read_text("/workspace/ok") == "1"
        assert again.exec("echo alive").stdout == "alive\n"
        with Sandbox.create(client=client) as clean:
            assert clean.exec(["python3", "-c", "print(1)"]).stdout == "1\n"
            assert clean.exec("ls -a /etc/ld.so.preload /root/.gitconfig 2>/dev/null").stdout == ""
        again.destroy()
    assert not marker.exists()


# --- secrets -------------------------------------------------------------------------------------------------


def holds(pid: int, needle: bytes) -> bool:
    """Tell whether a process's own, written memory has `needle` in it."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.read().splitlines():
            where, mode, *_ = line.split()
            if not mode.startswith("rw") or "[vvar" in line:
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            with contextlib.suppress(OSError, OverflowError):
                memory.seek(start)
                if needle in memory.read(end - start):
                    return True
    return False


def test_no_secret_of_one_sandbox_is_in_anothers_init(own_daemon: Daemon) -> None:
    secret, command, content = (secrets.token_hex(16) for _ in range(3))
    with own_daemon.client() as client, Sandbox.create(client=client, env={"TOKEN": secret}) as first:
        first.exec("echo $TOKEN $OTHER", env={"OTHER": command}).check()
        first.exec("cat", stdin=content).check()
        first.write_file("/workspace/f", content)
        first.read_file("/workspace/f")
        with Sandbox.create(client=client) as second:
            second.exec("true")
            launcher = own_daemon.launcher_pid()
            assert own_daemon.process
            others = [launcher, *children_of(launcher), host_pid(own_daemon, second)]
            others = [pid for pid in others if pid != host_pid(own_daemon, first)]
            needles = [needle.encode() for needle in (secret, command, content)]
            assert holds(own_daemon.process.pid, secret.encode()), "the control: the daemon has it"
            found = [(pid, needle) for pid in others for needle in needles if holds(pid, needle)]
            assert found == []
            with pytest.raises(SandboxdError):
                second.read_file("/proc/1/mem")
