"""python -m sglang.bench_one_batch: one batch of one shape, its prefill and then its decode."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from sglang.commands.report import Outcome
from sglang.compat.bench.datasets import Row
from sglang.compat.bench.engines import parse_with_server_flags, run_requests
from sglang.compat.bench.rules import append_line
from sglang.srt.errors import SglangError
from sglang.srt.server_args import ServerArgs

if TYPE_CHECKING:
    from sglang.srt.engine import Engine

PROG = "python -m sglang.bench_one_batch"
PROMPTS = ("The capital of France is", "The capital of the United Kindom is", "Today is a sunny day and I like")
"""of the correctness test"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="Measure batches of one shape: prefill, then decode.")
    parser.add_argument("--run-name", default="default")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1])
    parser.add_argument("--input-len", type=int, nargs="+", default=[1024])
    parser.add_argument("--output-len", type=int, nargs="+", default=[16])
    parser.add_argument("--result-filename", default="result.jsonl", help="a line of JSON is added for each shape")
    parser.add_argument("--correctness-test", action="store_true", help="show greedy answers instead of times")
    for name in ("--cut-len", "--log-decode-step", "--profile-filename-prefix"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, server_args = parse_with_server_flags(_parser(), argv)
    try:
        run(server_args, args)
    except SglangError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(server_args: ServerArgs, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each shape; returns what the lines of the result file hold. Raises SglangError."""
    from sglang.srt.engine import Engine

    with Engine(server_args) as engine:
        if args.correctness_test:
            _show_answers(engine, args.output_len[0])
            return []
        print("Warmup ...")
        _measure(engine, args.run_name, args.batch_size[0], args.input_len[0], min(32, args.output_len[0]))
        print("Benchmark ...")
        shapes = product(args.batch_size, args.input_len, args.output_len)
        results = [_measure(engine, args.run_name, *shape) for shape in shapes]
    for result in results:
        append_line(args.result_filename, result)
    return results


def _show_answers(engine: Engine, output_len: int) -> None:
    replies = engine.generate(list(PROMPTS), {"temperature": 0, "max_new_tokens": output_len})
    for i, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        print(f"========== Prompt {i} ==========\n{prompt}{reply['text']}\n")


def _measure(engine: Engine, name: str, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
    """One batch, that shares nothing with those before."""
    rng = random.Random(f"{batch_size} {input_len} {output_len} {name}")
    size = int(engine.get_server_info()["vocab_size"])
    engine.flush_cache()
    rows = [
        Row([rng.randrange(min(256, size // 2), size) for _ in range(input_len)], input_len, output_len)
        for _ in range(batch_size)
    ]
    outcomes = asyncio.run(run_requests(engine, rows))
    result = {"run_name": name, "batch_size": batch_size, "input_len": input_len, "output_len": output_len}
    result |= summary(outcomes)
    print(f"Prefill. latency: {result['prefill_latency']:6.5f} s, throughput: {result['prefill_throughput']:9.2f} token/s")
    if output_len > 1:
        print(
            f"Decode.  median latency: {result['median_decode_latency']:6.5f} s, "
            f"median throughput: {result['median_decode_throughput']:9.2f} token/s"
        )
    print(f"Total. latency: {result['total_latency']:6.3f} s, throughput: {result['overall_throughput']:9.2f} token/s")
    return result


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Seconds and tokens a second of one batch. Prefill ends when the last sequence has its first token; a step of decoding lasts as
    long as the time between two tokens of a sequence, of which it may bring several."""
    prefill, total = max(o.first for o in outcomes), max(o.total for o in outcomes)
    num_in, num_out = sum(o.input_len for o in outcomes), sum(o.output_len for o in outcomes)
    result = {"prefill_latency": prefill, "prefill_throughput": num_in / prefill, "total_latency": total}
    result["overall_throughput"] = (num_in + num_out) / total
    each = [(o.total - o.first) / (o.output_len - 1) for o in outcomes if o.output_len > 1]
    if each:
        step = statistics.median(each)
        result |= {"median_decode_latency": step, "median_decode_throughput": len(outcomes) / step}
    return result
