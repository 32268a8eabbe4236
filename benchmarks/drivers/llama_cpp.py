"""llama.cpp through llama-cpp-python's low-level calls: one batch for all sequences, greedy by hand."""

from __future__ import annotations

import ctypes
import time

import llama_cpp
import numpy as np

from benchmarks.drivers.protocol import main
from benchmarks.workloads import Workload

MAX_CONTEXT = 64 * 256 + 1024


class LlamaCpp:
    version = llama_cpp.__version__

    def load(self, model: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = MAX_CONTEXT, 2048, 512, 64
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(2048, 0, 64)

    def run(self, workload: Workload) -> tuple[float, float]:
        llama_cpp.llama_memory_clear(self._memory, True)
        start = time.perf_counter()
        prompts, shared = workload.prompts, 0
        if len(prompts) > 1:
            while len({p[shared] for p in prompts}) == 1:  # a shared prefix is computed once, by hand
                shared += 1
        if shared:
            self._decode([(token, i, 0, False) for i, token in enumerate(prompts[0][:shared])])
            for s in range(1, len(prompts)):
                llama_cpp.llama_memory_seq_cp(self._memory, 0, s, 0, shared)
        last: dict[int, int] = {}
        for s, prompt in enumerate(prompts):
            own = [(token, shared + i, s, shared + i == len(prompt) - 1) for i, token in enumerate(prompt[shared:])]
            last |= self._decode(own)
        first = time.perf_counter() - start
        for step in range(workload.num_new - 1):
            last = self._decode([(last[s], len(prompts[s]) + step, s, True) for s in last])
        return first, time.perf_counter() - start

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Runs (token, position, sequence, wanted) rows. Returns the greedy next token of each wanted row's sequence."""
        found: dict[int, int] = {}
        for at in range(0, len(tokens), 2048):
            part = tokens[at : at + 2048]
            batch = self._batch
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
                batch.seq_id[i][0] = sequence
            if llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError("llama_decode failed")
            for i, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    logits = llama_cpp.llama_get_logits_ith(self._context, i)
                    row = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._num_vocab,))
                    found[sequence] = int(row.argmax())
        return found


if __name__ == "__main__":
    main(LlamaCpp())
