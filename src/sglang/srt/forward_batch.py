"""The interface between the scheduler (decisions) and the model (arithmetic).

The scheduler gives the worker one ForwardBatch per step and gets token ids back. All arrays are NumPy, int32, on the host; a
worker for another device copies them. Rows of a step are the concatenated new tokens of its requests:

    request        0 (extend 5)      1 (decode)   2 (decode)   3 (extend 3, more chunks to come)
    rows           0 1 2 3 4         5            6            7 8 9
    q_start, q_len 0, 5              5, 1         6, 1         7, 3
    sampled rows           4         5            6            -          -> sample_rows = [4, 5, 6], samples = [s0, s1, s2]

Decode and extend differ in nothing but q_len, so one step may mix them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.config import AdapterInfo
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.sampling_params import SamplingParams

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass
class SampleSpec:
    """How one request's next token is chosen. Made once per request and passed by reference each step, so the worker may keep
    what it derives from it in `state`. `prompt_ids` and `output_ids` are the request's own live lists: the worker only reads.

    What is sampled for an output token depends on (`seed`, len(output_ids)) alone. `eos_ids` are what `min_new_tokens`
    forbids. `follows`: of a sample after draft tokens, the request's own spec, whose output it begins with.
    """

    params: SamplingParams
    seed: int
    prompt_ids: Sequence[int]
    output_ids: list[int]
    eos_ids: tuple[int, ...] = ()
    want_logprob: bool = False
    top_num: int = 0
    token_ids: tuple[int, ...] = ()
    state: Any = None
    follows: SampleSpec | None = None


@dataclass
class PromptLogprobs:
    """Asks for log probabilities of prompt tokens. For row `row_start + i` of the step, `targets[i]` is the token that
    follows: its logprob under that row's logits is wanted, with the `top_num` best and the `token_ids`."""

    req_idx: int
    row_start: int
    targets: Int32Array
    top_num: int = 0
    token_ids: tuple[int, ...] = ()


@dataclass
class LogprobResult:
    """Log probabilities of n positions. `top_*` are [n, top_num], best first; `token_ids_logprobs` is [n, len(token_ids)]."""

    logprobs: Float32Array
    top_logprobs: Float32Array
    top_ids: Int32Array
    token_ids_logprobs: Float32Array

    def rows(self, first: int, last: int) -> LogprobResult:
        """Those of positions [first, last)."""
        part = slice(first, last)
        return LogprobResult(self.logprobs[part], self.top_logprobs[part], self.top_ids[part], self.token_ids_logprobs[part])


@dataclass
class VocabMasks:
    """Allowed tokens of the constrained rows: bit i of word i // 32 is token i. `rows` indexes the step's samples."""

    rows: Int32Array  # [num_masked]
    bits: npt.NDArray[np.uint32]  # [num_masked, ceil(vocab_size / 32)]


@dataclass(frozen=True)
class EmbedRows:
    """Rows `row` .. `row + count - 1` of a step are not text: they take rows `start` .. of `embedding` (EncodeJob)."""

    row: int
    count: int
    embedding: Any
    start: int


MAX_CROSS_IMAGES = 4
"""images that one row may attend to by cross-attention"""


@dataclass(frozen=True)
class CrossAttentionRows:
    """Rows `row` .. `row + count - 1` of a step attend to the images of these embeddings (EncodeJob) by cross-attention."""

    row: int
    count: int
    embeddings: tuple[Any, ...]


@dataclass(frozen=True)
class StateRows:
    """Where the states of a step's requests are, with `ModelInfo.state_slots`. Request r's saves are numbers save_starts[r] ..
    save_starts[r + 1] - 1: the state after `save_rows` of its rows, ascending, is copied to `save_slots`."""

    source: Int32Array  # [num_reqs] slot of the state before the first row; -1: the text begins
    target: Int32Array  # [num_reqs] slot for the state after the last row; may be the source
    save_starts: Int32Array  # [num_reqs + 1]
    save_rows: Int32Array  # [num_saves]
    save_slots: Int32Array  # [num_saves]


@dataclass
class ForwardBatch:
    """One step. `req_pool_idx` are rows of the ReqToToken table given to `ModelWorker.bind`; the entries of the step's own
    tokens are already written there. `seq_lens` count this step's tokens in."""

    input_ids: Int32Array  # [num_tokens]
    positions: Int32Array  # [num_tokens]
    out_cache_loc: Int32Array  # [num_tokens] slot of each new token
    req_pool_idx: Int32Array  # [num_reqs]
    q_start: Int32Array  # [num_reqs] first row
    q_len: Int32Array  # [num_reqs]
    seq_lens: Int32Array  # [num_reqs]
    sample_rows: Int32Array  # [num_samples]
    samples: list[SampleSpec]  # [num_samples]
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    embeds: list[EmbedRows] = field(default_factory=list)
    rope_positions: Int32Array | None = None  # [3, num_tokens]; None: `positions` on every axis
    row_ends: Int32Array | None = (
        None  # [num_tokens] with `ModelInfo.bidirectional_images`: where what a row sees ends, if after itself
    )
    cross_rows: list[CrossAttentionRows] = field(default_factory=list)
    """with `ModelInfo.cross_attention`: at most one for each request, ascending"""
    previous: Int32Array | None = None
    """[num_tokens] with `ModelInfo.runs_ahead`: a row whose id is not known to the host takes what was sampled by this sample of
    the step before; -1: `input_ids` has it"""
    row_adapter: Int32Array | None = None
    """[num_tokens] the slot of each row's adapter (AdapterStore.place), -1 for none; None: no row has one"""
    states: StateRows | None = None
    """with `ModelInfo.state_slots`"""
    masked: bool = False
    """whether masks will come: logits that they forbid need not be computed"""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_reqs(self) -> int:
        return len(self.req_pool_idx)


@dataclass
class ForwardOutput:
    """`next_ids[i]` was sampled for `samples[i]`; `logprobs[i]` (one position) is None unless it wanted one. A row whose logits
    held NaN has its index in `nan_rows`, and its id is not to be used. `prompt_logprobs` answers in the order asked."""

    next_ids: Int32Array  # [num_samples]
    logprobs: list[LogprobResult | None]
    prompt_logprobs: list[LogprobResult]
    nan_rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ModelInfo:
    """Facts about the loaded model for the other wings. Sent to the server as a plain dict (dataclasses.asdict)."""

    architecture: str
    vocab_size: int
    """columns of the logits"""
    context_len: int
    max_total_tokens: int
    """slots of the KV pool, a multiple of `slot_run`"""
    slot_run: int
    """slots are to be handed out in aligned runs of this many, position p of a request in a slot with the same p % slot_run;
    1 means any slot will do"""
    max_batch_tokens: int
    """rows a step may have"""
    max_running_requests: int
    kernels: str
    """which kernel set runs, e.g. "cpu avx512_vnni" """
    deterministic: bool
    """whether results are bitwise independent of the batch"""
    weight_bytes: int
    kv_bytes_per_token: int
    implementation: str = "sglang"
    """who computes the model, and what of it does not hold then"""
    state_slots: int = 0
    """of models with recurrent layers: places for the states of texts (StateRows); 0: the model has none"""
    state_bytes: int = 0
    """one such state takes"""
    max_samples: int = 0
    """rows that a step may sample from; 0: one for each request"""
    dtype: str = "float32"
    quantization: str | None = None
    num_params: int = 0
    media_kinds: tuple[str, ...] = ()
    """what the model takes besides text: "image", "video" """
    bidirectional_images: bool = False
    """whether rows of an image attend to all of it: then a step must not end inside one (`ForwardBatch.row_ends`)"""
    cross_attention: bool = False
    """whether rows attend to images by cross-attention, in every step anew (`ForwardBatch.cross_rows`)"""
    max_image_len: int = 0
    """tokens of an image that must be computed in one step, with `bidirectional_images`"""
    rope_axes: int = 1
    """3: requests may bring positions of three axes"""
    runs_ahead: bool = False
    """whether `forward` and `begin_sample` return before the device is done, so that the next step may begin meanwhile"""
    graph_max_reqs: int = 0
    """decode steps of up to so many requests are launched as one graph"""
    tp_size: int = 1
    """ranks that share the model; bytes above are those of one"""
    embedding_dim: int = 0
    """length of the vectors of a model that embeds and does not generate; 0: it generates"""
    num_labels: int = 0
    """of a classifier, whose vectors are scores of labels"""
    adapters: dict[int, AdapterInfo] | None = None
    """those loaded at start, by uid; None: the model takes none"""


class Loading(Protocol):
    """An adapter on its way (concurrent.futures.Future)."""

    def done(self) -> bool: ...

    def result(self) -> AdapterInfo:
        """Once it is done. Raises ModelError if the adapter cannot be used."""
        ...


class AdapterWorker(Protocol):
    """The model's side of adapters. They are known by numbers that are never given twice."""

    num_slots: int
    """adapters that the rows of one step may have"""

    def load(self, uid: int, path: str) -> Loading:
        """Reads an adapter while steps go on."""
        ...

    def place(self, uid: int, slot: int) -> None:
        """Puts a loaded one into a slot, between two steps, in place of what is there."""
        ...

    def forget(self, uid: int) -> None:
        """It is needed no more. No step under way uses it."""
        ...


class KVRuns(Protocol):
    """The KV pool as bytes of this process, a run of slots at a time. Only the slots named are touched, by the calling thread."""

    run: int
    """slots of a run: ModelInfo.slot_run"""
    run_bytes: int
    layout: str
    """names the meaning of the bytes"""

    def read(self, slots: Int32Array, out: npt.NDArray[np.uint8]) -> None:
        """`out` [run_bytes] = keys and values in `slots` [n <= run], of which slots[i] % run == i; zero where there is no slot."""
        ...

    def write(self, slot: int, data: npt.NDArray[np.uint8]) -> None:
        """Puts `data` [run_bytes], as `read` gave it, into the run of slots that begins at `slot`."""
        ...

    def arena(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Host memory [num_bytes] that is quick to copy from and to."""
        ...

    def release(self, slot: int) -> None:
        """Gives the memory of slots from `slot` on, which hold nothing, back to the system until it is used again, where it can."""
        ...


class StateBytes(Protocol):
    """The states of recurrent layers as bytes of this process. Only the slot named is touched, by the calling thread."""

    num_bytes: int
    """of a slot"""
    layout: str
    """names the meaning of the bytes"""

    def read(self, slot: int, start: int, out: npt.NDArray[np.uint8]) -> None:
        """`out` = the bytes of `slot` from `start` on; zero beyond its end."""
        ...

    def write(self, slot: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Puts what `read` gave there."""
        ...


class ModelWorker(Protocol):
    """One model on one device. The scheduler calls, per step, `forward` and then `sample`; between the two it may fill
    grammar masks on another thread, since `forward` releases the GIL while native code runs."""

    info: ModelInfo

    @property
    def adapters(self) -> AdapterWorker | None:
        """None: the model takes none."""
        ...

    def bind(self, req_to_token: Int32Array) -> None:
        """Gives the worker the [max_running_requests, context_len] table of slots that the scheduler writes. Called once."""
        ...

    def forward(self, batch: ForwardBatch) -> None:
        """Computes the step: KV is written, logits are ready. With `ModelInfo.runs_ahead` it is only begun."""
        ...

    def finish(self) -> None:
        """Waits until what was begun is done."""
        ...

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        """Samples the tokens and gathers log probabilities of the step just computed."""
        ...

    def begin_sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        """`sample` in two halves, with `ModelInfo.runs_ahead`: what is returned waits for the tokens. The next step's `forward`
        may come between the two."""
        ...

    def check_item(self, item: MediaItem) -> None:
        """Raises RequestError for an item whose arrays do not fit together. Its kind is one of `info.media_kinds`."""
        ...

    def encode(self, item: MediaItem) -> EncodeJob:
        """The embedding of a checked item: there, on its way, or queued."""
        ...

    def encode_some(self, seconds: float) -> bool:
        """Works on the queued embeddings for about so long, at least one chunk. False if there was nothing to do."""
        ...

    def get_ready(self, num_used: int) -> bool:
        """Works for a few milliseconds on what will make later steps quicker; slots before `num_used` of the pool were in use.
        For idle moments. False if there is nothing left to do."""
        ...

    def release_kv(self) -> None:
        """Gives the KV pool's memory, of which no slot holds anything, back to the system until it is used again."""
        ...

    def close(self) -> None:
        """Ends what runs for the worker outside of this process. Nothing is called after it."""
        ...


class Embedder(Protocol):
    """One model that turns texts into vectors."""

    info: ModelInfo

    def embed(self, texts: Sequence[Sequence[int]], first_lens: Sequence[int] = ()) -> list[Float32Array]:
        """A vector [info.embedding_dim] for each text, none of them empty or longer than info.context_len. `first_lens`: tokens
        before the second text of a pair, 0 for a text alone; left out if all are."""
        ...
