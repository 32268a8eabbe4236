"""The tensors of a GGUF file under Hugging Face's names and in Hugging Face's row order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.formats import HostTensor

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_WITH_POST_NORMS = {**_LAYER, "ffn_norm": "pre_feedforward_layernorm"}

RELEASE_BYTES = 16 << 20
"""how much of the file may lie in memory beside the weights made of it"""

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def hugging_face_name(name: str, post_norms: bool = False) -> str:
    """A GGUF tensor's name as Hugging Face has it; names that GGUF alone has stay as they are."""
    match = _BLOCK.fullmatch(name)
    if match:
        layer, stem, kind = match.groups()
        renamed = (_LAYER_WITH_POST_NORMS if post_norms else _LAYER).get(stem)
        return f"model.layers.{layer}.{renamed}.{kind}" if renamed else name
    stem, _, kind = name.rpartition(".")
    return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE else name


class GGUFSource:
    """A GGUF file as a source of tensors.

    Arch "llama" stores the rows of q and k for interleaved rotation (pairs 2j, 2j + 1); they are put back into the half-split
    order (pairs j, j + d/2) that all our kernels rotate by. Whole rows move, so block formats stay as they are.
    """

    def __init__(self, gguf: GGUFFile, config: ModelConfig) -> None:
        self.path = gguf.path
        self._gguf = gguf
        self._names = {hugging_face_name(name, config.post_norms): name for name in gguf.tensors}
        self._head_dim = config.head_dim if config.architecture == "llama" else 0
        self._num_read = 0

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._gguf.tensors[self._names[name]].shape

    def format(self, name: str) -> str:
        return self._gguf.tensors[self._names[name]].format

    def where(self, name: str) -> Path:
        return self.path

    def read(self, name: str) -> HostTensor:
        stored = self._gguf.tensors[self._names[name]]
        self._num_read += stored.data.nbytes
        if self._num_read > RELEASE_BYTES:
            self._gguf.release()
            self._num_read = 0
        tensor = HostTensor(name, stored.format, stored.shape, stored.data)
        if self._head_dim and (".self_attn.q_proj." in name or ".self_attn.k_proj." in name):
            return tensor.take_rows(_half_split_rows(stored.shape[0], self._head_dim))
        return tensor


def _half_split_rows(num_rows: int, head_dim: int) -> npt.NDArray[np.intp]:
    """For each half-split row, the interleaved row it is stored in: (half h, element j) of a head lies at 2j + h."""
    rows: npt.NDArray[np.intp] = np.arange(num_rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).ravel()
    return rows
