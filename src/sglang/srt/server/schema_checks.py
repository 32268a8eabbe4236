"""Checks answers whose schema decoding could not enforce completely, and generates invalid ones again.

    TokenOut.unenforced --> a child checks the text --valid---------------------------> the client
                                   |  invalid, up to MAX_RETRIES times
                                   '--> the same request with another seed --> the scheduler

An answer that a stop string of the client, or the length limit, has cut is not checked.
The scheduler sends such answers whole, streams too, so that the client never sees a discarded answer.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from sglang.srt.messages import TokenizedReq, TokenOut
from sglang.srt.process.isolation import Isolated, IsolationError, Limits
from sglang.srt.server.schema_check_work import Verdict
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from sglang.srt.vocabulary import Vocabulary, ends_reasoning

ENTRY = "sglang.srt.server.schema_check_work:prepare"
MAX_RETRIES = 3
RETRY_TEMPERATURE = 0.7
"""of a request without one: the likeliest tokens were not valid, and would be the same again"""
LIMITS = Limits(memory=256 << 20, cpu_seconds=2.0, seconds=10.0, niceness=10, reply=1 << 20)
NUM_THREADS = 2
"""answers that are checked at a time"""


class SchemaChecks:
    """Owner of the child processes. They start with the first answer to check."""

    def __init__(self) -> None:
        self._isolated = Isolated(ENTRY, b"", LIMITS, num_spare=1)
        self._threads: ThreadPoolExecutor | None = None

    async def verdict(self, schema: str, answer: str) -> Verdict:
        """Whether the answer is valid. What cannot be found out counts as invalid, and says so."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="schema-check")
        payload = msgspec.msgpack.encode((schema, answer))
        try:
            reply = await asyncio.get_running_loop().run_in_executor(self._threads, self._isolated.run, payload)
        except IsolationError as error:
            return Verdict(f"checking the answer {error}", is_final=True)
        return msgspec.msgpack.decode(reply, type=Verdict)

    def close(self) -> None:
        """Ends the processes."""
        self._isolated.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def answer_of(out: TokenOut, request: TokenizedReq, vocabulary: Vocabulary) -> str:
    """The constrained part of an output: what follows the reasoning, if there is any."""
    after, lead = request.grammar_after, request.grammar_lead
    end = next((i for i, token in enumerate(out.ids) if token in after and ends_reasoning(out.ids[: i + 1], after, lead)), None)
    ids = out.ids if end is None else out.ids[end + 1 :]
    drop = 0 if end is not None else len(request.healed.encode())
    return Detokenizer(vocabulary, request.sampling.skip_special_tokens, drop).feed(msgspec.structs.replace(out, ids=ids))


def is_cut(out: TokenOut, request: TokenizedReq, vocabulary: Vocabulary) -> bool:
    """Whether the client's own stop string or token ended the output, wherever it stood in the answer."""
    assert out.finish is not None
    matched = out.finish.matched
    is_own = isinstance(matched, str) or matched in request.sampling.stop_token_ids
    return is_own and not (out.ids and out.ids[-1] in vocabulary.eos_token_ids)


def next_attempt(request: TokenizedReq, num_attempts: int) -> TokenizedReq:
    """The request once more, for another answer. The seeds are the same in the same order for every client and load."""
    sampling = request.sampling
    changed: dict[str, Any] = {"seed": ((sampling.seed or 0) + num_attempts) % 2**63}
    if sampling.is_greedy:
        changed |= {"temperature": RETRY_TEMPERATURE, "top_k": -1 if sampling.top_k == 1 else sampling.top_k}
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(sampling, **changed))
