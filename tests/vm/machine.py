"""One QEMU machine: boots the drives, takes this tree, installs it as README tells a user, and is gone at its end.

Theory of operation. QEMU runs with `snapshot=on`: the root drive's changes go to a nameless file, so the cached drive
stays as built and nothing is left, whichever way QEMU ends; it ends with the process that started it (pdeathsig). KVM
is used where a machine answers under it within KVM_S; what came out is remembered until the host boots again.
Elsewhere it is emulated (TCG, a thread per virtual processor), some ten times slower than the host.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator

from . import drives
from .channel import Channel, MachineGone

PROGRAMS = ("qemu-system-x86_64", "mkfs.ext4", "mmdebstrap")
#: Boots take 15 to 40 s emulated; several at once on a busy host take longer.
BOOT_S = 300.0
KVM_S = 30.0
INSTALL_S = 300.0
#: Where the tree goes, and the Python that its tests run under.
TREE = "/root/sandboxd"
PYTHON = "/opt/vm-tests/bin/python"
ENVIRONMENT = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONPYCACHEPREFIX": "/var/cache/pyc",
    "SANDBOXD_VM_INSIDE": "1",
}
#: What of the tree goes into the machine.
PARTS: tuple[str, ...] = (".setup", "Makefile", "README.md", "pyproject.toml", "requirements.lock")
PARTS += ("bench", "rootfs", "sandboxd", "seccomp", "systemd", "tests")
_KERNEL = "root=/dev/vda console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on"
_KERNEL += " modprobe.blacklist=kvm_amd,kvm_intel,kvm,ahci,libata,button,evdev,serio_raw,psmouse,pcspkr"


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Machine:
    """A running machine. `directory` holds its port and its console's log."""

    def __init__(self, directory: pathlib.Path, process: subprocess.Popen[bytes] | None, pid: int, accelerator: str):
        self.directory = directory
        self.accelerator = accelerator
        self.process = process
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = Channel(str(directory / "agent.sock"), self.pidfd)
        self.uptime_s = 0.0

    @classmethod
    def start(cls, directory: pathlib.Path, files: drives.Drives, accelerator: str, *, bound: bool = True) -> Machine:
        """Start QEMU; `bound` lets it end with this process."""
        command = (["setpriv", "--pdeathsig", "KILL"] if bound else []) + _command(directory, files, accelerator)
        with (directory / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # snapshot=on writes here; /tmp may be memory.
                env={**os.environ, "TMPDIR": str(directory)},
            )
        return cls(directory, process, process.pid, accelerator)

    def connect(self, timeout: float = BOOT_S) -> None:
        """Wait for the agent; raises MachineGone with the console's end."""
        try:
            self.uptime_s = float(self.channel.connect(time.monotonic() + timeout)["uptime_s"])
        except MachineGone as error:
            raise MachineGone(f"{error}; {self.console()}") from None

    def console(self) -> str:
        """Return the end of what QEMU and the kernel said."""
        said = ""
        for name in ("qemu.log", "console.log"):
            with contextlib.suppress(FileNotFoundError):
                said += f"\n--- {name}\n" + (self.directory / name).read_text("utf-8", "replace")[-3000:]
        return said

    def sync(self) -> None:
        """Put this tree in the machine, in place of the one that is there."""
        new = f"{TREE}.new"
        lines = f"rm -rf {new}; mkdir {new}; tar -xC {new}; rm -rf {TREE}; mv {new} {TREE}"
        status, output = self.channel.run(["sh", "-euc", lines], stdin=_tree(), timeout=120)
        if status:
            raise MachineGone(f"cannot copy the tree: {output.decode()}")

    def install(self, project: bytes) -> str:
        """Install the tree as README tells a user, start the service; return what the install said.

        `project` is what pip would put in the virtual environment (`drives.project`): it goes there first, and
        `make install` finds that half done.
        """
        lines = (
            "old=$(cat /opt/sandboxd/.project || true); rm -rf /opt/sandboxd/lib/python3*/site-packages/sandboxd*; "
            f"tar -xC /; cd {TREE}; make install; systemctl enable sandboxd; "
            'if [ "$old" = "$(cat /opt/sandboxd/.project)" ]; then systemctl start sandboxd; '
            "else systemctl restart sandboxd; fi; sandboxd info"
        )
        environment = {name: value for name, value in ENVIRONMENT.items() if name != "SANDBOXD_VM_INSIDE"}
        status, output = self.channel.run(["sh", "-euc", lines], stdin=project, timeout=INSTALL_S, env=environment)
        said = output.decode("utf-8", "replace")
        if status:
            journal = self.channel.run(["journalctl", "-b", "--no-pager", "-n", "60"], timeout=60)[1]
            raise MachineGone(f"the install failed with status {status}:\n{said}\n{journal.decode()}")
        return said

    def kill(self) -> None:
        """End it; its changes go with it."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self.process:
            self.process.wait()
        os.close(self.pidfd)


def _command(directory: pathlib.Path, files: drives.Drives, accelerator: str) -> list[str]:
    accel = ["kvm"] if accelerator == "kvm" else ["tcg,thread=multi,tb-size=512"]
    # 5-level page tables only make an emulated walk longer.
    cpu = "host" if accelerator == "kvm" else "max,la57=off"
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", *accel, "-cpu", cpu, "-smp", "2", "-m", "4096"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", _KERNEL),
        *("-serial", f"file:{directory}/console.log"),
        *("-drive", f"file={files.root},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        *("-drive", f"file={files.rootfs},format=raw,if=virtio,readonly=on"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=vm.agent"),
        *("-chardev", f"socket,id=agent,path={directory}/agent.sock,server=on,wait=off"),
    ]


def _tree() -> bytes:
    def ours(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.name.endswith(("__pycache__", ".pyc")):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for part in PARTS:
            tar.add(drives.SOURCE / part, part, filter=ours)
    return archive.getvalue()


def boot(directory: pathlib.Path, files: drives.Drives, say: drives.Say, *, bound: bool = True) -> Machine:
    """Boot under KVM where that works, else emulated, and wait for the agent; raises MachineGone."""
    forced = os.environ.get("SANDBOXD_VM_ACCEL")
    verdict = drives.CACHE / "kvm"
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = verdict.read_text().split() if verdict.exists() else []
    if forced is None and os.access("/dev/kvm", os.R_OK | os.W_OK) and known != [boot_id, "no"]:
        machine = Machine.start(directory, files, "kvm", bound=bound)
        try:
            machine.connect(BOOT_S if known == [boot_id, "yes"] else KVM_S)
        except BaseException as error:
            machine.kill()
            if not isinstance(error, MachineGone):
                raise
            say("KVM is there but boots no kernel here; the machine is emulated")
            verdict.write_text(f"{boot_id} no\n")
        else:
            verdict.write_text(f"{boot_id} yes\n")
            return machine
    machine = Machine.start(directory, files, forced or "tcg", bound=bound)
    try:
        machine.connect()
    except BaseException:
        machine.kill()
        raise
    return machine


@contextlib.contextmanager
def directory() -> Iterator[pathlib.Path]:
    """A directory for one machine, removed at the end."""
    # Not below a deep TMPDIR: a socket's path has 107 bytes.
    path = pathlib.Path(tempfile.mkdtemp(prefix="sandboxd-vm-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
