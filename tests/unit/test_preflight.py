"""The preflight speaks one sentence with a remedy, and looks before anything is changed."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Result = subprocess.CompletedProcess[str]
Preflight = Callable[..., Result]
PREFLIGHT = Path(__file__).parents[2] / ".setup/preflight"
OVERLAY = "nodev\tsysfs\nnodev\toverlay\n\text4\n"
CGROUP2 = "42 32 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
HYBRID_ONLY = "40 32 0:27 / /sys/fs/cgroup/memory rw shared:8 - cgroup cgroup rw,memory\n"


@pytest.fixture
def preflight(tmp_path: Path) -> Preflight:
    (tmp_path / "filesystems").write_text(OVERLAY)
    (tmp_path / "mountinfo").write_text(CGROUP2)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    good = {
        "PATH": "/usr/bin:/bin",
        "PREFLIGHT_UID": "0",
        "PREFLIGHT_SYSTEM": "Linux",
        "PREFLIGHT_MACHINE": "x86_64",
        "PREFLIGHT_KERNEL": "6.1.0-13-amd64",
        "PREFLIGHT_FILESYSTEMS": str(tmp_path / "filesystems"),
        "PREFLIGHT_MOUNTINFO": str(tmp_path / "mountinfo"),
        "PREFLIGHT_UNSHARE": "true",
        "PREFLIGHT_MODPROBE": "false",
        "PREFLIGHT_APT": "true",
        "PREFLIGHT_PYTHON": str(python),
    }

    def run(**changes: str) -> Result:
        return subprocess.run([PREFLIGHT], env=good | changes, capture_output=True, text=True, check=False)

    return run


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def refused(result: Result, *words: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("sandboxd: cannot set up: ")
    assert ";" in result.stderr
    for word in words:
        assert word in result.stderr


def test_a_good_machine_passes_silently(preflight: Preflight) -> None:
    result = preflight()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("kernel", ["6.1", "6.1.0", "6.10.2", "6.18.44-fc-v669", "7.0-rc1", "10.0.0"])
def test_kernels_that_are_new_enough(preflight: Preflight, kernel: str) -> None:
    assert preflight(PREFLIGHT_KERNEL=kernel).returncode == 0


@pytest.mark.parametrize("kernel", ["5.15.0-100-generic", "6.0.19", "6.0", "4.19.0"])
def test_an_old_kernel(preflight: Preflight, kernel: str) -> None:
    refused(preflight(PREFLIGHT_KERNEL=kernel), kernel, "6.1", "upgrade the kernel")


def test_not_root(preflight: Preflight) -> None:
    refused(preflight(PREFLIGHT_UID="1000"), "root", "sudo")


def test_really_not_root(preflight: Preflight) -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-s"]
    result = subprocess.run(
        command, input=PREFLIGHT.read_text(), capture_output=True, text=True, check=False, cwd="/", timeout=10
    )
    refused(result, "root", "sudo")


def test_another_system(preflight: Preflight) -> None:
    refused(preflight(PREFLIGHT_SYSTEM="Darwin"), "Darwin", "use a Linux")


def test_another_machine(preflight: Preflight) -> None:
    refused(preflight(PREFLIGHT_MACHINE="riscv64"), "riscv64", "x86_64")


@pytest.mark.parametrize("namespace", ["mount", "pid", "net", "ipc", "uts", "cgroup", "user"])
def test_each_namespace_is_tried(preflight: Preflight, tmp_path: Path, namespace: str) -> None:
    unshare = program(tmp_path / "unshare", f'[ "$1" != --{namespace} ]')
    sysctl = "user.max_mnt_namespaces" if namespace == "mount" else f"user.max_{namespace}_namespaces"
    refused(preflight(PREFLIGHT_UNSHARE=unshare), f"new {namespace} namespace", sysctl)


def test_no_unshare(preflight: Preflight, tmp_path: Path) -> None:
    refused(preflight(PREFLIGHT_UNSHARE=str(tmp_path / "none")), "install util-linux")


def test_no_overlayfs(preflight: Preflight, tmp_path: Path) -> None:
    (tmp_path / "filesystems").write_text("nodev\tsysfs\n")
    refused(preflight(), "overlayfs", "modprobe overlay")


def test_overlayfs_that_loads_when_asked_for(preflight: Preflight, tmp_path: Path) -> None:
    filesystems = tmp_path / "filesystems"
    filesystems.write_text("nodev\tsysfs\n")
    modprobe = program(tmp_path / "modprobe", f"printf 'nodev\\toverlay\\n' >> {filesystems}")
    assert preflight(PREFLIGHT_MODPROBE=modprobe).returncode == 0


def test_no_cgroup2(preflight: Preflight, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(HYBRID_ONLY)
    refused(preflight(), "cgroup2", "mount -t cgroup2")


def test_no_apt(preflight: Preflight, tmp_path: Path) -> None:
    refused(preflight(PREFLIGHT_APT=str(tmp_path / "none")), "apt-get", "Debian 12")


def test_old_python(preflight: Preflight, tmp_path: Path) -> None:
    refused(preflight(PREFLIGHT_PYTHON=program(tmp_path / "old", "exit 1")), "older than Python 3.11")


@pytest.mark.parametrize(
    ("release", "passes"),
    [
        ('ID=debian\nVERSION_ID="12"\n', True),
        ('ID=debian\nVERSION_ID="13"\n', True),
        ('ID=debian\nVERSION_ID="11"\n', False),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', True),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', False),
    ],
)
def test_python_that_is_yet_to_be_installed(preflight: Preflight, tmp_path: Path, release: str, passes: bool) -> None:
    (tmp_path / "os-release").write_text(release)
    result = preflight(PREFLIGHT_PYTHON=str(tmp_path / "none"), PREFLIGHT_OS_RELEASE=str(tmp_path / "os-release"))
    if passes:
        assert result.returncode == 0
    else:
        refused(result, "Python older than 3.11")
