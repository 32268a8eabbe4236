"""Requests to the tokenizer manager, and its outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.messages import DraftCounts, FinishReason, LogprobOptions, Logprobs, TokenizedReq, TokenOut
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.http.request_scope import new_name
from sglang.srt.server.multimodal.inputs import MediaInput
from sglang.srt.server.sessions import SessionParams

DEFAULT_SAMPLING = SamplingParams()
MAX_SEQUENCES = 16_384
"""of one call; known before anything is done for each of them"""
MAX_REPEATED = 8_000_000
"""characters or ids of what a call says once and each of its prompts holds, in all prompts together"""
MAX_RID = 1024


class client_names:
    """Errors about a request leave a `with` block in its client's names of our fields (ours -> its own)."""

    __slots__ = ("_names",)

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RequestError):
            error.rename(self._names)


class GenerateReq(msgspec.Struct, eq=False):
    """One call: a prompt or a batch of prompts, each sampled `sampling.n` times.

    Exactly one of `text` and `input_ids` is given. `sampling`, `logprobs` and `rid` are one for all or one for each prompt.
    `media`: images and videos of each prompt, in the order of their placeholders. `max_new_tokens_is_default`: nobody asked for that many, so it shrinks to what fits. `add_special_tokens` is for `text`.
    """

    text: str | list[str] | None = None
    input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None
    sampling: SamplingParams | list[SamplingParams] = DEFAULT_SAMPLING
    logprobs: LogprobOptions | list[LogprobOptions | None] | None = None
    origins: bool = False
    """whether to say of each output token where it comes from (messages.ORIGINS)"""
    rid: str | list[str] | None = None
    stream: bool = False
    max_new_tokens_is_default: bool = False
    add_special_tokens: bool = True
    media: list[list[MediaInput]] | None = None
    cache_salt: str | None = None
    priority: int = 0
    grammar_after: tuple[int, ...] = ()
    grammar_lead: tuple[int, ...] = ()
    session: SessionParams | None = None
    token_healing: bool = False
    """take back the tokens at the end of the prompt whose text could go on (tokenization/healing.py)"""
    begins_alike: bool = False
    """the prompts have a beginning in common, which is to be computed once however short it is"""
    adapter: str | list[str | None] | None = None
    """by name, one for all prompts or one for each; None: the base model answers"""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """what the client calls our fields, where its API has other names; for errors"""

    @property
    def is_batch(self) -> bool:
        ids = self.input_ids
        return isinstance(self.text, list) if ids is None else not ids or not isinstance(ids[0], int)

    def forget_prompt(self) -> None:
        """Drops the texts, ids and media: they may be large, and a call that has started needs them no more."""
        self.text = self.input_ids = self.media = None


class GenerateOut(msgspec.Struct, eq=False):
    """The output of one sequence since its last GenerateOut. `index` is its place in the call: samples of one prompt are
    neighbours. The lengths are totals."""

    index: int
    rid: str
    text: str
    ids: list[int]
    finish: FinishReason | None
    prompt_len: int
    cached_len: int
    completion_len: int
    input_logprobs: Logprobs | None = None
    output_logprobs: Logprobs | None = None
    origins: bytes = b""
    """an index into messages.ORIGINS per id, when asked for"""
    num_retractions: int = 0
    drafts: DraftCounts | None = None
    """at the end, of a request that had drafts"""
    seconds: float = 0.0
    """since the call started"""
    unsaid_bytes: int = 0
    """of the ids, at the end, that are not part of `text`: TokenOut.hold_bytes, or at the end `trim_bytes`"""

    def as_token_out(self) -> TokenOut:
        """This output as one TokenOut, as if the scheduler had sent it at once."""
        hold, trim = (0, self.unsaid_bytes) if self.finish is not None else (self.unsaid_bytes, 0)
        return TokenOut(
            rid=str(self.index),
            ids=self.ids,
            finish=self.finish,
            hold_bytes=hold,
            trim_bytes=trim,
            prompt_len=self.prompt_len,
            cached_len=self.cached_len,
            completion_len=self.completion_len,
            num_retractions=self.num_retractions,
            drafts=self.drafts,
            input_logprobs=self.input_logprobs,
            output_logprobs=self.output_logprobs,
            origins=self.origins,
        )


class JoinedOut:
    """Outputs of one sequence on their way to being one. To add one costs what that one holds, not what was there before."""

    __slots__ = ("_ids", "_input", "_last", "_origins", "_output", "_texts")

    def __init__(self, first: GenerateOut) -> None:
        self._last = first
        self._texts = [first.text]
        self._ids = first.ids
        self._input = first.input_logprobs
        self._origins = [first.origins]
        self._output = [first.output_logprobs] if first.output_logprobs is not None else []

    @property
    def num_ids(self) -> int:
        return len(self._ids)

    def add(self, later: GenerateOut) -> None:
        """The next one of the same sequence."""
        self._last = later
        self._texts.append(later.text)
        self._ids += later.ids
        self._origins.append(later.origins)
        if later.input_logprobs is not None:
            self._input = later.input_logprobs
        if later.output_logprobs is not None:
            self._output.append(later.output_logprobs)

    def whole(self) -> GenerateOut:
        """All of them as one; to be called once."""
        out = self._last
        if len(self._texts) > 1:
            out.text, out.ids, out.input_logprobs = "".join(self._texts), self._ids, self._input
            out.origins = b"".join(self._origins)
            out.output_logprobs = Logprobs.join(self._output) if self._output else None
        return out


class UnreadOuts:
    """Outputs of one call that its consumer has not taken, in order for each sequence. So many are kept as they came; after that those
    of each sequence are joined: what waits is no more than what the call has generated, some hundred bytes a token."""

    NUM_APART = 512
    NUM_LARGE_APART = 8
    """of those with log probabilities"""

    def __init__(self) -> None:
        self.apart: deque[GenerateOut] = deque()
        """empty only if all is"""
        self._joined: dict[int, JoinedOut] = {}

    def __len__(self) -> int:
        return len(self.apart) + len(self._joined)

    def put(self, out: GenerateOut) -> None:
        if not self.apart:  # the consumer keeps up, and nothing is joined
            self.apart.append(out)
            return
        most = self.NUM_APART if out.output_logprobs is None else self.NUM_LARGE_APART
        if not self._joined and len(self.apart) < most:
            self.apart.append(out)
        elif (joined := self._joined.get(out.index)) is not None:
            joined.add(out)
        else:
            self._joined[out.index] = JoinedOut(out)

    def pop(self) -> GenerateOut:
        out = self.apart.popleft()
        if self._joined and not self.apart:
            self.apart.append(self._joined.pop(next(iter(self._joined))).whole())
        return out

    def clear(self) -> None:
        self.apart.clear()
        self._joined.clear()


def check_count(num_prompts: int, name: str) -> None:
    """Raises RequestError for more prompts than a call may have."""
    if num_prompts > MAX_SEQUENCES:
        raise RequestError(f"a request may have at most {MAX_SEQUENCES} prompts, got {num_prompts}", name)


def check_repeated(length: int, count: int, name: str, most: int) -> None:
    """Raises RequestError if a text that stands beside each of `count` others makes much more of a request than it is. One of more
    than `most` has an error of its own."""
    if length * count > MAX_REPEATED and length <= most:
        raise RequestError(
            f"{name} has {length} characters or ids and stands in each of {count} prompts: at most {MAX_REPEATED} in all; "
            "send fewer at once",
            name,
        )


def for_each(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of `count` prompts."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries for {count} prompts", name)
    return value


def wire_rid(client: str, rid: str) -> str:
    """The name by which manager and scheduler know a request: a client's own rids are no other's business, so that equal rids of two
    clients are two requests. `client`: RequestScope.key. Raises RequestError for a rid that is too long to be sent with every token."""
    if len(rid) > MAX_RID:
        raise RequestError(f"a rid may have at most {MAX_RID} characters, got {len(rid)}", "rid")
    return f"{client}/{rid}" if client else rid


HEALTH_RIDS = f"HEALTH_CHECK_{token_hex(8)}_"
"""begins the ids of health checks; no client knows it"""


def own_rid(request: TokenizedReq) -> str:
    """The name by which its client knows it."""
    client = request.client[0] if request.client else ""
    return request.rid[len(client) + 1 :] if client else request.rid


def rids_of(rid: str | list[str] | None, count: int, is_batch: bool) -> list[str]:
    if rid is None:
        return [new_name() for _ in range(count)]
    if isinstance(rid, str):
        return [f"{rid}_{i}" for i in range(count)] if is_batch else [rid]
    if len(rid) != count:
        raise RequestError(f"rid has {len(rid)} entries for {count} prompts", "rid")
    if len(set(rid)) != count:
        raise RequestError("the rids of a batch must differ", "rid")
    return rid


def samples_of(rid: str, sampling: SamplingParams) -> Iterator[tuple[str, SamplingParams]]:
    """Names and parameters of the samples of one prompt. A seed is the first sample's; the others count up from it."""
    if sampling.n == 1:
        yield rid, sampling
        return
    for i in range(sampling.n):
        seed = None if sampling.seed is None else (sampling.seed + i) % 2**63 if i else sampling.seed
        yield f"{rid}-{i}", msgspec.structs.replace(sampling, n=1, seed=seed)
