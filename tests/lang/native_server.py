"""A small HTTP server of the native API for the tests: real sockets, real streams, and text from a plain function.

It keeps every request, and can be told to fail, to be slow, to stream in pieces of its own choosing, or to speak only the
original's contract (no /score_choices).
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from typing import Any

Answer = Callable[[str, dict[str, Any]], str]


def tokenize(text: str) -> list[str]:
    """Words with the space before them, so that a space at the end of a prompt melts into the next word."""
    return re.findall(r" ?[^\s]+|\s", text)


def token_id(token: str) -> int:
    return sum((i + 1) * ord(char) for i, char in enumerate(token)) % 50000


def token_logprob(token: str) -> float:
    return -0.01 * (1 + token_id(token) % 97)


class NativeServer:
    """`with NativeServer() as server: RuntimeEndpoint(server.url)`. Attributes may be changed while it runs."""

    def __init__(self, answer: Answer | None = None, model_path: str = "smollm2-135m-instruct") -> None:
        self.answer: Answer = answer or (lambda prompt, params: f" answer {len(prompt)} to the prompt.")
        self.model_path = model_path
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.cached: set[str] = set()
        self.has_score_choices = True
        self.disjoint = False
        self.failures: list[tuple[int, Any]] = []
        self.hang_up = 0
        self.delay = 0.0
        self.hold_until_open = 0
        """generations wait until so many requests are open at once"""
        self.piece_delay = 0.0
        self.stream_error: str | None = None
        self.cut_stream = False
        self.num_open = 0
        self.num_hung_up = 0
        self.max_open = 0
        self.num_connections = 0
        self.model_info: dict[str, Any] = {}

    # --- life ---

    def __enter__(self) -> NativeServer:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]
            started.set()

        def main() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=main, daemon=True)
        self._thread.start()
        assert started.wait(10)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *args: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def of(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests to `path`."""
        return [body for where, body in self.requests if where == path]

    def generated(self) -> list[dict[str, Any]]:
        """/generate requests that asked for text."""
        return [b for b in self.of("/generate") if b.get("sampling_params", {}).get("max_new_tokens") != 0]

    def prefills(self) -> list[dict[str, Any]]:
        """/generate requests that only had a prompt read."""
        return [b for b in self.of("/generate") if b.get("sampling_params", {}).get("max_new_tokens") == 0]

    # --- HTTP ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while (head := await self._read_head(reader)) is not None:
                method, path, length, self.last_headers = head
                self.headers.append(self.last_headers)
                body = json.loads(await reader.readexactly(length)) if length else {}
                self.num_open += 1
                self.max_open = max(self.max_open, self.num_open)
                try:
                    await self._respond(path, body, reader, writer)
                finally:
                    self.num_open -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _read_head(self, reader: asyncio.StreamReader) -> tuple[str, str, int, dict[str, str]] | None:
        line = await reader.readline()
        if not line:
            return None
        method, path, _ = line.decode().split(" ", 2)
        headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return method, path, int(headers.get("content-length", 0)), headers

    async def _respond(
        self, path: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if path in ("/generate", "/score_choices") and self.hang_up:
            self.hang_up -= 1
            self.num_hung_up += 1
            writer.transport.abort()
            raise ConnectionResetError
        self.requests.append((path, body))
        if path in ("/generate", "/score_choices") and self.failures:
            status, reply = self.failures.pop(0)
            await self._send(writer, status, reply)
            return
        if self.delay:
            await asyncio.sleep(self.delay)
        while path == "/generate" and self.max_open < self.hold_until_open:
            await asyncio.sleep(0.01)
        if path == "/generate" and body.get("stream"):
            await self._stream(body, writer)
            return
        status, reply = self._reply(path, body)
        await self._send(writer, status, reply)

    async def _send(self, writer: asyncio.StreamWriter, status: int, reply: Any) -> None:
        is_json = not isinstance(reply, str)
        data = (json.dumps(reply) if is_json else reply).encode()
        kind = "application/json" if is_json else "text/plain"
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()

    def _reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/get_model_info":
            return 200, {"model_path": self.model_path, "is_generation": True, **self.model_info}
        if path == "/get_server_info":
            return 200, {"stream_output": self.disjoint, "version": "test"}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.model_path}]}
        if path == "/flush_cache":
            self.cached.clear()
            return 200, "Cache flushed.\n"
        if path == "/score_choices" and self.has_score_choices:
            return 200, self._score(body)
        if path == "/generate":
            return 200, self._generate(body)
        return 404, {"error": {"message": f"no {path} here"}}

    # --- the model ---

    def _generate(self, body: dict[str, Any]) -> Any:
        if "input_ids" in body:
            return [self._scored_ids(ids) for ids in body["input_ids"]]
        text = body["text"]
        if isinstance(text, list):
            return [self._one({**body, "text": one}, i) for i, one in enumerate(text)]
        n = body["sampling_params"].get("n", 1)
        return self._one(body, 0) if n == 1 else [self._one(body, i) for i in range(n)]

    def text_for(self, body: dict[str, Any], index: int = 0) -> str:
        params = body["sampling_params"]
        if params.get("max_new_tokens") == 0:
            return ""
        text = self.answer(body["text"], {**params, "index": index})
        stop = params.get("stop") or []
        for string in [stop] if isinstance(stop, str) else stop:
            text = text.split(string)[0]
        limit = params.get("max_new_tokens")
        return text if limit is None else "".join(tokenize(text)[:limit])

    def _one(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = tokenize(body["text"])
        known = max((len(c) for c in self.cached if body["text"].startswith(c)), default=0)
        self.cached.add(body["text"])
        text = self.text_for(body, index)
        meta: dict[str, Any] = {
            "id": body.get("rid", "server-made"),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokenize(text)),
            "cached_tokens": len(tokenize(body["text"][:known])),
            "finish_reason": {"type": "stop", "matched": 2},
        }
        if body.get("return_logprob"):
            start = max(body.get("logprob_start_len", -1), 0)
            entries: list[list[Any]] = [[token_logprob(t), token_id(t), t] for t in prompt[start:]]
            if entries:
                entries[0][0] = None
            meta["input_token_logprobs"] = entries
            meta["output_token_logprobs"] = [[token_logprob(t), token_id(t), t] for t in tokenize(text)]
        return {"text": text, "meta_info": meta}

    def _scored_ids(self, ids: list[int]) -> dict[str, Any]:
        entries = [[None if i == 0 else -0.001 * (value % 89), value, None] for i, value in enumerate(ids)]
        return {"text": "", "meta_info": {"prompt_tokens": len(ids), "input_token_logprobs": entries}}

    def _score(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenize(body["text"])
        rows = [tokenize(body["text"] + choice) for choice in body["choices"]]
        split = min(self._same(prompt, row) for row in rows)
        choices = []
        for row in rows:
            entries = [[token_logprob(t) if i else None, token_id(t), t] for i, t in enumerate(row)][split:]
            known = [e[0] for e in entries if e[0] is not None]
            alone = self._scored_ids([token_id(t) for t in row[split:]])["meta_info"]["input_token_logprobs"]
            choices.append(
                {
                    "token_logprobs": entries,
                    "normalized": sum(known) / len(known) if known else 0.0,
                    "unconditional_token_logprobs": alone if body.get("unconditional") else None,
                }
            )
        return {"choices": choices, "meta_info": {"prompt_tokens": len(prompt)}}

    @staticmethod
    def _same(a: list[str], b: list[str]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        n = body["sampling_params"].get("n", 1)
        for index in range(n):
            whole = self._one(body, index)
            pieces = tokenize(whole["text"])
            for i in range(len(pieces) + 1):
                last = i == len(pieces)
                text = "".join(pieces[:i]) if not self.disjoint else "".join(pieces[i - 1 : i])
                if last and self.disjoint:
                    text = "".join(pieces[i - 1 :]) if pieces else ""
                meta = {**whole["meta_info"], "completion_tokens": i}
                if "output_token_logprobs" in meta:
                    entries = meta["output_token_logprobs"]
                    meta["output_token_logprobs"] = entries[max(i - 1, 0) : i] if self.disjoint else entries[:i]
                meta["finish_reason"] = meta["finish_reason"] if last else None
                await self._event(writer, json.dumps({"text": text, "meta_info": meta, "index": index}, ensure_ascii=False))
                if self.stream_error and i == 1:
                    await self._event(writer, json.dumps({"error": {"message": self.stream_error}}))
                if self.cut_stream and i == 1:
                    writer.transport.abort()
                    raise ConnectionResetError
        await self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _event(self, writer: asyncio.StreamWriter, data: str) -> None:
        if self.piece_delay:
            await asyncio.sleep(self.piece_delay)
        block = f"data: {data}\n\n".encode()
        writer.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        await writer.drain()
