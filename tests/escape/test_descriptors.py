"""The host's binary behind /proc/<pid>/exe, and leaked descriptors."""

from __future__ import annotations

import threading

import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from tests.escape.conftest import PROBES
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Looks at every process that appears for a while; before its execve a command is a copy of init.
HUNTER = """
import os, time
own = os.stat('/').st_dev
tries, written, foreign = 0, [], set()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for pid in os.listdir('/proc'):
        if not pid.isdigit():
            continue
        for name, flags in (('exe', os.O_WRONLY), ('exe', os.O_RDONLY), ('root', os.O_RDONLY)):
            tries += 1
            try:
                fd = os.open(f'/proc/{pid}/{name}', flags | os.O_NONBLOCK)
            except OSError:
                continue
            if os.fstat(fd).st_dev != own:
                foreign.add(name)
                if flags == os.O_WRONLY:
                    written.append(name)
            os.close(fd)
print(tries > 100, written, sorted(foreign))
"""


@pytest.fixture(scope="module")
def hunted(daemon: Daemon) -> str:
    """What a hunter saw while the host started commands, `#!/proc/self/exe` among them."""
    found = []

    def hunt(sandbox_id: str) -> None:
        with daemon.client() as client:
            found.append(Sandbox.connect(sandbox_id, client=client).exec(["python3", "-c", HUNTER]).stdout)

    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        sandbox.exec("printf '#!/proc/self/exe\\n' > /usr/local/bin/evil; chmod +x /usr/local/bin/evil").check()
        thread = threading.Thread(target=hunt, args=(sandbox.id,))
        thread.start()
        while thread.is_alive():
            assert sandbox.exec("true").exit_code == 0
            sandbox.exec(["evil"])
        thread.join()
    return found[0]


def test_no_binary_of_the_host_is_written(hunted: str) -> None:
    """The host's state after the module (conftest) holds the hash of its Python."""
    assert hunted.startswith("True [] ")


def test_no_binary_of_the_host_is_reached(hunted: str) -> None:
    assert hunted == "True [] []\n"


def test_proc_self_exe_is_not_the_hosts_python(shared: Sandbox) -> None:
    result = shared.exec(["/proc/self/exe", "-I", "-S", "-c", "print('host python')"])
    assert "Python" not in result.stderr
    assert result.exit_code == 126


def test_no_lock_on_an_inode_of_the_hosts(daemon: Daemon, sandbox: Sandbox) -> None:
    """What /proc/self/exe loads is the sandbox's own, so its code does as it likes with the host's binary."""
    sandbox.write_file("/usr/local/src/preload.c", (PROBES / "preload.c").read_bytes())
    sandbox.exec("cc -w -shared -fPIC -o /usr/local/lib/preload.so /usr/local/src/preload.c").check()
    result = sandbox.exec(["/proc/self/exe"], env={"LD_PRELOAD": "/usr/local/lib/preload.so"})
    assert "allowed" not in result.stdout


@pytest.mark.parametrize("process", ["self", "1"])
def test_a_working_folder_that_is_a_descriptor(shared: Sandbox, process: str) -> None:
    for number in range(65):
        outcome = "invalid-request"
        try:
            outcome = str(shared.exec("pwd -P; ls", cwd=f"/proc/{process}/fd/{number}").exit_code)
        except SandboxdError as error:
            outcome = error.kind
        assert outcome in ("invalid-request", "126"), number


def test_files_behind_inits_descriptors(shared: Sandbox) -> None:
    for number in range(25):
        for path in (f"/proc/self/fd/{number}", f"/proc/1/fd/{number}/cgroup.procs", f"/proc/self/fd/{number}/work"):
            with pytest.raises(SandboxdError):
                shared.read_file(path)
    with pytest.raises(SandboxdError):
        shared.read_file("/proc/self/environ")
    with pytest.raises(SandboxdError):
        shared.read_file("/proc/self/mem")
    assert shared.exec("ls /proc/self/fd | wc -l").stdout == "4\n"
