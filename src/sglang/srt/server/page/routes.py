"""The routes of the page and of the viewer of the API's documentation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.server.page.files import POLICY, PREFIX, PageFile, PageFiles

Handler = Callable[[Request], Awaitable[Response]]
Table = list[tuple[str, list[str], Handler]]

DOCS_FILES = f"{PREFIX}vendor/docs/"
DOCS_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""of /docs: the viewer (Swagger UI) writes styles into its elements"""


class PageApi:
    """`is_on`: whether there is a page at / (--no-page). The viewer of /docs is always there."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._files = PageFiles()

    @property
    def open_paths(self) -> frozenset[str]:
        """What is served without a key: files that are the same for everyone."""
        paths = self._files.paths if self._is_on else {path for path in self._files.paths if self._is_of_docs(path)}
        return frozenset({*paths, "/docs"})

    def routes(self) -> Table:
        table: Table = [("/docs", ["GET"], _serve(self._files.named(f"{PREFIX}docs.html"), DOCS_POLICY))]
        return table + [(path, ["GET"], _serve(self._files.named(path))) for path in sorted(self.open_paths - {"/docs"})]

    def _is_of_docs(self, path: str) -> bool:
        return path.startswith((DOCS_FILES, f"{PREFIX}docs."))


def _serve(file: PageFile, policy: str = POLICY) -> Handler:
    async def handler(request: Request) -> Response:
        return file.response(request, policy)

    return handler
