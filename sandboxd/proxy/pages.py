"""What the proxy says itself: a plain page for browsers, problem+json for programs."""

from __future__ import annotations

import html
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..errors import SandboxdError
    from ..runtime.preview_urls import Target

_HINTS: Final = {
    "access-denied": "Another site sent this request. Open the preview itself and try again there.",
    "preview-not-found": "There is no such preview, or the token is wrong.",
    "sandbox-frozen": "The sandbox is frozen. Thaw it, then load this page again.",
    "sandbox-failed": "The sandbox has failed. What ran in it is gone.",
    "preview-gone": "The sandbox was destroyed.",
    "port-closed": "Nothing listens on that port. When the program has started, load this page again.",
    "upstream-broken": "The program closed the connection before it had answered, or does not speak HTTP.",
    "server-busy": "Too many connections are open. Try again in a moment.",
}
#: Cloudflare's codes of the same: `error` and `code` beside ours are for programs that read theirs.
_CODES: Final = {
    "preview-not-found": ("INVALID_TOKEN", "Access denied: Invalid token or port not exposed"),
    "preview-gone": ("STALE_PREVIEW_URL", "Preview URL is stale because the sandbox runtime is not active"),
}
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}}
code{{background:#8882;padding:.1em .3em}}</style></head>
<body><h1>{title}</h1><p>{hint}</p>{where}<p><small>sandboxd: {kind}</small></p></body></html>
"""


def answer(error: SandboxdError, target: Target | None, *, page: bool, close: bool, head_only: bool = False) -> bytes:
    """Return the whole answer to a request that did not reach a service."""
    status = error.status
    phrase = HTTPStatus(status).phrase
    facts = {} if target is None else {"port": target.port, "sandbox": target.sandbox_id}
    if page:
        kind = "text/html; charset=utf-8"
        where = "<p>Port <code>{port}</code> of sandbox <code>{sandbox}</code></p>".format(**facts) if facts else ""
        hint = html.escape(_HINTS.get(error.kind, error.message))
        body = _PAGE.format(title=f"{status} {phrase}", hint=hint, where=where, kind=error.kind).encode()
    else:
        kind = "application/problem+json"
        problem = {
            "type": "about:blank",
            "title": phrase,
            "status": status,
            "detail": error.message,
            "kind": error.kind,
            **facts,
        }
        if error.kind in _CODES:
            problem["code"], problem["error"] = _CODES[error.kind]
        body = json.dumps(problem).encode()
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{retry}{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
    ).encode()
    return head if head_only else head + body


def redirect(cookie: str, *, secure: bool, close: bool) -> bytes:
    """Return the answer to a one-time link: the cookie, and on to the service."""
    flags = f"Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
    return (
        "HTTP/1.1 303 See Other\r\nLocation: /\r\nContent-Length: 0\r\nCache-Control: no-store\r\n"
        f"Referrer-Policy: no-referrer\r\nSet-Cookie: sandboxd_preview={cookie}; {flags}\r\n"
        f"{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
    ).encode()
