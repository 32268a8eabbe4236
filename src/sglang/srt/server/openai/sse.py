"""Chunks of a streamed answer. What all chunks of a stream share is encoded once."""

from __future__ import annotations

from typing import Any

from sglang.srt.messages import FinishReason
from sglang.srt.server.generate_req import GenerateOut
from sglang.srt.server.json_pieces import encode_json, json_pieces

NULL = b"null"
PART_VALUES = 2048
"""log probabilities that one chunk may have, unless one position has more"""


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
            ending = b',"finish_reason":%b,"matched_stop":%b}],"usage":' % (
                encode_json(reason or finish_name(finish)),
                encode_json(finish.matched),
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
        self._prompt = _Total()
        self._cached = _Total()
        self._completion = _Total()
        self._reasoning = _Total()

    def add(self, out: GenerateOut) -> None:
        prompt = out.index // self._num_samples
        self._prompt.enter(prompt, out.prompt_len)
        # samples of a prompt find it in the cache because of the first of them; that is no saving to tell about
        self._cached.enter(prompt, min(out.cached_len, self._cached.parts.get(prompt, out.cached_len)))
        self._completion.enter(out.index, out.completion_len)

    def note_reasoning(self, index: int, num_tokens: int) -> None:
        """How many tokens of the sequence `index` were thoughts so far."""
        self._reasoning.enter(index, num_tokens)

    def as_dict(self) -> dict[str, Any]:
        prompt, completion = self._prompt.value, self._completion.value
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self._cached.value},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning.value},
        }


class _Total:
    """A sum whose parts change one at a time: every chunk of a stream may ask for it."""

    def __init__(self) -> None:
        self.value = 0
        self.parts: dict[int, int] = {}

    def enter(self, index: int, part: int) -> None:
        self.value += part - self.parts.get(index, 0)
        self.parts[index] = part
