"""What an image archive or directory holds: OCI layouts, `docker save` archives, skopeo's `dir:` directories.

Every form ends in the same `Image`: a configuration and layers in order, each with the digest of its blob and of its
unpacked content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sandboxd.images.archive import shown
from sandboxd.images.blobs import Blobs, read_json
from sandboxd.images.readers import ImageRefused, Region

__all__ = ["Image", "Layer", "find_images", "is_image_name"]

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
#: The first parts of names in an image archive; a root tree has none of them.
_TOP: Final = re.compile(
    r"(blobs|index\.json|manifest\.json|oci-layout|repositories|version|(sha256:)?[0-9a-f]{64}(\.json|\.tar)?)\Z"
)
_MAX_IMAGES: Final = 1000
_MAX_DEPTH: Final = 4
_MAX_LAYERS: Final = 1000
_NAME_ANNOTATIONS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: where its blob is, the blob's digest (None where only the content has one), the content's digest."""

    blob: str
    digest: str | None
    diff_id: str


@dataclass(frozen=True, slots=True)
class Image:
    """One image of an archive."""

    names: tuple[str, ...]
    digest: str
    platform: str | None
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]

    def describe(self) -> str:
        """Return how an error names it."""
        name = ", ".join(shown(name) for name in self.names[:3]) or self.digest[:19]
        return f"{name} ({self.platform})" if self.platform else name


def is_image_name(name: str) -> bool:
    """Tell whether a member of that name may begin an image archive, rather than a root tree."""
    return _TOP.match(name.split("/", maxsplit=1)[0]) is not None


def find_images(blobs: Blobs) -> tuple[list[Image], Blobs] | None:
    """Return the images there are, and where their layers' blobs are; None where `blobs` has no form of an image.

    Raises:
        ImageRefused: something of it is malformed, or not what its digest says.
    """
    index = read_json(blobs, "index.json")
    manifest = read_json(blobs, "manifest.json")
    if isinstance(index, dict):
        found = _unique(_walk(blobs, index, (), None, 0))
    elif isinstance(manifest, list):
        found = [_saved(blobs, _object(entry, "manifest.json")) for entry in manifest[:_MAX_IMAGES]]
    elif isinstance(manifest, dict) and ("layers" in manifest or "manifests" in manifest):
        blobs = _Flat(blobs)
        found = _unique(_walk(blobs, manifest, (), None, 0))
    else:
        return None
    if not found:
        raise ImageRefused("it has no image with all of its blobs", reason="no-image")
    return found, blobs


class _Flat:
    """skopeo's `dir:` seen as a layout: a blob's name is its digest's hex, a manifest's ends in .manifest.json."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def open(self, name: str) -> tuple[Region, int] | None:
        """Return a reader of a blob."""
        name = name.removeprefix("blobs/sha256/")
        return self._blobs.open(name) or self._blobs.open(f"{name}.manifest.json")


def _walk(
    blobs: Blobs, value: dict[str, Any], names: tuple[str, ...], platform: str | None, depth: int
) -> Iterator[tuple[str, Image]]:
    """Go down from an index to image manifests; yield each with its digest."""
    if "manifests" not in value:
        yield "", _image(blobs, value, names, "", platform)
        return
    for entry in _list(value["manifests"], "an index"):
        descriptor = _object(entry, "an index")
        digest, below = _descriptor(descriptor), descriptor.get("platform")
        annotations = descriptor.get("annotations") or {}
        own = tuple(str(annotations[key]) for key in _NAME_ANNOTATIONS if key in _object(annotations, "an index"))
        if "vnd.docker.reference.type" in annotations or depth >= _MAX_DEPTH:
            continue  # an attestation about another manifest
        content = read_json(blobs, _path(digest), digest)
        if content is None:
            continue  # an index may name platforms that were not saved
        content = _object(content, "a manifest")
        wanted = _platform(below) if isinstance(below, dict) else platform
        if "manifests" in content:
            yield from _walk(blobs, content, names + own, wanted, depth + 1)
        elif wanted != "unknown/unknown":
            yield digest, _image(blobs, content, names + own, digest, wanted)


def _unique(found: Iterator[tuple[str, Image]]) -> list[Image]:
    images: dict[str, Image] = {}
    for digest, image in found:
        if len(images) >= _MAX_IMAGES:
            break
        before = images.get(digest)
        names = (*before.names, *image.names) if before else image.names
        images[digest] = replace(image, names=tuple(dict.fromkeys(names)))
    return list(images.values())


def _image(blobs: Blobs, manifest: dict[str, Any], names: tuple[str, ...], digest: str, platform: str | None) -> Image:
    config_digest = _descriptor(_object(manifest.get("config"), "a manifest"))
    config = read_json(blobs, _path(config_digest), config_digest)
    if config is None:
        raise ImageRefused(f"its configuration {config_digest} is missing", reason="missing", digest=config_digest)
    layers = []
    for entry in _list(manifest.get("layers"), "a manifest"):
        layer = _object(entry, "a manifest")
        if "tar" not in str(layer.get("mediaType", "tar")):
            raise ImageRefused(f"a layer is not a tar archive but {shown(str(layer['mediaType']))}", reason="kind")
        layers.append(_descriptor(layer))
    config = _object(config, "its configuration")
    return Image(
        names,
        digest or config_digest,
        _platform(config) or platform,
        config,
        tuple(
            Layer(_path(digest), digest, diff_id)
            for digest, diff_id in zip(layers, _diff_ids(config, len(layers)), strict=True)
        ),
    )


def _saved(blobs: Blobs, entry: dict[str, Any]) -> Image:
    """Read an entry of `docker save`'s manifest.json."""
    name = str(entry.get("Config", ""))
    found = _HEX.search(name.rpartition("/")[2])
    digest = f"sha256:{found[0]}" if found else None
    config = read_json(blobs, name, digest)
    if config is None:
        raise ImageRefused(f"its configuration {shown(name)} is missing", reason="missing")
    config = _object(config, "its configuration")
    paths = [str(path) for path in _list(entry.get("Layers"), "manifest.json")]
    layers = zip(paths, _diff_ids(config, len(paths)), strict=True)
    return Image(
        tuple(str(tag) for tag in entry.get("RepoTags") or ()),
        digest or shown(name),
        _platform(config),
        config,
        tuple(Layer(path, None, diff_id) for path, diff_id in layers),
    )


def _platform(value: Mapping[str, Any]) -> str | None:
    parts = [value.get("os"), value.get("architecture"), value.get("variant")]
    if not (parts[0] and parts[1]):
        return None
    return shown("/".join(str(part) for part in parts if part))


def _diff_ids(config: dict[str, Any], count: int) -> list[str]:
    rootfs = config.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(i, str) and _DIGEST.match(i) for i in ids):
        raise ImageRefused(
            f"its configuration does not name a sha256 for each of its {count} layers (is it a container image?)",
            reason="malformed",
        )
    return ids


def _descriptor(value: dict[str, Any]) -> str:
    digest = value.get("digest")
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise ImageRefused(f"one of its digests is not sha256: {shown(str(digest))}", reason="digest")
    return digest


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageRefused(f"{where} is malformed", reason="malformed")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_LAYERS:
        raise ImageRefused(f"{where} is malformed, or over {_MAX_LAYERS} entries long", reason="malformed")
    return value
