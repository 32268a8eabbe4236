"""What a draft model gains and costs, by the share of its tokens that are right.

    .venv-test/bin/python -m benchmarks.draft_model [--layers 24] [--quantization int8] [--rates 0 0.4 0.8] [--repeats 5] [--threads 1]

The model has the shape of SmolLM2-1.7B and random weights, the draft model is the default model (135M): both compute all that they
compute in earnest. What the draft model says is replaced by the right token, or a wrong one, as often as the rate has it; so the rate is
known, and the time is real. Runs with and without drafts alternate in one engine.

decode         one request, and with --at-once several: tokens a second with drafts over those without, by the processor time of the
               process and by the clock
first token    a prompt of 512 tokens: time with the draft model, which computes it as well, over time without
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sglang as sgl
from sglang.srt.config import DEFAULT_MODEL
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.process import scheduler_process
from sglang.srt.scheduler.speculation.draft.lengths import DraftLengths
from sglang.srt.scheduler.speculation.draft.model import DraftModel

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 130000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOWEST_ID, HIGHEST_ID = 1000, 40000
PROMPT_LEN, LONG_PROMPT_LEN, NUM_NEW = 32, 512, 128


class SetRate(DraftModel):
    """As often right as `rate` says. `answers`: by the prompt."""

    rate = 1.0
    answers: dict[tuple[int, ...], list[int]] = {}
    made: list[SetRate] = []

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rng = random.Random(7)
        self.made.append(self)

    def _sample(self, batch: ForwardBatch) -> list[int]:
        ids = super()._sample(batch)
        for i, spec in enumerate(batch.samples):
            answer, at = self.answers.get(tuple(spec.prompt_ids), []), len(spec.output_ids)
            right = answer[at] if at < len(answer) else ids[i]
            ids[i] = right if self.rng.random() < self.rate else (right + 1) % SHAPE["vocab_size"]  # type: ignore[operator]
        return ids


class Switched(sgl.Engine):
    """Remembers its scheduler, and drafts or does not."""

    def _run(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        scheduler._proposers._in_free_text = False  # text that repeats itself is another matter
        super()._run(scheduler)

    def switch(self, drafts: bool) -> None:
        """Between two requests. What is known of acceptance is forgotten; what steps cost is not."""
        model = SetRate.made[-1]
        fresh = DraftLengths(model.lengths.most, model.lengths._draft_share)
        fresh.model, fresh.draft = model.lengths.model, model.lengths.draft
        model.lengths = fresh
        self.scheduler._proposers.draft_model = model if drafts else None


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Processor time, seconds, and what came of it."""
    cpu, clock = time.process_time(), time.perf_counter()
    result = run()
    return time.process_time() - cpu, time.perf_counter() - clock, result


def prompts(num: int, length: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(length)] for _ in range(num)]


def answer(engine: Switched, asked: list[list[int]], num_new: int) -> list[list[int]]:
    params = {"temperature": 0, "max_new_tokens": num_new, "ignore_eos": True}
    engine.flush_cache()
    return [reply["output_ids"] for reply in engine.generate(input_ids=asked, sampling_params=params)]


def first(engine: Switched, length: int, seed: int) -> float:
    """Processor time of the first token over that without, the first of an answer that is to be long."""
    asked, found = prompts(1, length, seed), {}
    for drafts in (False, True):
        engine.switch(drafts)
        engine.flush_cache()
        cpu = time.process_time()
        stream = engine.generate(
            input_ids=asked[0], sampling_params={"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}, stream=True
        )
        next(iter(stream))
        found[drafts] = time.process_time() - cpu
        for _ in stream:
            pass
    return found[True] / found[False]


def compare(engine: Switched, rate: float, at_once: int, repeats: int) -> tuple[list[float], list[float]]:
    """Ratios of speed, with drafts over without: by processor time and by the clock."""
    by_cpu, by_clock = [], []
    for i in range(repeats + 1):
        asked = prompts(at_once, PROMPT_LEN, i)
        engine.switch(False)
        plain_cpu, plain, expected = timed(lambda asked=asked: answer(engine, asked, NUM_NEW))
        SetRate.answers = {tuple(ids): out for ids, out in zip(asked, expected, strict=True)}
        SetRate.rate = rate
        engine.switch(True)
        cpu, clock, found = timed(lambda asked=asked: answer(engine, asked, NUM_NEW))
        assert found == expected, "an answer changed"
        if i:  # the first pair warms up
            by_cpu.append(plain_cpu / cpu)
            by_clock.append(plain / clock)
    return by_cpu, by_clock


def show(name: str, ratios: list[float]) -> str:
    low, high = (statistics.quantiles(ratios, n=4)[i] for i in (0, 2)) if len(ratios) > 1 else (ratios[0], ratios[0])
    return f"{name} {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="on a busy machine 1: threads that wait for each other take processor time")
    args = parser.parse_args()
    scheduler_process.DraftModel = SetRate  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": args.layers}))
        engine = Switched(
            model_path=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            quantization=args.quantization,
            max_total_tokens=4096,
            threads=args.threads,
            speculative_draft_model_path=DEFAULT_MODEL,
        )
    for at_once in args.at_once:
        for rate in args.rates:
            by_cpu, by_clock = compare(engine, rate, at_once, args.repeats)
            print(
                f"{at_once} at once, {rate:.2f} right:",
                show("by processor", by_cpu),
                show("by the clock", by_clock),
                flush=True,
            )
    ratios = [first(engine, LONG_PROMPT_LEN, seed) for seed in range(args.repeats)]
    print(show("first token of 512, time over time without:", ratios))
    engine.shutdown()


if __name__ == "__main__":
    main()
