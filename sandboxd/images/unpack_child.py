"""The program that unpacks an image: `importer` starts it, `confine` locks it in, `unpack_link` is how it speaks."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import platform
import socket
import sys
import tarfile
import zlib
from collections import Counter
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final

from sandboxd import stdio
from sandboxd.images import confine, packages
from sandboxd.images.archive import Tape, names, shown
from sandboxd.images.blobs import ArchiveBlobs, Blobs, DirectoryBlobs
from sandboxd.images.choice import choose
from sandboxd.images.oci import Image, Layer, find_images, is_image_name
from sandboxd.images.readers import Budget, Hashing, ImageRefused, Pipe, Pushback, Reader, Region, decompressed
from sandboxd.images.skeleton import complete_skeleton
from sandboxd.images.unpack import Unpacker
from sandboxd.images.unpack_link import Link, Metered, Progress
from sandboxd.linux.kernel import Kernel

__all__ = ["main"]

_MAX_NOTES: Final = 50
_HEAD: Final = 64 * 1024
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
#: What broken bytes make the standard library raise, and what each means.
_DAMAGE: Final = (tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, ValueError, OverflowError)


class Job:
    """One import: what the parent asked for, and where."""

    def __init__(self, link: Link, wanted: dict[str, Any], source: int, spool: int) -> None:
        self._link = link
        self._wanted = wanted
        self._source = source
        self._spool = spool
        self._budget = Budget(wanted["max_bytes"], wanted["max_entries"])
        self._progress = Progress(link, self._budget)
        self._root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._unpacker = Unpacker(self._root, self._budget)

    def run(self) -> dict[str, Any]:
        """Unpack; return what is told of the result; raises ImageRefused."""
        blobs: Blobs | None = None
        if self._source < 0:
            blobs = DirectoryBlobs(self._link.ask)
        else:
            size = self._wanted["size"] if self._wanted["form"] == "file" else None
            raw: Reader = Pipe(self._source, self._link.fileno()) if size is None else Region(self._source, 0, size)
            plain, compressed = decompressed(Metered(raw, self._progress))
            stream = Pushback(plain)
            if not _begins_image(stream.peek(_HEAD)):
                return self._tree(stream)
            blobs = self._archive(stream, None if compressed else size)
        found = find_images(blobs)
        if found is None:
            if self._source < 0:
                raise ImageRefused(
                    "the directory is not an OCI layout, an unpacked docker save or a skopeo dir: "
                    "it has neither index.json nor manifest.json",
                    reason="no-image",
                )
            # Names like an image's, but none: a root tree after all.
            return self._tree(self._again())
        images, blobs = found
        return self._layers(blobs, self._choose(images))

    def _archive(self, stream: Reader, size: int | None) -> ArchiveBlobs:
        """Return the files of an image archive, copied aside first where it cannot be read twice."""
        if size is not None:
            self._random = (self._source, size)
        else:
            budget = Budget(self._wanted["max_bytes"], 1)
            written = 0
            while data := stream.read(_HEAD):
                budget.take_bytes(len(data))
                written += os.write(self._spool, data)
            self._random = (self._spool, written)
        return ArchiveBlobs(*self._random)

    def _again(self) -> Reader:
        return Region(self._random[0], 0, self._random[1])

    def _choose(self, images: list[Image]) -> Image:
        host = f"linux/{_MACHINES.get(_MACHINE, _MACHINE)}"
        return choose(images, self._wanted["image"], self._wanted["platform"], host)

    def _tree(self, stream: Reader) -> dict[str, Any]:
        self._progress.begin(1, 1)
        tape = Tape(stream, self._budget)
        self._unpacker.apply(tape, layered=False)
        return self._finish(tape.finish(), {})

    def _layers(self, blobs: Blobs, image: Image) -> dict[str, Any]:
        for number, layer in enumerate(image.layers, 1):
            self._progress.begin(number, len(image.layers))
            try:
                self._layer(blobs, layer)
            except ImageRefused as refused:
                raise ImageRefused(f"layer {number}: {refused.why}", layer=number, **refused.facts) from None
        return self._finish(
            image.digest,
            {"names": [shown(name) for name in image.names[:20]], "platform": image.platform, **_settings(image)},
        )

    def _layer(self, blobs: Blobs, layer: Layer) -> None:
        found = blobs.open(layer.blob)
        if found is None:
            raise ImageRefused(f"its blob {shown(layer.blob)} is missing", reason="missing")
        blob = Hashing(Metered(found[0], self._progress))
        stream, _ = decompressed(blob)
        tape = Tape(stream, self._budget)
        self._unpacker.apply(tape, layered=True)
        content = tape.finish()
        if layer.digest is not None and blob.finish() != layer.digest:
            raise ImageRefused("its blob does not match its digest", reason="digest", digest=layer.digest)
        if content != layer.diff_id:
            raise ImageRefused("its content does not match its diff_id", reason="digest", digest=layer.diff_id)

    def _finish(self, digest: str, facts: dict[str, Any]) -> dict[str, Any]:
        complete_skeleton(self._root, self._unpacker.notes)
        self._unpacker.restore_directory_times()
        return {
            "digest": digest,
            "config": facts,
            "notes": _told(self._unpacker.notes),
            "packages": _packages(),
            "entries": self._budget.entries,
            "bytes": self._budget.bytes,
        }


def _begins_image(head: bytes) -> bool:
    """Tell by its first member's name whether an archive may be an image's."""
    try:
        for name in names(head):
            if name.strip("./"):
                return is_image_name(name.removeprefix("./"))
    except (ImageRefused, *_DAMAGE):
        pass  # the tree's own reading tells what is wrong
    return False


def _settings(image: Image) -> dict[str, Any]:
    """Return what of an image's configuration a sandbox could use; values of other types are left out."""
    config = image.config.get("config")
    found: dict[str, Any] = {}
    for key in ("Env", "Entrypoint", "Cmd", "WorkingDir", "User"):
        value = config.get(key) if isinstance(config, dict) else None
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            found[key] = value
    if len(json.dumps(found)) > confine.MAX_PACKET // 4:
        raise ImageRefused(
            "its environment and commands are too long", reason="too-large", limit=confine.MAX_PACKET // 4
        )
    return found


def _told(notes: Counter[str]) -> list[str]:
    # Not most_common: it would import heapq, and there is nothing to import from any more.
    told = [f"{what} ({count})" if count > 1 else what for what, count in list(notes.items())[:_MAX_NOTES]]
    return told if len(notes) <= len(told) else [*told, f"and {len(notes) - len(told)} more kinds of notes"]


def _packages() -> dict[str, dict[str, str]]:
    try:
        found = packages.installed(Path("/"))
    except (OSError, ValueError, LookupError, ImportError, RecursionError):
        return {}  # a stranger's files, which may want a codec that is not loaded: nothing stands on them
    return found if len(json.dumps(found)) < confine.MAX_PACKET // 2 else {}


def _warm_up() -> None:
    """Make the standard library load what it loads on first use; `test_nothing_is_loaded_in_the_cell` finds more."""
    str(HeaderParser().parsestr("Name: x\n\n", headersonly=True)["Name"])


def run(link: Link, wanted: dict[str, Any]) -> None:
    """Lock this process in, unpack, and say how it went."""
    _warm_up()
    kernel = Kernel()
    filters = confine.compile_filter()
    confine.unshare(kernel)
    link.send("unshared")
    _, [mount, spool] = link.receive()
    source = -1 if wanted["form"] == "folder" else 0
    confine.lock_in(kernel, mount, [link.fileno(), spool], filters, wanted["max_bytes"])
    link.send("locked")
    try:
        result = Job(link, wanted, source, spool).run()
    except ImageRefused as refused:
        link.send("refused", why=refused.why, facts=refused.facts)
    except _DAMAGE as error:
        link.send("refused", why=f"it is damaged ({error})", facts={"reason": "damaged"})
    except RecursionError:
        link.send("refused", why="it is nested too deeply", facts={"reason": "damaged"})
    except MemoryError:
        link.send("refused", why="reading it takes more memory than an import may have", facts={"reason": "memory"})
    except OSError as error:
        link.send("refused", why=str(error), facts={"reason": "os"})
    else:
        link.send("done", **result)


_MACHINE: Final = platform.machine()


def main() -> None:
    """Run as a program: argv is the socket's descriptor and what is wanted, as JSON."""
    stdio.open_standard()
    run(Link(socket.socket(fileno=int(sys.argv[1]))), json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
