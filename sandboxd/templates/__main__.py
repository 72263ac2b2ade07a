"""`python -I -B -m sandboxd.templates KIND`: a template of the host's own interpreter; the launcher starts it."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import msgpack

from .. import stdio
from . import base

#: kind -> a module with `load()`, which imports all that it will need, and `work(given)`, which runs in the child.
KINDS: Final = {"git": "sandboxd.templates.git"}


def main() -> None:
    """Load a kind, and serve the launcher."""
    stdio.open_standard()
    module: Any = None

    def work(given: object) -> None:
        # What the sandbox has put where the host's packages are is never imported.
        sys.path.clear()
        sys.path_importer_cache.clear()
        module.work(given)

    template: Any = base.Template(msgpack.unpackb)  # type: ignore[no-untyped-call]  # it stands alone
    template.receive_settings()
    try:
        module = importlib.import_module(KINDS[sys.argv[1]])
        module.load()
    except Exception as error:
        template.fail(f"{type(error).__name__}: {error}")
    template.serve(work)


if __name__ == "__main__":
    main()
