"""python -m sglang.bench_offline_throughput: the engine in this process, all requests at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang.commands.arguments import CommandError
from sglang.compat.bench.datasets import Row, add_dataset_args, load_rows
from sglang.compat.bench.engines import encoder, parse_with_server_flags, run_requests
from sglang.compat.bench.rules import append_line, rates, row, title
from sglang.srt.errors import SglangError
from sglang.srt.server_args import ServerArgs

if TYPE_CHECKING:
    from sglang.srt.engine import Engine

PROG = "python -m sglang.bench_offline_throughput"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="Measure the engine in this process: all requests at once.", add_help=True
    )
    parser.add_argument("--backend", default="engine", choices=["engine", "runtime"])
    parser.add_argument("--result-filename", default="", help="a line of JSON is added")
    parser.add_argument("--extra-request-body", default="{}", help="JSON of sampling parameters")
    parser.add_argument("--skip-warmup", action="store_true")
    for name in ("--apply-chat-template", "--profile", "--do-not-exit", "--disable-ignore-eos", "--return-logprob"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    add_dataset_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, server_args = parse_with_server_flags(_parser(), argv)
    try:
        throughput_test(server_args, args)
    except (CommandError, SglangError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    return 0


def throughput_test(server_args: ServerArgs, args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table; returns what a line of the result file holds. Raises CommandError and SglangError."""
    from sglang.srt.engine import Engine

    extra = json.loads(args.extra_request_body or "{}")
    with Engine(server_args) as engine:
        rows = load_rows(args, encoder(engine), int(engine.get_server_info()["vocab_size"]))
        if not args.skip_warmup:
            _warm_up(engine)
        began = time.perf_counter()
        outcomes = asyncio.run(run_requests(engine, rows, extra))
        seconds = time.perf_counter() - began
    result = {"backend": args.backend, "successful_requests": len(outcomes), "total_latency": seconds} | rates(
        outcomes, seconds
    )
    result["last_gen_throughput"] = result["output_throughput"]
    print("\n".join(_table(result)))
    if args.result_filename:
        append_line(args.result_filename, result)
    return result


def _warm_up(engine: Engine) -> None:
    asyncio.run(run_requests(engine, [Row([300 + i for i in range(32)], 32, 8)] * 4))


def _table(result: dict[str, Any]) -> list[str]:
    return [
        "\n" + title("Offline Throughput Benchmark Result"),
        row("Backend", result["backend"]),
        row("Successful requests", result["successful_requests"]),
        row("Benchmark duration (s)", result["total_latency"]),
        row("Total input tokens", result["total_input_tokens"]),
        row("Total generated tokens", result["total_output_tokens"]),
        row("Last generation throughput (tok/s)", result["last_gen_throughput"]),
        row("Request throughput (req/s)", result["request_throughput"]),
        row("Input token throughput (tok/s)", result["input_throughput"]),
        row("Output token throughput (tok/s)", result["output_throughput"]),
        row("Total token throughput (tok/s)", result["total_throughput"]),
        "=" * 50,
    ]
