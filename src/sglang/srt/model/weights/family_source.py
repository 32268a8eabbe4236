"""A checkpoint under the decoder's names: tensors of a family are renamed, fused matrices are split, and rows in another order are
permuted (model_config.TensorLayout).

    stored                                              shown
    model.layers.0.self_attn.qkv_proj.weight            ...q_proj.weight, ...k_proj.weight, ...v_proj.weight
    transformer.h.0.ln_1.bias                           model.layers.0.input_layernorm.bias
    blk.0.attn_norm.weight (GGUF)                       model.layers.0.input_layernorm.weight

Only whole rows are moved, so quantized matrices keep their blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import DeltaConfig, ModelConfig, TensorLayout
from sglang.srt.model.quant.formats import HostTensor, dense
from sglang.srt.model.weights.tensor_source import TensorSource, index_of

Rows = npt.NDArray[np.intp]

DENSE = ("f32", "f16", "bf16")
CORRECTION = ".e_score_correction_bias"
"""some files have it as a matrix of one row"""
ONE_ROW = ".shared_expert_gate.weight"
"""some files have it as a vector"""
FLAT = (".mixer.D", ".mixer.gate_scale.weight")
"""GGUF files have a matrix of one column, or of a row for each group"""
DECAY = ".mixer.A_log"
CONVOLUTION = ".mixer.conv.weight"
"""files have one matrix of one row for each channel"""
_NUMBER = re.compile(r"\.(\d+)\.")
_ROTATED = (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.q_norm", ".self_attn.k_norm")


@dataclass(frozen=True)
class Part:
    """The place of a tensor: a stored tensor and, if that holds several, the number of this one. `stacked`: stored tensors of
    one row each that make it up. `expert`: the first index in a tensor of all experts."""

    stored: str
    index: int = 0
    names: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    expert: int | None = None


class FamilySource:
    """`inner` as the decoder reads it."""

    def __init__(self, inner: TensorSource, config: ModelConfig) -> None:
        self.path = inner.path
        self._inner = inner
        self._config = config
        self._layout = config.layout
        self._turns = self._layout.turned_banks is True or (bool(self._layout.turned_banks) and self._down_lies_turned())
        self._parts = dict(_stack(_parts(inner.names, config)))
        self._last: tuple[str, HostTensor] | None = None

    @property
    def names(self) -> list[str]:
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape. For a part of a matrix that lacks rows: the matrix's shape, which is what is wrong."""
        part = self._parts[name]
        stored = self._inner.shape(part.stored)
        if part.expert is not None:
            return self._of_expert(part, stored)
        if name.endswith((CORRECTION, *FLAT)):
            return (math.prod(stored),)
        if name.endswith(ONE_ROW) and len(stored) == 1:
            return (1, *stored)
        if name.endswith(DECAY) and len(stored) == 2 and stored[1] == 1:
            return stored[:1]
        if name.endswith(CONVOLUTION) and len(stored) == 3 and stored[1] == 1:
            return (stored[0], stored[2])
        if part.stacked:
            return (len(part.stacked), *stored)
        if self._is_transposed(name) and len(stored) == 2:
            stored = stored[::-1]
        if not part.names or stored[0] != sum(self._sizes(part)):
            return stored
        return (self._sizes(part)[part.index], *stored[1:])

    def stored(self, name: str) -> str:
        """The tensor of `inner` that this one is, or a part of."""
        return self._parts[name].stored

    def format(self, name: str) -> str:
        return self._inner.format(self._parts[name].stored)

    def where(self, name: str) -> Path:
        return self._inner.where(self._parts[name].stored)

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index)

    def read(self, name: str) -> HostTensor:
        part = self._parts[name]
        if part.expert is not None:
            return self._read_expert(name, part, part.expert)
        tensor = replace(self._read(part), name=name)
        if name.endswith((CORRECTION, ONE_ROW, CONVOLUTION, DECAY, *FLAT)):
            values = tensor.dequantize().reshape(self.shape(name))
            return dense(name, self._logarithm(name, values) if self._layout.decays and name.endswith(DECAY) else values)
        if self._is_transposed(name) and len(tensor.shape) == 2:
            tensor = HostTensor(name, tensor.format, tensor.shape[::-1], np.ascontiguousarray(tensor.data.T))
        if part.names:
            sizes = self._sizes(part)
            if self._layout.grouped_qkv and len(part.names) == 3:
                tensor = tensor.take_rows(self._grouped(part.index))
            elif part.names in MIXED:
                tensor = tensor.take_rows(mixed_rows(self._config, part.names[0], part.index))
            else:
                start = sum(sizes[: part.index])
                tensor = tensor.slice_rows(start, start + sizes[part.index])
        if self._layout.interleaved and name.rpartition(".")[0].endswith(_ROTATED):
            tensor = self._half_split(tensor)
        return tensor

    def _logarithm(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not (values < 0).all():
            raise ModelError(f"{self.where(name)}: tensor {self.stored(name)!r} must hold negative numbers")
        result: npt.NDArray[np.float32] = np.log(-values)
        return result

    def _of_expert(self, part: Part, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an expert's part. Of a tensor that does not divide: its own, which is what is wrong."""
        experts, count = self._config.experts, len(part.names)
        if not count:
            return stored[1:]
        if self._is_turned(part, stored):
            stored = (stored[0], stored[2], stored[1])
        if experts is None or len(stored) < 2 or stored[0] != experts.count or stored[1] % count:
            return stored
        return (stored[1] // count, *stored[2:])

    def _down_lies_turned(self) -> bool:
        name = next((name for name in self._inner.names if name.endswith(".experts.down_proj")), None)
        experts = self._config.experts
        rows = (self._config.hidden_size, experts.width if experts is not None else 0)
        return name is not None and self._inner.shape(name)[1:] != rows

    def _is_turned(self, part: Part, stored: tuple[int, ...]) -> bool:
        return self._turns and len(stored) == 3 and self._inner.format(part.stored) in DENSE

    def _read_expert(self, name: str, part: Part, expert: int) -> HostTensor:
        tensor = self._inner.read_index(part.stored, expert)
        if self._is_turned(part, self._inner.shape(part.stored)):
            tensor = HostTensor(name, tensor.format, tensor.shape[::-1], tensor.data.T)
        if not part.names:
            return replace(tensor, name=name)
        count, rows = len(part.names), np.arange(tensor.shape[0])
        if self._layout.alternating_banks and count > 1:
            return replace(tensor.take_rows(rows[part.index :: count]), name=name)
        per = len(rows) // count
        return replace(tensor.slice_rows(part.index * per, (part.index + 1) * per), name=name)

    def _read(self, part: Part) -> HostTensor:
        """The parts of a matrix are asked for one after another."""
        if part.stacked:
            rows = [self._inner.read(stored).dequantize() for stored in part.stacked]
            return dense(part.stored, np.stack(rows))
        if not part.names:
            return self._inner.read(part.stored)
        if self._last is None or self._last[0] != part.stored:
            self._last = part.stored, self._inner.read(part.stored)
        tensor = self._last[1]
        if part.index == len(part.names) - 1:
            self._last = None
        return tensor

    def _is_transposed(self, name: str) -> bool:
        return self._layout.transposed and ".layers." in name

    def _sizes(self, part: Part) -> list[int]:
        """Rows of each of the parts of a stored matrix."""
        config = self._config
        rows = {"q_proj": config.num_heads * config.head_dim, "k_proj": config.num_kv_heads * config.head_dim}
        shared = config.experts is not None and part.names[0].startswith("mlp.shared_experts.")
        inner = config.experts.shared_width if shared and config.experts is not None else config.intermediate_size
        rows |= {"v_proj": rows["k_proj"], "gate_proj": inner, "up_proj": inner, "q_gate": rows["q_proj"]}
        mixer = config.recurrent.mixer if config.recurrent is not None else None
        if isinstance(mixer, DeltaConfig):
            rows |= {"in_qkv": mixer.conv_width, "in_z": mixer.v_width, "in_b": mixer.num_v_heads, "in_a": mixer.num_v_heads}
        return [rows[name.rpartition(".")[2]] for name in part.names]

    def _grouped(self, index: int) -> Rows:
        """Rows of q (0), k (1) or v (2) among those of a matrix that has them head by head."""
        config = self._config
        group = config.num_heads // config.num_kv_heads
        rows = np.arange((config.num_heads + 2 * config.num_kv_heads) * config.head_dim)
        by_head = rows.reshape(config.num_kv_heads, group + 2, config.head_dim)
        return (by_head[:, :group] if index == 0 else by_head[:, group + index - 1]).ravel()

    def _half_split(self, tensor: HostTensor) -> HostTensor:
        """Rows (of norms over heads: values) from pairs 2j, 2j + 1 to pairs j, j + d / 2, over the part of a head that rotates."""
        order, dim = half_split(self._config.head_dim, self._config.rope.rotary_dim), self._config.head_dim
        if "_norm." in tensor.name and len(tensor.shape) == 2:
            return dense(tensor.name, tensor.dequantize()[:, order])
        heads = np.arange(tensor.shape[0]).reshape(-1, dim)
        return tensor.take_rows(heads[:, order].ravel())


MIXED = (("self_attn.q_proj", "self_attn.q_gate"), ("mixer.in_qkv", "mixer.in_z"), ("mixer.in_b", "mixer.in_a"))
"""modules whose rows take turns, head by head, in one stored matrix (Qwen3-Next)"""


def mixed_rows(config: ModelConfig, first: str, index: int) -> Rows:
    """Rows of the module of this index among those of a matrix that has, for each head, some of each."""
    if first == "self_attn.q_proj":  # with q_gate
        return np.arange(2 * config.num_heads * config.head_dim).reshape(config.num_heads, 2, -1)[:, index].ravel()
    assert config.recurrent is not None and isinstance(config.recurrent.mixer, DeltaConfig)
    mixer = config.recurrent.mixer
    group = mixer.num_v_heads // mixer.num_k_heads
    if first == "mixer.in_b":  # with in_a
        return np.arange(2 * mixer.num_v_heads).reshape(mixer.num_k_heads, 2, group)[:, index].ravel()
    of_head = np.cumsum([mixer.k_dim, mixer.k_dim, group * mixer.v_dim, group * mixer.v_dim])
    parts = np.split(np.arange(mixer.num_k_heads * of_head[-1]).reshape(mixer.num_k_heads, -1), of_head[:-1], axis=1)
    return np.concatenate([part.ravel() for part in (parts[:3] if index == 0 else parts[3:])])


def half_split(head_dim: int, rotary_dim: int) -> Rows:
    """For each element of a head in half-split order, where it is in an interleaved one: (half h, element j) lies at 2j + h."""
    order: Rows = np.arange(head_dim)
    order[:rotary_dim] = np.arange(rotary_dim).reshape(-1, 2).T.ravel()
    return order


def _parts(stored: list[str], config: ModelConfig) -> Iterator[tuple[str, Part]]:
    layout = config.layout
    root = layout.root if any(name.startswith(f"{layout.root}{layout.layers}.") for name in stored) else ""
    in_layer = re.compile(rf"{re.escape(root + layout.layers)}\.(\d+)\.(?:(.+)\.)?(\w+)")
    for name in stored:
        match = in_layer.fullmatch(name)
        if match is not None and match.group(3) in layout.tensors and not match.group(2):
            yield f"model.layers.{match.group(1)}.{layout.tensors[match.group(3)]}", Part(name)
            continue
        if match is None or not match.group(2):
            if name in layout.stacks:
                count = config.streams.count - 1 if config.streams is not None else 0
                yield from ((layout.stacks[name].replace("*", str(i)), Part(name, expert=i)) for i in range(count))
                continue
            yield _whole(name, root, layout), Part(name)
            continue
        layer, module, kind = match.groups()
        if f"{module}.{kind}" in layout.banks:
            yield from _bank(name, f"model.layers.{layer}.mlp.experts", layout.banks[f"{module}.{kind}"], config)
            continue
        if f"{module}.{kind}" in layout.tensors:
            yield f"model.layers.{layer}.{layout.tensors[f'{module}.{kind}']}", Part(name)
            continue
        found = _module(module, layout)
        if found is None:  # nothing that GGUF files of this family are known to have
            yield name, Part(name)
            continue
        names = (found,) if isinstance(found, str) else found
        for i, our_module in enumerate(names):
            yield f"model.layers.{layer}.{our_module}.{kind}", Part(name, i, names if len(names) > 1 else ())


def _module(stored: str, layout: TensorLayout) -> str | tuple[str, ...] | None:
    """Ours of a stored one. A number in its name may be a * in the layout, and is then one in ours."""
    head, _, number = stored.rpartition(".")
    if number.isdecimal() and head in layout.modules:
        return f"{layout.modules[head]}.{number}"
    numbered = _NUMBER.search(stored)
    if numbered is not None and stored not in layout.modules:
        found = layout.modules.get(_NUMBER.sub(".*.", stored))
        if isinstance(found, str):
            return found.replace("*", numbered.group(1))
    return layout.modules.get(stored, stored if layout.root else None)


def _bank(stored: str, prefix: str, modules: tuple[str, ...], config: ModelConfig) -> Iterator[tuple[str, Part]]:
    kind = "bias" if stored.endswith("bias") else "weight"
    for expert in range(config.experts.count if config.experts is not None else 0):
        for i, module in enumerate(modules):
            yield f"{prefix}.{expert}.{module}.{kind}", Part(stored, i, modules, expert=expert)


def _whole(name: str, root: str, layout: TensorLayout) -> str:
    """Our name of a tensor of no layer."""
    stem, _, kind = name.rpartition(".")
    bare = stem.removeprefix(root)
    if bare in layout.whole:
        return f"{layout.whole[bare]}.{kind}"
    if layout.root and stem.startswith(layout.root):
        return f"model.{name.removeprefix(layout.root)}"
    if stem.startswith(layout.root) or stem == "lm_head" or not stem:
        return name
    return f"model.{name}" if not root else name


_STACKED = re.compile(r"(.*_norm)\.(\d+)\.weight")


def _stack(parts: Iterator[tuple[str, Part]]) -> Iterator[tuple[str, Part]]:
    """Norms of single heads become one matrix."""
    stacks: dict[str, dict[int, str]] = {}
    for name, part in parts:
        match = _STACKED.fullmatch(name)
        if match is None:
            yield name, part
        else:
            stacks.setdefault(f"{match.group(1)}.weight", {})[int(match.group(2))] = part.stored
    for name, found in stacks.items():
        rows = tuple(found[i] for i in sorted(found))
        yield name, Part(rows[0], stacked=rows)


_GGUF_WHOLE = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "output_norm": "model.norm",
    "token_embd_norm": "model.norm",  # so LFM2 calls its last norm
    "output": "lm_head",
}
_GGUF_STACKS = {
    "altup_proj.weight": "model.altup_projections.*.weight",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.*.weight",
}
_GGUF_TENSORS = {
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "attn_sinks.weight": "self_attn.sinks",
    "layer_output_scale.weight": "layer_scalar",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "ffn_gate_inp.scale": "mlp.router_norm.weight",
    "ffn_down_exps.scale": "mlp.gate.expert_scale",
    "ffn_norm": "post_attention_layernorm.weight",  # so Falcon-H1's files call it
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_norm.weight": "mixer.gate_scale.weight",
}
_GGUF_BANKS = {
    f"ffn_{stem}_exps.{kind}": (module,)
    for stem, module in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj"))
    for kind in ("weight", "bias")
} | {"ffn_gate_up_exps.weight": ("gate_proj", "up_proj")}


def gguf_layout(modules: Mapping[str, str | tuple[str, ...]], interleaved: bool) -> TensorLayout:
    """Tensor names of a GGUF file. `modules`: of a layer."""
    return TensorLayout(
        "",
        _GGUF_WHOLE,
        "blk",
        modules,
        _GGUF_TENSORS,
        _GGUF_BANKS,
        stacks=_GGUF_STACKS,
        interleaved=interleaved,
        decays=True,
    )
