"""The two ends of a model: token ids to rows, and rows to logits. With tied weights both use one packed matrix."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, Ops, Weight
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.layers.norm import create_norm
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig

EMBEDDING = "model.embed_tokens"
POSITIONS = "model.embed_positions"
FINAL_NORM = "model.norm"
LM_HEAD = "lm_head"


class Embedding:
    """x = scale * weight[input_ids]. Returns what is still to be added to x: rows of learnt positions, or nothing."""

    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig) -> None:
        self.ops = ops
        self.weight = ops.pack(
            [source.tensor(f"{EMBEDDING}.weight", (config.vocab_size + config.num_extra_ids, config.hidden_size))]
        )
        self.positions: Weight | None = None
        if config.learned_positions:
            shape = (config.learned_positions, config.hidden_size)
            self.positions = ops.pack([source.tensor(f"{POSITIONS}.weight", shape)])
        self.scale = config.embedding_scale / config.residual_scale

    def __call__(self, step: StepBuffers) -> Array | None:
        self.ops.embedding(self.weight, step.input_ids, step.x, step.rows, scale=self.scale)
        if self.positions is None:
            return None
        self.ops.embedding(self.positions, step.positions, step.delta, step.rows)
        return step.delta


class Head:
    """logits = soft_cap(weight @ norm(x)) for the rows of `head_x`."""

    def __init__(self, ops: Ops, source: WeightSource, config: ModelConfig, embedding: Embedding) -> None:
        self.ops = ops
        self.norm = create_norm(ops, source, FINAL_NORM, config, scale=config.logit_scale)
        self.weight: Weight = embedding.weight
        if not config.tie_word_embeddings:
            self.weight = ops.pack([source.tensor(f"{LM_HEAD}.weight", (config.vocab_size, config.hidden_size))])
        self.soft_cap = config.final_soft_cap

    def __call__(self, step: StepBuffers) -> None:
        self.norm(step.head_x, step.head_in, step.head_rows)
        if step.head_columns is None:
            self.ops.linear(self.weight, step.head_in, step.logits, step.head_rows)
        else:
            self.ops.linear_blocks(self.weight, step.head_in, step.logits, step.head_rows, *step.head_columns)
        if self.soft_cap:
            self.ops.soft_cap(step.logits, step.head_rows, cap=self.soft_cap)
