"""Whole workloads: through the scheduler by hand, and through the offline engine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import FAMILIES, QWEN3_06B, tiny_of, write_model
from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.engine import Engine
from sglang.srt.messages import FromScheduler, TokenizedReq, ToScheduler
from sglang.srt.model.worker import LocalWorker
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.scheduler import Scheduler


class Driven:
    """A scheduler that is stepped by hand. It binds the worker to its own table."""

    def __init__(self, worker: LocalWorker, **options_: Any) -> None:
        self.finished = 0
        options = ScheduleOptions(chunked_prefill_size=-1, **options_)
        self.scheduler = Scheduler(options, GrammarOptions(backend="none"), worker, None, self, self)

    def receive(self, timeout: float) -> list[ToScheduler]:
        return []

    def send(self, message: FromScheduler) -> None:
        self.finished += sum(out.finish is not None for out in getattr(message, "outs", ()))

    def let_read(self) -> None: ...

    def add(self, prompts: list[list[int]], new_tokens: int) -> None:
        for i, ids in enumerate(prompts):
            params = SamplingParams(max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
            self.scheduler.handle(TokenizedReq(f"r{i}", ids, params))

    def seconds(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Until all have all their tokens."""
        began = time.perf_counter()
        self.add(prompts, new_tokens)
        while self.finished < len(prompts):
            self.scheduler.step()
        return time.perf_counter() - began

    def decode_seconds(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Of one decode step, the median over those in which all decode."""
        self.add(prompts, new_tokens)
        found: list[float] = []
        while self.finished < len(prompts):
            began = time.perf_counter()
            self.scheduler.step()
            if len(self.scheduler._running.reqs) == len(prompts):
                found.append(time.perf_counter() - began)
        return statistics.median(found[len(found) // 4 :])


def _engine(folder: Path, config: dict[str, Any], device: str, kernels: str, **flags: Any) -> Engine:
    path = write_model(folder, config)
    common = {"load_format": "dummy", "skip_tokenizer_init": True, "grammar_backend": "none", "random_seed": 0}
    return Engine(model_path=str(path), device=device, kernels=kernels, **{**common, **flags})


VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    " deterministic": {"enable_deterministic_inference": True},
    " int8": {"quantization": "int8"},
    " int4": {"quantization": "int4"},
    " no graphs, no overlap": {"disable_cuda_graph": True, "disable_overlap_schedule": True},
    " bfloat16, fp8 KV (only runs)": {"dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3"},
}


def tiny_tokens(folder: Path, device: str, kernels: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Greedy tokens of tiny models in float32: the CUDA set's against the CPU's, plain, quantized, in deterministic mode and
    with everything off that makes steps different."""
    prompts = [[(7 * i + 3 * j) % 190 + 5 for j in range(9 + 5 * i)] for i in range(3 if tiny else 12)]
    greedy = {"temperature": 0, "max_new_tokens": 4 if tiny else 24, "ignore_eos": True}
    limits = {"max_total_tokens": 2048, "max_running_requests": 16, "chunked_prefill_size": 32, "context_length": 256}
    if tiny:
        limits |= {"max_running_requests": 4, "cuda_graph_max_bs": 2, "context_length": 64, "max_total_tokens": 512}

    def tokens(family: str, where: str, what: str, **flags: Any) -> list[list[int]]:
        with _engine(folder / family, FAMILIES[family], where, what, **limits, **flags) as engine:
            return [reply["output_ids"] for reply in engine.generate(input_ids=prompts, sampling_params=greedy)]

    for variant, flags in [("", VARIANTS[""])] if tiny else VARIANTS.items():
        for family in FAMILIES:
            finding: dict[str, Any] = {"model": family + variant}
            try:
                ours = tokens(family, device, kernels, **flags)
                kept = {name: value for name, value in flags.items() if name == "quantization"}
                same = sum(a == b for a, b in zip(tokens(family, "cpu", "reference", **kept), ours, strict=True))
            except Exception as problem:  # noqa: BLE001  one that fails must not hide the others
                yield {**finding, "ok": False, "problem": f"{type(problem).__name__}: {problem}"[:500]}
                continue
            whole = all(len(ids) == greedy["max_new_tokens"] for ids in ours)
            good = whole if "only runs" in variant else same == len(prompts)
            yield {**finding, "equal": same, "of": len(prompts), "ok": good}


# --- offline throughput -------------------------------------------------------------------------------------------------------


def workload(tiny: bool, vocab: int) -> tuple[list[list[int]], list[int]]:
    """(prompts, new tokens of each): 100 to 1024 both."""
    rng = random.Random(0)
    num, low, high = (4, 4, 12) if tiny else (256, 100, 1024)
    prompts = [[rng.randrange(5, vocab - 5) for _ in range(rng.randint(low, high))] for _ in range(num)]
    return prompts, [rng.randint(low, high) for _ in range(num)]


def throughput(folder: Path, device: str, kernels: str, tiny: bool) -> dict[str, Any]:
    """New tokens a second of the offline engine on the 0.6B shape."""
    config = tiny_of(QWEN3_06B) if tiny else QWEN3_06B
    prompts, lengths = workload(tiny, config["vocab_size"])
    flags: dict[str, Any] = {"max_running_requests": 4, "max_total_tokens": 512, "context_length": 64, "cuda_graph_max_bs": 4}
    with _engine(folder / "06b", config, device, kernels, **(flags if tiny else {})) as engine:
        engine.generate(input_ids=prompts[:2], sampling_params={"temperature": 0, "max_new_tokens": 4, "ignore_eos": True})
        engine.flush_cache()
        sampling = [{"temperature": 0, "max_new_tokens": n, "ignore_eos": True} for n in lengths]
        began = time.perf_counter()
        replies = engine.generate(input_ids=prompts, sampling_params=sampling)
        took = time.perf_counter() - began
    made = sum(len(reply["output_ids"]) for reply in replies)
    assert made == sum(lengths)
    return {"requests": len(prompts), "new_tokens": made, "seconds": took, "tokens_per_s": made / took}


def transformers_throughput(folder: Path, device: str, tiny: bool, limit_s: float) -> dict[str, Any]:
    """The same workload through transformers' continuous batching; after `limit_s` seconds what has been made counts."""
    import torch
    import transformers

    config = tiny_of(QWEN3_06B) if tiny else QWEN3_06B
    prompts, lengths = workload(tiny, config["vocab_size"])
    path = write_model(folder / "06b", config)
    hub_config = transformers.AutoConfig.from_pretrained(path)
    dtype = torch.float32 if tiny else torch.bfloat16
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(hub_config, dtype=dtype).eval()
    settings = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(lengths))
    model.generation_config = settings
    # by default its cache takes what is free, which on a CPU is other programs' too
    cache = transformers.ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64) if tiny else None
    with model.continuous_batching_context_manager(settings, True, 5, continuous_batching_config=cache) as manager:
        began = time.perf_counter()
        for ids, new in zip(prompts, lengths, strict=True):
            manager.add_request(ids, max_new_tokens=new)
        made = finished = 0
        while finished < len(prompts) and time.perf_counter() - began < limit_s:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                made, finished = made + len(result.generated_tokens), finished + 1
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
        took, unfinished = time.perf_counter() - began, _unfinished(manager)
    made += unfinished
    return {
        "finished": finished,
        "new_tokens": made,
        "of_unfinished": unfinished,
        "seconds": took,
        "tokens_per_s": made / took,
        "attention": model.config._attn_implementation,
    }


def _unfinished(manager: Any) -> int:
    """Tokens of requests that still run, as far as this version lets one see them."""
    scheduler = getattr(getattr(manager, "batch_processor", None), "scheduler", None)
    states = list(getattr(scheduler, "active_requests", {}).values())
    return sum(len(getattr(state, "generated_tokens", ())) for state in states)


# --- shared prefix ------------------------------------------------------------------------------------------------------------


def shared_prefix(worker: LocalWorker, tiny: bool) -> dict[str, Any]:
    """Seconds for 64 requests that share 4k tokens, with the radix cache and without. Binds the worker."""
    num, prefix_len, own, new = (3, 24, 3, 3) if tiny else (64, 4096, 32, 32)
    prefix = [(7 * i) % 180 + 5 for i in range(prefix_len)]
    prompts = [[*prefix, *[(i * 13 + j) % 180 + 5 for j in range(own)]] for i in range(num)]
    found: dict[str, Any] = {"requests": num, "prefix_len": prefix_len}
    for name, off in (("with_cache_s", False), ("without_cache_s", True)):
        found[name] = Driven(worker, disable_radix_cache=off).seconds(prompts, new)
    return {**found, "ratio": found["without_cache_s"] / found["with_cache_s"]}
