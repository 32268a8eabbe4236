"""Linear layers made of one or more checkpoint matrices.

q, k and v read the same rows, so they become one matrix where their formats allow it:

    one format:       out[:, 0 : q+k+v]  = stacked @ x
    mixed formats:    out[:, 0 : q+k]    = first   @ x         (each run of parts that pack together)
                      out[:, q+k : ...]  = second  @ x
"""

from __future__ import annotations

import numpy as np

from sglang.srt.model.kernels.low_rank import RowAdapters
from sglang.srt.model.kernels.ops import Activation, Array, Ops, Weight
from sglang.srt.model.layers.adapters import AdapterSite
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.quant.formats import HostTensor


class Linear:
    """out = weight @ x (+ bias). `outputs` maps checkpoint names ("...q_proj") to their out_features, in column order. Adapters add to
    it where its `site` has a bank."""

    def __init__(self, ops: Ops, source: WeightSource, outputs: dict[str, int], in_features: int, bias: bool = False) -> None:
        self.ops = ops
        self.site = AdapterSite(ops, outputs, in_features)
        tensors = [source.tensor(f"{name}.weight", (size, in_features)) for name, size in outputs.items()]
        self.weights: list[Weight] = [ops.pack(run) for run in _runs(ops, tensors)]
        self.ends = np.cumsum([w.out_features for w in self.weights]).tolist()
        values = np.concatenate([source.vector(f"{name}.bias") for name in outputs]) if bias else None
        self.biases: list[Array | None] = [
            None if values is None else ops.array(values[end - w.out_features : end])
            for w, end in zip(self.weights, self.ends, strict=True)
        ]

    def __call__(self, x: Activation, out: Array, rows: Array, adapters: RowAdapters | None = None) -> None:
        for weight, end, bias in zip(self.weights, self.ends, self.biases, strict=True):
            columns = out if len(self.weights) == 1 else out[:, end - weight.out_features : end]
            self.ops.linear(weight, x, columns, rows, bias=bias)
        self.site(x, out, adapters)


def _runs(ops: Ops, tensors: list[HostTensor]) -> list[list[HostTensor]]:
    """Neighbours that pack together."""
    runs: list[list[HostTensor]] = []
    for tensor in tensors:
        if runs and ops.can_stack([*runs[-1], tensor]):
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    return runs
