"""Embeddings: a model that turns each text into one vector (forward_batch.Embedder).

    encoder      rows of the last layer, their mean unless its files say otherwise          models/text_encoder.py
    decoder      rows after the final norm, the last unless its files say otherwise         the same bodies that generate
    classifier   of either kind: scores of labels in place of a vector                      classifier.py

Each text attends only to its own rows, so its vector does not depend on the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang.srt.checkpoint.gguf_reader import GGUFFile, open_gguf
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.checkpoint.sentence_files import read_sentence_facts
from sglang.srt.config import DeviceOptions, ModelFiles, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.forward_batch import Embedder, Float32Array, ForwardBatch, ModelInfo
from sglang.srt.model.capacity import Needs, check_room
from sglang.srt.model.classifier import decoder_head, encoder_head
from sglang.srt.model.device import create_ops, device_memory
from sglang.srt.model.kernel_limits import check_decoder, check_encoder
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kv_pool import KVPool
from sglang.srt.model.layers.buffers import StepLimits, create_buffers
from sglang.srt.model.layers.rope import table_bytes
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.registry import create_model
from sglang.srt.model.models.text_encoder import EncoderSource, TextEncoder
from sglang.srt.model.pooling import Pooling, gguf_pooling, read_pooling
from sglang.srt.model.runner import load_step, record_program
from sglang.srt.model.weights.config_reader import is_bare, is_classifier
from sglang.srt.model.weights.families.encoders import find_encoder, read_encoder_config
from sglang.srt.model.weights.families.gguf_encoders import is_gguf_encoder, read_gguf_encoder
from sglang.srt.model.weights.gguf_config import EMBEDDING
from sglang.srt.model.weights.gguf_source import GGUFSource
from sglang.srt.model.weights.loader import load_checkpoint
from sglang.srt.model.weights.repacked.opening import open_store
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource

logger = logging.getLogger("sglang")

MAX_ROWS = 512
"""tokens a decoder computes at once"""
MAX_WHOLE = 8192
"""tokens of a text whose rows see what follows them: they are computed at once"""
POOL_TOKENS = 4096
MAX_GROUP = 64
"""texts a decoder computes together"""


class EncoderEmbedder:
    """An encoder on one device."""

    def __init__(self, model: TextEncoder, pooling: Pooling, info: ModelInfo) -> None:
        self.info = info
        self._model = model
        self._pooling = pooling

    def embed(self, texts: Sequence[Sequence[int]], first_lens: Sequence[int] = ()) -> list[Float32Array]:
        rows = self._model.ops.fetch(self._model.encode(texts, first_lens or [0] * len(texts))).result()
        ends = np.cumsum([len(text) for text in texts])
        return [self._pooling.apply(part) for part in np.split(rows, ends[:-1])]


class DecoderEmbedder:
    """A decoder whose last row is the vector. It keeps no prefixes: slots are handed out anew for every group of texts."""

    def __init__(self, ops: Ops, model: Decoder, pooling: Pooling, info: ModelInfo, use_tape: bool) -> None:
        self.info = info
        self._pooling = pooling
        self._run = ops.slot_run
        self._slots = info.max_total_tokens
        pool = KVPool(ops, model.config, self._slots)
        self._table = np.zeros((MAX_GROUP, info.context_len), np.int32)
        self._is_whole = model.config.bidirectional
        self._limits = StepLimits(info.max_batch_tokens, MAX_GROUP, MAX_GROUP)
        self._step = create_buffers(ops, model.config, model.readers, self._limits, self._table, model.needs_gate_up)
        self._ops = ops
        step, norm = self._step, model.output.norm
        self._rows = ops.empty((info.max_batch_tokens, model.config.hidden_size))

        def compute() -> None:
            model.body(step, pool.layers)
            model.finish(step)
            norm(step.x, self._rows, step.rows)

        self._compute = record_program(ops, compute, use_tape)

    def embed(self, texts: Sequence[Sequence[int]], first_lens: Sequence[int] = ()) -> list[Float32Array]:
        vectors: list[Float32Array] = []
        group: list[Sequence[int]] = []
        used = 0
        for text in texts:
            size = -(-len(text) // self._run) * self._run
            if group and (used + size > self._slots or len(group) == MAX_GROUP):
                vectors += self._embed_group(group)
                group, used = [], 0
            group.append(text)
            used += size
        return vectors + self._embed_group(group)

    def _embed_group(self, texts: list[Sequence[int]]) -> list[Float32Array]:
        """Steps of at most max_batch_tokens rows; a text may take part in several, unless its rows see what follows them."""
        first = 0
        found: list[list[Float32Array]] = [[] for _ in texts]
        for i, text in enumerate(texts):
            self._table[i, : len(text)] = np.arange(first, first + len(text))
            first += -(-len(text) // self._run) * self._run
        parts: list[tuple[int, int, int]] = []
        room = self._limits.max_rows
        for i, text in enumerate(texts):
            start = 0
            if self._is_whole and len(text) > room:
                self._compute_parts(texts, parts, found)
                parts, room = [], self._limits.max_rows
            while start < len(text):
                end = min(start + room, len(text))
                parts.append((i, start, end))
                room -= end - start
                start = end
                if not room:
                    self._compute_parts(texts, parts, found)
                    parts, room = [], self._limits.max_rows
        if parts:
            self._compute_parts(texts, parts, found)
        return [self._pooling.apply(np.concatenate(rows)) for rows in found]

    def _compute_parts(
        self, texts: list[Sequence[int]], parts: list[tuple[int, int, int]], found: list[list[Float32Array]]
    ) -> None:
        lengths = np.array([end - start for _, start, end in parts], np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
        batch = ForwardBatch(
            input_ids=np.concatenate([np.asarray(texts[i][a:b], np.int32) for i, a, b in parts]),
            positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, a, b in parts]),
            out_cache_loc=np.concatenate([self._table[i, a:b] for i, a, b in parts]),
            req_pool_idx=np.array([i for i, _, _ in parts], np.int32),
            q_start=starts,
            q_len=lengths,
            seq_lens=np.array([b for _, _, b in parts], np.int32),
            sample_rows=np.zeros(0, np.int32),
            samples=[],
            row_ends=np.repeat(np.array([b for _, _, b in parts], np.int32), lengths) if self._is_whole else None,
        )
        load_step(self._ops, self._step, batch, self._limits, self._table)
        self._compute()
        rows = self._ops.fetch(self._rows[: batch.num_tokens]).result()
        for (i, a, b), at in zip(parts, starts.tolist(), strict=True):
            if self._pooling.keeps_all:
                found[i].append(rows[at : at + b - a].copy())
            elif self._pooling.modes == ("lasttoken",):
                found[i] = [rows[at + b - a - 1 : at + b - a].copy()]
            elif a == 0:
                found[i] = [rows[at : at + 1].copy()]


def embeds_by_itself(model: ModelOptions) -> bool:
    """Whether the model can do nothing else. Raises ModelError if there is no such model."""
    files = find_files(model)
    if files.kind != "folder":
        file = open_gguf(files.path)
        return is_gguf_encoder(file) or file.metadata.get("general.architecture") in EMBEDDING
    return find_encoder(files.path) is not None or is_bare(files.path) or is_classifier(files.path)


def create_embedder(model: ModelOptions, device: DeviceOptions) -> Embedder:
    """Loads the model. Raises ConfigError or ModelError with one sentence."""
    ops = create_ops(device)
    files = find_files(model)
    if files.kind == "folder" and find_encoder(files.path) is not None:
        return _create_encoder(ops, files, model, None)
    if files.kind == "gguf" and is_gguf_encoder(file := open_gguf(files.path)):
        return _create_encoder(ops, files, model, file)
    return _create_decoder(ops, files, replace(model, is_embedding=True), device.use_tape)


def _create_encoder(ops: Ops, files: ModelFiles, options: ModelOptions, file: GGUFFile | None) -> EncoderEmbedder:
    """`file`: of a model in GGUF."""
    form = "safetensors" if file is None else "gguf"
    if options.quantization or options.stored_quantization or options.load_format not in ("auto", form):
        raise ModelError(f"{files.name} is an encoder: it is read from {form} as it is, without --quantization")
    overrides = options.json_model_override_args
    config = read_encoder_config(files.path, overrides) if file is None else read_gguf_encoder(file, overrides)
    context_len = _text_len(files, options, config.context_len)
    check_encoder(ops, config.hidden_size, config.head_dim)
    tensors = SafetensorsSource(files.path) if file is None else GGUFSource(file)
    encoder = TextEncoder(ops, EncoderSource(tensors, config), config)
    if file is not None:
        pooling = gguf_pooling(file.metadata, config.hidden_size)
    elif config.num_labels:
        pooling = encoder_head(files.path, config)
    else:
        pooling = read_pooling(files.path, "mean", config.hidden_size)
    weight_bytes = sum(weight.num_bytes for weight in encoder.weights)
    info = ModelInfo(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        context_len=context_len,
        max_total_tokens=context_len,
        slot_run=1,
        max_batch_tokens=max(MAX_ROWS, context_len),
        max_running_requests=MAX_GROUP,
        kernels=ops.name,
        deterministic=ops.deterministic,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=0,
        embedding_dim=pooling.dim,
        num_labels=config.num_labels,
    )
    return EncoderEmbedder(encoder, pooling, info)


def _text_len(files: ModelFiles, options: ModelOptions, most: int) -> int:
    """The most tokens of a text: the operator's limit, else the folder's."""
    asked = options.context_length
    if asked is None and files.kind == "folder":
        asked = read_sentence_facts(files.path).max_len
    return min(asked or most, most)


def _create_decoder(ops: Ops, files: ModelFiles, options: ModelOptions, use_tape: bool) -> DecoderEmbedder:
    checkpoint = load_checkpoint(files, options)
    config, most = checkpoint.config, checkpoint.config.context_len
    config = replace(config, context_len=_text_len(files, options, min(most, MAX_WHOLE) if config.bidirectional else most))
    if config.vision is not None:
        raise ModelError(f"{files.name} is a vision-language model, whose embeddings are not supported")
    if config.recurrent is not None:
        raise ModelError(f"{files.name} has recurrent layers, and embeddings of such models are not supported")
    judges = files.kind == "folder" and is_classifier(files.path)
    if judges:
        pooling = decoder_head(files.path, config.hidden_size)
    elif files.kind == "folder":
        pooling = read_pooling(files.path, "mean" if config.bidirectional else "lasttoken", config.hidden_size)
    else:
        file = open_gguf(files.path)
        pooling = gguf_pooling(file.metadata, config.hidden_size, file.tensors)
    check_decoder(ops, config)
    tables = table_bytes(config) + 4 * MAX_GROUP * config.context_len
    needs = Needs(checkpoint.packed_bytes(ops.packed_bits), 0, tables, config.context_len, 0, 0)
    check_room(files.name, needs, device_memory(ops), {})
    store = open_store(ops, files, options)
    checkpoint.kept = store.open() if store is not None else None
    model = create_model(ops, checkpoint, config, config.context_len)
    if store is not None:
        store.keep()
    pool = -(-max(POOL_TOKENS, config.context_len) // ops.slot_run) * ops.slot_run
    info = ModelInfo(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        context_len=config.context_len,
        max_total_tokens=pool,
        slot_run=ops.slot_run,
        max_batch_tokens=max(MAX_ROWS, config.context_len if config.bidirectional else 0),
        max_running_requests=MAX_GROUP,
        kernels=ops.name,
        deterministic=ops.deterministic,
        weight_bytes=sum(weight.num_bytes for weight in model.weights),
        kv_bytes_per_token=0,
        dtype=config.dtype,
        quantization=options.quantization,
        embedding_dim=pooling.dim,
        num_labels=pooling.dim if judges else 0,
    )
    return DecoderEmbedder(ops, model, pooling, info, use_tape)
