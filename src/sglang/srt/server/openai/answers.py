"""The parts of replies: a choice collected from its pieces, the chunks of a stream (their common part is encoded once), usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang.srt.messages import FinishReason
from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.http.json_pieces import encode_json, json_pieces
from sglang.srt.server.native.format import check_dict
from sglang.srt.server.openai.tools import call_id
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Piece, Reasoning, Text


@dataclass
class ToolCall:
    """`is_whole`: its arguments have come to their end."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)
    is_whole: bool = False

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    def as_dict(self, index: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "index": index, "type": "function", "function": function}


@dataclass
class Answer:
    """One choice so far. `format_name`: how its calls are written. The texts are kept as they came, and joined at the end."""

    format_name: str
    calls: list[ToolCall] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._texts.append(piece.text)
        elif isinstance(piece, Reasoning):
            self._reasoning.append(piece.text)
        elif isinstance(piece, CallBegin):
            self.calls.append(ToolCall(call_id(self.format_name), piece.name))
        else:
            call = self.calls[piece.index]
            call.parts.append(piece.text)
            call.is_whole = piece.is_last

    def delta(self, piece: Piece) -> dict[str, Any] | None:
        """A piece that was just added, as a streamed delta; None if it is empty. Clients read the keys that are not
        OpenAI's from every delta."""
        if isinstance(piece, Text):
            return {"content": piece.text, "reasoning_content": None, "tool_calls": None}
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text, "tool_calls": None}
        if isinstance(piece, CallArguments):
            more = {"index": piece.index, "function": {"arguments": piece.text}}
            return {"reasoning_content": None, "tool_calls": [more]} if piece.text else None
        call = ToolCall(self.calls[piece.index].id, piece.name)
        return {"reasoning_content": None, "tool_calls": [call.as_dict(piece.index)]}

    def message(self) -> dict[str, Any]:
        """The whole choice as a message."""
        text = self.text
        return {
            "role": "assistant",
            "content": text if text or not self.calls else None,
            "reasoning_content": self.reasoning or None,
            "tool_calls": [call.as_dict(i) for i, call in enumerate(self.calls)] or None,
        }


# --- chunks of streams, usage -----------------------------------------------------------------------------------------------


NULL = b"null"
PART_VALUES = 2048
"""log probabilities that one chunk may have, unless one position has more"""


def finish_details(finish: FinishReason) -> dict[str, Any]:
    """Details of a choice's end besides the reason; empty if there are none."""
    return {"finish_details": check_dict(finish)} if finish.check is not None else {}


def finish_name(finish: FinishReason) -> str:
    return finish.type


class ChunkWriter:
    """Writes the chunks of one stream: `data: {id, object, created, model, choices: [...], usage}`."""

    def __init__(self, kind: str, rid: str, created: int, model: str) -> None:
        head = {"id": rid, "object": kind, "created": created, "model": model}
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        self._starts: dict[int, bytes] = {}

    def choice(
        self,
        index: int,
        body: bytes,
        logprobs: Any = None,
        finish: FinishReason | None = None,
        usage: Any = None,
        reason: str | None = None,
    ) -> bytes:
        """One choice. `body` is its text as an encoded member: `"delta":{...}` or `"text":"..."`. `reason`: another name for
        why it ended."""
        start = self._starts.get(index)
        if start is None:
            start = self._starts[index] = self._head + b'{"index":%d,' % index
        ending = b',"finish_reason":null,"matched_stop":null}],"usage":'
        if finish is not None:
            ending = b',"finish_reason":%b,"matched_stop":%b%b}],"usage":' % (
                encode_json(reason or finish_name(finish)),
                encode_json(finish.matched),
                b"" if finish.check is None else b',"finish_details":' + encode_json(check_dict(finish)),
            )
        return b"".join(
            (
                start,
                body,
                b',"logprobs":',
                NULL if logprobs is None else b"".join(json_pieces(logprobs)),
                ending,
                NULL if usage is None else encode_json(usage),
                b"}\n\n",
            )
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, with no choices."""
        return self._head + b'],"usage":' + encode_json(usage) + b"}\n\n"


class Usage:
    """Token counts of a call, of which each prompt has `num_samples` sequences."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._cached: dict[int, int] = {}
        self._completion: dict[int, int] = {}
        self._reasoning: dict[int, int] = {}
        self._num_prompt = self._num_cached = self._num_completion = self._num_reasoning = 0

    def add(self, out: GenerateOut) -> None:
        before = self._completion.get(out.index)
        self._completion[out.index] = out.completion_len
        if before is not None:
            self._num_completion += out.completion_len - before
            return
        self._num_completion += out.completion_len
        prompt = out.index // self._num_samples
        cached = self._cached.get(prompt)
        if cached is None:
            self._num_prompt += out.prompt_len
            self._num_cached += out.cached_len
            self._cached[prompt] = out.cached_len
        elif out.cached_len < cached:
            # samples of a prompt find it in the cache because of the first of them: those tokens are not reported as cached
            self._num_cached += out.cached_len - cached
            self._cached[prompt] = out.cached_len

    def note_reasoning(self, index: int, num_tokens: int) -> None:
        """Notes the number of reasoning tokens of the sequence `index` so far."""
        self._num_reasoning += num_tokens - self._reasoning.get(index, 0)
        self._reasoning[index] = num_tokens

    def as_dict(self) -> dict[str, Any]:
        """Costs the same however many sequences there are: every chunk of a stream may carry it."""
        prompt, completion = self._num_prompt, self._num_completion
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
            "completion_tokens_details": {"reasoning_tokens": self._num_reasoning},
        }
