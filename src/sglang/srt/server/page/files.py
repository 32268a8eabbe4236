"""The files of the page, as they are sent: compressed once, revalidated by the browser at every load (ETag), with a content security policy
that allows no other scripts."""

from __future__ import annotations

import gzip
import hashlib
from functools import cached_property
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parent / "static"
PREFIX = "/page/"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
"""of the page: scripts are its own files, and markup comes from text only through the sanitizer"""
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}


class PageFile:
    """One file below static/."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._type = TYPES[path.suffix]

    @cached_property
    def _plain(self) -> bytes:
        return self._path.read_bytes()

    @cached_property
    def packed(self) -> bytes:
        """The file compressed by gzip."""
        return gzip.compress(self._plain, 9, mtime=0)

    @cached_property
    def _tag(self) -> str:
        return f'"{hashlib.sha256(self._plain).hexdigest()[:16]}"'

    def response(self, request: Request, policy: str = POLICY) -> Response:
        headers = {**HEADERS, "ETag": self._tag, "Content-Security-Policy": policy}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._tag in known:
            return Response(status_code=304, headers=headers)
        if _takes_gzip(request.headers.get("accept-encoding", "")):
            return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=self._type)
        return Response(self._plain, headers=headers, media_type=self._type)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


class PageFiles:
    """All of them, by path. Only what is there when the server starts is served: paths of requests are never joined to a folder."""

    def __init__(self) -> None:
        found = sorted(path for path in STATIC.rglob("*") if path.is_file() and path.suffix in TYPES)
        self._files = {PREFIX + path.relative_to(STATIC).as_posix(): PageFile(path) for path in found}
        self._files["/"] = self._files.pop(f"{PREFIX}index.html")

    @property
    def paths(self) -> frozenset[str]:
        """Paths that are served without a key."""
        return frozenset(self._files)

    def named(self, path: str) -> PageFile:
        return self._files[path]
