"""Identifies the run and the branch that a request belongs to. Sent to our own server in headers, so that its page can show runs live.

The ids reveal nothing about the program; names of variables are sent only with SGLANG_TRACE=server.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from urllib.parse import quote

PLACE_HEADER, NAME_HEADER = b"X-Sglang-Run", b"X-Sglang-Variable"
MAX_NAME = 100

place: ContextVar[str | None] = ContextVar("place", default=None)
"""run/branch, as "3f2a.../0.1": the second fork of the program's own state"""
variable: ContextVar[str | None] = ContextVar("variable", default=None)
"""the name of what is being written"""


def place_headers() -> list[tuple[bytes, bytes]]:
    """Headers for a request that is made here."""
    where = place.get()
    if where is None:
        return []
    found = [(PLACE_HEADER, where.encode())]
    name = variable.get()
    if name is not None and os.environ.get("SGLANG_TRACE") == "server":
        found.append((NAME_HEADER, quote(name[:MAX_NAME]).encode()))
    return found
