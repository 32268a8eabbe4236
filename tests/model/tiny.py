"""Tiny random models saved by transformers, and a driver that plays the scheduler's part for a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import AdapterOptions, MemoryOptions, ModelOptions
from sglang.srt.forward_batch import ForwardBatch, ForwardOutput, PromptLogprobs, SampleSpec, StateRows, VocabMasks
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.weights.loader import load_checkpoint
from sglang.srt.model.worker import LocalWorker, worker_from
from sglang.srt.sampling_params import SamplingParams

SIZES = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def randomize(model: Any) -> None:
    """Weights so large that the logits differ by whole numbers; norms and biases are not left at their neutral values."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)


def save_model(folder: Path, family: str, seed: int = 0, **overrides: Any) -> Any:
    """A random float32 model of the family in `folder`; returns the transformers model."""
    import torch
    import transformers

    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma3Text"}[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **overrides})
    torch.manual_seed(seed)
    name = "Gemma3ForCausalLM" if family == "gemma3" else f"{prefix}ForCausalLM"
    model = getattr(transformers, name)(config).float().eval()
    model.set_attn_implementation("eager")  # the other kinds ignore soft caps
    randomize(model)
    model.save_pretrained(folder)
    return model


def open_worker(
    path: Path,
    ops: Ops,
    use_tape: bool = True,
    quantization: Any = None,
    adapters: AdapterOptions | None = None,
    mmproj: str | None = None,
    mm_quantization: Any = None,
    **memory: Any,
) -> LocalWorker:
    """A worker with a small pool."""
    options = ModelOptions(str(path), quantization=quantization, mmproj=mmproj, mm_quantization=mm_quantization)
    checkpoint = load_checkpoint(find_files(options), options)
    limits: dict[str, Any] = {"max_total_tokens": 2048, "max_running_requests": 24, "chunked_prefill_size": 600}
    return worker_from(checkpoint, checkpoint.config, ops, MemoryOptions(**{**limits, **memory}), use_tape, adapters=adapters)


@dataclass
class Seq:
    """One request as the driver keeps it."""

    prompt: list[int]
    spec: SampleSpec
    row: int
    done: int = 0
    """tokens whose K and V are in the pool"""
    output: list[int] = field(default_factory=list)
    slot: int = -1
    """of its adapter"""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.output


class Driver:
    """Gives out rows and slots (position p in a slot with the same p % 16, runs in shuffled order) and builds batches."""

    def __init__(self, worker: LocalWorker, seed: int = 0) -> None:
        self.worker = worker
        info = worker.info
        self.table = np.zeros((info.max_running_requests, info.context_len), np.int32)
        worker.bind(self.table)
        runs = np.random.default_rng(seed).permutation(info.max_total_tokens // 16)
        self._free_runs = [int(r) for r in runs]
        self._num_rows = 0
        self.saves: dict[int, list[tuple[int, int]]] = {}
        """row -> (position, slot) of states to be kept, ascending"""

    def add(self, prompt: list[int], params: SamplingParams | None = None, seed: int = 0, **spec: Any) -> Seq:
        row, self._num_rows = self._num_rows, self._num_rows + 1
        output: list[int] = []
        sample = SampleSpec(params or SamplingParams(temperature=0.0), seed, prompt, output, **spec)
        return Seq(prompt, sample, row, output=output)

    def _slots(self, seq: Seq, end: int) -> None:
        for position in range(seq.done, end):
            if position % 16 == 0:
                start = 16 * self._free_runs.pop()
                self.table[seq.row, position : position + 16] = np.arange(start, start + 16)[: self.table.shape[1] - position]

    def batch(self, parts: list[tuple[Seq, int]], prompt_from: int | None = None, **wanted: Any) -> ForwardBatch:
        """A step of these requests with so many new tokens each; those that reach their end are sampled. With `prompt_from`,
        prompt logprobs of targets from that position on."""
        ids, positions, slots, starts, lengths, seq_lens, sample_rows, samples, prompts = [], [], [], [], [], [], [], [], []
        for i, (seq, count) in enumerate(parts):
            end = seq.done + count
            self._slots(seq, end)
            starts.append(len(ids))
            lengths.append(count)
            seq_lens.append(end)
            if prompt_from is not None:
                first = max(seq.done, prompt_from - 1)
                targets = seq.prompt[first + 1 : end + 1]
                prompts.append(PromptLogprobs(i, len(ids) + first - seq.done, np.array(targets, np.int32), **wanted))
            ids += seq.ids[seq.done : end]
            positions += range(seq.done, end)
            slots += self.table[seq.row, seq.done : end].tolist()
            seq.done = end
            if end == len(seq.ids):
                sample_rows.append(len(ids) - 1)
                samples.append(seq.spec)
        arrays = (ids, positions, slots, [s.row for s, _ in parts], starts, lengths, seq_lens, sample_rows)
        batch = ForwardBatch(*(np.array(a, np.int32) for a in arrays), samples, prompts)
        if any(seq.slot >= 0 for seq, _ in parts):
            batch.row_adapter = np.repeat([seq.slot for seq, _ in parts], lengths).astype(np.int32)
        if self.worker.info.state_slots:
            batch.states = self._states([(seq, seq.done - count) for seq, count in parts])
        return batch

    def _states(self, parts: list[tuple[Seq, int]]) -> StateRows:
        """A slot for each row of the table, and the saves that were asked for."""
        source = [seq.row if start else -1 for seq, start in parts]
        saves = [
            [(at - start, slot) for at, slot in self.saves.get(seq.row, []) if start < at <= seq.done] for seq, start in parts
        ]
        starts = np.cumsum([0, *map(len, saves)])
        arrays = source, [seq.row for seq, _ in parts], starts, *([pair[i] for each in saves for pair in each] for i in (0, 1))
        return StateRows(*(np.array(array, np.int32) for array in arrays))

    def step(self, parts: list[tuple[Seq, int]], masks: VocabMasks | None = None, **wanted: Any) -> ForwardOutput:
        batch = self.batch(parts, **wanted)
        self.worker.forward(batch)
        out = self.worker.sample(batch, masks)
        for spec, token in zip(batch.samples, out.next_ids, strict=True):
            spec.output_ids.append(int(token))
        return out

    def generate(self, seqs: list[Seq], num_tokens: int, chunk: int = 10**6) -> None:
        """All requests together: each extends by up to `chunk` tokens a step, then decodes."""
        while active := [s for s in seqs if len(s.output) < num_tokens]:
            self.step([(s, min(chunk, len(s.ids) - s.done)) for s in active])

    def logits(self, parts: list[tuple[Seq, int]]) -> np.ndarray[Any, Any]:
        """Logits of every row of a step, [num_rows, vocab]."""
        batch = self.batch(parts)
        self.worker.forward(batch)
        runner = self.worker._runner
        assert runner is not None
        block = runner.limits.max_logit_rows
        rows = np.arange(batch.num_tokens, dtype=np.int32)
        fetch = self.worker.ops.fetch  # the next rows take the same memory
        return np.concatenate([np.array(fetch(runner.head(rows[i : i + block])).result()) for i in range(0, len(rows), block)])
