"""The preview listener: HTTP from browsers to what listens inside sandboxes.

Theory of operation.

    browser ──TCP (TLS)──▶ Connection ──h11──▶ Request: check, route by its own Host, rewrite the head
                               │                   │
                               │                   └─▶ a socket made in the sandbox's network, connected here
                               └◀── Response: read by h11, framed anew ◀── the service

One task serves a client's connection, one request after the other, and each request is routed anew: nothing of an
earlier one is left, so a front proxy may send requests for many sandboxes over one connection. h11 reads every head and
every chunked body; what leaves is written by us from what h11 understood, so that nobody behind us can read it another
way. Bodies of a known length and upgraded connections (WebSockets) are passed on as bytes, in bulk by splice(2).

Who waits for what is bounded by one sweeper, not by a timer each: `Connection.deadline` is a number that it looks at.
"""
