"""sandboxd/client/README.md against the SDK: it shows every public name of `Sandbox`."""

from __future__ import annotations

import re
from pathlib import Path

import sandboxd
from sandboxd import AsyncSandbox, Sandbox

_README = (Path(sandboxd.__file__).parent / "client" / "README.md").read_text()
_EXAMPLES = _README.partition("\n## Every method\n")[2].partition("\n## ")[0]


def _public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_public_name_of_a_sandbox_has_an_example() -> None:
    attributes = {"info"}
    assert _public(Sandbox) | attributes == set(re.findall(r"`[Ss]andbox\.(\w+)", _EXAMPLES))


def test_the_asynchronous_half_has_the_same_names() -> None:
    assert _public(Sandbox) == _public(AsyncSandbox)
