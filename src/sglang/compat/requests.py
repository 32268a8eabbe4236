"""Plain HTTP calls of scripts, and streams read to their end."""

from __future__ import annotations

import contextlib
import json as json_module
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import Any

import httpx


class HttpResponse:
    """An answer: whole, or (with `stream=True`) read as it comes by `iter_lines` or `iter_content`. Its names are those of
    `requests.Response`."""

    def __init__(self, client: httpx.Client, response: httpx.Response) -> None:
        self._client = client
        self._response = response
        self.status_code = response.status_code
        self.headers = response.headers

    @cached_property
    def content(self) -> bytes:
        try:
            return self._response.read()
        finally:
            self.close()

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", errors="replace")

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    def json(self) -> Any:
        """Raises ValueError if the body is no JSON."""
        return json_module.loads(self.content)

    def raise_for_status(self) -> None:
        """Raises RuntimeError for a status of 400 and above."""
        if not self.ok:
            raise RuntimeError(f"the server answered {self.status_code}: {self.text[:500]}")

    def iter_content(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """The body's bytes as they come."""
        with contextlib.closing(self):
            yield from self._response.iter_bytes(chunk_size)

    def iter_lines(self, decode_unicode: bool = False) -> Iterator[Any]:
        """The body's lines as they come: bytes, or text if `decode_unicode`."""
        with contextlib.closing(self):
            for line in self._response.iter_lines():
                yield line if decode_unicode else line.encode()

    def close(self) -> None:
        self._response.close()
        self._client.close()

    def __enter__(self) -> HttpResponse:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def http_request(
    url: str,
    json: Any = None,
    stream: bool = False,
    api_key: str | None = None,
    verify: str | bool | None = None,
    method: str | None = None,
) -> HttpResponse:
    """A GET, or a POST of `json`. `verify`: a file of CA certificates. There is no limit of time. Raises httpx.HTTPError if no
    answer comes; an answer of any status is returned."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    method = method or ("GET" if json is None and not stream else "POST")
    client = httpx.Client(timeout=None, verify=True if verify is None else _trusted(verify))
    try:
        body = None if json is None else json_module.dumps(json).encode()
        response = client.send(client.build_request(method, url, content=body, headers=headers), stream=True)
    except BaseException:
        client.close()
        raise
    answer = HttpResponse(client, response)
    if not stream:
        answer.content  # noqa: B018 - read now, so that the connection is free
    return answer


def _trusted(verify: str | bool) -> Any:
    import ssl

    return ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify


def trim_overlap(existing_text: str, new_chunk: str) -> str:
    """`new_chunk` without the longest beginning with which `existing_text` ends."""
    for length in range(min(len(existing_text), len(new_chunk)), 0, -1):
        if existing_text.endswith(new_chunk[:length]):
            return new_chunk[length:]
    return new_chunk


def stream_and_merge(llm: Any, prompt: str, sampling_params: dict[str, Any] | None) -> str:
    """The text of an engine's streamed answer."""
    text = ""
    for reply in llm.generate(prompt, sampling_params, stream=True):
        text += _new_part(llm, text, reply["text"])
    return text


async def async_stream_and_merge(llm: Any, prompt: str, sampling_params: dict[str, Any] | None) -> AsyncIterator[str]:
    """The pieces of an engine's streamed answer as they come."""
    text = ""
    async for reply in await llm.async_generate(prompt, sampling_params, stream=True):
        piece = _new_part(llm, text, reply["text"])
        text += piece
        yield piece


def _new_part(llm: Any, text: str, streamed: str) -> str:
    """An engine says whether it streams pieces or the text so far; of what does not say, the overlap is taken off."""
    disjoint = getattr(getattr(llm, "server_args", None), "stream_output", None)
    if disjoint is None:
        return trim_overlap(text, streamed)
    return streamed if disjoint else streamed[len(text) :]
