"""Importing images: every form of archive, the cell of the unpacking process, and programs that run in the result."""

import contextlib
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from sandboxd import Sandbox, images
from sandboxd.errors import Conflict, InvalidRequest, RootfsError
from sandboxd.images import confine, unpack_process
from sandboxd.images.importer import UnpackRequest, import_image
from tests.support import images as made
from tests.support.daemon import ROOTFS_DIR, Daemon
from tests.support.images import Layout, directory, file, hardlink, symlink, tar
from tests.support.waiting import SOON_S

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can import an image")

LOW = tar([directory("bin"), file("bin/tool", "content", mode=0o4755), file("gone"), file("d/low"), directory("etc")])
HIGH = tar([file(".wh.gone"), file("d/.wh..wh..opq"), file("d/high"), hardlink("bin/same", "bin/tool")])
MERGED = ["bin", "bin/same", "bin/tool", "d", "d/high"]
NEEDED = {"dev", "proc", "sys", "etc", "tmp", "workspace"}


@pytest.fixture
def rootfs_dir(tmp_path):
    return tmp_path / "rootfs"


@pytest.fixture
def source(tmp_path):
    """Put bytes into a file."""

    def source(data, name="source"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return source


def names(rootfs_dir, name="x"):
    tree = rootfs_dir / name / "private/tree"
    found = [path.relative_to(tree) for path in tree.rglob("*")]
    return sorted(str(path) for path in found if path.parts[0] not in NEEDED)


def entries(directory):
    return sorted(os.listdir(directory)) if directory.exists() else []


class TestForms:
    def layered(self, kind, tmp_path):
        layout = Layout()
        layout.image([LOW, HIGH], "x:1", zipped="gzip" in kind, Env=["A=b"], Cmd=["tool"], WorkingDir="/d", User="1")
        match kind:
            case "layout directory" | "layout directory, gzip":
                return layout.write(tmp_path / "layout")
            case "layout archive" | "layout archive, gzip":
                data = layout.archive()
            case "layout archive, all gzip":
                data = gzip.compress(layout.archive())
            case "docker save":
                data = made.docker_save([LOW, HIGH], ["x:1"], Env=["A=b"], Cmd=["tool"], WorkingDir="/d", User="1")
            case "docker save with a shared layer":
                data = made.docker_save([LOW, HIGH, HIGH], ["x:1"], shared=True, Env=["A=b"], Cmd=["tool"])
            case "docker save, both forms":
                saved = made.docker_save([LOW, HIGH], ["x:1"])
                data = tar(
                    [*(file(name, data) for name, data in layout.all_files().items()), file("manifest.json", saved)]
                )
            case "skopeo dir":
                return made.skopeo_dir(tmp_path / "dir", [LOW, HIGH])
        (tmp_path / "archive").write_bytes(data)
        return tmp_path / "archive"

    @pytest.mark.parametrize(
        "kind",
        [
            "layout directory",
            "layout directory, gzip",
            "layout archive",
            "layout archive, gzip",
            "layout archive, all gzip",
            "docker save",
            "docker save with a shared layer",
            "skopeo dir",
        ],
    )
    def test_layers_become_one_tree(self, kind, tmp_path, rootfs_dir) -> None:
        seen: list[Any] = []
        done = import_image("x", str(self.layered(kind, tmp_path)), rootfs_dir, progress=seen.append)
        tree = rootfs_dir / "x/private/tree"

        assert names(rootfs_dir) == MERGED
        assert (tree / "bin/tool").stat().st_mode == 0o104755
        assert os.path.samefile(tree / "bin/tool", tree / "bin/same")
        assert (tree / "bin/tool").stat().st_uid == tree.stat().st_uid == 0
        assert images.load_rootfs("x", rootfs_dir) == done.rootfs
        assert not done.rootfs.trusted
        said = json.loads((rootfs_dir / "x/rootfs.json").read_text())
        if "docker save" in kind or "layout" in kind:
            assert said["image"]["Env"] == ["A=b"]
            assert said["image"]["Cmd"] == ["tool"]
            assert said["image"]["names"] == ["x:1"]
        assert said["image"]["platform"] == "linux/amd64"
        assert "Unpack layer 2 of" in "".join(progress.step for progress in seen)
        for path, mode in (("", 0o755), ("private", 0o700), ("private/tree", 0o755), ("rootfs.json", 0o644)):
            assert (rootfs_dir / "x" / path).stat().st_mode & 0o7777 == mode
        assert entries(rootfs_dir) == ["x"]

    @pytest.mark.parametrize("compress", [bytes, gzip.compress])
    def test_a_plain_tree(self, compress, source, rootfs_dir) -> None:
        done = import_image("x", source(compress(tar([file("a/b", "c"), file(".dockerenv")]))), rootfs_dir)
        assert names(rootfs_dir) == [".dockerenv", "a", "a/b"]
        assert done.rootfs.recipe == "import"

    def test_a_tree_whose_names_are_like_an_image_s(self, source, rootfs_dir) -> None:
        import_image("x", source(tar([file("version", "1"), file("bin/sh")])), rootfs_dir)
        assert names(rootfs_dir) == ["bin", "bin/sh", "version"]

    @pytest.mark.parametrize("kind", ["layout archive", "layout archive, all gzip", "docker save"])
    def test_stdin(self, kind, tmp_path, rootfs_dir) -> None:
        data = self.layered(kind, tmp_path).read_bytes()
        command = [sys.executable, "-m", "sandboxd.cli.main", "rootfs", "import", "x", "-", "--rootfs-dir", rootfs_dir]
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert names(rootfs_dir) == MERGED

    def test_which_of_several(self, source, rootfs_dir) -> None:
        layout = Layout()
        layout.image([LOW], "one")
        layout.image([LOW, tar([file("two")])], "two")
        layout.image([LOW], "three", architecture="s390x")
        path = source(layout.archive())
        with pytest.raises(RootfsError) as caught:
            import_image("x", path, rootfs_dir)
        assert caught.value.facts["images"] == ["one (linux/amd64)", "two (linux/amd64)"]
        import_image("x", path, rootfs_dir, wanted=UnpackRequest(image="one"))
        assert "gone" in names(rootfs_dir)
        import_image("y", path, rootfs_dir, wanted=UnpackRequest(platform="linux/s390x"))

    @pytest.mark.parametrize("what", ["blob", "diff_id"])
    def test_a_layer_that_is_not_its_digest(self, what, source, rootfs_dir) -> None:
        layout = Layout()
        if what == "blob":
            layout.image([LOW], "x", zipped=False)
            name = f"blobs/sha256/{made.digest(LOW).removeprefix('sha256:')}"
            layout.files[name] = layout.files[name].replace(b"content", b"CONTENT")
            data = layout.archive()
        else:
            data = made.docker_save([LOW], ["x"]).replace(b"content", b"CONTENT")
        with pytest.raises(RootfsError) as caught:
            import_image("x", source(data), rootfs_dir)
        assert caught.value.facts["reason"] == "digest"
        assert entries(rootfs_dir) == []


class TestPlace:
    def test_a_taken_name(self, source, rootfs_dir) -> None:
        path = source(tar([file("one")]))
        import_image("x", path, rootfs_dir)
        with pytest.raises(Conflict, match="--force"):
            import_image("x", path, rootfs_dir)
        with pytest.raises(Conflict) as caught:
            import_image("x", path, rootfs_dir, force=True, in_use=lambda name: ["sandbox1"])
        assert caught.value.facts["sandboxes"] == ["sandbox1"]
        import_image("x", source(tar([file("two")])), rootfs_dir, force=True)
        assert names(rootfs_dir) == ["two"]
        assert entries(rootfs_dir) == ["x"]

    def test_what_cannot_be(self, source, rootfs_dir, tmp_path) -> None:
        with pytest.raises(InvalidRequest):
            import_image("../x", source(b""), rootfs_dir)
        with pytest.raises(RootfsError, match="No such file"):
            import_image("x", str(tmp_path / "missing"), rootfs_dir)
        (tmp_path / "empty").mkdir()
        with pytest.raises(RootfsError, match="not an OCI layout"):
            import_image("x", str(tmp_path / "empty"), rootfs_dir)
        with pytest.raises(RootfsError, match="--max-size"):
            import_image("x", source(tar([file("a", bytes(10**6))])), rootfs_dir, wanted=UnpackRequest(max_bytes=10**5))
        assert entries(rootfs_dir) == []

    def test_a_layout_s_files_may_not_be_links(self, rootfs_dir, tmp_path) -> None:
        layout = Layout()
        layout.image([LOW], zipped=False)
        path = layout.write(tmp_path / "layout")
        blob = path / "blobs/sha256" / made.digest(LOW).removeprefix("sha256:")
        blob.rename(tmp_path / "secret")
        blob.symlink_to(tmp_path / "secret")
        with pytest.raises(RootfsError) as caught:
            import_image("x", str(path), rootfs_dir)
        assert caught.value.facts["reason"] == "missing"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", made.HOSTILE)
    def test_a_hostile_archive_leaves_nothing_anywhere(self, name, source, rootfs_dir, tmp_path) -> None:
        (tmp_path / "canary").mkdir()
        (tmp_path / "canary/victim").write_text("kept")
        data, reason = made.hostile(str(tmp_path / "canary"))[name]
        path = source(data)
        rootfs_dir.mkdir()
        before = [(p, p.lstat()) for p in (tmp_path, *sorted(tmp_path.rglob("*"))) if p not in (tmp_path, rootfs_dir)]
        with pytest.raises(RootfsError) as caught:
            import_image("x", path, rootfs_dir)
        assert caught.value.facts["reason"] == reason
        after = [(p, p.lstat()) for p in (tmp_path, *sorted(tmp_path.rglob("*"))) if p not in (tmp_path, rootfs_dir)]
        assert [(p, s.st_ino, s.st_mode, s.st_mtime_ns, s.st_nlink) for p, s in before] == [
            (p, s.st_ino, s.st_mode, s.st_mtime_ns, s.st_nlink) for p, s in after
        ]
        assert entries(rootfs_dir) == []


#: Runs in the cell instead of the unpacking, as a taken-over one could.
PROBE = """
import os, signal, socket, sys
from sandboxd.images import unpack_child
from sandboxd.linux.kernel import Kernel, CLONE_NEWUSER, AT_FDCWD, OPEN_TREE_CLONE

def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    except ImportError:
        return "import"
    return "allowed"

class Probe:
    def __init__(self, link, wanted, source, spool):
        self.link = link

    def run(self):
        root, kernel = os.open("/", os.O_RDONLY), Kernel()
        above = os.open("..", os.O_RDONLY, dir_fd=root)
        os.close(os.open("/mine", os.O_WRONLY | os.O_CREAT, 0o4755))
        os.chown("/mine", 65535, 7, follow_symlinks=False)
        self.link.send("progress", layer=1, layers=1, read=0, entries=0)
        tried = {
            "passwd": lambda: os.open("/etc/passwd", os.O_RDONLY),
            "device": lambda: os.mknod("/null", 0o20666, os.makedev(1, 3)),
            "socket": lambda: socket.socket(),
            "fork": lambda: os.fork(),
            "exec": lambda: os.execv("/mine", ["x"]),
            "kill": lambda: os.kill(os.getppid(), 0),
            "mount": lambda: kernel.mount("none", "/", "tmpfs", 0),
            "open_tree": lambda: kernel.open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE),
            "unshare": lambda: kernel.unshare(CLONE_NEWUSER),
            "chroot": lambda: os.chroot("/"),
            "setuid": lambda: os.setuid(1),
            "source mode": lambda: os.fchmod(0, 0o777),
            "source time": lambda: os.utime(0),
            "source owner": lambda: os.fchown(0, 0, 0),
            "source write": lambda: os.write(0, b"x"),
            "id": lambda: os.chown("/mine", 65536, 0, follow_symlinks=False),
            "import": lambda: __import__("wave"),
        }
        found = {name: attempt(act) for name, act in tried.items()}
        facts = {
            "tried": found,
            "up": os.path.samestat(os.fstat(above), os.fstat(root)),
            "listed": sorted(os.listdir("/")),
            "descriptors": sum(attempt(lambda: os.fstat(fd)) == "allowed" for fd in range(512)),
        }
        return {"digest": "sha256:0", "config": facts, "notes": [], "packages": {}}

unpack_child.Job = Probe
unpack_child.main()
"""

#: Tells which modules were loaded after the cell was locked.
WITNESS = """
import sys
from sandboxd.images import unpack_child

class Witness(unpack_child.Job):
    def run(self):
        before = set(sys.modules)
        result = super().run()
        return {**result, "config": {"loaded": sorted(set(sys.modules) - before)}}

unpack_child.Job = Witness
unpack_child.main()
"""


class TestCell:
    @pytest.fixture
    def instead(self, tmp_path, monkeypatch):
        def instead(program):
            (tmp_path / "program.py").write_text(program)
            monkeypatch.setattr(
                unpack_process, "PROGRAM", (sys.executable, "-I", "-X", "utf8", str(tmp_path / "program.py"))
            )

        return instead

    def test_a_taken_over_process_reaches_nothing(self, instead, source, rootfs_dir) -> None:
        instead(PROBE)
        path = source(b"source")
        seen: list[Any] = []

        def watch(progress):
            if progress.line is None or seen:
                return
            # The newest one: other fixtures' daemons are children of this process too.
            *_, child = pathlib.Path("/proc/thread-self/children").read_text().split()
            lines = pathlib.Path(f"/proc/{child}/status").read_text().splitlines()
            seen.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))

        done = import_image("x", path, rootfs_dir, progress=watch)
        facts = done.config
        assert facts.pop("tried") == {
            "passwd": "No such file or directory",
            **dict.fromkeys(["device", "socket", "fork", "exec", "kill", "mount"], "Operation not permitted"),
            **dict.fromkeys(["open_tree", "unshare", "chroot", "setuid"], "Operation not permitted"),
            **dict.fromkeys(["source mode", "source owner"], "Operation not permitted"),
            "source time": "Permission denied",
            "source write": "Bad file descriptor",
            "id": "Invalid argument",
            "import": "import",
        }
        assert facts == {
            "up": True,
            "listed": ["mine"],
            "descriptors": 7,  # source, null, stderr, socket, spool, and the probe's two of the root
        }
        [status] = seen
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(confine.FIRST_ID)}
        assert (status["Groups"].strip(), status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
        assert (
            int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == confine.CAPABILITIES
        )
        mine = (rootfs_dir / "x/private/tree/mine").stat()
        assert (mine.st_uid, mine.st_gid) == (65535, 7)
        assert pathlib.Path(path).read_bytes() == b"source"

    def test_nothing_is_loaded_in_the_cell(self, instead, source, rootfs_dir, tmp_path) -> None:
        instead(WITNESS)
        layout = Layout()
        planted = [file("usr/lib/python3.11/heapq.py", "raise SystemExit"), file("heapq.py"), file("sitecustomize.py")]
        dpkg = "Package: a\nStatus: install ok installed\nVersion: 1\n\n"
        odd = [file("é", pax_headers={"SCHILY.xattr.user.a": "b"}), symlink("etc/resolv.conf", "x"), file("dev/x")]
        wheel = file("usr/local/lib/python3.13/dist-packages/b-2.dist-info/METADATA", "Name: B\nVersion: 2\n\nx")
        layout.image([LOW, tar([*planted, *odd, wheel, file("var/lib/dpkg/status", dpkg)]), HIGH], "x", Env=["A=é"])
        for path in (source(gzip.compress(layout.archive())), str(layout.write(tmp_path / "layout"))):
            done = import_image("x", path, rootfs_dir, force=True)
            assert done.config == {"loaded": []}
            assert done.rootfs.packages == {"debian": {"a": "1"}, "python": {"b": "2"}}
        with pytest.raises(RootfsError, match="is a FIFO"):
            import_image("x", source(tar([made.member("a", b"6")])), rootfs_dir, force=True)

    def test_a_liar_is_not_believed(self, instead, source, rootfs_dir) -> None:
        for lie in (
            'b"no json"',
            'b"[]"',
            'b"{}"',
            'b\'{"kind": "done"}\'',
            'b\'{"kind": "done", "digest": "x", "config": {}, "notes": [], "packages": {"a": 1}}\'',
            'b"[" * 100000',
        ):
            instead(f"import socket, sys; socket.socket(fileno=int(sys.argv[1])).send({lie})")
            with pytest.raises(RootfsError, match="the unpacking process failed"):
                import_image("x", source(b""), rootfs_dir)
            assert entries(rootfs_dir) == []


class TestEnd:
    @contextlib.contextmanager
    def under_way(self, rootfs_dir):
        """Start an import from stdin that has half of a file; yields it and its unpacking process's pid."""
        command = [sys.executable, "-m", "sandboxd.cli.main", "rootfs", "import", "x", "-", "--rootfs-dir", rootfs_dir]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdin
                process.stdin.write(tar([file("first"), file("half", bytes(10**6))])[:500_000])
                process.stdin.flush()
                deadline = time.monotonic() + SOON_S
                while not list(rootfs_dir.glob(".building-x-*/private/tree/half")):
                    assert time.monotonic() < deadline
                    assert process.poll() is None
                    os.sched_yield()
                [child] = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                yield process, int(child)
            finally:
                process.kill()
                process.communicate()

    def gone(self, pid):
        deadline = time.monotonic() + SOON_S
        while pathlib.Path(f"/proc/{pid}/root").exists() and "Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, "the unpacking process lives on"
            os.sched_yield()

    def test_ctrl_c_leaves_nothing(self, rootfs_dir) -> None:
        with self.under_way(rootfs_dir) as (process, child):
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            self.gone(child)
        assert entries(rootfs_dir) == []

    def test_a_killed_import_leaves_nothing_usable(self, rootfs_dir, source) -> None:
        with self.under_way(rootfs_dir) as (process, child):
            process.kill()
            process.wait(20)
            self.gone(child)
        assert images.list_rootfs(rootfs_dir) == []
        assert [name.partition("-")[0] for name in entries(rootfs_dir)] == [".building"]
        import_image("x", source(tar([file("a")])), rootfs_dir)
        assert entries(rootfs_dir) == ["x"]

    def test_an_unpacking_process_that_is_killed_fails_the_import(self, rootfs_dir) -> None:
        with self.under_way(rootfs_dir) as (process, child):
            os.kill(child, signal.SIGKILL)
            assert process.wait(20) == 1
            assert b"the unpacking process failed" in process.stderr.read()
        assert entries(rootfs_dir) == []

    def test_an_error_is_one_sentence(self, rootfs_dir, source) -> None:
        path = source(tar([file("ok"), symlink("evil\x1b[2J\n", "/"), file("evil\x1b[2J\n/x")]))
        command = [sys.executable, "-m", "sandboxd.cli.main", "rootfs", "import", "x", path, "--rootfs-dir", rootfs_dir]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            r"sandboxd: cannot import rootfs x: member evil\x1b[2J\n/x would be written through a symbolic link"
        )


# --- images that run ----------------------------------------------------------------------------------------------


def need(program, package):
    """Return a program's path, installing its package where it is missing."""
    if shutil.which(program) is None:
        subprocess.run(["apt-get", "install", "-y", "-qq", package], capture_output=True, check=False)
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}, and Debian's package {package} cannot be installed")
    return pathlib.Path(path)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A daemon with a rootfs directory of its own."""
    place = tmp_path_factory.mktemp("import")
    daemon = Daemon(place, rootfs_dir=str(place / "rootfs"))
    (place / "rootfs").mkdir()
    daemon.start()
    yield daemon
    daemon.close()


def sandboxd(daemon, *arguments, data=None):
    command = [sys.executable, "-m", "sandboxd.cli.main", "--url", daemon.url, *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)


def imported(daemon, name, source, data=None):
    done = sandboxd(daemon, "rootfs", "import", name, str(source), "--rootfs-dir", daemon.rootfs_dir, data=data)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.real
@pytest.mark.slow
class TestRunning:
    def test_a_busybox_of_docker_export(self, running) -> None:
        busybox = need("busybox", "busybox-static")
        if b"statically" not in subprocess.run(["file", "-L", busybox], capture_output=True, check=False).stdout:
            linked = subprocess.run(["ldd", busybox], capture_output=True, check=False)
            if linked.returncode == 0:
                pytest.skip("the busybox here is linked dynamically: needs Debian's package busybox-static")
        applets = [hardlink(f"bin/{name}", "bin/busybox", uid=0, gid=0) for name in ("sh", "echo", "ls", "id", "cat")]
        # As docker writes it: mount points and their files among the rest, and no /etc/passwd.
        export = tar(
            [
                file(".dockerenv"),
                directory("bin"),
                file("bin/busybox", busybox.read_bytes(), mode=0o755),
                *applets,
                directory("dev"),
                file("dev/console"),
                directory("etc"),
                file("etc/hostname"),
                symlink("etc/mtab", "/proc/mounts"),
            ]
        )
        imported(running, "bb", "-", export)
        done = sandboxd(running, "run", "--rootfs", "bb", "--", "echo", "hi")
        assert (done.returncode, done.stdout) == (0, b"hi\n"), done.stderr
        with running.client() as client, Sandbox.create(client=client, rootfs="bb") as sandbox:
            assert sandbox.exec(
                "id -u; cat /etc/hostname; ls -d /workspace; echo x > /bin/new && ls /bin"
            ).stdout.split() == [
                "0",
                sandbox.exec(["cat", "/etc/hostname"]).stdout.strip(),
                "/workspace",
                *sorted(["busybox", "cat", "echo", "id", "ls", "new", "sh"]),
            ]
            # A rootfs in use is not replaced.
            again = sandboxd(
                running, "rootfs", "import", "bb", "-", "--force", "--rootfs-dir", running.rootfs_dir, data=export
            )
            assert again.returncode == 1
            assert b"sandboxes use it" in again.stderr

    def test_a_debian_of_an_oci_layout(self, running, tmp_path) -> None:
        tree = pathlib.Path(ROOTFS_DIR, "default/private/tree")
        wanted = ["usr/bin/dash", "usr/bin/sh", "usr/bin/ls", "usr/bin/cat", "usr/bin/id", "usr/bin/env"]
        wanted += ["etc/passwd", "etc/group", "etc/debian_version", "usr/lib64"]
        libraries = tree / "usr/lib/x86_64-linux-gnu"
        for pattern in ("libc.*", "libselinux.*", "libpcre2-8.*", "ld-*"):
            wanted += [str(path.relative_to(tree)) for path in libraries.glob(pattern)]
        members = []
        for path in (tree / name for name in wanted):
            name = str(path.relative_to(tree))
            if path.is_symlink():
                members.append(symlink(name, os.readlink(path)))
            elif path.is_dir():
                members.append(directory(name))
            else:
                members.append(file(name, path.read_bytes(), mode=path.stat().st_mode & 0o7777))
        members += [symlink(entry, f"usr/{entry}") for entry in ("bin", "lib", "lib64") if (tree / entry).is_symlink()]
        loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
        if loader.is_symlink():
            members.append(symlink("usr/lib64/ld-linux-x86-64.so.2", os.readlink(loader)))
        upper = tar([file("usr/bin/.wh.cat"), file("etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:7:8::/:/bin/sh\n")])
        layout = Layout()
        layout.image([tar(members), upper], "debian:13", Env=["PATH=/usr/bin"])
        imported(running, "debian", layout.write(tmp_path / "layout"))
        with running.client() as client, Sandbox.create(client=client, rootfs="debian") as sandbox:
            assert (
                sandbox.exec("read v < /etc/debian_version; echo $v").stdout
                == (tree / "etc/debian_version").read_text()
            )
            assert sandbox.exec("ls /usr/bin/cat").exit_code != 0
            assert sandbox.exec("id", user="me").stdout.startswith("uid=7(me) gid=8")

    def test_a_musl_image_of_docker_save(self, running, tmp_path) -> None:
        compiler = need("musl-gcc", "musl-tools")
        (tmp_path / "hello.c").write_text(
            "#include <stdio.h>\n#include <unistd.h>\n"
            'int main(void) { printf("hello from musl, uid %d\\n", getuid()); }\n'
        )
        subprocess.run([compiler, "-o", tmp_path / "hello", tmp_path / "hello.c"], check=True)
        loader = next(iter(pathlib.Path("/lib").glob("ld-musl-*.so.1")))
        layers = [
            tar([file("lib/libc.so", loader.read_bytes(), mode=0o755), symlink(f"lib/{loader.name}", "libc.so")]),
            tar([file("hello", (tmp_path / "hello").read_bytes(), mode=0o755)]),
        ]
        (tmp_path / "saved").write_bytes(made.docker_save(layers, ["hello:latest"], Cmd=["/hello"]))
        imported(running, "musl", tmp_path / "saved")
        done = sandboxd(running, "run", "--rootfs", "musl", "--", "/hello")
        assert (done.returncode, done.stdout) == (0, b"hello from musl, uid 0\n"), done.stderr
