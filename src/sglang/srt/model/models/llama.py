"""Llama 2 and 3, Mistral, SmolLM2, Qwen2, Qwen3: pre-norm layers of attention and gated feed-forward.

    x += attention(norm(x));  x += mlp(norm(x))

What the families differ in (biases, norms over each head of q and k, windows) is in the ModelConfig.
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


class LlamaLayer:
    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, rope: Rope, local: bool, readers: Readers
    ) -> None:
        eps = config.rms_norm_eps
        self.input_norm = RMSNorm(ops, source, f"{prefix}.input_layernorm", eps)
        self.attention = Attention(ops, source, f"{prefix}.self_attn", config, rope, local, readers)
        self.post_attention_norm = RMSNorm(ops, source, f"{prefix}.post_attention_layernorm", eps)
        self.mlp = GatedMLP(ops, source, f"{prefix}.mlp", config, readers)

    def attend(self, step: StepBuffers, kv: KVLayer, delta: Array | None) -> None:
        self.input_norm(step.x, step.attn_in, step.rows, delta=delta)
        self.attention(step, kv, step.delta)

    def feed(self, step: StepBuffers, delta: Array | None) -> None:
        self.post_attention_norm(step.x, step.mlp_in, step.rows, delta=delta)
        self.mlp(step, step.delta)


class Llama(Decoder):
    def create_layer(self, ops: Ops, source: WeightSource, prefix: str, rope: Rope, local: bool) -> Layer:
        return LlamaLayer(ops, source, prefix, self.config, rope, local, self.readers)
