"""Rootfs: the named, unpacked, read-only trees that sandboxes share; built from recipes, listed, removed.

Theory of operation. On disk a rootfs is a directory below the rootfs directory of a state directory:

    <rootfs-dir>/                    0755 root
      <name>/                        0755 root; appears complete, by one rename, or not at all
        rootfs.json                  0644: what it is (`Rootfs`); the daemon reads it without privilege
        private/                     0700 root: keeps the setuid files below from the host's users
          tree/                      0755: the root directory of sandboxes, the lower layer of their overlays
      .building-<name>-<token>/      0700: a build under way, or what a killed one left
      .removing-<name>-<token>/      a removal (or a replaced rootfs) under way

Whoever builds or removes holds a flock on <rootfs-dir> itself, which the kernel gives back when its holder dies: what
the holder finds as `.building-…` and `.removing-…` is therefore dead, and it sweeps that first. Every program of a
build runs in mount and pid namespaces of its own and dies with the builder (`contained`), so a killed build leaves
neither mounts nor processes, only a directory with a dot that nothing takes for a rootfs.

A recipe (`Recipe`) is a directory with a manifest; `plan` turns it into an ordered tuple of steps, purely, and `build`
runs them. The built rootfs records the recipe's hash: building again with the same recipe is free.
"""

from __future__ import annotations

from sandboxd.images.builder import build
from sandboxd.images.progress import Progress, ProgressCallback
from sandboxd.images.recipe import Recipe, find_recipe, load_recipe, recipe_names
from sandboxd.images.store import Rootfs, list_rootfs, load_rootfs, remove

__all__ = [
    "Progress",
    "ProgressCallback",
    "Recipe",
    "Rootfs",
    "build",
    "find_recipe",
    "list_rootfs",
    "load_recipe",
    "load_rootfs",
    "recipe_names",
    "remove",
]
