"""A decoder of the transformers library in the place of ours: the same steps, buffers and KV pool.

`body` runs transformers' base model on all rows of a step. `head` runs its class with a head on the rows whose logits are wanted, the
base model being replaced by what it has computed: so scales and caps of the logits are the class's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang.srt.errors import ModelError
from sglang.srt.model.foreign.attention import NAME, Attention, register, seat_layers
from sglang.srt.model.foreign.checkpoint import ForeignCheckpoint, decoder_class
from sglang.srt.model.kernels.ops import KVLayer, Ops, Weight
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.quant.formats import dense


@dataclass
class Parameter:
    """A tensor of torch as a weight: it has a size, and no op reads it."""

    out_features: int
    in_features: int
    num_bytes: int


class ForeignDecoder(Decoder):
    """Called like our decoders. It is not recorded: every step runs transformers' Python."""

    def __init__(self, ops: Ops, source: ForeignCheckpoint, num_positions: int) -> None:
        self.ops, self.config, self.readers = ops, source.config, Readers()
        self._attention = Attention(ops, source.config, num_positions)
        small = ops.pack([dense("unused", np.zeros((1, source.config.hidden_size), np.float32))])
        for kind in (self.readers.attn_in, self.readers.mlp_in, self.readers.head_in):
            kind.append(small)
        self.readers.attn_out.append(self._attention.identity)
        self._model = _load(source)
        seat_layers(self._model, self._attention, source.theirs)
        self._base = self._model.base_model
        self._kept = _replace_base(self._model)
        self._try()

    @property
    def needs_gate_up(self) -> bool:
        return False

    @property
    def weights(self) -> list[Weight]:
        every = {id(p): p for m in (self._model, self._base) for p in m.parameters()}
        return [Parameter(p.numel(), 1, p.numel() * p.element_size()) for p in every.values()]

    def body(self, step: StepBuffers, kv: Sequence[KVLayer]) -> None:
        import torch

        self.ops.finish()  # what the step reads is there
        rows = int(step.rows[0])
        if rows == 0:
            return
        self._attention.bind(step, kv)
        ids, positions = (torch.from_numpy(np.array(a[:rows], np.int64))[None] for a in (step.input_ids, step.positions))
        with torch.inference_mode():
            found = self._base(input_ids=ids, position_ids=positions, use_cache=False, return_dict=True)
        self._kept.rows = found.last_hidden_state

    def head(self, step: StepBuffers) -> None:
        import torch

        self.ops.finish()
        rows = int(step.head_rows[0])
        if rows == 0:
            return
        with torch.inference_mode():
            all_rows = self._kept.rows
            self._kept.rows = all_rows[:, torch.from_numpy(np.array(step.head_row_idx[:rows], np.int64))]
            logits = self._model(input_ids=torch.zeros((1, rows), dtype=torch.int64), use_cache=False, return_dict=True).logits
            self._kept.rows = all_rows
            torch.from_numpy(step.logits)[:rows] = logits[0].float()[:, : step.logits.shape[1]]

    def _try(self) -> None:
        """Two rows, of which attention is only checked. Every layer attends once: others keep more than K and V, or something else.
        Raises ModelError."""
        import torch

        ids = torch.tensor([[0, min(1, self.config.vocab_size - 1)]])
        with torch.inference_mode():
            self._base(input_ids=ids, position_ids=torch.tensor([[0, 1]]), use_cache=False, return_dict=True)
        called, layers = sorted(self._attention.called), list(range(self.config.num_layers))
        if called != layers:
            raise ModelError(
                f"{type(self._model).__name__}: attention of the layers {called} was called, and the config has {len(layers)} "
                "layers: --model-impl transformers cannot serve it"
            )


def _load(source: ForeignCheckpoint) -> Any:
    """transformers' model with its weights in float32. A checkpoint that lacks some is an error."""
    import torch

    register()
    cls = decoder_class(source.theirs)
    try:
        model, info = cls.from_pretrained(
            source.path,
            config=source.theirs,
            dtype=torch.float32,
            attn_implementation=NAME,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"transformers cannot load {source.path}: {(str(error).splitlines() or [''])[0][:300]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.path} lacks the tensor {missing[0]!r} that its config asks for: download or convert it again"
        )
    wrong = info.get("mismatched_keys") or []
    if wrong:
        raise ModelError(f"{source.path}: tensors have other shapes than its config makes them: {str(sorted(wrong)[0])[:200]}")
    return model.eval()


def _replace_base(model: Any) -> Any:
    """Puts a module that returns what it holds (`rows`) in the place of the base model."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Kept(torch.nn.Module):  # type: ignore[misc]
        rows: Any = None

        @property
        def decoder(self) -> Any:
            """Some classes call the decoder inside of their base model."""
            return self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return BaseModelOutputWithPast(last_hidden_state=self.rows)

    kept = Kept()
    setattr(model, model.base_model_prefix, kept)
    return kept
