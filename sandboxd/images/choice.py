"""Which of an archive's images is meant; `busybox` is `docker.io/library/busybox:latest`, as people type it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandboxd.images.readers import ImageRefused

if TYPE_CHECKING:
    from sandboxd.images.oci import Image

__all__ = ["choose"]

_MAX_LISTED: Final = 20


def choose(images: list[Image], image: str | None, platform: str | None, host: str) -> Image:
    """Return the image that is meant: by reference and platform, or the only one that fits this host.

    Raises:
        ImageRefused: none or several fit; `images` names what there is.
    """
    listed = [one.describe() for one in images[:_MAX_LISTED]]
    fitting = images
    if image is not None:
        fitting = [one for one in fitting if image == one.digest or any(_same(image, name) for name in one.names)]
    if platform is not None:
        fitting = [one for one in fitting if _fits(one.platform, platform)]
    if not fitting:
        raise ImageRefused(f"it has no such image, only: {'; '.join(listed)}", reason="no-image", images=listed)
    if platform is None:
        ours = [one for one in fitting if one.platform is None or _fits(one.platform, host)]
        if not ours:
            raise ImageRefused(
                f"it is for a platform other than {host}: {'; '.join(listed)}; --platform imports it anyway",
                reason="platform",
                images=listed,
            )
        fitting = ours
    if len(fitting) > 1:
        listed = [one.describe() for one in fitting[:_MAX_LISTED]]
        raise ImageRefused(
            f"it has several images: {'; '.join(listed)}; choose with --image or --platform",
            reason="several-images",
            images=listed,
        )
    return fitting[0]


def _same(wanted: str, name: str) -> bool:
    return wanted == name or _full(wanted) == _full(name)


def _full(name: str) -> str:
    name = name.removeprefix("localhost/").removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def _fits(platform: str | None, wanted: str) -> bool:
    """Tell whether `platform` is what is wanted; a variant (arm64/v8) counts where it is named."""
    return platform is not None and (platform == wanted or platform.startswith(wanted + "/"))
