"""The model's interface for the scheduler: loads the model, describes it, computes steps (forward_batch.ModelWorker).

The files of this wing, each importing only what stands above it:

    kernels/  quant/  model_config          ops, formats, numbers
    weights/                                checkpoints
    layers/   models/                       architecture
    sampling/ capacity kv_pool op_tape      tokens, memory, replay
    kernel_limits                           limits of the chosen kernels
    distributed/{ranks,sharding,ops}        one rank's part of all of this
    adapters/                               what requests may add to the weights
    runner                                  one forward pass
    worker                                  this file
    distributed/{wire,leader,follower}      several ranks as one worker
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sglang.srt.checkpoint.kept_images import KeptImages
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import AdapterOptions, DeviceOptions, MemoryOptions, ModelFiles, ModelOptions
from sglang.srt.errors import CapacityError, ConfigError, ModelError
from sglang.srt.forward_batch import (
    ForwardBatch,
    ForwardOutput,
    Int32Array,
    KVRuns,
    LogprobResult,
    ModelInfo,
    SampleSpec,
    StateBytes,
    VocabMasks,
)
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.model.adapters.store import AdapterStore, create_store
from sglang.srt.model.capacity import (
    DRAFT_ROWS,
    FEWEST_STATES,
    Capacity,
    HostMemory,
    ModelFootprint,
    Needs,
    check_room,
    fewest_tokens,
    plan_capacity,
    resolve_batch,
    shared_memory,
)
from sglang.srt.model.device import compute_dtype, create_ops, create_probe, device_memory, device_options, on_gpu
from sglang.srt.model.distributed.ops import shard_ops
from sglang.srt.model.distributed.ranks import Ranks
from sglang.srt.model.distributed.sharding import Shard, ShardedSource, shard_model
from sglang.srt.model.foreign.checkpoint import ARCHITECTURE, ForeignCheckpoint
from sglang.srt.model.foreign.choice import check_foreign, open_model
from sglang.srt.model.foreign.foreign_decoder import ForeignDecoder
from sglang.srt.model.image_limits import fit_images, max_image_len
from sglang.srt.model.image_queue import EncodeQueue
from sglang.srt.model.kernel_limits import check_decoder
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kv_pool import KVPool, kv_bytes_per_token
from sglang.srt.model.layers.buffers import StepLimits, buffer_bytes
from sglang.srt.model.layers.cross import cross_bytes_per_request
from sglang.srt.model.layers.rope import table_bytes
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.registry import create_model
from sglang.srt.model.models.vision.layers import Encoder
from sglang.srt.model.models.vision.registry import create_encoder
from sglang.srt.model.runner import ModelRunner
from sglang.srt.model.sampling.logprobs import prompt_logprobs
from sglang.srt.model.sampling.needed_columns import needed_columns, reorder
from sglang.srt.model.sampling.sampler import Sampled, Sampler
from sglang.srt.model.state_pool import StatePool, state_bytes
from sglang.srt.model.weights.loader import Checkpoint, load_checkpoint, read_config
from sglang.srt.model.weights.repacked.opening import open_store

Meet = Callable[[str, str, ModelFiles], Ranks]
"""connects a rank with the others, once it can compute: on its device, with kernels of that name, the model in these files"""


class LocalWorker:
    """One model on one device of this process. Not thread-safe; between `forward` and `sample` other threads may run."""

    def __init__(
        self,
        ops: Ops,
        model: Decoder,
        info: ModelInfo,
        capacity: Capacity,
        use_tape: bool = True,
        encoder: Encoder | None = None,
        encoder_cache_bytes: int = 0,
        shard: Shard | None = None,
        adapters: AdapterStore | None = None,
    ) -> None:
        self.info = info
        self.adapters = adapters
        self.ops = ops
        self.embed_width = model.config.hidden_size * (1 + len(model.config.vision.deep_layers if model.config.vision else ()))
        self._shard = shard
        self._model = model
        self._use_tape = use_tape
        self._limits = StepLimits(capacity.max_batch_tokens, capacity.max_running_requests, capacity.max_logit_rows)
        self._pool = KVPool(ops, model.config, capacity.max_total_tokens)
        self._states = StatePool(ops, model.config, capacity.state_slots)
        self._sampler = Sampler(ops, info.vocab_size, capacity.max_logit_rows)
        self._runner: ModelRunner | None = None
        self._logits = np.empty((0, info.vocab_size), np.float32)
        self._prompt_logprobs: list[LogprobResult] = []
        self._unheaded: ForwardBatch | None = None  # whose logits are left until its masks are known
        self._encodings = EncodeQueue(encoder, encoder_cache_bytes) if encoder is not None else None

    def bind(self, req_to_token: Int32Array) -> None:
        num_adapters = self.adapters.num_slots if self.adapters is not None else 0
        tape, sampled, states = self._use_tape, self._sampler.ids, self._states.layers
        self._runner = ModelRunner(
            self.ops, self._model, self._pool, self._limits, req_to_token, tape, sampled, self._shard, num_adapters, states
        )
        if self.info.graph_max_reqs:
            self._runner.record_graphs(self.info.graph_max_reqs)

    def forward(self, batch: ForwardBatch) -> None:
        assert self._runner is not None, "bind comes first"
        runner = self._runner
        runner.body(batch)
        # Prompt rows first: the rows to sample from must stay in the buffer until `sample`.
        scored = batch.prompt_logprobs
        self._prompt_logprobs = prompt_logprobs(self.ops, scored, runner.head, self._limits.max_logit_rows) if scored else []
        self._unheaded = (
            batch if batch.masked and runner.can_skip_columns and not any(s.want_logprob for s in batch.samples) else None
        )
        if self._unheaded is None:
            self._logits = runner.head(batch.sample_rows)

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        samples, masks, order = self._complete(batch, masks)
        return _output(self._sampler.sample(self._logits, samples, masks), order, self._prompt_logprobs)

    def begin_sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        samples, masks, order = self._complete(batch, masks)
        wait, scores = self._sampler.begin(self._logits, samples, masks), self._prompt_logprobs
        return lambda: _output(wait(), order, scores)

    def _complete(
        self, batch: ForwardBatch, masks: VocabMasks | None
    ) -> tuple[list[SampleSpec], VocabMasks | None, Int32Array | None]:
        """Computes the logits, if that was left until the masks are known. Returns samples and masks in the order of the logits,
        and the order, if it is another than the batch's."""
        if self._unheaded is not batch:
            return batch.samples, masks, None
        assert self._runner is not None
        self._unheaded = None
        # The step after one in which all requests decode may take its ids by their place among the samples (`previous`).
        all_decode = batch.num_tokens == batch.num_reqs
        needed = needed_columns(masks, len(batch.samples), self.info.vocab_size, keep_order=all_decode)
        if masks is None or needed is None:
            self._logits = self._runner.head(batch.sample_rows)
            return batch.samples, masks, None
        self._logits = self._runner.head(batch.sample_rows[needed.order], needed.whole, needed.blocks)
        if all_decode:
            return batch.samples, masks, None
        return [batch.samples[i] for i in needed.order.tolist()], reorder(masks, needed.order), needed.order

    def finish(self) -> None:
        if self._unheaded is not None:  # the masks are late
            self._complete(self._unheaded, None)
        self.ops.finish()

    def check_item(self, item: MediaItem) -> None:
        assert self._encodings is not None, "the model sees nothing but text"
        self._encodings.check(item)

    def keep_images(self, kept: KeptImages) -> None:
        """Embeddings of images are read from there, and written to it."""
        if self._encodings is not None:
            self._encodings.kept = kept

    def encode(self, item: MediaItem) -> EncodeJob:
        assert self._encodings is not None, "the model sees nothing but text"
        return self._encodings.get(item)

    def encode_some(self, seconds: float) -> bool:
        """The time counts from when the step on its way, if there is one, is done."""
        if self._encodings is None or self._encodings.is_idle:
            return False
        self.finish()
        return self._encodings.run(seconds)

    def get_ready(self, num_used: int) -> bool:
        return self._pool.get_ready(num_used)

    def release_kv(self) -> None:
        self.finish()
        self._pool.release()

    @property
    def kv_runs(self) -> KVRuns | None:
        """The KV pool as bytes; None if it is not this process's memory."""
        return self._pool.runs

    @property
    def state_bytes(self) -> StateBytes | None:
        """The states of recurrent layers as bytes; None without, and if they are not this process's memory."""
        return self._states.as_bytes

    def close(self) -> None:
        """No other process runs; what is being written to the disk has a second."""
        if self._encodings is not None and self._encodings.kept is not None:
            self._encodings.kept.close(1.0)


def _output(chosen: Sampled, order: Int32Array | None, scores: list[LogprobResult]) -> ForwardOutput:
    """`order`: which of the batch's samples each of the chosen is, if not simply the next."""
    if order is None:
        return ForwardOutput(chosen.next_ids, chosen.logprobs, scores, chosen.bad_rows)
    ids = np.empty_like(chosen.next_ids)
    ids[order] = chosen.next_ids
    return ForwardOutput(ids, chosen.logprobs, scores, [int(order[i]) for i in chosen.bad_rows])


def create_worker(
    model: ModelOptions,
    device: DeviceOptions,
    memory: MemoryOptions,
    adapters: AdapterOptions | None = None,
    draft: ModelOptions | None = None,
) -> LocalWorker:
    """Loads the whole model. `draft`: what is to have room beside it. Raises ConfigError, ModelError or CapacityError with one sentence."""
    return _create(model, device, memory, 0, adapters=adapters, draft=draft)


def create_draft_worker(draft: ModelOptions, beside: LocalWorker, device: DeviceOptions, memory: MemoryOptions) -> LocalWorker:
    """Loads the draft model of a model that is loaded: on the same device, with a KV pool of as many tokens. Raises as
    `create_worker` does."""
    ops, info = beside.ops, beside.info
    checkpoint = _read_draft(draft, ops, info.context_len)
    room = MemoryOptions(
        max_total_tokens=info.max_total_tokens,
        max_running_requests=info.max_running_requests,
        chunked_prefill_size=memory.chunked_prefill_size,
        reserved_bytes=memory.reserved_bytes,
        copies=memory.copies,
    )
    try:
        worker = worker_from(checkpoint, checkpoint.config, ops, room, device.use_tape, draft.quantization)
    except MemoryError as error:
        raise CapacityError(f"the memory of this machine does not suffice for {draft.model_path} as a draft model") from error
    if hasattr(ops, "capture"):
        worker.info = replace(worker.info, graph_max_reqs=min(device.graph_max_reqs, worker.info.max_running_requests))
    return worker


def _read_draft(draft: ModelOptions, ops: Ops, context_len: int) -> Checkpoint:
    """With the context of the model that it drafts for, where its own is longer. Raises ConfigError for one that cannot draft."""
    files = find_files(draft)
    longest = read_config(files, draft).context_len
    checkpoint = load_checkpoint(
        files, replace(draft, context_length=min(longest, context_len)), kept=getattr(ops, "formats", ())
    )
    if checkpoint.config.vision is not None or checkpoint.config.cross_layers:
        raise ConfigError(f"--speculative-draft-model-path: {files.name} sees images; a draft model reads text alone")
    return checkpoint


def _with_room(memory: MemoryOptions, draft: ModelOptions | None, ops: Ops, context_len: int) -> MemoryOptions:
    """Leaves room for a draft model."""
    if draft is None:
        return memory
    needs = needs_of(_read_draft(draft, ops, context_len), ops, memory)
    fixed = needs.weights + needs.buffers + needs.tables
    return replace(memory, companion_bytes=fixed, companion_token_bytes=needs.token_bytes)


def create_rank(
    model: ModelOptions,
    device: DeviceOptions,
    memory: MemoryOptions,
    rank: int,
    meet: Meet,
    adapters: AdapterOptions | None = None,
) -> LocalWorker:
    """Loads the part of one of `device.tp_size` ranks. Raises as `create_worker` does."""
    return _create(model, _share_of(device), memory, rank, meet, adapters)


def _share_of(device: DeviceOptions) -> DeviceOptions:
    """Ranks of one machine share its cores."""
    if device.threads is not None or device.kernels in ("reference", "cuda") or device.device == "cuda":
        return device
    try:
        from sglang.srt.model.kernels.cpu import default_threads
    except ImportError:
        return device
    return replace(device, threads=max(1, default_threads() // device.ranks_here))


def _create(
    model: ModelOptions,
    device: DeviceOptions,
    memory: MemoryOptions,
    rank: int,
    meet: Meet | None = None,
    adapters: AdapterOptions | None = None,
    draft: ModelOptions | None = None,
) -> LocalWorker:
    """With `meet`, one rank of several."""
    files = find_files(model)
    opened = open_model(files, model)
    config = opened.config if isinstance(opened, ForeignCheckpoint) else opened
    dtype = compute_dtype(config.dtype, model.dtype)
    ops = create_ops(device, rank % device.ranks_here, dtype)
    if isinstance(opened, ForeignCheckpoint):
        check_foreign(device, on_gpu(ops), adapters)
    ranks: Ranks | None = None
    if meet is not None:
        ranks = meet(f"cuda:{rank % device.ranks_here}" if on_gpu(ops) else "cpu", ops.name, files)
    checkpoint = opened if isinstance(opened, ForeignCheckpoint) else load_checkpoint(files, model, getattr(ops, "formats", ()))
    memory = _with_room(memory, draft, ops, checkpoint.config.context_len)
    store, mapped = None, 0
    if isinstance(checkpoint, Checkpoint) and (store := open_store(ops, files, model, (rank, device.tp_size))) is not None:
        checkpoint.kept = store.open()
        mapped = checkpoint.kept.stored_bytes
    # A file that is mapped is one for all who map it, and its memory still looks available.
    memory = replace(memory, reserved_bytes=memory.reserved_bytes + mapped)
    room = device_memory(ops, memory)
    room = replace(room, available=room.available + mapped)
    check_needs(files.name, checkpoint, ops, memory, room, device.tp_size)
    quantization, tape = model.quantization, device.use_tape

    def load() -> LocalWorker:
        return worker_from(checkpoint, checkpoint.config, ops, memory, tape, quantization, ranks, adapters)

    try:
        try:
            worker = load()
        except (ModelError, AssertionError, TypeError, ValueError) as error:
            if store is None or not isinstance(checkpoint, Checkpoint) or not store.discard(error):
                raise
            checkpoint.kept = store.open()
            worker = load()
    except MemoryError as error:
        raise CapacityError(f"the memory of this machine does not suffice for {model.model_path}") from error
    if store is not None:
        store.keep()
    if hasattr(ops, "capture"):
        worker.info = replace(worker.info, graph_max_reqs=min(device.graph_max_reqs, worker.info.max_running_requests))
    return worker


def check_fit(model: ModelOptions, device: DeviceOptions, memory: MemoryOptions, draft: ModelOptions | None = None) -> None:
    """Raises, for a CPU, what `create_worker` would raise for a model that cannot be read or is too large. Reads headers only."""
    checkpoint, ops = _probe(model, device)
    name = find_files(model).name
    memory = _with_room(memory, draft, ops, checkpoint.config.context_len)
    check_needs(name, checkpoint, ops, memory, shared_memory(memory), device.tp_size)


def needs_on_cpu(model: ModelOptions, device: DeviceOptions, memory: MemoryOptions, draft: ModelOptions | None = None) -> Needs:
    """What a model takes at least, by the headers of its files. Raises ModelError for one that cannot be read."""
    checkpoint, ops = _probe(model, device)
    memory = _with_room(memory, draft, ops, checkpoint.config.context_len)
    return needs_of(checkpoint, ops, memory, device.tp_size)


def _probe(model: ModelOptions, device: DeviceOptions) -> tuple[Checkpoint | ForeignCheckpoint, Ops]:
    files = find_files(model)
    opened = open_model(files, model)
    ops = create_probe(device)
    if isinstance(opened, ForeignCheckpoint):
        return opened, ops
    return load_checkpoint(files, model, kept=getattr(ops, "formats", ())), ops


def check_needs(
    name: str,
    checkpoint: Checkpoint | ForeignCheckpoint,
    ops: Ops,
    options: MemoryOptions,
    memory: HostMemory,
    tp_size: int = 1,
) -> None:
    """Raises CapacityError for a model that needs more memory than there is, before it is loaded."""
    needs = needs_of(checkpoint, ops, options, tp_size)
    quantized = {kind: checkpoint.packed_bytes(ops.packed_bits, kind) // tp_size for kind in ("int8", "int4")}
    check_room(name, needs, memory, quantized)


def needs_of(checkpoint: Checkpoint | ForeignCheckpoint, ops: Ops, options: MemoryOptions, tp_size: int = 1) -> Needs:
    config = checkpoint.config
    running, batch_tokens = resolve_batch(options, config.context_len)
    limits = StepLimits(batch_tokens, running, running + DRAFT_ROWS)
    return Needs(
        weights=checkpoint.packed_bytes(ops.packed_bits) // tp_size,
        buffers=buffer_bytes(config, limits),
        tables=table_bytes(config) + 4 * running * config.context_len,
        context_len=config.context_len,
        token_bytes=kv_bytes_per_token(ops, config) // tp_size + options.companion_token_bytes,
        kv_tokens=fewest_tokens(options, config.context_len),
        companion=options.companion_bytes,
        states=FEWEST_STATES * state_bytes(config),
    )


def worker_from(
    source: WeightSource | ForeignCheckpoint,
    config: ModelConfig,
    ops: Ops,
    memory: MemoryOptions,
    use_tape: bool = True,
    quantization: str | None = None,
    ranks: Ranks | None = None,
    adapters: AdapterOptions | None = None,
) -> LocalWorker:
    """A worker for weights that are loaded. With `ranks`, for this rank's part of them."""
    resolve_batch(memory, config.context_len)  # bad flags are found before minutes of loading
    check_decoder(ops, config)
    memory = fit_images(memory, config, ops, ranks.size if ranks is not None else 1)
    if ranks is not None and config.recurrent is not None:
        raise ConfigError(
            f"--tp-size {ranks.size}: {config.architecture} has recurrent layers, which are not cut among ranks yet"
        )
    shard = shard_model(config, ranks) if ranks is not None else None
    mine, part_ops, encoder = config, ops, None
    if isinstance(source, ForeignCheckpoint):
        model: Decoder = ForeignDecoder(ops, source, config.context_len)
        use_tape = False
    else:
        encoder, part = _create_encoder(ops, source, config, ranks), source
        if shard is not None:
            mine, part, part_ops = shard.config, ShardedSource(source, shard), shard_ops(ops, shard)
        model = create_model(part_ops, part, mine, config.context_len)
    weights = [*model.weights, *(encoder.weights if encoder is not None else [])]
    weight_bytes = sum(w.num_bytes for w in weights)
    token_bytes = kv_bytes_per_token(ops, mine)
    footprint = ModelFootprint(config.context_len, token_bytes, weight_bytes, ops.slot_run, state_bytes(mine))
    store = create_store(part_ops, config, model.readers.sites, adapters, shard) if adapters is not None else None
    capacity = _plan(mine, device_options(memory, ops), footprint, ops, store.num_bytes if store is not None else 0)
    if ranks is not None:  # one pool of slots for all: as many as the smallest has room for
        capacity = replace(capacity, max_total_tokens=ranks.least(capacity.max_total_tokens))
    info = _model_info(config, part_ops, capacity, footprint, ranks.size if ranks is not None else 1)
    info = replace(
        info,
        quantization=quantization or (config.quantization.name if config.quantization is not None else None),
        num_params=sum(w.out_features * w.in_features for w in weights) * info.tp_size,
    )
    return LocalWorker(part_ops, model, info, capacity, use_tape, encoder, memory.encoder_cache_bytes, shard, store)


def _create_encoder(ops: Ops, source: WeightSource, config: ModelConfig, ranks: Ranks | None) -> Encoder | None:
    """Rank 0 encodes images for all."""
    if config.vision is None or (ranks is not None and ranks.rank > 0):
        return None
    return create_encoder(ops, source, config.vision)


def _model_info(config: ModelConfig, ops: Ops, capacity: Capacity, footprint: ModelFootprint, size: int) -> ModelInfo:
    return ModelInfo(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        context_len=config.context_len,
        max_total_tokens=capacity.max_total_tokens,
        slot_run=ops.slot_run,
        max_batch_tokens=capacity.max_batch_tokens,
        max_running_requests=capacity.max_running_requests,
        max_samples=capacity.max_logit_rows,
        kernels=ops.name,
        deterministic=ops.deterministic and config.architecture != ARCHITECTURE,
        implementation="transformers: slower, not batch-invariant" if config.architecture == ARCHITECTURE else "sglang",
        weight_bytes=footprint.weight_bytes,
        kv_bytes_per_token=footprint.kv_bytes_per_token,
        dtype=config.dtype,
        media_kinds=config.vision.media_kinds if config.vision is not None else (),
        bidirectional_images=config.vision is not None and config.vision.bidirectional_images,
        cross_attention=bool(config.cross_layers),
        max_image_len=max_image_len(config),
        rope_axes=3 if config.rope_axes else 1,
        tp_size=size,
        runs_ahead=ops.runs_ahead and not footprint.state_bytes,  # a step that ran ahead would have moved states on
        state_slots=capacity.state_slots,
        state_bytes=footprint.state_bytes,
    )


def _plan(config: ModelConfig, memory: MemoryOptions, footprint: ModelFootprint, ops: Ops, bank_bytes: int) -> Capacity:
    running, batch_tokens = resolve_batch(memory, footprint.context_len)
    limits = StepLimits(batch_tokens, running, running + DRAFT_ROWS)
    tables = 4 * running * footprint.context_len  # the scheduler's ReqToToken
    images = running * cross_bytes_per_request(ops, config)
    buffers = buffer_bytes(config, limits) + tables + images
    return plan_capacity(memory, footprint, device_memory(ops, memory), buffers, bank_bytes)
