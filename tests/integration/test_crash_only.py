"""Crash-only: SIGKILL of daemon, launcher and init at random points; what the next daemon makes of it.

A round is an operation with a SIGKILL in it. The points are drawn from the time that the operation takes on this
machine, in equal parts of it (`POINTS`), so that a slow machine is hit in all of them too. The short form has a round
for each operation, target and part; `make test-long` has hundreds.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sandboxd import Sandbox, SandboxdError, SandboxFailed, SandboxGone, SandboxNotFound
from sandboxd.linux import procfs
from sandboxd.wire.messages import Failure, Reply, Request
from tests.support import footprint, seeds
from tests.support.daemon import Daemon
from tests.support.launching import LauncherProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

#: Every kind of round: the part of the operation's time that the blow falls in, the operation, who is killed.
POINTS = tuple(itertools.product(range(3), ("create", "exec", "destroy"), ("daemon", "launcher", "init")))
#: The last part reaches a little over the operation's end.
LONGEST = 1.2
#: Undisturbed operations that are timed; the middle one counts.
TIMED = 3
#: Round trips through the launcher until what was asked for has happened.
TRIES = 2000
#: How a call may end that a blow fell on; anything else is a bug that hides behind it.
NAMED_ENDS = {
    "daemon-unavailable", "launch-failed", "launcher-gone", "sandbox-failed", "sandbox-gone", "server-busy",
}  # fmt: skip


def init_pid(daemon: Daemon, sandbox_id: str) -> int:
    return int((daemon.cgroup() / sandbox_id / "init" / "cgroup.procs").read_text())


class Ground:
    """One state directory that daemons come and go on, with two sandboxes that must live through it all."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.client = daemon.client()
        self.launcher = daemon.launcher_pid()
        self.steady = Sandbox.create(client=self.client, name="steady")
        with self.steady.exec_stream("echo up; exec sleep 100000", detach=True) as stream:
            assert next(iter(stream)).data == b"up\n"
        self.victim: Sandbox | None = None
        self._spans: dict[str, float] = {}

    def span_s(self, operation: str) -> float:
        """Return how long an operation takes that nobody disturbs."""
        if operation not in self._spans:
            times = []
            for _ in range(TIMED):
                victim = self.new_victim() if operation != "create" else None
                began = time.perf_counter()
                operate(self, operation, victim)
                times.append(time.perf_counter() - began)
                self.check()
            self._spans[operation] = sorted(times)[TIMED // 2]
        return self._spans[operation]

    def new_victim(self) -> Sandbox:
        if self.victim is None:
            self.victim = Sandbox.create(client=self.client)
        return self.victim

    def restart_what_died(self) -> bool:
        """Start a daemon if there is none; say whether that was so."""
        assert self.daemon.process
        if procfs.start_time(self.launcher) is not None and procfs.start_time(self.daemon.process.pid) is not None:
            return False
        self.daemon.process.wait(30)
        self.daemon.start()
        self.client.close()
        self.client = self.daemon.client()
        self.launcher = self.daemon.launcher_pid()
        if self.victim is not None:
            with contextlib.suppress(SandboxNotFound):
                self.victim = Sandbox.connect(self.victim.id, client=self.client)
        return True

    def check(self) -> None:
        """Whatever died: the daemon serves, the living are listed and work, and the dead have left nothing."""
        listed = {sandbox.id: sandbox for sandbox in Sandbox.list(client=self.client)}
        assert self.steady.id in listed
        steady = Sandbox.connect("steady", client=self.client)
        assert steady.exec("pgrep -fc '^sleep 100000'").stdout == "1\n"
        for sandbox in listed.values():
            if sandbox.info.state == "failed":
                assert sandbox.info.reason in {"init was killed by SIGKILL", "init ended"}, sandbox.info
                with pytest.raises(SandboxFailed):
                    sandbox.exec("true")
            elif sandbox.info.state == "running":
                with contextlib.suppress(SandboxFailed):  # its init was killed and that is not known yet
                    assert sandbox.exec("echo on").stdout == "on\n"
            if sandbox.id != self.steady.id and (self.victim is None or sandbox.id != self.victim.id):
                sandbox.destroy()
        kept = {self.steady.id, *({self.victim.id} & set(listed) if self.victim else ())}
        if self.victim and self.victim.id not in listed:
            self.victim = None
        elif self.victim and listed[self.victim.id].refresh().state != "running":
            listed[self.victim.id].destroy()
            kept.discard(self.victim.id)
            self.victim = None
        wait_until(lambda: self._only(kept), "the end of what the dead have left")

    def _only(self, kept: set[str]) -> bool:
        return all(any(name in path for name in kept) for path in self.daemon.leftovers())


def operate(ground: Ground, operation: str, victim: Sandbox | None) -> None:
    if victim is None:
        Sandbox.create(client=ground.client)
    elif operation == "exec":
        victim.exec("echo up; sleep 0.02; echo down", timeout=10)
    else:
        victim.destroy()


class Blow:
    """One round: an operation under way in a thread, and a SIGKILL that falls into it."""

    def __init__(self, ground: Ground, operation: str, target: str, wait_s: float) -> None:
        self.ground = ground
        self.operation = operation
        self.target = target
        self.wait_s = wait_s
        self.error: SandboxdError | None = None
        self.surprise: BaseException | None = None
        self._over = threading.Event()
        # The prepared sandbox that is held may be the one that is created.
        self._before = set(os.listdir(ground.daemon.cgroup())) - {ground.daemon.prepared()}
        self._victim = ground.new_victim() if operation != "create" else None

    def strike(self) -> None:
        thread = threading.Thread(target=self._operate)
        thread.start()
        # Either the operation is over first, or the time has come.
        self._over.wait(self.wait_s)
        self._kill()
        thread.join(60)
        assert not thread.is_alive(), "a call of a daemon that died does not end"
        if self.surprise:
            raise self.surprise

    def _operate(self) -> None:
        try:
            operate(self.ground, self.operation, self._victim)
        except SandboxdError as error:
            self.error = error
        except BaseException as error:
            self.surprise = error
        finally:
            self._over.set()

    def _kill(self) -> None:
        assert self.ground.daemon.process
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError, OSError):
            if self.target == "daemon":
                self.ground.daemon.process.kill()
                self.ground.daemon.process.wait(30)
            elif self.target == "launcher":
                os.kill(self.ground.launcher, signal.SIGKILL)
                self.ground.daemon.process.wait(30)
            else:
                os.kill(init_pid(self.ground.daemon, self._whom()), signal.SIGKILL)

    def _whom(self) -> str:
        if self._victim is not None:
            return self._victim.id
        while not self._over.is_set():  # ends with the creation
            for name in os.listdir(self.ground.daemon.cgroup()):
                path = self.ground.daemon.cgroup() / name / "init" / "cgroup.procs"
                with contextlib.suppress(OSError):
                    if name not in self._before and path.read_text():
                        return name
        raise FileNotFoundError


def kill_at_random_points(daemon: Daemon, times: int, seed: int) -> None:
    """Go through all of POINTS so many times."""
    print(f"SANDBOXD_TEST_SEED={seed}")
    chance = random.Random(seed)
    ground = Ground(daemon)
    ends: collections.Counter[str] = collections.Counter()
    restarts = 0
    for number, (part, operation, target) in enumerate(POINTS * times):
        share = LONGEST * (part + chance.random()) / 3
        wait_s = share * ground.span_s(operation)
        blow = Blow(ground, operation, target, wait_s)
        try:
            blow.strike()
            restarts += ground.restart_what_died()
            ground.check()
        except BaseException as error:
            when = f"{1000 * wait_s:.1f} ms ({share:.0%} of its time)"
            error.add_note(f"round {number}: {target} killed {when} into {operation}; seed {seed}")
            error.add_note(daemon.log.read_text()[-3000:])
            raise
        assert not blow.error or blow.error.kind in NAMED_ENDS, blow.error
        ends[f"{operation}: {blow.error.kind if blow.error else 'well'}"] += 1
    print(f"{restarts} restarts; how the calls ended: {dict(sorted(ends.items()))}")
    for sandbox in Sandbox.list(client=ground.client):
        sandbox.destroy()
    wait_until(lambda: not daemon.leftovers(), "the end of all sandboxes")
    assert footprint.sandboxed(daemon) == []
    # The one held ready has one.
    wait_until(lambda: len(footprint.claims(daemon, ground.launcher)) <= 1, "the release of their ids")
    stale = [path.name for path in pathlib.Path("/run/sandboxd-ids").glob("[0-9.]*") if not _is_held(path)]
    assert not stale
    ground.client.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_kind_of_point(own_daemon: Daemon) -> None:
    kill_at_random_points(own_daemon, 1, seeds.seed(19))


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_hundreds_of_kills_at_random_points(own_daemon: Daemon) -> None:
    kill_at_random_points(own_daemon, 10, seeds.seed(random.randrange(1 << 32)))


def _is_held(claim: pathlib.Path) -> bool:
    """Whether a claim belongs to something: another test's daemon may make and drop some at any time."""
    import msgpack

    try:
        pid, started, group = msgpack.unpackb(claim.read_bytes())
    except (FileNotFoundError, ValueError):
        return True
    return procfs.start_time(pid) == started or os.path.exists(group) or not claim.exists()


FORMS = {"raw": "application/octet-stream", "sse": "text/event-stream", "json": "application/json"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["daemon", "launcher", "zygote"])
def test_a_command_outlives_its_daemon(own_daemon: Daemon, target: str, form: str) -> None:
    """init lets commands go on; their stream ends by name, and nobody's going away kills them."""
    import httpx

    ended: list[str] = []

    def follow(sandbox_id: str) -> None:
        transport = httpx.HTTPTransport(uds=str(own_daemon.socket))
        with httpx.Client(transport=transport, base_url="http://x", timeout=60) as http:
            body = {"command": "mkfifo /tmp/go; touch /tmp/up; read word < /tmp/go; echo $word > /tmp/word"}
            path, headers = f"/v1/sandboxes/{sandbox_id}/exec", {"Accept": FORMS[form]}
            try:
                with http.stream("POST", path, json=body, headers=headers) as response:
                    ended.append(response.read().decode("utf-8", "replace"))
            except httpx.HTTPError as error:
                ended.append(type(error).__name__)

    assert own_daemon.process
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        thread = threading.Thread(target=follow, args=(sandbox.id,))
        thread.start()
        wait_until(lambda: sandbox.exec("test -e /tmp/up").exit_code == 0)
        pids = {"launcher": own_daemon.launcher_pid, "zygote": own_daemon.zygote_pid}
        os.kill(pids[target]() if target in pids else own_daemon.process.pid, signal.SIGKILL)
        own_daemon.process.wait(30)
        thread.join(30)
        assert not thread.is_alive()
    if target != "daemon":
        print(ended)
        assert "server-busy" in ended[0]  # the daemon stops in order: it still says why
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        again.exec("echo on > /tmp/go", timeout=10).check()
        wait_until(lambda: again.exec("cat /tmp/word").stdout == "on\n")


def test_what_runs_in_a_sandbox_whose_init_is_killed_ends_by_name(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        with pytest.raises(SandboxFailed) as caught, sandbox.exec_stream("echo up; sleep 100") as stream:
            for _ in stream:
                os.kill(init_pid(own_daemon, sandbox.id), signal.SIGKILL)
        assert caught.value.facts["reason"] == "init was killed by SIGKILL"
        assert sandbox.refresh().state == "failed"
        wait_until(lambda: not footprint.sandboxed(own_daemon))


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_what_runs_in_a_sandbox_that_a_daemon_cannot_reach_ends(own_daemon: Daemon, frozen: bool) -> None:
    """It is failed, so nobody can ask it anything: it does not go on unseen."""
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        sandbox.start_process("sleep 100000")
        if frozen:
            sandbox.freeze()
    own_daemon.stop()
    assert footprint.sandboxed(own_daemon)
    (own_daemon.runtime_dir / "links" / f"{sandbox.id}.sock").unlink()
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        if frozen:
            with pytest.raises(SandboxFailed):
                again.thaw()
        shown = again.refresh()
        assert (shown.state, (shown.reason or "").partition(":")[0]) == ("failed", "its init cannot be reached")
        wait_until(lambda: not footprint.sandboxed(own_daemon, own_daemon.prepared() or "none"))
        again.destroy()


def test_a_destruction_ends_what_runs_by_name(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        with pytest.raises(SandboxGone), sandbox.exec_stream("echo up; sleep 100") as stream:
            for _ in stream:
                sandbox.destroy()


# --- the launcher's part --------------------------------------------------------------------------------------


@pytest.fixture
def launcher(tmp_path: pathlib.Path) -> Iterator[LauncherProcess]:
    launcher = LauncherProcess(tmp_path)
    yield launcher
    launcher.close()
    assert not launcher.cgroup.exists()


def until_asked(launcher: LauncherProcess, what: Callable[[], object]) -> None:
    for _ in range(TRIES):
        if what():
            return
        launcher.asker.ask("list")
    raise AssertionError("it did not happen")


CREATE = {"rootfs": "default", "limits": {}, "network": {"mode": "none"}, "seccomp": "default"}


def test_a_destruction_during_a_birth_is_carried_out(launcher: LauncherProcess) -> None:
    """A daemon that gave up waiting for a creation must not leave a sandbox that nobody knows."""
    for number in range(10):
        sandbox_id = f"{number:020d}"
        answers = launcher.asker.ask_all(
            Request(1000 + 2 * number, "create", {"id": sandbox_id, **CREATE}),
            Request(1001 + 2 * number, "destroy", {"id": sandbox_id}),
        )
        born, destroyed = answers[1000 + 2 * number], answers[1001 + 2 * number]
        assert isinstance(born, Failure)
        assert born.kind == "sandbox-gone"
        assert isinstance(destroyed, Reply)
        assert launcher.leftovers() == []
    until_asked(launcher, lambda: not launcher.children())
    sandbox_id = "a" * 20
    assert isinstance(launcher.asker.ask("create", id=sandbox_id, **CREATE), Reply)
    assert isinstance(launcher.asker.ask("destroy", id=sandbox_id), Reply)


def test_a_sandbox_can_be_killed_and_destroyed_later(launcher: LauncherProcess) -> None:
    sandbox_id = "a" * 20
    answer = launcher.asker.ask("create", id=sandbox_id, **CREATE)
    assert isinstance(answer, Reply)
    assert isinstance(launcher.asker.ask("kill", id=sandbox_id), Reply)

    def reason() -> str | None:
        reply = launcher.asker.ask("list")
        assert isinstance(reply, Reply)
        found: str | None = reply.result["sandboxes"][0]["reason"]
        return found

    until_asked(launcher, reason)
    assert reason() == "init was killed by SIGKILL"
    assert procfs.start_time(answer.result["pid"]) is None
    assert isinstance(launcher.asker.ask("kill", id="b" * 20), Reply)  # none is fine
    assert isinstance(launcher.asker.ask("kill", id="../x"), Failure)
    launcher.asker.ask("destroy", id=sandbox_id)
    assert launcher.leftovers() == []


def test_a_range_that_another_took_over_is_not_given_back(launcher: LauncherProcess) -> None:
    """Else two sandboxes would come to share ids: the claim of a failed one may be anybody's by then."""
    from sandboxd.launcher.idranges import RangeAllocator
    from sandboxd.linux.kernel import Kernel

    allocator = RangeAllocator(Kernel())
    range_ = allocator.take()
    try:
        allocator.bind(range_, "/somebody/else")
        allocator.release(range_.index, "/mine")
        assert os.path.exists(f"/run/sandboxd-ids/{range_.index}")
        allocator.sweep()  # its launcher, this process, lives
        assert os.path.exists(f"/run/sandboxd-ids/{range_.index}")
    finally:
        allocator.release(range_.index, "/somebody/else")
    assert not os.path.exists(f"/run/sandboxd-ids/{range_.index}")
