"""Gemma 3 (text): norms after each sublayer as well as before, norms over q and k, a scaled embedding, and layers of which
most see only a window (with a rope base of their own).

    x += norm(attention(norm(x)));  x += norm(mlp(norm(x)))
"""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, KVLayer, Ops
from sglang.srt.model.layers.attention import Attention
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.mlp import GatedMLP
from sglang.srt.model.layers.norm import RMSNorm
from sglang.srt.model.layers.rope import Rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder, Layer


class Gemma3Layer:
    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, rope: Rope, local: bool, readers: Readers
    ) -> None:
        def norm(name: str) -> RMSNorm:
            return RMSNorm(ops, source, f"{prefix}.{name}_layernorm", config.rms_norm_eps)

        self.input_norm = norm("input")
        self.attention = Attention(ops, source, f"{prefix}.self_attn", config, rope, local, readers)
        self.post_attention_norm = norm("post_attention")
        self.pre_mlp_norm = norm("pre_feedforward")
        self.mlp = GatedMLP(ops, source, f"{prefix}.mlp", config, readers)
        self.post_mlp_norm = norm("post_feedforward")

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        self.input_norm(step.x, step.attn_in, step.rows, delta=delta)
        self.attention(step, kv, step.branch)
        self.post_attention_norm(step.branch, step.delta, step.rows)

    def feed(self, step: StepBuffers, delta: Array | None) -> None:
        self.pre_mlp_norm(step.x, step.mlp_in, step.rows, delta=delta)
        self.mlp(step, step.branch)
        self.post_mlp_norm(step.branch, step.delta, step.rows)


class Gemma3(Decoder):
    def create_layer(self, ops: Ops, source: WeightSource, prefix: str, rope: Rope, local: bool) -> Layer:
        return Gemma3Layer(ops, source, prefix, self.config, rope, local, self.readers)
