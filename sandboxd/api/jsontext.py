r"""JSON in and out, for every face: one strict parser of what callers send, one encoder that nothing they sent breaks.

What is refused in: text that is no UTF-8, a lone surrogate (`"\ud800"`: JSON's grammar has it, no encoding does),
NaN, infinities and numbers that become one (`1e999`), and nesting that no parser follows. So no text of a caller's is
one that cannot be written: not to a sandbox, not to a log, not back to the caller.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

#: The escape of a surrogate; most are halves of a pair, so what has one is looked at once more.
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_LONE: Final = re.compile("[\ud800-\udfff]")
_Pairs = list[tuple[str, Any]]


def parse(data: bytes | bytearray | str, *, what: str = "the body", unique: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    """Return what a JSON text says; `unique` refuses an object that has a key twice, else the last one holds.

    Raises:
        InvalidRequest: it is none, or one of those that the module names.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        found = json.loads(
            text,
            object_pairs_hook=_no_duplicates if unique else None,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequest(f"cannot read {what}: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"cannot read {what} as JSON: it is not valid UTF-8") from None
    except UnicodeEncodeError:
        raise InvalidRequest(f"cannot read {what} as JSON: it has a lone surrogate, which is not a character") from None
    except ValueError as error:
        raise InvalidRequest(f"cannot read {what} as JSON: {str(error)[:200]}") from None
    return found


def _no_duplicates(pairs: _Pairs) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def encode(value: Any, enc_hook: Callable[[Any], Any] | None = str) -> bytes:  # noqa: ANN401 - any value
    """Return a value as JSON, whatever text is in it: what has no bytes in UTF-8 becomes U+FFFD.

    What JSON has no form for becomes what `enc_hook` makes of it, its text where nothing else is said.
    """
    try:
        return msgspec.json.encode(value, enc_hook=enc_hook)
    except UnicodeEncodeError:
        return msgspec.json.encode(_writable(msgspec.to_builtins(value, enc_hook=enc_hook)))


def _writable(value: Any) -> Any:  # noqa: ANN401 - what to_builtins makes
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return value
