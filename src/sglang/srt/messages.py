"""The messages between the server (text) and the scheduler (token ids).

The file where the two wings meet. Messages are tagged msgspec structs. They are sent over a private unix socket or, in-process, as
objects. There is no pickle: `encode` and the two `decode_...` at the bottom are the whole wire format.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Union

import msgspec

from sglang.srt.config import AdapterInfo
from sglang.srt.machine_view import NodeView, StepView
from sglang.srt.media_item import MediaItem
from sglang.srt.sampling_params import SamplingParams

if TYPE_CHECKING:
    TokenIds = array[int]
else:
    TokenIds = array
"""Token ids, packed: 4 bytes each, freed at once, and nothing that the garbage collector looks through. A list of as many objects keeps
every thread waiting whenever it does."""


def pack_ids(ids: Iterable[int]) -> TokenIds:
    """`ids` themselves if they are packed. Raises OverflowError for a number that has more than 32 bits."""
    return ids if isinstance(ids, array) else array("i", ids)


class LogprobOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which log probabilities a request wants. They are those of the model's own distribution: before penalties, grammar,
    bias and temperature.

    `start_len`: first prompt position whose logprob is returned; -1 means output tokens only. `top_num`: how many best
    tokens per position. `token_ids`: ids to score at every position besides the chosen one.
    """

    start_len: int = -1
    top_num: int = 0
    token_ids: tuple[int, ...] = ()


Pairs = tuple[tuple[float, int], ...]
"""(logprob, token id)"""


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """Log probabilities at one position. `logprob` is None for the first token of a prompt, which nothing predicts."""

    token_id: int
    logprob: float | None
    top: Pairs = ()
    """best first"""
    ids: Pairs = ()
    """for the requested `token_ids`, in their order"""


class Logprobs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Log probabilities at n neighbouring positions, packed: as objects, the thousand of them that a request may want of each token
    would take a hundred bytes each. int32 and float32 in the machine's byte order, position after position. Iterating gives
    Positions, each made when it is asked for."""

    token_ids: bytes = b""  # int32 [n]
    logprobs: bytes = b""  # float32 [n]; NaN: nothing predicts it, and nothing else is said of the position
    top_ids: bytes = b""  # int32 [n, top_num]
    top: bytes = b""  # float32 [n, top_num]
    asked_ids: bytes = b""  # int32 [num_asked]: the requested `token_ids`
    asked: bytes = b""  # float32 [n, num_asked]

    def __len__(self) -> int:
        return len(self.token_ids) // 4

    @property
    def num_values(self) -> int:
        return (len(self.logprobs) + len(self.top) + len(self.asked)) // 4

    def chosen(self) -> Iterator[tuple[float | None, int]]:
        """(logprob, token id) of each position."""
        for logprob, token_id in zip(memoryview(self.logprobs).cast("f"), memoryview(self.token_ids).cast("i"), strict=True):
            yield (logprob if logprob == logprob else None), token_id

    def best(self) -> Iterator[Pairs]:
        """The top tokens of each position, best first."""
        return self._pairs(self.top, memoryview(self.top_ids).cast("i"), 1)

    def scored(self) -> Iterator[Pairs]:
        """The requested `token_ids` at each position."""
        return self._pairs(self.asked, memoryview(self.asked_ids).cast("i"), 0)

    def _pairs(self, values: bytes, ids: memoryview[int], stride: int) -> Iterator[Pairs]:
        """`ids` are those of one position after the other, or with a `stride` of 0 the same at each."""
        floats, num = memoryview(values).cast("f"), len(values) // 4 // max(len(self), 1)
        for i, logprob in enumerate(memoryview(self.logprobs).cast("f")):
            here, mine = slice(i * num, (i + 1) * num), slice(i * num * stride, i * num * stride + num)
            yield tuple(zip(floats[here], ids[mine], strict=True)) if num and logprob == logprob else ()

    def __iter__(self) -> Iterator[Position]:
        for (logprob, token_id), best, scored in zip(self.chosen(), self.best(), self.scored(), strict=True):
            yield Position(token_id, logprob, best, scored)

    def parts(self, max_values: int) -> Iterator[Logprobs]:
        """The same in order, in parts of at most `max_values` values where one position has no more."""
        count = len(self)
        if self.num_values <= max_values or count <= 1:
            yield self
            return
        step = max(max_values * count // self.num_values, 1)
        for first in range(0, count, step):
            yield self._between(first, first + step)

    def _between(self, first: int, last: int) -> Logprobs:
        def cut(data: bytes) -> bytes:
            size = len(data) // len(self)
            return data[size * first : size * last]

        best = cut(self.top_ids), cut(self.top)
        return Logprobs(cut(self.token_ids), cut(self.logprobs), *best, self.asked_ids, cut(self.asked))

    @staticmethod
    def join(parts: Sequence[Logprobs]) -> Logprobs:
        """Joins consecutive log probabilities of one sequence."""
        if len(parts) <= 1:
            return parts[0] if parts else Logprobs()
        return Logprobs(
            b"".join([p.token_ids for p in parts]),
            b"".join([p.logprobs for p in parts]),
            b"".join([p.top_ids for p in parts]),
            b"".join([p.top for p in parts]),
            parts[0].asked_ids,
            b"".join([p.asked for p in parts]),
        )


SAMPLED, DRAFTED, FORCED = 0, 1, 2
ORIGINS = ("sampled", "draft", "forced")
"""where a token of the output comes from: it was sampled; it was sampled as a draft had it; the grammar allowed nothing else"""


class SchemaCheck(msgspec.Struct, frozen=True):
    """The result of checking an output whose schema decoding could enforce only in part. `keywords`: paths of what it could not follow.
    `num_attempts`: outputs that were generated. `error`: what is wrong with the last one; None: it is valid. `num_discarded`: tokens of
    the others."""

    keywords: tuple[str, ...]
    num_attempts: int
    error: str | None = None
    num_discarded: int = 0


class FinishReason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request ended. `matched`: the stop id or stop string, for "stop". `message`, `status_code` and `err_type`: for
    "abort"; status 400 when the request was at fault."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None
    err_type: str | None = None
    check: SchemaCheck | None = None
    """when a schema was checked after the end"""


# --- server to scheduler ----------------------------------------------------------------------------------------------------


class TokenizedReq(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One sequence to generate. `n` samples of a prompt are n of these (`group` ties them together: the scheduler prefills
    the prompt once). `sampling.max_new_tokens` is an int by now and `sampling.n` is not read.

    `cache_salt` names a namespace of the prefix cache: requests share KV only inside one. `priority`: larger runs first, whoever
    asks; `own_priority`: the same among the requests of one API key. `stream`: report every step; otherwise only the end (and nothing of the output before).
    `healed`: the output is to begin with this text, the end of the prompt that was taken back; it is not part of stop strings.
    `grammar_after`: ids; with a constraint set, output is free text until one of them (end of thinking) came behind `grammar_lead`.
    `media`: the images and videos whose placeholders are among the ids, in order of their spans. `rope_positions`: for models
    with positions of several axes, int32 [3, len(input_ids)] (time, height, width), later places plus `rope_delta`; empty: the place itself.
    """

    rid: str
    input_ids: TokenIds
    sampling: SamplingParams
    logprobs: LogprobOptions | None = None
    origins: bool = False
    """whether to say of each output token where it comes from (ORIGINS)"""
    stream: bool = False
    group: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    own_priority: int = 0
    grammar_after: tuple[int, ...] = ()
    grammar_lead: tuple[int, ...] = ()
    media: tuple[MediaItem, ...] = ()
    rope_positions: bytes = b""
    rope_delta: int = 0
    healed: str = ""
    client: tuple[str, ...] = ()
    """the client in the queue's fairness, outermost first: (API key, user), or ("", address, user); empty if clients are not distinguished"""
    received_at: float = 0.0
    """time.monotonic() when the server got it (the clock is shared by processes of one machine)"""
    resumed: tuple[int, ...] | None = None
    """set when another scheduler had the request before: the output tokens that were sent then, with their log probabilities
    and those of the prompt. The output goes on behind them and is the one that it would have been"""
    resumed_hold: int = 0
    """`hold_bytes` with the last of them"""
    adapter: int = 0
    """the uid of its adapter; 0: none"""


class AbortReq(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Ends the request `rid`, or all of them. Each aborted request gets a final TokenOut; an unknown rid is ignored."""

    rid: str | None = None
    all: bool = False
    message: str = "the request was aborted"


class FlushCacheReq(msgspec.Struct, frozen=True, tag=True):
    """Empties the prefix cache if nothing runs or waits. Answered by ControlReply."""

    call_id: int


class PauseReq(msgspec.Struct, frozen=True, tag=True):
    """Stops (pause) or restarts (not pause) taking steps. Answered by ControlReply."""

    call_id: int
    pause: bool


class ProfileReq(msgspec.Struct, frozen=True, tag=True):
    """Starts (start) or ends (not start) a profile of the scheduler's loop. Answered by a ControlReply whose message names the
    file."""

    call_id: int
    start: bool


class StateReq(msgspec.Struct, frozen=True, tag=True):
    """Asks for the scheduler's state. Answered by ControlReply with a `state`."""

    call_id: int


class ViewReq(msgspec.Struct, frozen=True, tag=True):
    """Starts (`on`) or stops the sending of ViewDeltas, to viewers. A second `on` makes the next delta complete."""

    on: bool


class LoadAdapterReq(msgspec.Struct, frozen=True, tag=True):
    """Reads an adapter, to be known as `uid`, a new number. Answered by a ControlReply with an `adapter`. `pinned`: see NamedAdapter."""

    call_id: int
    uid: int
    path: str
    pinned: bool = False


class UnloadAdapterReq(msgspec.Struct, frozen=True, tag=True):
    """Forgets an adapter as soon as the requests that have it have ended; later ones are refused. Answered by ControlReply then."""

    call_id: int
    uid: int


class EmbedReq(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One text to embed. Answered by an EmbedOut. AbortReq ends it too. `client`: the API key that asks."""

    rid: str
    input_ids: TokenIds
    client: str = ""
    first_len: int = 0
    """tokens before the second text of a pair that is judged; 0: it is one text"""


class ShutdownReq(msgspec.Struct, frozen=True, tag=True):
    """Ends the scheduler loop after the current step; running requests are aborted."""


AdapterReq = LoadAdapterReq | UnloadAdapterReq
_Control = FlushCacheReq | PauseReq | ProfileReq | StateReq | ViewReq | ShutdownReq
ToScheduler = Union[TokenizedReq, EmbedReq, AbortReq, AdapterReq, _Control]  # noqa: UP007  evaluated at run time

# --- scheduler to server ----------------------------------------------------------------------------------------------------


class DraftCounts(msgspec.Struct, array_like=True):
    """What became of drafts. Each draft takes part in one step."""

    steps: int = 0
    proposed: int = 0
    """tokens that were to be sampled; those that a grammar forces between them do not count"""
    accepted: int = 0
    """those of them that were sampled as proposed"""
    rows: int = 0
    """rows of steps, forced tokens included"""

    def note(self, proposed: int, accepted: int, rows: int) -> None:
        """Counts one draft."""
        self.steps += 1
        self.proposed += proposed
        self.accepted += accepted
        self.rows += rows

    def add(self, other: DraftCounts) -> None:
        """Counts what `other` has counted, too."""
        self.steps += other.steps
        self.proposed += other.proposed
        self.accepted += other.accepted
        self.rows += other.rows


class TokenOut(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The output of one request since its last TokenOut.

    The text of a request is the bytes of its ids, less `trim_bytes` at the end (a matched stop string or stop token's text)
    once it has finished. Before, the last `hold_bytes` bytes may be the beginning of a stop string and must not be shown.
    Counts are totals so far. `input_logprobs` come once, in the first TokenOut after the prompt was computed.
    """

    rid: str
    ids: list[int]
    finish: FinishReason | None = None
    hold_bytes: int = 0
    trim_bytes: int = 0
    prompt_len: int = 0
    cached_len: int = 0
    completion_len: int = 0
    num_retractions: int = 0
    drafts: DraftCounts | None = None
    """at the end, of a request that had drafts"""
    input_logprobs: Logprobs | None = None
    output_logprobs: Logprobs | None = None
    """one per id in `ids`, when asked for"""
    origins: bytes = b""
    """an index into ORIGINS per id in `ids`, when asked for"""
    queue_time: float = 0.0
    """seconds from arrival to the first step, in the first TokenOut"""
    first_time: float = 0.0
    """seconds from arrival to the first token, in the first TokenOut that has ids"""
    unenforced: tuple[str, ...] = ()
    """with a finish "stop": paths of the schema's keywords that decoding did not follow, so that the whole output, which comes at
    once then, has yet to be checked"""


class BatchTokenOut(msgspec.Struct, frozen=True, tag=True):
    """All TokenOuts of one step."""

    outs: list[TokenOut]


class EmbedOut(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The vector of a text, float32 in the machine's byte order; or, with `finish` (an abort), why there is none."""

    rid: str
    vector: bytes = b""
    finish: FinishReason | None = None


class BatchEmbedOut(msgspec.Struct, frozen=True, tag=True):
    """All EmbedOuts of one step."""

    outs: list[EmbedOut]


class SchedulerStats(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A snapshot, sent with StateReq and every `decode_log_interval` steps for the metrics page."""

    num_running: int = 0
    num_waiting: int = 0
    num_grammar_waiting: int = 0
    num_used_tokens: int = 0
    num_cached_tokens: int = 0  # in the prefix tree, and could be evicted
    num_free_tokens: int = 0
    max_total_tokens: int = 0
    gen_throughput: float = 0.0
    cache_hit_rate: float = 0.0
    num_retractions: int = 0
    num_steps: int = 0
    num_encoded: int = 0  # images and videos whose embeddings had to be made
    drafts: dict[str, DraftCounts] = {}  # by proposer, since the scheduler started
    cached_tokens: dict[str, int] = {}  # prompt tokens that were not computed, by where they were ("memory", "disk")
    disk: dict[str, int] = {}  # DiskTier.stats, with --cache-dir


class ViewDelta(msgspec.Struct, frozen=True, tag=True):
    """Changes in the machine since the last ViewDelta. `nodes` are new or changed, `gone` are ids of nodes that are no more.
    With `is_first` nothing told before holds. `num_omitted`: nodes beyond what is shown; `num_late`: those that follow in the
    next ones."""

    is_first: bool
    nodes: list[NodeView]
    gone: list[int]
    num_late: int
    num_omitted: int
    steps: list[StepView]
    stats: SchedulerStats
    replica: int = 0


class ControlReply(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Answer to a call. `ok=False` carries a `message`."""

    call_id: int
    ok: bool = True
    message: str = ""
    stats: SchedulerStats | None = None
    adapter: AdapterInfo | None = None


class SchedulerReady(msgspec.Struct, frozen=True, tag=True):
    """First message: the model is loaded. `info` is forward_batch.ModelInfo as a plain dict."""

    info: dict[str, Any]


class SchedulerFailed(msgspec.Struct, frozen=True, tag=True):
    """The scheduler could not start; `message` is one sentence."""

    message: str


FromScheduler = Union[BatchTokenOut, BatchEmbedOut, SchedulerStats, ViewDelta, ControlReply, SchedulerReady, SchedulerFailed]  # noqa: UP007

# --- the two ends -----------------------------------------------------------------------------------------------------------


class Inbox(Protocol):
    """Where the scheduler receives. `receive` returns all messages that are there; with none, it waits up to `timeout` seconds."""

    def receive(self, timeout: float) -> list[ToScheduler]: ...


class Outbox(Protocol):
    """Where the scheduler sends; never blocks. `let_read` gives a reader that shares our cores a moment to take what was sent."""

    def send(self, message: FromScheduler) -> None: ...

    def let_read(self) -> None: ...


def _packed(value: Any) -> bytes:
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(f"a message holds {type(value)}")


def _unpacked(kind: type, value: Any) -> TokenIds:
    """Raises ValueError for what are no ids."""
    ids = array("i")
    ids.frombytes(value)
    return ids


_encoder = msgspec.msgpack.Encoder(enc_hook=_packed)
_to_scheduler: msgspec.msgpack.Decoder[ToScheduler] = msgspec.msgpack.Decoder(ToScheduler, dec_hook=_unpacked)
_from_scheduler: msgspec.msgpack.Decoder[FromScheduler] = msgspec.msgpack.Decoder(FromScheduler)


def encode(message: ToScheduler | FromScheduler) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def decode_to_scheduler(data: bytes) -> ToScheduler:
    """Raises msgspec.ValidationError for anything that is not such a message."""
    return _to_scheduler.decode(data)


def decode_from_scheduler(data: bytes) -> FromScheduler:
    """Raises msgspec.ValidationError for anything that is not such a message."""
    return _from_scheduler.decode(data)
