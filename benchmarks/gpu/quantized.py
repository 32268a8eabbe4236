"""Decode steps of the 7B shape with weights of 4 and 8 bits, beside bfloat16. Weights are random and made on the device: nothing is
quantized or moved."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.shapes import QWEN25_7B, tiny_of, write_model
from benchmarks.gpu.steps import Bench, Sizes, decode, memory_for
from sglang.srt.model.kernels.cuda.ops import CudaOps
from sglang.srt.model.kernels.cuda.weights import FORM, CudaWeight
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.quant.formats import FORMATS, HostTensor
from sglang.srt.model.weights.config_reader import read_model_config
from sglang.srt.model.weights.shapes import expected_shapes
from sglang.srt.model.worker import LocalWorker, worker_from

FULL = Sizes((1, 16, 64), 1024, 1, 512, 1, 8, 1, 1)
SMALL = Sizes((1, 3), 24, 1, 24, 1, 1, 1, 1, 1)
WEIGHTS = {"bfloat16": ("bf16", "bf16"), "int8": ("q8_0", "q8_0"), "int4": ("q4_1", "q8_0")}
"""formats of the layers' matrices, and of embedding and head, as `--quantization` makes them"""


class HollowSource:
    """A WeightSource of shapes and formats: matrices have no data."""

    def __init__(self, config: ModelConfig, formats: tuple[str, str]) -> None:
        self._shapes, self._formats = expected_shapes(config), formats

    def has(self, name: str) -> bool:
        return name in self._shapes

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        return HostTensor(name, self._formats[".layers." not in name], self._shapes[name], np.empty(0, np.uint8))

    def vector(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.full(self._shapes[name], 0.0 if name.endswith(".bias") else 1.0, np.float32)


class RandomOps(CudaOps):
    """Packs random numbers of what it is given the shapes of."""

    def pack(self, parts: Sequence[HostTensor]) -> CudaWeight:
        n, k = sum(part.shape[0] for part in parts), parts[0].shape[1]
        form, group, has_minima = FORM[parts[0].format]
        if form == "dense":
            return CudaWeight(form, (n, k), torch.empty((n, k), dtype=self.dtype, device=self.device).normal_(0, 0.02))
        low, width, kind = (0, k // 2, torch.uint8) if form == "int4" else (-128, k, torch.int8)
        data = torch.randint(low, low + 256, (n, width), dtype=kind, device=self.device)
        scale_type = torch.float32 if self.dtype == torch.float32 else torch.float16
        scales = torch.full((n, k // group), 0.04 / (16 if form == "int4" else 256), dtype=scale_type, device=self.device)
        return CudaWeight(form, (n, k), data, scales, scales * -7.5 if has_minima else None, group)


def quantized(device: str, tiny: bool, graphs: bool, machine: dict[str, float], folder: Path) -> Iterator[dict[str, Any]]:
    """A finding for each kind of weights and batch: steps.decode's, and how much longer bfloat16 takes."""
    sizes, shape = (SMALL, tiny_of(QWEN25_7B)) if tiny else (FULL, QWEN25_7B)
    path = write_model(folder / "7b", shape)
    plain: dict[int, float] = {}
    for name, formats in WEIGHTS.items():
        worker = _worker(path, device, formats, sizes, graphs, shape["dtype"])
        bits = [8 * FORMATS[f].block_bytes / FORMATS[f].block_len for f in formats]
        bench = Bench(worker, shape, sizes, (bits[0], bits[1]))
        bench.bind()
        for num_reqs in sizes.batches:
            found = decode(bench, machine, num_reqs)
            plain.setdefault(num_reqs, found["step_ms"])
            yield {"weights": name, **found, "times_bfloat16": plain[num_reqs] / found["step_ms"]}
        yield {"products": name, "measured": worker.ops._products.measured()}  # type: ignore[attr-defined]
        del worker, bench
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _worker(path: Path, device: str, formats: tuple[str, str], sizes: Sizes, graphs: bool, dtype: str) -> LocalWorker:
    config, ops, memory = read_model_config(path, {}), RandomOps(device, dtype), memory_for(sizes)
    worker = worker_from(HollowSource(config, formats), config, ops, memory)  # type: ignore[arg-type]
    worker.info = replace(worker.info, graph_max_reqs=(memory.max_running_requests or 0) if graphs else 0)
    return worker
