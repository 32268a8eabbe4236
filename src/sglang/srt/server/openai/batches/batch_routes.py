"""The endpoints of files and batches."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from sglang.common.batch_lines import ENDPOINTS
from sglang.srt.errors import NoSuchFileError, RequestError
from sglang.srt.server.fields import Fields, as_text, check_members
from sglang.srt.server.http.bodies import read_object
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.http.wire import JsonResponse
from sglang.srt.server.limits.shares import Budget
from sglang.srt.server.openai.batches.batch_records import BatchRecord, FileRecord
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.openai.batches.batch_store import BatchStore
from sglang.srt.server.openai.batches.multipart_body import MAX_FIELD, MultipartParser, Part, boundary_of
from sglang.srt.server.openai.batches.stored_files import Upload, new_name, shown_filename
from sglang.srt.server.openapi import openai_shapes as shapes
from sglang.srt.server.openapi.operation import OPENAI, documented
from sglang.srt.server.openapi.schemas import anything, free, text

PIECE_BYTES = 1 << 20
"""of an upload that are held before they are written"""
MAX_UPLOADS, MAX_OWN_UPLOADS = 64, 16
MAX_BATCHES = 1000
"""of an owner that have not ended"""
MAX_ENDED = 2000
"""of an owner that are remembered"""
MAX_FILES_LISTED, MAX_BATCHES_LISTED = 10_000, 100
LEAST_KEPT, LONGEST_KEPT = 3600, 2_592_000
LONGEST_WINDOW = 30 * 86_400
_WINDOW = re.compile(r"([1-9][0-9]{0,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ID = re.compile(r"[a-z]{4,6}[-_][0-9a-f]{24}")

BATCH_FIELDS = Fields.of(
    {
        "input_file_id": text("the id of an uploaded file with the requests"),
        "endpoint": text("where all requests of the file go", enum=sorted(ENDPOINTS)),
        "completion_window": text("by when it has to be done: 24h, or another number of s, m, h or d"),
        "metadata": free("up to 16 texts that come back with the batch"),
        "output_expires_after": anything("`anchor`: created_at, and `seconds`: how long the files of answers are kept"),
    },
    required=("input_file_id", "endpoint", "completion_window"),
    name="CreateBatchRequest",
)
_UPLOAD_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_FILE_ID, _BATCH_ID = {"file": "the id of a file"}, {"batch": "the id of a batch"}
_BATCH = {"input_file_id": "file-0123456789abcdef01234567", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


class BatchApi:
    """The handlers. What belongs to another key does not exist."""

    def __init__(self, runner: BatchRunner) -> None:
        self._runner = runner
        self._files, self._store = runner.files, runner.store
        self._uploads = Budget(MAX_UPLOADS, MAX_OWN_UPLOADS, "uploads")

    # --- files ------------------------------------------------------------------------------------------------------------------

    @documented("Upload a file of requests", OPENAI, reply=shapes.FILE)
    async def upload(self, request: Request) -> Response:
        """multipart/form-data with `purpose` (batch), `file`, and perhaps `expires_after[anchor]` (created_at) and
        `expires_after[seconds]`."""
        owner = current_scope().key
        boundary = boundary_of(request.headers.get("content-type", ""))
        self._uploads.take(owner, 1)
        try:
            room = await self._store.do(lambda store: self._files.room(store, owner))
            upload = await asyncio.to_thread(Upload, self._files, owner, room)
            try:
                fields = await _receive(request, MultipartParser(boundary), upload)
                file = _file_of(fields, owner, upload.size)
                await self._store.do(lambda store: upload.finish(file, store))
            finally:
                upload.drop()
        finally:
            self._uploads.give_back(owner, 1)
        return JsonResponse(file.shown())

    @documented("The stored files", OPENAI, reply=shapes.FILES)
    async def list_files(self, request: Request) -> Response:
        """`purpose`, `limit` (up to 10,000), `order` (asc or desc), `after` (an id)."""
        asked = request.query_params
        order, purpose = asked.get("order", "desc"), asked.get("purpose")
        if order not in ("asc", "desc"):
            raise RequestError("order must be asc or desc", "order")
        limit = _limit(asked.get("limit"), MAX_FILES_LISTED, MAX_FILES_LISTED)
        page = (asked.get("after"), limit, order == "desc", purpose)
        files, more = await self._store.do(BatchStore.list_files, current_scope().key, *page)
        return JsonResponse(_page([file.shown() for file in files], more))

    @documented("A stored file", OPENAI, reply=shapes.FILE, paths=_FILE_ID, may_lack=True)
    async def file(self, request: Request) -> Response:
        return JsonResponse((await self._file(request)).shown())

    @documented("The content of a stored file", OPENAI, text=True, paths=_FILE_ID, may_lack=True)
    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        path = self._files.path(file.id)
        if not path.is_file():
            raise NoSuchFileError(f"the content of the file {file.id} is not there any more")
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

    @documented("Delete a stored file", OPENAI, reply=shapes.DELETED, paths=_FILE_ID, may_lack=True)
    async def delete_file(self, request: Request) -> Response:
        file = await self._file(request)
        await self._store.do(BatchStore.remove_file, file.id, file.owner)
        await asyncio.to_thread(self._files.remove, file.id)
        return JsonResponse({"id": file.id, "object": "file", "deleted": True})

    async def _file(self, request: Request) -> FileRecord:
        """Raises NoSuchFileError."""
        return await self._store.do(BatchStore.file, request.path_params["file"], current_scope().key)

    # --- batches ----------------------------------------------------------------------------------------------------------------

    @documented("Create a batch", OPENAI, body=BATCH_FIELDS, reply=shapes.BATCH, examples=(_BATCH,), may_lack=True)
    async def create(self, request: Request) -> Response:
        """Its requests run while there are no others."""
        body = await read_object(request, BATCH_FIELDS)
        batch = _batch_of(body, owner := current_scope().key)
        await self._store.do(lambda store: self._files.room(store, owner))  # for its answers
        await self._store.do(BatchStore.add_batch, batch, MAX_BATCHES, MAX_ENDED)
        self._runner.wake()
        return JsonResponse(batch.shown())

    @documented("The batches", OPENAI, reply=shapes.BATCHES)
    async def list_batches(self, request: Request) -> Response:
        """`limit` (up to 100), `after` (an id); the newest first."""
        limit = _limit(request.query_params.get("limit"), 20, MAX_BATCHES_LISTED)
        after = request.query_params.get("after")
        batches, more = await self._store.do(BatchStore.list_batches, current_scope().key, after, limit)
        return JsonResponse(_page([batch.shown() for batch in batches], more))

    @documented("A batch", OPENAI, reply=shapes.BATCH, paths=_BATCH_ID, may_lack=True)
    async def batch(self, request: Request) -> Response:
        found = await self._store.do(BatchStore.batch, request.path_params["batch"], current_scope().key)
        return JsonResponse(found.shown())

    @documented("Cancel a batch", OPENAI, reply=shapes.BATCH, paths=_BATCH_ID, may_lack=True)
    async def cancel(self, request: Request) -> Response:
        """What has its answer keeps it."""
        name = request.path_params["batch"]
        found = await self._store.do(BatchStore.cancel, name, current_scope().key, int(time.time()))
        self._runner.wake(name)
        return JsonResponse(found.shown())


def _page(shown: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": more}


def _limit(given: str | None, usual: int, most: int) -> int:
    if given is None:
        return usual
    number = _number(given)
    if number is None or not 1 <= number <= most:
        raise RequestError(f"limit must be an integer between 1 and {most}", "limit")
    return number


def _number(text: str) -> int | None:
    """What is no number of a few digits is None: some characters are digits for Python, but not for its int."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


# --- an upload --------------------------------------------------------------------------------------------------------------------


async def _receive(request: Request, parser: MultipartParser, upload: Upload) -> dict[str, str]:
    """Writes the file, and returns the other fields; `file` is its name. Raises RequestError and OverloadError."""
    fields: dict[str, bytearray] = {}
    part, held, filename = Part("", None), bytearray(), ""
    async for data in request.stream():
        for found in parser.feed(data):
            if isinstance(found, Part):
                part = found
                _check_part(part, fields)
                fields[part.name] = bytearray()
                filename = shown_filename(part.filename) if part.name == "file" else filename
            elif part.name == "file":
                held += found
            else:
                fields[part.name] += found
                if len(fields[part.name]) > MAX_FIELD:
                    raise RequestError(f"{part.name} is longer than {MAX_FIELD} bytes", part.name)
        if len(held) >= PIECE_BYTES:
            await asyncio.to_thread(upload.write, bytes(held))
            held.clear()
    if not parser.is_complete:
        raise RequestError("the body ends before its last boundary")
    await asyncio.to_thread(upload.write, bytes(held))
    return {name: value.decode("utf-8", "replace") for name, value in fields.items()} | ({"file": filename} if filename else {})


def _check_part(part: Part, fields: dict[str, bytearray]) -> None:
    if part.name not in _UPLOAD_FIELDS:
        raise RequestError(f"unknown field {part.name[:100]!r}: {', '.join(_UPLOAD_FIELDS)} are read", part.name[:100])
    if part.name in fields:
        raise RequestError(f"{part.name} is there twice", part.name)
    if part.name == "file" and part.filename is None:
        raise RequestError("file must be a file: its part needs a filename", "file")


def _file_of(fields: dict[str, str], owner: str, size: int) -> FileRecord:
    """Raises RequestError."""
    if "file" not in fields:
        raise RequestError("file is missing", "file")
    purpose = fields.get("purpose")
    if purpose != "batch":
        said = "purpose is missing" if purpose is None else f"purpose {purpose[:50]!r} is not supported by this server"
        raise RequestError(f"{said}: files are for batches, and their purpose is 'batch'", "purpose")
    now, kept = int(time.time()), None
    if "expires_after[seconds]" in fields or "expires_after[anchor]" in fields:
        kept = _kept(fields.get("expires_after[anchor]"), _number(fields.get("expires_after[seconds]", "")))
    return FileRecord(
        id=new_name("file-"),
        owner=owner,
        filename=fields["file"],
        size=size,
        purpose=purpose,
        created_at=now,
        expires_at=now + kept if kept is not None else None,
    )


def _kept(anchor: Any, seconds: Any, param: str = "expires_after") -> int:
    """Seconds for which a file is kept."""
    if anchor != "created_at":
        raise RequestError(f"{param}.anchor must be created_at", param)
    if type(seconds) is not int or not LEAST_KEPT <= seconds <= LONGEST_KEPT:
        raise RequestError(f"{param}.seconds must be an integer between {LEAST_KEPT} and {LONGEST_KEPT}", param)
    return seconds


# --- a new batch ------------------------------------------------------------------------------------------------------------------


def _batch_of(body: dict[str, Any], owner: str) -> BatchRecord:
    """Raises RequestError."""
    for name in BATCH_FIELDS.required:
        if as_text(body, name) is None:
            raise RequestError(f"{name} is missing", name)
    endpoint, window, source = body["endpoint"], body["completion_window"], body["input_file_id"]
    if endpoint not in ENDPOINTS:
        raise RequestError(f"endpoint must be one of {', '.join(sorted(ENDPOINTS))}, got {endpoint[:100]!r}", "endpoint")
    if not _ID.fullmatch(source):
        raise NoSuchFileError(f"there is no file {source[:100]!r}", "input_file_id")
    now = int(time.time())
    return BatchRecord(
        **{"id": new_name("batch_"), "owner": owner, "endpoint": endpoint, "input_file_id": source, "created_at": now},
        **{"completion_window": window, "expires_at": now + _window(window), "metadata": _metadata(body.get("metadata"))},
        output_seconds=_output_seconds(body.get("output_expires_after")),
    )


def _window(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found is not None else 0
    if not 1 <= seconds <= LONGEST_WINDOW:
        raise RequestError(
            f"completion_window must be 24h, or another number of s, m, h or d up to 30d, got {text[:50]!r}",
            "completion_window",
        )
    return seconds


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > 16:
        raise RequestError("metadata must be an object with at most 16 members", "metadata")
    for name, item in value.items():
        if len(name) > 64 or not isinstance(item, str) or len(item) > 512:
            raise RequestError("metadata: names have at most 64 characters, and values are strings of at most 512", "metadata")
    return value


def _output_seconds(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError("output_expires_after must be an object", "output_expires_after")
    check_members(value, ("anchor", "seconds"), "output_expires_after", "output_expires_after")
    return _kept(value.get("anchor"), value.get("seconds"), "output_expires_after")
