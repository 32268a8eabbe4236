"""W5 on llama.cpp: its own grammar, eight sequences in a batch. Runs in llama-cpp-python's environment.

    python -m benchmarks.drivers.w5_llama_cpp MODEL.gguf THREADS < job.json

The grammar is asked about the greedy token first, as llama.cpp's own sampler does, and masks the vocabulary only where that
token is not allowed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

CONTEXT = 8 * 512


class Engine:
    """One context with room for eight sequences."""

    def __init__(self, model: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, 2048, 512, 8
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.num_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 8)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, wanted) rows; the indices of the wanted ones."""
        batch, wanted = self.batch, []
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, want) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, want
            batch.seq_id[i][0] = sequence
            if want:
                wanted.append(i)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return wanted

    def choose(self, row: int, grammar: Any) -> int:
        """The best token that the grammar allows."""
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), (self.num_vocab,))
        best = int(logits.argmax())
        if self._allowed(grammar, np.array([best]), logits) == [best]:
            return best
        allowed = self._allowed(grammar, np.arange(self.num_vocab), logits)
        return max(allowed, key=lambda token: logits[token])

    def _allowed(self, grammar: Any, ids: Any, logits: Any) -> list[int]:
        data = (llama_cpp.llama_token_data * len(ids))()
        view = np.ctypeslib.as_array(data)
        view["id"], view["logit"], view["p"] = ids, logits[ids], 0.0
        array = llama_cpp.llama_token_data_array(data=data, size=len(ids), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(grammar, array)
        return [int(i) for i in view["id"][np.isfinite(view["logit"])]]

    def run(self, prompts: list[list[int]], grammar_text: str, num_new: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        text = grammar_text.encode()
        grammars = [llama_cpp.llama_sampler_init_grammar(self.vocab, text, b"root") for _ in prompts]
        outs: list[list[int]] = [[] for _ in prompts]
        live = list(range(len(prompts)))
        rows = [(t, p, s, p == len(ids) - 1) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        while live:
            following = []
            for sequence, row in zip(live, self.decode(rows), strict=True):
                token = self.choose(row, grammars[sequence])
                if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                    continue
                llama_cpp.llama_sampler_accept(grammars[sequence], token)
                outs[sequence].append(token)
                if len(outs[sequence]) < num_new:
                    following.append(sequence)
            live = following
            rows = [(outs[s][-1], len(prompts[s]) + len(outs[s]) - 1, s, True) for s in live]
        for grammar in grammars:
            llama_cpp.llama_sampler_free(grammar)
        return outs


def main() -> None:
    engine = Engine(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        outs = engine.run(job["prompts"], json_schema_to_gbnf(json.dumps(job["schema"])), job["num_new"])
        print(json.dumps({"seconds": time.perf_counter() - start, "ids": outs}), flush=True)


if __name__ == "__main__":
    main()
