"""Build a rootfs from its recipe: into a directory that nothing uses, then by one rename into place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sandboxd.errors import RootfsError, RootfsNotFound
from sandboxd.images import packages, store
from sandboxd.images.progress import Progress, ProgressCallback, silent
from sandboxd.images.recipe import Recipe, find_recipe
from sandboxd.images.steps import Site, plan
from sandboxd.images.tree import disk_usage, fsync_directory, make_root, remove_tree

__all__ = ["build"]


def build(
    name: str,
    rootfs_dir: Path,
    *,
    progress: ProgressCallback = silent,
    force: bool = False,
    in_use: store.InUse = store.nobody,
    recipes: Path | None = None,
) -> store.Rootfs:
    """Build the rootfs `name` from the recipe of that name, unless it is there and up to date.

    Waits while another build or removal works in the same directory. Ended by an exception (a Ctrl-C too), it leaves
    nothing behind; killed, it leaves a directory that the next build sweeps.

    Args:
        name: the rootfs's name, and its recipe's.
        rootfs_dir: the directory of all rootfs; made when missing.
        progress: told of each step and of each line that a step's program prints.
        force: build although the built one is up to date.
        in_use: names the sandboxes that use a rootfs; one in use is not replaced.
        recipes: the directory of recipes; None is that of sandboxd itself.

    Raises:
        InvalidRequest: `name` cannot be a rootfs's name.
        RootfsNotFound: there is no such recipe.
        Conflict: the built one is out of date, and sandboxes use it or something is mounted in it.
        RootfsError: a step failed.
    """
    recipe = find_recipe(name, recipes)
    built = _up_to_date(recipe, rootfs_dir)
    if built is not None and not force:
        return built
    if os.geteuid() != 0 and (recipe.debian or recipe.finish or recipe.check):
        raise RootfsError(f"cannot build rootfs {name}: only root can; run it with sudo", rootfs=name)
    _make_rootfs_dir(rootfs_dir)
    waiting = Progress(0, 0, "Wait for another build or removal to end")
    with store.locked(rootfs_dir, wait=lambda: progress(waiting)):
        store.sweep(rootfs_dir)
        # Whoever we waited for may have built just this.
        built = _up_to_date(recipe, rootfs_dir)
        if built is not None and not force:
            return built
        if os.path.lexists(rootfs_dir / name):
            store.check_unused(name, rootfs_dir, in_use, verb="replace")
        return _build(recipe, rootfs_dir, progress)


def _up_to_date(recipe: Recipe, rootfs_dir: Path) -> store.Rootfs | None:
    try:
        built = store.load_rootfs(recipe.name, rootfs_dir)
    except (RootfsNotFound, RootfsError):
        return None
    return built if built.recipe_hash == recipe.hash else None


def _make_rootfs_dir(rootfs_dir: Path) -> None:
    try:
        rootfs_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        rootfs_dir.chmod(0o755)
    except OSError as error:
        raise RootfsError(f"cannot create {rootfs_dir}: {error.strerror}") from error


def _build(recipe: Recipe, rootfs_dir: Path, progress: ProgressCallback) -> store.Rootfs:
    scratch = rootfs_dir / store.building(recipe.name)
    try:
        scratch.mkdir(mode=0o700)
        rootfs = _fill(recipe, scratch, progress)
        store.publish(scratch, recipe.name, rootfs_dir)
    except OSError as error:
        raise RootfsError(f"cannot build rootfs {recipe.name}: {error}", rootfs=recipe.name) from error
    finally:
        if scratch.exists():
            remove_tree(scratch)
    return rootfs


def _fill(recipe: Recipe, scratch: Path, progress: ProgressCallback) -> store.Rootfs:
    private, work = scratch / "private", scratch / "work"
    private.mkdir(mode=0o700)
    work.mkdir(mode=0o700)
    make_root(private / "tree")
    steps = plan(recipe)
    for number, step in enumerate(steps, 1):
        here = Progress(number, len(steps) + 1, step.describe())
        progress(here)
        step.execute(Site(recipe.name, private / "tree", work, _reporter(progress, here)))
    progress(Progress(len(steps) + 1, len(steps) + 1, "Record its contents and write it to disk"))
    remove_tree(work)
    rootfs = store.Rootfs(
        name=recipe.name,
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        trusted=True,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        size_bytes=disk_usage(private),
        packages=packages.installed(private / "tree"),
    )
    (scratch / "rootfs.json").write_text(rootfs.to_json(), encoding="utf-8")
    (scratch / "rootfs.json").chmod(0o644)
    # One syncfs of the filesystem, not tens of thousands of fsyncs; what is renamed into place is whole on the disk.
    subprocess.run(["sync", "--file-system", scratch], check=True)
    scratch.chmod(0o755)
    fsync_directory(scratch)
    return rootfs


def _reporter(progress: ProgressCallback, here: Progress) -> Callable[[str], None]:
    return lambda line: progress(Progress(here.number, here.total, here.step, line))
