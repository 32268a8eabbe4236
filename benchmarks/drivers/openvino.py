"""OpenVINO GenAI, which reads the GGUF file itself. Several requests go through its continuous batching."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.drivers.protocol import main
from benchmarks.workloads import Workload


class OpenVino:
    version = genai.__version__

    def load(self, model: str, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_batched_tokens = 1024
        scheduler.enable_prefix_caching = True
        self._pipeline = genai.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)

    def run(self, workload: Workload) -> tuple[float, float]:
        config = genai.GenerationConfig(max_new_tokens=workload.num_new, ignore_eos=True, do_sample=False)
        width = max(map(len, workload.prompts))
        ids = np.array([p + [0] * (width - len(p)) for p in workload.prompts], dtype=np.int64)
        mask = np.array([[1] * len(p) + [0] * (width - len(p)) for p in workload.prompts], dtype=np.int64)
        start = time.perf_counter()
        result = self._pipeline.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(mask)), config)
        seconds = time.perf_counter() - start
        return result.perf_metrics.get_ttft().mean / 1000, seconds


if __name__ == "__main__":
    main(OpenVino())
