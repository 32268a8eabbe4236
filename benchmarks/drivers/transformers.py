"""transformers in float32 on the dequantised weights of the GGUF file. Requests of one length run as one batch."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import transformers

from benchmarks.drivers.protocol import main
from benchmarks.workloads import Workload


class Transformers:
    version = transformers.__version__

    def load(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        path = Path(model)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        self._model.eval()

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
