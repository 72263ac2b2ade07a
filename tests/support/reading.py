"""Reads off the code which operations there are, with which parameters: what a table of them is held against.

It follows a dict of parameters by its name (`params["x"]`, `params.get("x")`, `set(params) - {"x"}`) into the functions
of the same room that it is handed to. What is made up at run time it cannot see.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sandboxd import errors, spec
from sandboxd.netd import state

PACKAGE = pathlib.Path(__file__).parents[2] / "sandboxd"
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
KINDS = {name: cls.kind for name, cls in vars(errors).items() if isinstance(cls, type) and hasattr(cls, "kind")}
#: Classes that read a message by their fields.
MESSAGES: dict[str, Any] = {cls.__name__: cls for cls in (spec.CommandSpec, spec.SessionSpec, state.Host, state.State)}


@dataclasses.dataclass(frozen=True)
class Handler:
    """One function that answers an operation, and where it stands."""

    function: Function
    module: str
    cls: str


@dataclasses.dataclass(frozen=True)
class Call:
    """One place that asks for an operation; `keys` is None where they cannot be read."""

    where: str
    via: str
    op: str
    keys: frozenset[str] | None
    fds: int | None = None


class Room:
    """The functions of some modules, by name."""

    def __init__(self, *paths: pathlib.Path) -> None:
        self.trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in paths}
        self._functions: dict[str, list[Handler]] = {}
        for module, tree in self.trees.items():
            for cls, function in _functions(tree):
                self._functions.setdefault(function.name, []).append(Handler(function, module, cls))
                if function.name == "__init__":
                    self._functions.setdefault(cls, []).append(Handler(function, module, cls))

    def find(self, name: str, module: str, cls: str = "") -> list[Handler]:
        """Return the functions that a name means at a place: the nearest ones there are."""
        found = self._functions.get(name, [])
        for near in ([one for one in found if (one.module, one.cls) == (module, cls)], [*_of(found, module)]):
            if near:
                return near
        return found

    def handlers(self, *variables: str) -> dict[str, Handler]:
        """Return what stands in the tables that have one of these names, or that functions so called return."""
        found: dict[str, Handler] = {}
        for module, tree in self.trees.items():
            for cls, table in itertools.chain(*(_tables(tree, variable) for variable in variables)):
                for key, value in zip(table.keys, table.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        assert key.value not in found, f"{key.value} stands twice"
                        found[str(key.value)] = self._handler(value, module, cls)
        return found

    def _handler(self, value: ast.expr, module: str, cls: str) -> Handler:
        if isinstance(value, ast.Lambda):
            return Handler(value, module, cls)
        (found,) = self.find(_name(value), module, cls)[:1]
        return found

    def reads(self, handler: Handler, parameter: str = "params") -> set[str]:
        """Return the keys of `parameter` that a function looks at, and whom it hands it to.

        One that may be absent ends with `?`: somebody asks `params.get` for it.
        """
        found = set(self._reads(handler, parameter, {}, {}))
        return {key for key in found if key.endswith("?") or f"{key}?" not in found}

    def reached(self, handler: Handler, parameter: str = "params") -> list[Handler]:
        """Return a function and those that it hands `parameter` to."""
        seen: dict[tuple[int, str], Handler] = {}
        for _ in self._reads(handler, parameter, {}, seen):
            pass
        return list(seen.values())

    def _reads(
        self, handler: Handler, parameter: str, known: dict[str, str], seen: dict[tuple[int, str], Handler]
    ) -> Iterator[str]:
        if (id(handler.function), parameter) in seen and not known:
            return
        seen[id(handler.function), parameter] = handler
        for node in ast.walk(handler.function):
            if isinstance(node, ast.Subscript) and _is(node.value, parameter):
                yield from _text(node.slice, known)
            elif isinstance(node, ast.Call):
                if _name(node.func) == "get" and _is(getattr(node.func, "value", node), parameter):
                    yield from (f"{key}?" for key in _text(node.args[0], known))
                elif any(_is(argument, parameter) for argument in node.args):
                    yield from self._handed(node, handler, parameter, seen)

    def _handed(
        self, call: ast.Call, handler: Handler, parameter: str, seen: dict[tuple[int, str], Handler]
    ) -> Iterator[str]:
        name = _name(call.func)
        if name == "from_message" and isinstance(call.func, ast.Attribute):
            cls = MESSAGES.get(_name(call.func.value))
            if cls is not None:
                yield from (f"{field.name}?" if has_default(field) else field.name for field in dataclasses.fields(cls))
                return
        at = next(i for i, argument in enumerate(call.args) if _is(argument, parameter))
        for one in self.find(name, handler.module, handler.cls):
            names = [a.arg for a in one.function.args.args]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            if at >= len(names):
                continue
            bound = dict(zip(reversed(names), map(_constant, reversed(one.function.args.defaults)), strict=False))
            bound |= {name: _constant(value) for name, value in zip(names, call.args, strict=False)}
            known = {name: value for name, value in bound.items() if isinstance(value, str)}
            yield from self._reads(one, names[at], known, seen)

    def accepts(self, handler: Handler) -> set[str] | None:
        """Return the keys that a strict function lets through: `set(params) - {…}`, or `self._find(params, {…})`."""
        for node in ast.walk(handler.function):
            sets = []
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and "params" in ast.unparse(node.left):
                sets = [node.right]
            elif isinstance(node, ast.Call) and any(_is(argument, "params") for argument in node.args):
                sets = node.args
            for one in sets:
                if isinstance(one, ast.Set):
                    return {str(element.value) for element in one.elts if isinstance(element, ast.Constant)}
        return None

    def accepts_with_helpers(self, handler: Handler) -> set[str] | None:
        """Return the same of a function, or of one of its module that it calls."""
        called = [
            one for name in sorted(_called(handler.function)) for one in self.find(name, handler.module, handler.cls)
        ]
        for one in (handler, *_of(called, handler.module)):
            accepted = self.accepts(one)
            if accepted is not None:
                return accepted
        return None

    def raises(self, handler: Handler) -> set[str]:
        """Return the kinds that a function raises or makes, with the functions of its module that it calls."""
        found: set[str] = set()
        seen: set[int] = set()
        waiting = [handler]
        while waiting:
            one = waiting.pop()
            if id(one.function) in seen:
                continue
            seen.add(id(one.function))
            for name in _called(one.function):
                if name in KINDS:
                    found.add(KINDS[name])
                waiting += [other for other in self.find(name, one.module, one.cls) if other.module == one.module]
        return found

    def answers(self, handler: Handler) -> set[str]:
        """Return the keys of the answers that a function spells out: what it replies, or else returns."""
        found: set[str] = set()
        for node in ast.walk(handler.function):
            if isinstance(node, ast.Call) and _name(node.func) in ("reply", "_reply") and len(node.args) > 1:
                found |= _keys(node.args[1]) or set()
            elif isinstance(node, ast.Return) and isinstance(handler.function, ast.FunctionDef) and node.value:
                found |= _keys(node.value) or set()
        return found

    def calls(self, *names: str, second: Mapping[str, str] = MappingProxyType({})) -> list[Call]:
        """Return who calls one of `names` with an operation's name first, and with which parameters.

        They are a dict that comes second, or keywords; for a name in `second`, the parameter called so, and keywords.
        """
        found = (self._calls(module, tree, names, second) for module, tree in self.trees.items())
        return list(itertools.chain(*found))

    def _calls(
        self, module: str, tree: ast.Module, names: tuple[str, ...], second: Mapping[str, str]
    ) -> Iterator[Call]:
        for cls, function in _functions(tree):
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                called, args = node.func, node.args
                if _name(called) == "start_soon":  # which calls its first argument
                    called, args = args[0], args[1:]
                op = _constant(args[0]) if args else None
                if _name(called) in names and isinstance(op, str):
                    keys = self._sent(node, args, Handler(function, module, cls), second.get(_name(called)))
                    yield Call(f"{module}:{node.lineno}", _name(called), op, keys, _count(node))

    def _sent(self, call: ast.Call, args: list[ast.expr], place: Handler, second: str | None) -> frozenset[str] | None:
        if len(args) > 1 and second is None:
            keys = _keys(self._meant(args[1], place))
            return None if keys is None else frozenset(keys)
        named = {keyword.arg for keyword in call.keywords} | ({second} if second else set())
        return None if None in named else frozenset(name for name in named if name)

    def _meant(self, value: ast.expr, place: Handler) -> ast.expr:
        """Return the expression that a variable or a function stands for, where there is one."""
        if isinstance(value, ast.Name):
            found = [
                node.value
                for node in ast.walk(place.function)
                if isinstance(node, ast.Assign | ast.AnnAssign)
                and node.value
                and any(_is(t, value.id) for t in _targets(node))
            ]
        else:
            name = _name(value.func) if isinstance(value, ast.Call) else _name(value)
            functions = self.find(name, place.module, place.cls)
            found = [
                node.value
                for one in functions[: len(functions) == 1]
                for node in ast.walk(one.function)
                if isinstance(node, ast.Return) and node.value
            ]
        return found[0] if len(found) == 1 else value


def _count(call: ast.Call) -> int | None:
    """Return how many descriptors are to come, where a call says it."""
    for keyword in call.keywords:
        if keyword.arg == "fds" and isinstance(value := _constant(keyword.value), int):
            return value
    value = _constant(call.args[2]) if len(call.args) > 2 else None
    return value if isinstance(value, int) else None


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Return whether a message may lack a field."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _keys(value: ast.expr) -> set[str] | None:
    """Return the keys of a dict that is spelled out, or None."""
    if not isinstance(value, ast.Dict) or not all(isinstance(key, ast.Constant) for key in value.keys):
        return None
    return {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.name if isinstance(node, ast.ClassDef) else ""), inner


def _tables(tree: ast.Module, variable: str) -> Iterator[tuple[str, ast.Dict]]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    alone = [node for node in tree.body if not isinstance(node, ast.ClassDef)]
    groups: list[tuple[str, list[Any]]] = [("", alone), *((node.name, [node]) for node in classes)]
    for cls, nodes in groups:
        for node in itertools.chain(*map(ast.walk, nodes)):
            if isinstance(node, ast.FunctionDef) and node.name == variable:
                values = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            elif isinstance(node, ast.AnnAssign) and _name(node.target) == variable:
                values = [node.value]
            else:
                continue
            yield from ((cls, value) for value in values if isinstance(value, ast.Dict))


def _called(function: Function) -> set[str]:
    return {_name(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}


def strings(path: pathlib.Path) -> set[str]:
    """Return the texts that a module spells out."""
    found = (_constant(node) for node in ast.walk(ast.parse(path.read_text())))
    return {value for value in found if isinstance(value, str)}


def _of(found: list[Handler], module: str) -> Iterator[Handler]:
    return (one for one in found if one.module == module)


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _constant(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _text(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    value = known.get(_name(node)) if isinstance(node, ast.Name) else _constant(node)
    if isinstance(value, str):
        yield value
