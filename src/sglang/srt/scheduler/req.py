"""One request inside the scheduler: its parameters, its output so far, and its resources."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sglang.srt.forward_batch import Float32Array, Int32Array, LogprobResult, SampleSpec
from sglang.srt.messages import DraftCounts, FinishReason, Logprobs, TokenizedReq
from sglang.srt.scheduler.cache.kv_memory import Holding
from sglang.srt.scheduler.cache.radix_cache import Salt
from sglang.srt.scheduler.finish import FinishChecker
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.media.req_media import ReqMedia
from sglang.srt.scheduler.speculation.proposer import Proposer


class LogprobLog:
    """The log probabilities of a request on their way to its client: what has not been sent, packed as `Logprobs` is: nothing is done for each value. `token_ids` are those that are
    scored at every position."""

    def __init__(self, top_num: int = 0, token_ids: tuple[int, ...] = ()) -> None:
        self._top_num = top_num
        self._asked_ids = np.array(token_ids, np.int32).tobytes()
        self._num_asked = len(token_ids)
        self._clear()

    def _clear(self) -> None:
        self._token_ids, self._logprobs = bytearray(), bytearray()
        self._top_ids, self._top, self._asked = bytearray(), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._token_ids) // 4

    def add_unpredicted(self, token_id: int) -> None:
        """The first token of a prompt."""
        self._token_ids += np.int32(token_id).tobytes()
        self._logprobs += np.float32(np.nan).tobytes()
        self._top_ids += bytes(4 * self._top_num)
        self._top += bytes(4 * self._top_num)
        self._asked += bytes(4 * self._num_asked)

    def add(self, targets: Int32Array, scores: LogprobResult) -> None:
        """`scores` of all `targets`."""
        self._token_ids += _ints(targets)
        self._logprobs += _floats(scores.logprobs)
        if self._top_num:
            self._top_ids += _ints(scores.top_ids)
            self._top += _floats(scores.top_logprobs)
        if self._num_asked:
            self._asked += _floats(scores.token_ids_logprobs)

    def take(self) -> Logprobs:
        """All of it, for sending."""
        token_ids, logprobs, top_ids = bytes(self._token_ids), bytes(self._logprobs), bytes(self._top_ids)
        taken = Logprobs(token_ids, logprobs, top_ids, bytes(self._top), self._asked_ids, bytes(self._asked))
        self._clear()
        return taken


def _ints(values: Int32Array) -> bytes:
    return values.astype(np.int32, copy=False).tobytes()


def _floats(values: Float32Array) -> bytes:
    return values.astype(np.float32, copy=False).tobytes()


@dataclass(eq=False)
class Req:
    """Waiting while `hold` is None; otherwise running. `spec` and `grammar` outlive a retraction: seeds, positions and the
    place in the grammar depend on the output alone. `arrival` numbers requests in order.

    `in_reasoning`: output is free text until one of `msg.grammar_after` comes. `jumps`: tokens that the grammar forces are not
    sampled (results.py). `proposer`: who drafts what may come next (speculation/). `takes_drafts`: several of its tokens may be sampled
    in one step.
    `logprob_next`: first position of prompt and output whose log probability is wanted and not there yet.
    `ending`: why it ends as soon as those are there. `no_reuse`: start from an empty prefix (see decode.py).
    """

    msg: TokenizedReq
    arrival: int
    prompt: Int32Array
    """as the prefix tree knows it: images by ids of their own (media/arriving.py)"""
    spec: SampleSpec
    finish: FinishChecker
    media: ReqMedia | None = None
    salt: Salt = None
    """namespace of the prefix tree"""
    adapter: int = 0
    """uid of its adapter; 0: the base model answers"""
    adapted_from: int = 0
    """the first position where its adapter acts; not 0 only for activated ones"""
    has_mark: bool = False
    """the tree knows the id there by another (scheduler/adapters.py)"""
    adapter_slot: int = -1
    """where its adapter lies while it runs"""
    num_blocked: int = 0
    """how often no slot was free for its adapter"""
    grammar: GrammarState | None = None
    constraints: tuple[object, ...] = ()
    """compiled for it: as long as it lives, what they hold is counted (grammar/compiler.py)"""
    unenforced: tuple[str, ...] = ()
    """what of its schema is checked afterwards, on the server's side: until then nothing of it may be shown"""
    in_reasoning: bool = False
    jumps: bool = False
    proposer: Proposer | None = None
    takes_drafts: bool = False
    num_since_forced: int = 0
    """tokens sampled since the last forced one"""
    rewritten_at: int = 0
    """`num_ids` when its last token was not the one sampled"""
    ending: FinishReason | None = None
    hold: Holding | None = None
    load: object | None = None
    """that it waits for (admission/restoring.py)"""
    num_loads: int = 0
    restored: tuple[int, int] | None = None
    """positions that were read for it"""
    restored_from: str = "memory"
    """the tier that they were read from"""
    no_reuse: bool = False
    logprob_next: int = 0
    input_log: LogprobLog = field(default_factory=LogprobLog)
    output_log: LogprobLog = field(default_factory=LogprobLog)
    origins: bytearray | None = None
    """where each token of the output comes from (messages.ORIGINS), if the client asks"""
    input_sent: bool = False
    sent_len: int = 0
    cached_len: int = -1
    num_retractions: int = 0
    drafts: DraftCounts = field(default_factory=DraftCounts)
    num_short_stays: int = 0
    num_overtaken: int = 0
    started_at: float = 0.0
    first_at: float = 0.0

    @property
    def rid(self) -> str:
        return self.msg.rid

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for something other than a place: for images of others, or for the disk."""
        return self.load is not None or (self.media is not None and self.media.is_waiting)

    @property
    def may_be_late(self) -> bool:
        """Whether a step of it may bring no token: a mask or a search may take longer than the step."""
        return self.grammar is not None or bool(self.msg.sampling.stop_regex)

    @property
    def key(self) -> str:
        """The client's API key; empty where clients are not distinguished."""
        return self.msg.client[0] if self.msg.client else ""

    @property
    def prompt_len(self) -> int:
        return len(self.spec.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.spec.output_ids

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.finish.stop_ids

    @property
    def active_proposer(self) -> Proposer | None:
        """The proposer of its next tokens, if it may have drafts."""
        return self.proposer if self.takes_drafts and not self.in_reasoning else None

    @property
    def fill_len(self) -> int:
        """Ids whose keys and values must be there before the next token can be sampled. Where a prompt is
        only scored, nothing needs those of its last id."""
        num_ids, only_scored = self.num_ids, self.finish.max_new_tokens <= 0 and self.msg.logprobs is not None
        return num_ids - 1 if only_scored and num_ids > 1 else num_ids

    @property
    def num_ids(self) -> int:
        """Prompt and output."""
        return len(self.spec.prompt_ids) + len(self.spec.output_ids)

    def input_ids(self, start: int, end: int) -> Int32Array:
        """Ids [start, end) of prompt and output, for the model."""
        if self.media is None and not self.has_mark:
            return self.fill_ids()[start:end]
        prompt_len, ids = self.prompt_len, list(self.spec.prompt_ids[start:end])
        if end > prompt_len:
            ids += self.spec.output_ids[max(start - prompt_len, 0) : end - prompt_len]
        return np.array(ids, dtype=np.int32)

    def fill_ids(self) -> Int32Array:
        """Prompt and output, for the prefix tree."""
        if not self.spec.output_ids:
            return self.prompt
        return np.concatenate([self.prompt, np.array(self.spec.output_ids, dtype=np.int32)])

    def reuse_limit(self) -> int:
        """How much of `fill_ids` may come from the cache: all but the last id, and nothing whose row must be computed because
        it predicts a token whose log probability is wanted."""
        limit = self.fill_len - 1
        if self.msg.logprobs is not None and self.logprob_next < self.num_ids:
            limit = min(limit, max(self.logprob_next - 1, 0))
        return 0 if self.no_reuse else limit

    def note_origin(self, origin: int) -> None:
        """Of the token that was appended last."""
        if self.origins is not None:
            self.origins.append(origin)

    def forbids_eos(self, num_out: int) -> bool:
        """Whether with so many tokens it may not end yet unless it must."""
        return self.msg.sampling.ignore_eos or num_out < self.msg.sampling.min_new_tokens

    @property
    def num_left(self) -> int:
        """Tokens it may still produce."""
        return self.finish.max_new_tokens - len(self.spec.output_ids)
