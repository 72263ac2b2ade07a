"""The native face."""

from __future__ import annotations

from typing import Final

from .. import problems
from ..face import Face
from .routes import ROUTES

V1: Final = Face(name="v1", routes=ROUTES, tell=problems.tell)
