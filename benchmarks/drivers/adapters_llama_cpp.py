"""Decode steps of llama.cpp with adapters. Runs in llama-cpp-python's environment.

    python -m benchmarks.drivers.adapters_llama_cpp MODEL.gguf THREADS ADAPTER.gguf ...

For each line of stdin, that many steps are measured of one request of the base model, of one with an adapter, and of as many requests as
there are adapters, each with its own. llama.cpp has the adapters of a call for all of its rows, so the last are a call each. Answers a line of
JSON: processor time of a step, in seconds.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp

PROMPT_LEN, FIRST_ID = 64, 1000


@llama_cpp.llama_log_callback
def _nothing(level: int, text: bytes, data: Any) -> None:
    """llama.cpp tells much of every call, which takes its time."""


class LlamaCpp:
    def __init__(self, model: str, threads: int, adapters: list[str]) -> None:
        llama_cpp.llama_log_set(_nothing, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = 256 * (len(adapters) + 1), 512, len(adapters) + 1
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._adapters = [llama_cpp.llama_adapter_lora_init(self._model, path.encode()) for path in adapters]
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        for sequence in range(len(adapters)):
            self._choose(sequence)
            self._decode([(FIRST_ID + i, i) for i in range(PROMPT_LEN)], sequence)

    def _choose(self, adapter: int | None) -> None:
        chosen = [] if adapter is None else [self._adapters[adapter]]
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        llama_cpp.llama_set_adapters_lora(
            self._context, pointers, len(chosen), (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        )

    def _decode(self, tokens: list[tuple[int, int]], sequence: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, i == len(tokens) - 1
            batch.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")

    def seconds(self, adapters: list[int | None], num_steps: int) -> float:
        """Of one step of a request for each of `adapters`."""
        memory = llama_cpp.llama_get_memory(self._context)
        for sequence in range(len(adapters)):
            llama_cpp.llama_memory_seq_rm(memory, sequence, PROMPT_LEN, -1)
        if len(adapters) == 1:
            self._choose(adapters[0])
        began = time.process_time()
        for step in range(num_steps):
            for sequence, adapter in enumerate(adapters):
                if len(adapters) > 1:
                    self._choose(adapter)
                self._decode([(FIRST_ID, PROMPT_LEN + step)], sequence)
        return (time.process_time() - began) / num_steps


def main() -> None:
    model, threads, *adapters = sys.argv[1:]
    engine = LlamaCpp(model, int(threads), adapters)
    for line in sys.stdin:
        steps = int(line)
        found: dict[str, Any] = {"base": engine.seconds([None], steps), "one": engine.seconds([0], steps)}
        found["each"] = engine.seconds(list(range(len(adapters))), steps)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
