r"""JSON for every face: one strict parser for what callers send, and one encoder that no text can break.

The parser refuses text that is not UTF-8, lone surrogates (`"\ud800"`: JSON's grammar allows them, no encoding does),
NaN, infinities, numbers that become one (`1e999`), and excessive nesting. So every text that a caller sends can be
written to a sandbox, to a log, and back to the caller.
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
    """Return the value of a JSON text. `unique` refuses objects with a repeated key; otherwise the last one counts.

    Raises:
        InvalidRequest: the text is not JSON, or has one of the faults that the module's docstring lists.
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
    """Return a value as JSON, whatever text it contains: what UTF-8 cannot encode becomes U+FFFD.

    `enc_hook` converts types that JSON does not have; by default they become their text.
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
