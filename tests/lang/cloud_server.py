"""The HTTP server of the tests, speaking the APIs of OpenAI, Anthropic and Vertex AI as well."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .native_server import NativeServer, tokenize


class CloudServer(NativeServer):
    """`answer` gets the last message (or the prompt of a completion)."""

    async def _respond(
        self, path: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not path.startswith(("/v1/", "/v1beta1/")) or path == "/v1/models":
            await super()._respond(path, body, reader, writer)
            return
        self.requests.append((path, body))
        if self.failures:
            status, reply = self.failures.pop(0)
            await self._send(writer, status, reply)
            return
        if self.delay:
            await asyncio.sleep(self.delay)
        if path == "/v1/messages":
            reply, events = self._anthropic(body)
        elif "GenerateContent" in path or path.endswith(":generateContent"):
            reply, events = self._vertex(body)
            body = {**body, "stream": ":streamGenerateContent" in path}
        elif path == "/v1/chat/completions":
            reply, events = self._chat(body)
        else:
            reply, events = self._completions(body)
        if body.get("stream"):
            await self._events(writer, events)
        else:
            await self._send(writer, 200, reply)

    async def _events(self, writer: asyncio.StreamWriter, events: list[Any]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            data = event if isinstance(event, str) else json.dumps(event)
            block = f"{name}data: {data}\n\n".encode()
            writer.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _texts(self, prompt: str, body: dict[str, Any]) -> list[str]:
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        stop = body.get("stop") or body.get("stop_sequences") or []
        texts = []
        for index in range(body.get("n") or 1):
            text = self.answer(prompt, {**body, "index": index})
            for string in [stop] if isinstance(stop, str) else stop:
                text = text.split(string)[0]
            texts.append("".join(tokenize(text)[:limit]))
        return texts

    def _chat(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        prompt = json.dumps(body["messages"])
        texts = self._texts(_text_of(body["messages"][-1]), body)
        usage = {
            "prompt_tokens": len(tokenize(prompt)),
            "completion_tokens": sum(len(tokenize(t)) for t in texts),
            "total_tokens": 0,
        }
        head = {"id": "chat-1", "created": 1, "model": body["model"]}
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(texts)
        ]
        events: list[Any] = []
        for i, text in enumerate(texts):
            for piece in tokenize(text):
                events.append({**head, "choices": [{"index": i, "delta": {"content": piece}, "finish_reason": None}]})
            events.append({**head, "choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]})
        events = [{**event, "object": "chat.completion.chunk"} for event in events]
        events.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        return {**head, "object": "chat.completion", "choices": choices, "usage": usage}, [*events, "[DONE]"]

    def _completions(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        texts = self._texts(body["prompt"], body)
        usage = {
            "prompt_tokens": len(tokenize(body["prompt"])),
            "completion_tokens": sum(len(tokenize(t)) for t in texts),
            "total_tokens": 0,
        }
        head = {"id": "cmpl-1", "created": 1, "model": body["model"], "object": "text_completion"}

        def logprobs(text: str) -> Any:
            if body.get("logprobs") is None:
                return None
            pieces = tokenize(text)
            return {"tokens": pieces, "token_logprobs": [-0.5] * len(pieces), "text_offset": [], "top_logprobs": None}

        choices = [{"index": i, "text": t, "finish_reason": "stop", "logprobs": logprobs(t)} for i, t in enumerate(texts)]
        events: list[Any] = [
            {**head, "choices": [{"index": i, "text": piece, "finish_reason": None, "logprobs": None}]}
            for i, text in enumerate(texts)
            for piece in tokenize(text)
        ]
        return {**head, "choices": choices, "usage": usage}, [*events, {**head, "choices": [], "usage": usage}, "[DONE]"]

    def _anthropic(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        (text,) = self._texts(_text_of(body["messages"][-1]), body)
        usage = {"input_tokens": len(tokenize(json.dumps(body["messages"]))), "output_tokens": len(tokenize(text))}
        head = {"id": "msg-1", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        reply = {**head, "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "usage": usage}
        events: list[Any] = [
            {
                "type": "message_start",
                "message": {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}},
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
                for piece in tokenize(text)
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        return reply, events

    def _vertex(self, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        config = body.get("generationConfig", {})
        wanted = {
            "n": config.get("candidateCount"),
            "max_tokens": config.get("maxOutputTokens"),
            "stop": config.get("stopSequences"),
        }
        prompt = "".join(part.get("text", "") for part in body["contents"][-1]["parts"])
        texts = self._texts(prompt, {**config, **wanted})
        pieces = sum(len(tokenize(text)) for text in texts)
        usage = {"promptTokenCount": len(tokenize(json.dumps(body["contents"]))), "candidatesTokenCount": pieces}

        def candidate(index: int, text: str, **more: Any) -> dict[str, Any]:
            return {"index": index, "content": {"role": "model", "parts": [{"text": text}]}, **more}

        events: list[Any] = [{"candidates": [candidate(i, piece)]} for i, text in enumerate(texts) for piece in tokenize(text)]
        events.append(
            {"candidates": [candidate(i, "", finishReason="STOP") for i in range(len(texts))], "usageMetadata": usage}
        )
        whole = [candidate(i, text, finishReason="STOP") for i, text in enumerate(texts)]
        return {"candidates": whole, "usageMetadata": usage}, events


def _text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
