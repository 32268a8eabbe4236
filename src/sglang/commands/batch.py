"""`sglang batch -i requests.jsonl -o answers.jsonl`: runs a file of requests, in OpenAI's batch format, and can go on where it was stopped.

    input   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    output  {"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}

Answers are written as they come. Those that the output has already are not asked for again; a line that was cut short is. Requests that name
no seed get one from their custom_id, so that a run that was stopped ends with the answers of one that was not. Requests are sent sorted by
their text, which brings those with a common prefix together.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import httpx

from sglang.commands.arguments import CommandError, Parser, add_server_choice
from sglang.commands.connection import Connection, connect

PROG = "sglang batch"
SEEDED = frozenset({"/v1/chat/completions", "/v1/completions"})
ENDPOINTS = SEEDED | {"/v1/responses", "/v1/embeddings", "/v1/score", "/v1/rerank"}
MAX_TRIES = 5
BUSY = frozenset({408, 429, 502, 503, 504})
"""statuses after which a request is sent again"""
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Item:
    """One line of the input. It is read again when it is sent: `start` and `size` are its place in the file. `key`: sorts those with a
    common prefix together."""

    custom_id: str
    start: int
    size: int
    key: bytes


def batch(argv: list[str]) -> int:
    """The command."""
    parser = Parser(PROG, "Run a file of requests (OpenAI's batch format). Started again, it goes on where it was stopped.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="alias, folder, .gguf file or hub id; not with --url")
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="requests, one JSON object a line")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="answers, one JSON object a line, as they come")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="requests in flight (default: 64)")
    add_server_choice(parser)
    parser.end_with("-i requests.jsonl -o answers.jsonl", "./model.gguf -i requests.jsonl -o answers.jsonl -- --threads 8")
    args, serve_flags = parser.parse_split(argv)
    if not 1 <= args.window <= 4096:
        parser.error(f"--window must be between 1 and 4096, got {args.window}")
    if args.model is not None and args.url is not None:
        parser.error("MODEL and --url are both given: leave one out")
    items, endpoint = read_items(Path(args.input))
    with _alone(Path(args.output)) as output:
        done = read_done(output)
        left = sorted((item for item in items if item.custom_id not in done), key=lambda item: item.key)
        if len(left) < len(items):
            print(f"{PROG}: {len(items) - len(left)} of {len(items)} requests have their answers", file=sys.stderr)
        if not left:
            return 0
        with connect(args, args.model, serve_flags, PROG) as connection:
            runner = Runner(connection, endpoint, Path(args.input), output, args.window)
            num_failed = asyncio.run(runner.run(left, len(items)))
    if runner.error:
        print(f"{PROG}: some requests had no answer ({runner.error}): run this again", file=sys.stderr)
    elif num_failed:
        print(f"{PROG}: {num_failed} of {len(items)} requests failed; their lines have the error", file=sys.stderr)
    return 1 if num_failed else 0


# --- files ------------------------------------------------------------------------------------------------------------------


def read_items(path: Path) -> tuple[list[Item], str]:
    """The requests of a file, and the endpoint of all of them. Raises CommandError for a line that is none."""
    items: list[Item] = []
    seen: dict[str, int] = {}
    endpoint = ""
    try:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    request = _parse(where, line)
                    endpoint = endpoint or request["url"]
                    _check(where, request, endpoint, seen)
                    seen[request["custom_id"]] = number
                    key = json.dumps([request["body"].get("model"), _text_of(request["body"])]).encode()[:4096]
                    items.append(Item(request["custom_id"], start, len(line), key))
                start += len(line)
    except OSError as error:
        raise CommandError(f"--input {path} cannot be read: {error.strerror}") from error
    if not items:
        raise CommandError(f"--input {path} has no requests")
    return items, endpoint


def _parse(where: str, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise CommandError(f"{where}: a JSON object is expected")
    return request


def _check(where: str, request: dict[str, Any], endpoint: str, seen: dict[str, int]) -> None:
    """Raises CommandError for a request that cannot be run."""
    unknown = request.keys() - {"custom_id", "method", "url", "body"}
    if unknown:
        raise CommandError(f"{where}: unknown field {min(unknown)[:100]!r}: custom_id, method, url and body are read")
    name, url, body = request.get("custom_id"), request.get("url"), request.get("body")
    if not isinstance(name, str) or not name or len(name) > 512:
        raise CommandError(f"{where}: custom_id must be a string of 1 to 512 characters")
    if name in seen:
        raise CommandError(f"{where}: custom_id {name[:100]!r} is there a second time; the first is line {seen[name]}")
    if request.get("method") != "POST":
        raise CommandError(f"{where}: method must be POST")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise CommandError(f"{where}: url must be one of {', '.join(sorted(ENDPOINTS))}")
    if url != endpoint:
        raise CommandError(f"{where}: url is {url}, and {endpoint} before: a batch has one endpoint")
    if not isinstance(body, dict):
        raise CommandError(f"{where}: body must be a JSON object")
    if body.get("stream"):
        raise CommandError(f"{where}: body.stream: answers of a batch are not streamed")


def _text_of(body: dict[str, Any]) -> Any:
    return body.get("messages") or body.get("prompt") or body.get("input")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """The output, which one run at a time may write. Raises CommandError."""
    import fcntl

    try:
        file = open(path, "a+b")  # noqa: SIM115  closed below
    except OSError as error:
        raise CommandError(f"--output {path} cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(f"--output {path} is being written by another run: wait for it, or name another file") from error
        yield file


def read_done(output: IO[bytes]) -> set[str]:
    """Names of the requests that have their answers. What was cut short in the middle of a line is taken away. Raises CommandError for a
    file of something else."""
    output.seek(0)
    done: set[str] = set()
    end = 0
    for number, line in enumerate(output, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            name, _ = row["custom_id"], row["response"]["status_code"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"--output {output.name}, line {number}: not an answer of a batch; name another file") from error
        done.add(name)
        end += len(line)
    output.truncate(end)
    output.seek(0, os.SEEK_END)
    return done


# --- running ----------------------------------------------------------------------------------------------------------------


class Runner:
    """Sends requests, a window of them at a time, and writes their answers."""

    def __init__(self, connection: Connection, endpoint: str, source: Path, output: IO[bytes], window: int) -> None:
        self._address = connection.address
        self._endpoint = endpoint
        self._source = source.open("rb")
        self._output = output
        self._window = window
        self._num_failed = 0
        self.error = ""
        """of a request that had no answer"""

    async def run(self, items: list[Item], total: int) -> int:
        """Returns how many failed."""
        from tqdm import tqdm

        waiting = iter(items)
        bar = tqdm(total=total, initial=total - len(items), unit="request", disable=None)
        timeout = httpx.Timeout(30.0, read=None, pool=None)
        limits = httpx.Limits(max_connections=self._window)
        address = self._address
        with bar, self._source:
            async with httpx.AsyncClient(
                base_url=address.base_url, headers=address.headers, timeout=timeout, transport=address.async_transport(limits)
            ) as client:

                async def work() -> None:
                    for item in waiting:
                        self._take(await self._answer(client, item))
                        bar.update()

                workers = [asyncio.create_task(work()) for _ in range(min(self._window, len(items)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
        return self._num_failed

    def _take(self, row: dict[str, Any]) -> None:
        """Writes an answer at once and whole: a run that is killed leaves whole lines but for the last. A request that had none is left
        to the next run."""
        response = row["response"]
        self._num_failed += response is None or response["status_code"] != 200
        if response is None:
            self.error = self.error or row["error"]["message"]
            return
        self._output.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
        self._output.flush()

    async def _answer(self, client: httpx.AsyncClient, item: Item) -> dict[str, Any]:
        """The line of one request. A server that is busy, or away, is asked again after a while."""
        self._source.seek(item.start)
        body = json.loads(self._source.read(item.size))["body"]
        if self._endpoint in SEEDED and body.get("seed") is None:
            body["seed"] = seed_of(item.custom_id)
        row: dict[str, Any] = {"id": f"batch_req_{uuid4().hex}", "custom_id": item.custom_id, "response": None, "error": None}
        for attempt in range(MAX_TRIES):
            if attempt:
                await asyncio.sleep(min(2.0**attempt, 30.0))
            try:
                reply = await client.post(self._endpoint, json=body)
                answer = reply.json()
            except (httpx.TransportError, ValueError) as error:
                row["error"] = {"code": "connection_error", "message": str(error) or type(error).__name__}
                continue
            row["response"] = {"status_code": reply.status_code, "request_id": row["id"], "body": answer}
            row["error"] = None
            if reply.status_code not in BUSY:
                return row
        if row["response"] is not None and row["response"]["status_code"] in BUSY:  # it was never run
            row |= {"response": None, "error": {"code": "server_busy", "message": json.dumps(row["response"]["body"])[:500]}}
        return row


def seed_of(custom_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=DIGEST_BYTES).digest(), "little") >> 33
