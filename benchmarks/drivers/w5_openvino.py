"""W5 on OpenVINO GenAI: structured output through its own xgrammar, continuous batching. Runs in OpenVINO's environment.

python -m benchmarks.drivers.w5_openvino MODEL.gguf THREADS < job.json
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai


def main() -> None:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = genai.LLMPipeline(sys.argv[1], "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=int(sys.argv[2]))
    for line in sys.stdin:
        job = json.loads(line)
        config = genai.GenerationConfig(max_new_tokens=job["num_new"], do_sample=False)
        config.structured_output_config = genai.StructuredOutputConfig(json_schema=json.dumps(job["schema"]))
        prompts = job["prompts"]
        width = max(map(len, prompts))
        ids = np.array([[0] * (width - len(p)) + p for p in prompts], dtype=np.int64)
        mask = np.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts], dtype=np.int64)
        start = time.perf_counter()
        result = pipeline.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(mask)), config)
        print(
            json.dumps({"seconds": time.perf_counter() - start, "ids": [list(map(int, t)) for t in result.tokens]}), flush=True
        )


if __name__ == "__main__":
    main()
