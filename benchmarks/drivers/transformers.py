"""transformers in float32 on the dequantized weights of a GGUF file of the Llama kind. Requests of one length run as one batch.

The weights are read with the package `gguf`: transformers' own way wants `accelerate` besides.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import gguf
import torch
import transformers

from benchmarks.drivers.protocol import main
from benchmarks.workloads import Workload

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_config(reader: Any) -> Any:
    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    if reader.fields["general.architecture"].contents() != "llama":
        raise ValueError("this driver reads GGUF files of the Llama kind only")
    return transformers.LlamaConfig(
        vocab_size=int(next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=all(t.name != "output.weight" for t in reader.tensors),
    )


def read_weights(reader: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """Name and values of each tensor; rows of q and k from interleaved back to half-split order."""
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if match and match[2] in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if match[2] == "attn_q" else config.num_key_value_heads
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        name = f"model.layers.{match[1]}.{NAMES[match[2]]}.weight" if match else WHOLE.get(tensor.name)
        if name is not None:
            yield name, torch.from_numpy(values.copy())


class Transformers:
    version = transformers.__version__

    def load(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        reader = gguf.GGUFReader(model)
        config = read_config(reader)
        self._model = transformers.LlamaForCausalLM(config).float().eval()
        self._model.load_state_dict(dict(read_weights(reader, config)), strict=False)
        self._model.tie_weights()

    @torch.inference_mode()
    def run(self, workload: Workload) -> tuple[float, float]:
        ids = torch.tensor(workload.prompts)
        start = time.perf_counter()
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        next_ids = out.logits[:, -1:].argmax(-1)
        first = time.perf_counter() - start
        for _ in range(workload.num_new - 1):
            out = self._model(next_ids, past_key_values=out.past_key_values, use_cache=True)
            next_ids = out.logits[:, -1:].argmax(-1)
        return first, time.perf_counter() - start


if __name__ == "__main__":
    main(Transformers())
