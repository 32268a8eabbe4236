"""This project, in-process through `sglang.Engine`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import sglang
from benchmarks.drivers.protocol import main
from benchmarks.workloads import Workload


class Ours:
    version = sglang.__version__
    flags: Mapping[str, Any] = {}

    def load(self, model: str, threads: int) -> None:
        self._engine = sglang.Engine(model_path=model, threads=threads, **self.flags)

    def run(self, workload: Workload) -> tuple[float, float]:
        params = {"max_new_tokens": workload.num_new, "temperature": 0, "ignore_eos": True}
        return asyncio.run(self._run(workload.prompts, params))

    async def _run(self, prompts: list[list[int]], params: dict[str, Any]) -> tuple[float, float]:
        start = time.perf_counter()
        first: list[float] = []

        async def one(ids: list[int]) -> None:
            async for _ in await self._engine.async_generate(input_ids=ids, sampling_params=params, stream=True):
                first.append(time.perf_counter() - start)

        await asyncio.gather(*(one(ids) for ids in prompts))
        return first[0], time.perf_counter() - start


if __name__ == "__main__":
    main(Ours())
