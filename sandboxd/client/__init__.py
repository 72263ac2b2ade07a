"""The Python SDK: `Sandbox` and `AsyncSandbox` over the daemon's HTTP API.

The layers, inside out: `models` (values), `calls` and the `*_calls` modules (each request written once, no I/O, with
the name, arguments and docstring of the method that sends it), `client` and `async_client` (send a call), `verbs`
(makes both kinds of methods from requests), `sandbox` and `async_sandbox` with their streams (the names that people
use). Code that waits in its own way is written twice by hand: streams, context managers, and reading and writing local
files.
"""

from .async_client import AsyncClient
from .async_code import AsyncCodeStream
from .async_processes import AsyncExecStream, AsyncLogStream
from .async_pty import AsyncPty
from .async_sandbox import AsyncSandbox
from .async_sessions import AsyncSession
from .async_stream import AsyncFileStream, AsyncWatchStream
from .client import Client
from .code import CodeStream
from .code_calls import Cleared, Output
from .code_models import CodeContext, CodeError, CodeResult, Result
from .control_calls import IoUse, PortUse, SandboxStats
from .event_calls import SandboxEvent
from .events import AsyncEventStream, EventStream
from .failures import CodeFailed, CommandFailed
from .file_calls import FileChange, FileInfo, Match, ReplaceResult, SearchResult
from .git_calls import GitCheckout, GitProgress
from .models import ExecResult, ExitStatus, OutputChunk, SandboxInfo, Usage
from .options import CommandOptions, SessionCommandOptions
from .port_calls import ExposedPort
from .process_calls import ProcessInfo, ProcessLogs, WaitResult
from .processes import ExecStream, LogStream
from .pty import Pty
from .sandbox import Sandbox
from .session_calls import SessionInfo
from .sessions import Session
from .stream import FileStream, WatchStream

__all__ = [
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
]
