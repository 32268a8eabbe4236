"""The model as the scheduler sees it: loads it, says what it is, computes steps (forward_batch.ModelWorker).

The files of this wing, each importing only what stands above it:

    kernels/  quant/  model_config          ops, formats, numbers
    weights/                                checkpoints
    layers/   models/                       architecture
    sampling/ capacity kv_pool op_tape      tokens, memory, replay
    runner                                  one forward pass
    worker                                  this file
"""

from __future__ import annotations

import logging

import numpy as np

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.errors import CapacityError, ConfigError
from sglang.srt.forward_batch import ForwardBatch, ForwardOutput, Int32Array, LogprobResult, ModelInfo, VocabMasks
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.model.capacity import (
    MIN_LOGIT_ROWS,
    Capacity,
    ModelFootprint,
    host_memory,
    plan_capacity,
    resolve_batch,
)
from sglang.srt.model.encoding import EncodeQueue
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.kv_pool import KVPool, kv_bytes_per_token
from sglang.srt.model.layers.buffers import StepLimits, buffer_bytes
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.llama import Llama
from sglang.srt.model.models.registry import create_model
from sglang.srt.model.models.vision.layers import Encoder
from sglang.srt.model.models.vision.registry import create_encoder
from sglang.srt.model.runner import ModelRunner
from sglang.srt.model.sampling.logprobs import prompt_logprobs
from sglang.srt.model.sampling.sampler import Sampler
from sglang.srt.model.weights.loader import load_checkpoint

logger = logging.getLogger("sglang")


class LocalWorker:
    """One model on one device of this process. Not thread-safe; between `forward` and `sample` other threads may run."""

    def __init__(
        self,
        ops: Ops,
        model: Llama,
        info: ModelInfo,
        capacity: Capacity,
        use_tape: bool = True,
        encoder: Encoder | None = None,
        encoder_cache_bytes: int = 0,
    ) -> None:
        self.info = info
        self._ops = ops
        self._model = model
        self._use_tape = use_tape
        self._limits = StepLimits(capacity.max_batch_tokens, capacity.max_running_requests, capacity.max_logit_rows)
        self._pool = KVPool(ops, model.config, capacity.max_total_tokens)
        self._sampler = Sampler(ops, info.vocab_size, capacity.max_logit_rows)
        self._runner: ModelRunner | None = None
        self._logits = np.empty((0, info.vocab_size), np.float32)
        self._prompt_logprobs: list[LogprobResult] = []
        self._encodings = EncodeQueue(encoder, encoder_cache_bytes) if encoder is not None else None

    def bind(self, req_to_token: Int32Array) -> None:
        self._runner = ModelRunner(self._ops, self._model, self._pool, self._limits, req_to_token, self._use_tape)

    def forward(self, batch: ForwardBatch) -> None:
        assert self._runner is not None, "bind comes first"
        runner = self._runner
        runner.body(batch)
        # Prompt rows first: the rows to sample from must stay in the buffer until `sample`.
        self._prompt_logprobs = prompt_logprobs(self._ops, batch.prompt_logprobs, runner.head, self._limits.max_logit_rows)
        self._logits = runner.head(batch.sample_rows)

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        chosen = self._sampler.sample(self._logits, batch.samples, masks)
        return ForwardOutput(chosen.next_ids, chosen.logprobs, self._prompt_logprobs, chosen.bad_rows)

    def check_item(self, item: MediaItem) -> None:
        assert self._encodings is not None, "the model sees nothing but text"
        self._encodings.check(item)

    def encode(self, item: MediaItem) -> EncodeJob:
        assert self._encodings is not None, "the model sees nothing but text"
        return self._encodings.get(item)

    def encode_some(self, seconds: float) -> bool:
        return self._encodings is not None and self._encodings.run(seconds)


def create_worker(model: ModelOptions, device: DeviceOptions, memory: MemoryOptions) -> LocalWorker:
    """Loads the model. Raises ConfigError, ModelError or CapacityError with one sentence."""
    ops = create_ops(device)
    files = resolve_model(model.model_path, revision=model.revision, download_dir=model.download_dir)
    checkpoint = load_checkpoint(files, model)
    try:
        return worker_from(checkpoint, checkpoint.config, ops, memory, device.use_tape, model.quantization)
    except MemoryError as error:
        raise CapacityError(f"the memory of this machine does not suffice for {model.model_path}") from error


def worker_from(
    source: WeightSource,
    config: ModelConfig,
    ops: Ops,
    memory: MemoryOptions,
    use_tape: bool = True,
    quantization: str | None = None,
) -> LocalWorker:
    """A worker for weights that are at hand."""
    resolve_batch(memory, config.context_len)  # bad flags are found before minutes of loading
    model = create_model(ops, source, config, config.context_len)
    encoder = create_encoder(ops, source, config.vision) if config.vision is not None else None
    weights = [*model.weights, *(encoder.weights if encoder is not None else [])]
    weight_bytes = sum(w.num_bytes for w in weights)
    token_bytes = kv_bytes_per_token(ops, config)
    footprint = ModelFootprint(config.context_len, token_bytes, weight_bytes, ops.slot_run)
    capacity = _plan(config, memory, footprint)
    info = ModelInfo(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        context_len=config.context_len,
        max_total_tokens=capacity.max_total_tokens,
        slot_run=ops.slot_run,
        max_batch_tokens=capacity.max_batch_tokens,
        max_running_requests=capacity.max_running_requests,
        kernels=ops.name,
        deterministic=ops.deterministic,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=token_bytes,
        dtype=config.dtype,
        quantization=quantization,
        num_params=sum(w.out_features * w.in_features for w in weights),
        media_kinds=config.vision.media_kinds if config.vision is not None else (),
        two_way=config.vision is not None and config.vision.two_way,
        rope_axes=3 if config.rope_axes else 1,
    )
    return LocalWorker(ops, model, info, capacity, use_tape, encoder, memory.encoder_cache_bytes)


def _plan(config: ModelConfig, memory: MemoryOptions, footprint: ModelFootprint) -> Capacity:
    running, batch_tokens = resolve_batch(memory, footprint.context_len)
    limits = StepLimits(batch_tokens, running, max(running, MIN_LOGIT_ROWS))
    tables = 4 * running * footprint.context_len  # the scheduler's ReqToToken
    return plan_capacity(memory, footprint, host_memory(), buffer_bytes(config, limits) + tables)


def create_ops(device: DeviceOptions) -> Ops:
    """The kernel set the flags ask for; by default our C++, or NumPy with a warning where that cannot be loaded."""
    if device.device == "cuda" or device.kernels == "cuda":
        raise ConfigError("this version has no CUDA kernels; leave out --device cuda to run on the CPU")
    if device.kernels == "reference":
        return ReferenceOps()
    try:
        from sglang.srt.model.kernels.cpu import CpuOps
    except ImportError as error:
        if device.kernels == "cpu":
            raise ConfigError(
                f"--kernels cpu: the C++ kernels cannot be loaded ({error}); reinstall with a C++ compiler"
            ) from error
        logger.warning(
            "The C++ kernels cannot be loaded (%s). The NumPy reference runs instead: answers are right but 10 to 50 times "
            "slower. Install a C++ compiler and reinstall to change that.",
            error,
        )
        return ReferenceOps()
    return CpuOps(device.threads)
