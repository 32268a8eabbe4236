"""vLLM's CPU build, in float32 on the dequantized weights of a GGUF file of the Llama kind, compiled as it is by default."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; its own default takes half of the machine
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import gguf
import vllm
from safetensors.torch import save_file

from benchmarks.drivers.protocol import main
from benchmarks.drivers.transformers import read_config, read_weights
from benchmarks.workloads import Workload


class Vllm:
    version = vllm.__version__

    def load(self, model: str, threads: int) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        reader = gguf.GGUFReader(model)
        config = read_config(reader)
        config.architectures = ["LlamaForCausalLM"]
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        config.save_pretrained(folder)
        save_file(dict(read_weights(reader, config)), folder / "model.safetensors", metadata={"format": "pt"})
        self._engine = vllm.LLM(str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=8192).llm_engine

    def run(self, workload: Workload) -> tuple[float, float]:
        params = vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=workload.num_new, detokenize=False)
        first = 0.0
        start = time.perf_counter()
        for i, ids in enumerate(workload.prompts):
            self._engine.add_request(f"{workload.name} {start} {i}", {"prompt_token_ids": ids}, params)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            if outputs and not first:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start


if __name__ == "__main__":
    main(Vllm())
