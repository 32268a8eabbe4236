"""`sglang bench serve`: loads a server and reports what its clients see."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from sglang.commands.arguments import CommandError, Parser, add_server_choice
from sglang.commands.connection import Connection, connect
from sglang.commands.load import Prompts, Shape, Target, run_load
from sglang.commands.report import Outcome, chart, summarize, table, times

PROG = "sglang bench serve"


def add_shape(parser: Parser) -> None:
    """Flags of what requests look like."""
    group = parser.add_argument_group("requests")
    group.add_argument("--num-requests", type=int, default=100, metavar="N", help="how many (default: 100)")
    group.add_argument(
        "--input-len", type=int, default=256, metavar="N", help="prompt tokens, without the shared prefix (default: 256)"
    )
    group.add_argument("--output-len", type=int, default=64, metavar="N", help="tokens to generate (default: 64)")
    group.add_argument(
        "--spread", type=float, default=0.0, metavar="X", help="lengths are sampled from [(1-X) * length, length] (default: 0)"
    )
    group.add_argument("--shared-prefix-len", type=int, default=0, metavar="N", help="tokens of a common prefix of prompts")
    group.add_argument("--num-prefixes", type=int, default=1, metavar="N", help="number of different common prefixes")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of prompts, lengths and arrival times")


def shape_of(args: argparse.Namespace, parser: Parser) -> Shape:
    """Exits with one line for a shape that makes no sense."""
    if min(args.num_requests, args.input_len, args.output_len, args.num_prefixes) < 1 or args.shared_prefix_len < 0:
        parser.error("counts and lengths must be at least 1")
    if not 0 <= args.spread <= 1:
        parser.error("--spread must be between 0 and 1")
    return Shape(args.input_len, args.output_len, args.spread, args.shared_prefix_len, args.num_prefixes)


def add_output(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write all figures; - for standard output instead of the table")
    group.add_argument("--chart", metavar="FILE", help="write an SVG with the distributions of the times")


def write_results(args: argparse.Namespace, summary: dict[str, Any], title: str, distributions: dict[str, list[float]]) -> None:
    """Table or JSON on standard output, and the files asked for."""
    print(json.dumps(summary, indent=2) if args.json == "-" else table(summary))
    try:
        if args.json and args.json != "-":
            Path(args.json).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        if args.chart:
            Path(args.chart).write_text(chart(title, distributions), "utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}") from error


def _parser() -> Parser:
    parser = Parser(
        PROG, "Load a server and measure what its clients see. Prompts are random; answers are greedy and full length."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="started for the session if there is no --url")
    add_shape(parser)
    group = parser.add_argument_group("load")
    group.add_argument("--request-rate", type=float, metavar="X", help="requests a second (Poisson); default: all at once")
    group.add_argument("--concurrency", type=int, metavar="N", help="never more than N at once; default: no limit")
    group.add_argument("--warmup", type=int, default=1, metavar="N", help="requests before the measurement (default: 1)")
    group.add_argument(
        "--api", choices=("native", "completions", "chat"), default="completions", help="which endpoint (default: completions)"
    )
    add_output(parser)
    add_server_choice(parser)
    parser.end_with("--url http://localhost:30000 --request-rate 4", "./model.gguf --concurrency 8 --chart load.svg")
    return parser


def bench_serve(argv: list[str]) -> int:
    """The command. The exit status is 1 if a request failed."""
    parser = _parser()
    args, serve_flags = parser.parse_split(argv)
    shape = shape_of(args, parser)
    if (args.request_rate is not None and not args.request_rate > 0) or (args.concurrency is not None and args.concurrency < 1):
        parser.error("--request-rate and --concurrency must be positive")
    with connect(args, args.model, serve_flags, PROG) as connection:
        target = _target(args, connection)
        asyncio.run(_warm_up(target, shape, args))
        outcomes, seconds = asyncio.run(_measure(target, shape, args))
    settings = {k: v for k, v in vars(args).items() if k not in ("api_key", "json", "chart")} | {"model": target.model}
    summary = summarize(outcomes, seconds, settings)
    title = f"{target.model}: {args.num_requests} requests of {args.input_len} + {args.output_len} tokens"
    write_results(args, summary, title, times(outcomes))
    return 1 if summary["failed"] else 0


def _target(args: argparse.Namespace, connection: Connection) -> Target:
    """Prompts are ids where the server reports the size of its vocabulary."""
    info = connection.get("/get_server_info") if args.api != "chat" else None
    vocab_size = ((info or {}).get("model") or {}).get("vocab_size")
    size = int(vocab_size) if isinstance(vocab_size, int) and vocab_size > 512 else None
    return Target(connection.address, args.api, connection.model_name(), size)


async def _warm_up(target: Target, shape: Shape, args: argparse.Namespace) -> None:
    prompts = Prompts(shape, target.vocab_size, args.seed + 1_000_003)
    outcomes, _ = await run_load(target, prompts, args.warmup, None, args.concurrency, args.seed, lambda outcome: None)
    failed = next((o.error for o in outcomes if o.error is not None), None)
    if failed is not None:
        raise CommandError(f"the first request failed: {failed}")


async def _measure(target: Target, shape: Shape, args: argparse.Namespace) -> tuple[list[Outcome], float]:
    done = 0

    def note(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r\x1b[K{done}/{args.num_requests} requests", end="", file=sys.stderr, flush=True)

    prompts = Prompts(shape, target.vocab_size, args.seed)
    result = await run_load(target, prompts, args.num_requests, args.request_rate, args.concurrency, args.seed, note)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return result
