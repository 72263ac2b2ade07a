"""The code contexts of one sandbox: the table, the default one of each language, and what they are started with."""

from __future__ import annotations

import functools
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import ContextNotFound, InvalidRequest, LimitExceeded, RemoteProtocolError, RunNotFound, SandboxdError
from ..spec import ContextSpec, check_process_id
from ..wire import worker as frames
from . import checks
from .context import Context
from .lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..errors import ProtocolError
    from .handoff import Handoff
    from .link_client import Stream
    from .runs import Run
    from .sandbox import Sandbox

_log = logging.getLogger(__name__)

#: Contexts of one sandbox, the default ones included; init has the same bound for workers.
MAX_CONTEXTS: Final = 16
_WORKERS: Final = Path(__file__).parent.parent / "workers"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
#: The first words of a worker: read the program from descriptor 7 (never by its path) and be it. For Python, no file
#: of the working directory may pass for a module of the library meanwhile.
_PYTHON: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import os; "
    "exec(compile(os.pread(7, os.fstat(7).st_size, 0), '<sandboxd>', 'exec'), {'__name__': '__main__'})"
)
_NODE: Final = (  # in a block, or its names would be the user's; not as a module, whose loader costs 10 ms and 12 MB
    "{ const fs = require('fs'), b = Buffer.alloc(fs.fstatSync(7).size); fs.readSync(7, b, 0, b.length, 0); "
    "require('vm').compileFunction(b.toString(), ['require'], { filename: 'sandboxd:worker' })(require) }"
)
_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "python": ("python3", "-c", _PYTHON),
    # The first flag: an interrupt may end a callback in the middle, and Node would take that for its own bug.
    "node": ("node", "--no-force-async-hooks-checks", "--disable-warning=ExperimentalWarning", "-e", _NODE),
}
#: Variables that Python, the loader, C's library and numeric ones read when they are loaded: in a template they were
#: others, so an interpreter of the sandbox's own starts where one is set.
_READ_AT_START: Final = (
    *("PYTHON", "LD_", "GLIBC_", "MALLOC_", "LANG", "LC_", "PATH", "IPYTHON", "MPL", "MATPLOTLIB", "PANDAS", "NPY_"),
    *("NUMPY_", "OMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_", "KMP_", "GOMP_", "XDG_"),
)
#: Variables that name files which Node, the loader or a library reads at its start: those may have changed since.
_FILES_AT_START: Final = ("NODE_", "LD_", "GLIBC_", "GCONV_", "OPENSSL_", "SSL_", "ICU_")
#: How long init may take to drop a spare interpreter.
SPARE_DROP_S: Final = 2.0
#: Files that a Python worker compiles when it needs them.
_PYTHON_PARTS: Final = ("errors", "shell", "charts", "specs")
#: CommonJS modules of the Node worker, each before those that require it; the last is the program.
_NODE_PARTS: Final = ("ends", "errors", "codec", "frames", "values", "repl", "questions", "worker")


def interpreter_of(language: str) -> str:
    """Return which worker runs a language."""
    return "python" if language == "python" else "node"


def may_share(env: dict[str, str]) -> bool:
    """Return whether a template's child would be what these variables make of an interpreter."""
    return not any(name.startswith(_READ_AT_START) for name in env)


def may_wait(env: dict[str, str]) -> bool:
    """Return whether a Node interpreter that starts now with these variables is what one that starts later would be."""
    return not any(name.startswith(_FILES_AT_START) for name in env)


def read_program(interpreter: str) -> bytes:
    """Return a worker's program."""
    if interpreter == "node":
        return _bundle({f"./node_{name}.cjs": (_WORKERS / f"node_{name}.cjs").read_text() for name in _NODE_PARTS})
    parts = {name: (_WORKERS / f"python_{name}.py").read_text() for name in _PYTHON_PARTS}
    return f"_SOURCES = {parts!r}\n".encode() + (_WORKERS / "python_worker.py").read_bytes()


def _bundle(modules: dict[str, str]) -> bytes:
    """Return one CommonJS program of several modules."""
    text = "const parts = {}, outer = require;\n{ const require = (name) => parts[name]?.exports ?? outer(name);\n"
    for name, source in modules.items():
        text += f"parts['{name}'] = {{ exports: {{}} }};\n((module) => {{\n{source}\n}})(parts['{name}']);\n"
    return f"{text}}}\n".encode()


class Contexts:
    """Made by its sandbox; also the link of its contexts to init."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._contexts: dict[str, Context] = {}
        self._sent: set[str] = set()
        self._locks: dict[str, trio.Lock] = {}
        self._is_changed = False  # whether a template's child has declined here

    def __repr__(self) -> str:
        return f"<Contexts of {self._sandbox.id}: {len(self._contexts)}>"

    # --- the link ---------------------------------------------------------------------------------------

    async def ask(self, op: str, /, **params: object) -> dict[str, Any]:
        """Ask init; while the sandbox is frozen, wait."""
        while self._sandbox.state is State.FROZEN:
            await self._sandbox.moved.wait()
        return await self._sandbox.ask(op, **params)

    def stream(self, op: str, params: dict[str, Any], *, fds: Iterable[int] = ()) -> Stream:
        """Return a stream of init's."""
        return self._sandbox.open_stream(op, params, fds=fds)

    def handoff(self, spec: ContextSpec) -> Handoff | None:
        """Return where a template's child may come to be a context's worker; None where there is to be none."""
        if spec.language != "python" or self._is_changed or not may_share({**self._sandbox.spec.env, **spec.env}):
            return None
        return self._sandbox.handoff()

    def bring(self, handoff: Handoff, leaf: str) -> None:
        """Have a child of the rootfs's template come; without one, init starts an interpreter itself."""
        self._sandbox.services.start_soon(functools.partial(handoff.bring, "python", leaf))

    def declined(self, why: str) -> None:
        """Ask no template for this sandbox again: it has changed what one would hold."""
        if not self._is_changed:
            _log.info("Contexts of sandbox %s start their own interpreters: %s", self._sandbox.id, why)
        self._is_changed = True

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        """Return what a broken link means."""
        return await self._sandbox.why_broken(error)

    # --- the table --------------------------------------------------------------------------------------

    def all(self) -> list[Context]:
        """Return every context, the oldest first."""
        return list(self._contexts.values())

    def find(self, context_id: str) -> Context:
        """Return a context.

        Raises:
            ContextNotFound: there is none of that id.
        """
        context = self._contexts.get(context_id)
        if context is None:
            raise ContextNotFound(f"cannot find context {context_id[:70]!r}: no such context", id=context_id[:70])
        return context

    def usable(self, context_id: str) -> Context:
        """Return a context that can be asked something now.

        Raises:
            ContextNotFound: there is none of that id.
            Conflict: the sandbox is frozen, failed or gone, as the kinds say.
        """
        self._sandbox.check_usable()
        return self.find(context_id)

    def find_run(self, context_id: str, run_id: str) -> Run:
        """Return a run whose journal is still here.

        Raises:
            ContextNotFound, RunNotFound: as their names say.
        """
        run = self.find(context_id).runs.get(run_id)
        if run is None:
            raise RunNotFound(f"cannot find run {run_id[:70]!r}: no such run, or it is no longer kept", id=run_id[:70])
        return run

    async def create(self, spec: ContextSpec, *, is_default: bool = False) -> Context:
        """Start a context and return it when it takes code.

        Raises:
            InterpreterMissing: the rootfs lacks what the language needs.
            LimitExceeded: there are as many as may be.
            InvalidRequest: the working directory does not exist.
        """
        self._sandbox.check_usable()
        if len(self._contexts) >= MAX_CONTEXTS:
            raise LimitExceeded(f"cannot create a context: the sandbox has {MAX_CONTEXTS} already", bound=MAX_CONTEXTS)
        context_id = "c-" + "".join(_LETTERS[byte & 31] for byte in secrets.token_bytes(10))
        context = self._new(context_id, spec, is_default=is_default)
        self._contexts[context_id] = context
        try:
            # Not beside each other: init takes a program once.
            interpreter = interpreter_of(spec.language)
            async with self._locks.setdefault(interpreter, trio.Lock()):
                await self._send_program(interpreter)
            self._start(context)
            await context.started.wait()
            if context.start_failure is not None:
                raise context.start_failure
            self._sandbox.check_usable()
        except BaseException:
            with trio.CancelScope(shield=True):
                await context.delete()
            self._contexts.pop(context_id, None)
            raise
        return context

    async def default(self, language: str) -> Context:
        """Return the language's default context; it is made at its first use."""
        self._sandbox.check_usable()
        async with self._locks.setdefault(f"default {language}", trio.Lock()):
            for context in self._contexts.values():
                if context.is_default and context.spec.language == language:
                    return context
            return await self.create(ContextSpec(language=language), is_default=True)

    async def delete(self, context_id: str) -> None:
        """End a context for good."""
        context = self.find(context_id)
        with trio.CancelScope(shield=True):
            await context.delete()
        self._contexts.pop(context_id, None)

    def lose_sandbox(self, error: SandboxdError) -> None:
        """End every context, since the sandbox is gone; `error` says why."""
        for context in self._contexts.values():
            context.lose_sandbox(error)

    def _new(self, context_id: str, spec: ContextSpec, *, is_default: bool) -> Context:
        share = self._sandbox.share

        def params() -> dict[str, Any]:
            return self._start_params(context)

        context = Context(context_id, spec, self, params, is_default=is_default, share=share)
        return context

    def _start(self, context: Context, *, take_over: bool = False) -> None:
        self._sandbox.services.start_soon(functools.partial(context.serve, take_over=take_over))

    async def _send_program(self, interpreter: str) -> None:
        if interpreter not in self._sent:
            data = await trio.to_thread.run_sync(read_program, interpreter)
            await self.ask("context_source", name=interpreter, data=data)
            self._sent.add(interpreter)

    def _start_params(self, context: Context) -> dict[str, Any]:
        spec = context.spec
        interpreter = interpreter_of(spec.language)
        return {
            "source": interpreter,
            "argv": list(_COMMANDS[interpreter]),
            "env": spec.env,
            **self._first_words(spec),
            "cwd": spec.cwd,
            "note": {
                "id": context.id,
                "language": spec.language,
                "cwd": spec.cwd,
                "env": spec.env,
                "is_default": context.is_default,
                "generation": context.generation,
            },
        }

    def _first_words(self, spec: ContextSpec) -> dict[str, Any]:
        """Return what init tells a Node worker first, and whether one is to wait for the next context."""
        if spec.language == "python":
            return {}
        idle_s = self._sandbox.services.spare_s if may_wait({**self._sandbox.spec.env, **spec.env}) else 0
        park = frames.encode({"op": "park", "language": spec.language})
        spare = {"use": True, "park": park, "idle_s": idle_s} if idle_s else None
        return {"begin": frames.encode({"op": "begin", "language": spec.language}), "spare": spare}

    async def drop_spare(self) -> None:
        """Have no interpreter wait for a context: the sandbox is about to be frozen."""
        if not self._sandbox.services.spare_s:
            return
        with trio.move_on_after(SPARE_DROP_S):
            try:
                await self._sandbox.ask("context_drop_spare")
            except SandboxdError as error:
                _log.debug("Cannot drop the spare interpreter of sandbox %s: %s", self._sandbox.id, error)

    # --- a new daemon -----------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take over the workers that an earlier daemon left in this sandbox.

        Raises:
            SandboxdError: init does not answer, or not as it should.
        """
        try:
            await self._recover()
        except InvalidRequest as error:
            _log.warning("Cannot take over the contexts of sandbox %s: %s", self._sandbox.id, error)  # an older init

    async def _recover(self) -> None:
        after: int | None = 0
        while after is not None and len(self._contexts) < MAX_CONTEXTS:
            answer = await self.ask("context_list", after=after)
            for item in checks.items(answer, "items", dict, limit=1):
                self._take_over(item)
            following = answer.get("next")
            after = None if following is None else checks.integer(answer, "next", low=after + 1, high=1 << 16)

    def _take_over(self, item: dict[str, Any]) -> None:
        note = checks.table(item, "note")
        try:
            name = check_process_id(checks.text(item, "context", limit=64))
            context_id = check_process_id(checks.text(note, "id", limit=64))
            cwd, env = note.get("cwd"), checks.table(note, "env")
            spec = ContextSpec(
                language=checks.text(note, "language"), cwd=None if cwd is None else checks.text(note, "cwd"), env=env
            )
        except (InvalidRequest, TypeError, AttributeError) as error:
            raise RemoteProtocolError(f"cannot take over a context: {error}") from error
        if context_id in self._contexts:
            raise RemoteProtocolError(f"cannot take over context {context_id} twice")
        context = self._new(context_id, spec, is_default=checks.flag(note, "is_default"))
        context.take_over(name, checks.integer(note, "generation", high=1 << 31))
        self._contexts[context_id] = context
        self._start(context, take_over=True)
        _log.info("Found context %s of sandbox %s again", context_id, self._sandbox.id)
