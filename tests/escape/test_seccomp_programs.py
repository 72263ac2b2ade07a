"""Both profiles: ordinary programs work under them, the libraries' fallbacks included; profiles by name."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.errors import ProfileNotFound, SandboxdError
from tests.support.daemon import Daemon
from tests.support.launching import PROFILES

pytestmark = pytest.mark.real

Made = Callable[[str], Sandbox]
#: glibc tries clone3 first and must fall back on ENOSYS; each way in which a C program starts another.
STARTS = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static void *thread(void *argument) { return argument; }
static int ended(pid_t pid)
{
    int status;
    return pid > 0 && waitpid(pid, &status, 0) == pid ? WEXITSTATUS(status) : -1;
}
int main(void)
{
    pthread_t threads[8];
    void *back = 0;
    int joined = 0;
    for (int i = 0; i < 8; i++)
        if (pthread_create(&threads[i], 0, thread, &joined) == 0 && pthread_join(threads[i], &back) == 0)
            joined += back == &joined;
    printf("threads %d\n", joined);
    char *argv[] = {"sh", "-c", "exit 7", 0};
    pid_t pid = -1;
    printf("posix_spawn %d\n", posix_spawn(&pid, "/bin/sh", 0, 0, argv, environ) == 0 ? ended(pid) : -1);
    if ((pid = fork()) == 0)
        _exit(5);
    printf("fork %d\n", ended(pid));
    if ((pid = vfork()) == 0)
        _exit(6);
    printf("vfork %d\n", ended(pid));
    printf("system %d\n", WEXITSTATUS(system("exit 4")));
    FILE *pipe = popen("echo 3", "r");
    int said = 0;
    if (fscanf(pipe, "%d", &said) == 1)
        printf("popen %d\n", said);
    return pclose(pipe);
}
"""
PYTHON = """
import asyncio, concurrent.futures, ctypes, io, mmap, multiprocessing, os, socket
import sqlite3, ssl, subprocess, tempfile, threading
def square(n):
    return n * n
if __name__ == '__main__':
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(8))) == [n * n for n in range(8)]
    for method in ('fork', 'spawn', 'forkserver'):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, [3]) == [9], method
    assert subprocess.run(['echo', 'x'], capture_output=True, text=True).stdout == 'x\\n'
    async def main():
        server = await asyncio.start_server(lambda r, w: (w.write(b'hi'), w.close()), '127.0.0.1', 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b'hi'
        writer.close()
        process = await asyncio.create_subprocess_exec('true')
        assert await process.wait() == 0
        server.close()
    asyncio.run(main())
    assert socket.getaddrinfo('localhost', 80)
    assert socket.socketpair()
    assert len(mmap.mmap(-1, 4096)) == 4096
    from multiprocessing import shared_memory
    segment = shared_memory.SharedMemory(create=True, size=4096); segment.close(); segment.unlink()
    os.close(os.memfd_create('x')); os.close(os.eventfd(0)); os.close(os.pidfd_open(os.getpid()))
    import numpy, pandas
    assert float((numpy.ones((200, 200)) @ numpy.ones((200, 200)))[0, 0]) == 200.0
    assert pandas.DataFrame({'a': [1, 2]}).a.sum() == 3
    import matplotlib.pyplot as plt
    figure = plt.figure(); figure.gca().plot([1, 2]); out = io.BytesIO(); figure.savefig(out, format='png')
    assert out.getvalue()[:4] == b'\\x89PNG'
    print('fine')
"""
NODE = """
import { Worker, isMainThread } from 'node:worker_threads';
import { execFileSync, spawn } from 'node:child_process';
import { createServer } from 'node:http';
import { readFile, writeFile, mkdtemp } from 'node:fs/promises';
import { createHash, randomBytes, scryptSync } from 'node:crypto';
import { gzipSync, gunzipSync } from 'node:zlib';
await new Promise((done, fail) => new Worker('0', { eval: true }).on('exit', done).on('error', fail));
if (execFileSync('echo', ['x']).toString() !== 'x\\n') throw Error('child');
const server = createServer((_, answer) => answer.end('hi'));
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const got = await (await fetch(`http://127.0.0.1:${server.address().port}/`)).text();
server.close();
if (got !== 'hi') throw Error(got);
const directory = await mkdtemp('/tmp/n');
await writeFile(directory + '/f', gzipSync(scryptSync('a', 'b', 16)));
gunzipSync(await readFile(directory + '/f'));
console.log('fine', await WebAssembly.instantiate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0])) ? 1 : 0);
"""


@pytest.fixture(scope="module", params=["default", "strict"])
def under(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Sandbox]:
    with daemon.client() as client, Sandbox.create(client=client, seccomp=request.param) as sandbox:
        assert sandbox.info.seccomp == request.param
        yield sandbox


def test_threads_and_processes_fall_back_from_clone3(under: Sandbox) -> None:
    under.write_file("/workspace/starts.c", STARTS)
    under.exec("gcc -O2 -Wall -pthread -o /workspace/starts /workspace/starts.c").check()
    result = under.exec("/workspace/starts", timeout=20)
    lines = ["threads 8", "posix_spawn 7", "fork 5", "vfork 6", "system 4", "popen 3"]
    assert (sorted(result.stdout.splitlines()), result.exit_code) == (sorted(lines), 0)


def test_python(under: Sandbox) -> None:
    under.write_file("/workspace/try.py", PYTHON)
    result = under.exec(["python3", "/workspace/try.py"], timeout=120)
    assert (result.stdout, result.exit_code) == ("fine\n", 0), result.stderr


def test_node(under: Sandbox) -> None:
    under.write_file("/workspace/try.mjs", NODE)
    result = under.exec(["node", "/workspace/try.mjs"], timeout=60)
    assert (result.stdout, result.exit_code) == ("fine 1\n", 0), result.stderr


def test_a_shells_programs(under: Sandbox) -> None:
    line = (
        "set -e; cd /workspace; seq 1000 | sort -R | sort -n | xz | unxz | tail -1;"
        "tar cf - /etc/passwd 2>/dev/null | gzip > t.gz; zcat t.gz | tar tf -; rsync -a /etc/default/ d/;"
        "git init -q r; cd r; echo a > a; git add a;"
        "git -c user.name=a -c user.email=a@b commit -qm a; git log --oneline | wc -l;"
        "sqlite3 x.db 'create table t(a); insert into t values (42); select a from t'; cp --reflink=auto x.db y.db;"
        "timeout 5 sleep 0.01; flock x.db true; nice true; ls -la > /dev/null; ps aux > /dev/null;"
        "find / -xdev -name passwd"
    )
    result = under.exec(line, timeout=60).check()
    assert result.stdout.split()[:4] == ["1000", "etc/passwd", "1", "42"]


def test_strict_has_no_ptrace_and_no_netlink(daemon: Daemon) -> None:
    source = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    with daemon.client() as client, Sandbox.create(client=client, seccomp="strict") as strict:
        assert strict.exec(["python3", "-c", source]).stdout == "-1\n"
        assert "not supported" in strict.exec("ip link").stderr
    with daemon.client() as client, Sandbox.create(client=client) as default:
        assert default.exec(["python3", "-c", source]).stdout == "0\n"
        assert "lo" in default.exec("ip link").stdout


# --- by name -------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known(daemon: Daemon) -> None:
    with daemon.client() as client:
        assert client.info()["seccomp"] == ["default", "strict"]
        before = len(Sandbox.list(client=client))
        with pytest.raises(ProfileNotFound) as caught:
            Sandbox.create(client=client, seccomp="unconfined")
        assert caught.value.facts["available"] == ["default", "strict"]
        assert caught.value.facts["profile"] == "unconfined"
        assert len(Sandbox.list(client=client)) == before


@pytest.mark.parametrize("name", ["../default", "/etc/passwd", "", "Default", "default\n", "a" * 33, "default.json"])
def test_a_name_is_no_path(daemon: Daemon, name: str) -> None:
    with daemon.client() as client, pytest.raises(SandboxdError) as caught:
        Sandbox.create(client=client, seccomp=name)
    assert caught.value.kind == "invalid-request"
    assert caught.value.facts["field"] == "seccomp"


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """An operator's directory with one profile: strict without links."""
    directory = tmp_path / "profiles"
    directory.mkdir(mode=0o755)
    profile = json.loads(pathlib.Path(PROFILES, "strict.json").read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in ("symlink", "symlinkat")]
    (directory / "no-links.json").write_text(json.dumps(profile))
    return directory


def test_the_operators_own(tmp_path: pathlib.Path, directory: pathlib.Path, request: pytest.FixtureRequest) -> None:
    daemon = Daemon(tmp_path / "d", options=("--seccomp-dir", str(directory)))
    daemon.start()
    request.addfinalizer(daemon.close)
    with daemon.client() as client, Sandbox.create(client=client, seccomp="no-links") as sandbox:
        assert client.info()["seccomp"] == ["default", "no-links", "strict"]
        result = sandbox.exec("ln -s a /workspace/x")
        assert (result.exit_code, "not implemented" in result.stderr) == (1, True)
        assert sandbox.exec("touch /workspace/y && echo fine").stdout == "fine\n"


def _group_writable(directory: pathlib.Path) -> None:
    directory.chmod(0o775)


def _writable_file(directory: pathlib.Path) -> None:
    (directory / "no-links.json").chmod(0o666)


def _foreign(directory: pathlib.Path) -> None:
    os.chown(directory / "no-links.json", 65534, 65534)


def _link(directory: pathlib.Path) -> None:
    (directory / "other.json").symlink_to(directory / "no-links.json")


def _shadow(directory: pathlib.Path) -> None:
    shutil.copy(directory / "no-links.json", directory / "default.json")


def _docker(directory: pathlib.Path) -> None:
    rule = {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}
    text = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
    (directory / "docker.json").write_text(text)


def _nonsense(directory: pathlib.Path) -> None:
    (directory / "other.json").write_text('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]}')


def _name(directory: pathlib.Path) -> None:
    shutil.copy(directory / "no-links.json", directory / "No Name.json")


@pytest.mark.parametrize(
    "spoil", [_group_writable, _writable_file, _foreign, _link, _shadow, _docker, _nonsense, _name]
)
def test_a_folder_that_is_not_as_it_must_be(
    tmp_path: pathlib.Path, directory: pathlib.Path, spoil: Callable[[pathlib.Path], None]
) -> None:
    """The daemon does not start with walls that somebody else may have set; it names the file."""
    spoil(directory)
    daemon = Daemon(tmp_path / "d", options=("--seccomp-dir", str(directory)))
    with pytest.raises(AssertionError, match="cannot compile the seccomp profiles") as caught:
        daemon.start()
    assert str(directory) in str(caught.value)
    assert daemon.process
    assert daemon.process.wait(10) != 0
    assert not daemon.cgroup().exists()


def test_a_missing_folder_is_said(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path / "d", options=("--seccomp-dir", str(tmp_path / "nowhere")))
    with pytest.raises(AssertionError, match="nowhere"):
        daemon.start()
    assert daemon.process
    assert daemon.process.wait(10) != 0
