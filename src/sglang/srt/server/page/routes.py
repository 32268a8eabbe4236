"""The routes of the page and of the viewer of the API's documentation."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.config import HttpOptions
from sglang.srt.errors import AdminOnlyError
from sglang.srt.server.fields import Fields, as_text
from sglang.srt.server.http.auth import operator_only
from sglang.srt.server.http.bodies import read_object
from sglang.srt.server.http.browsers import LOOPBACK_NAMES, is_address
from sglang.srt.server.http.wire import JsonResponse, LargeJsonResponse
from sglang.srt.server.openapi import schemas
from sglang.srt.server.page.files import POLICY, PREFIX, PageFile, PageFiles
from sglang.srt.server.page.live import LiveHub, ViewerStream
from sglang.srt.server.tokenizer_manager import TokenizerManager

Handler = Callable[[Request], Awaitable[Response]]
Table = list[tuple[str, list[str], Handler]]

_REQUEST = Fields.of({"rid": schemas.RID}, required=("rid",), name="PageRequest")
NOT_KEPT = "the server does not have this request any more: it keeps the newest ones while somebody looks"
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
    """There is a page at / unless --no-page says otherwise. The viewer of /docs is always there."""

    def __init__(self, manager: TokenizerManager, options: HttpOptions) -> None:
        self._is_on = options.page
        self._files = PageFiles()
        self._hub = LiveHub(manager)
        has_keys = bool(options.api_keys) or options.admin_api_key is not None
        self._may_look = has_keys or _is_loopback(options.host)

    @property
    def open_paths(self) -> frozenset[str]:
        """Paths that are served without a key: files that are the same for all clients."""
        paths = self._files.paths if self._is_on else {path for path in self._files.paths if self._is_of_docs(path)}
        return frozenset({*paths, "/docs"})

    def routes(self) -> Table:
        table: Table = [("/docs", ["GET"], _serve(self._files.named(f"{PREFIX}docs.html"), DOCS_POLICY))]
        if self._is_on:
            table.append(("/page/live", ["POST"], operator_only(self._live)))
            table.append(("/page/request", ["POST"], operator_only(self._request)))
        return table + [(path, ["GET"], _serve(self._files.named(path))) for path in sorted(self.open_paths - {"/docs"})]

    async def _live(self, request: Request) -> Response:
        """The machine as it runs: the prefix tree with the beginnings of its texts, steps, and the state, as server-sent events. By
        POST, which pages of other origins may not use."""
        self._check_may_look()
        return ViewerStream(self._hub)

    async def _request(self, request: Request) -> Response:
        """{rid}, as the event stream has it -> the request of a program's call, as anybody could send it."""
        self._check_may_look()
        rid = as_text(await read_object(request, _REQUEST), "rid")
        found = await self._hub.request_of(rid or "")
        return LargeJsonResponse(found) if found is not None else JsonResponse({"error": {"message": NOT_KEPT}}, 404)

    def _check_may_look(self) -> None:
        if not self._may_look:
            raise AdminOnlyError(
                "the machine view needs --admin-api-key here: this server accepts other machines and has no API keys"
            )

    def _is_of_docs(self, path: str) -> bool:
        return path.startswith((DOCS_FILES, f"{PREFIX}docs."))


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host.lower() in LOOPBACK_NAMES


def _serve(file: PageFile, policy: str = POLICY) -> Handler:
    async def handler(request: Request) -> Response:
        return file.response(request, policy)

    return handler
