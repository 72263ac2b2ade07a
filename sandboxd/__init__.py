"""sandboxd: sandboxes on one Linux host, in milliseconds.

`from sandboxd import Sandbox` is the SDK. Its names are found on first use, so that the daemon's own processes,
which import `sandboxd.wire` and friends, never load httpx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: `sandboxd.client.__all__`, said again because asking would import it; a test holds them together.
_CLIENT_NAMES = frozenset(
    {
        "AsyncClient",
        "AsyncCodeStream",
        "AsyncEventStream",
        "AsyncExecStream",
        "AsyncFileStream",
        "AsyncLogStream",
        "AsyncPty",
        "AsyncSandbox",
        "AsyncSession",
        "AsyncWatchStream",
        "Cleared",
        "Client",
        "CodeContext",
        "CodeError",
        "CodeFailed",
        "CodeResult",
        "CodeStream",
        "CommandFailed",
        "CommandOptions",
        "EventStream",
        "ExecResult",
        "ExecStream",
        "ExitStatus",
        "ExposedPort",
        "FileChange",
        "FileInfo",
        "FileStream",
        "GitCheckout",
        "GitProgress",
        "IoUse",
        "LogStream",
        "Match",
        "Output",
        "OutputChunk",
        "PortUse",
        "ProcessInfo",
        "ProcessLogs",
        "Pty",
        "ReplaceResult",
        "Result",
        "Sandbox",
        "SandboxEvent",
        "SandboxInfo",
        "SandboxStats",
        "SearchResult",
        "Session",
        "SessionCommandOptions",
        "SessionInfo",
        "Usage",
        "WaitResult",
        "WatchStream",
    }
)

_SPEC_NAMES = frozenset({"IoLimits", "Limits"})

if TYPE_CHECKING:
    from .client import *  # noqa: F403
    from .errors import *  # noqa: F403
    from .spec import IoLimits as IoLimits
    from .spec import Limits as Limits


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class each, checked below
    value: Any
    if name == "__all__":  # asked for by `import *`, which then asks for each
        value = _names()
    elif name in _CLIENT_NAMES:
        value = getattr(importlib.import_module(".client", __name__), name)
    elif name in _SPEC_NAMES:
        value = getattr(importlib.import_module(".spec", __name__), name)
    else:
        value = _errors().get(name)
        if value is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})


def _names() -> list[str]:
    """Return what users import from here."""
    return sorted({*_CLIENT_NAMES, *_SPEC_NAMES, *_errors()})


def _errors() -> dict[str, Any]:
    """Return what of `sandboxd.errors` can be had here: the class of each kind."""
    errors = importlib.import_module(".errors", __name__)
    return {cls.__name__: cls for cls in errors.kinds().values() if cls.__module__ == errors.__name__}
