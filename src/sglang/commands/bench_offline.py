"""`sglang bench offline`: the engine in this process, all requests at once, without HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from sglang.commands.arguments import CommandError, Parser
from sglang.commands.bench_serve import add_output, add_shape, shape_of, write_results
from sglang.commands.load import Prompts
from sglang.commands.report import Outcome, summarize, times
from sglang.common.install import needs_extra

if TYPE_CHECKING:
    from sglang.srt.engine import Engine

PROG = "sglang bench offline"


def bench_offline(argv: list[str]) -> int:
    """The command."""
    parser = Parser(PROG, "Measure the engine in this process: all requests at once, greedy, full length.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="alias, folder, .gguf file or hub id")
    add_shape(parser)
    add_output(parser)
    parser.end_with("", "./model.gguf --num-requests 64 --input-len 512 --output-len 128 -- --threads 4")
    args, serve_flags = parser.parse_split(argv)
    shape = shape_of(args, parser)
    with needs_extra("srt"):
        from sglang.srt.engine import Engine
        from sglang.srt.errors import SglangError
        from sglang.srt.server_args import parse_server_args
    flags = [*(["--model-path", args.model] if args.model is not None else []), *serve_flags]
    server_args = dataclasses.replace(parse_server_args(flags, PROG), log_level="error")
    try:
        with Engine(server_args) as engine:
            prompts = Prompts(shape, _vocab_size(engine), args.seed)
            asyncio.run(_run(engine, [prompts.sample()]))
            began = time.perf_counter()
            outcomes = asyncio.run(_run(engine, [prompts.sample() for _ in range(args.num_requests)]))
            seconds = time.perf_counter() - began
    except SglangError as error:
        raise CommandError(str(error)) from error
    settings = {k: v for k, v in vars(args).items() if k not in ("json", "chart")} | {"model": server_args.model_path}
    title = f"{server_args.model_path}: {args.num_requests} requests of {args.input_len} + {args.output_len} tokens, offline"
    write_results(args, summarize(outcomes, seconds, settings), title, times(outcomes))
    return 0


def _vocab_size(engine: Engine) -> int:
    return int(engine.get_server_info()["vocab_size"])


async def _run(engine: Engine, sampled: list[tuple[Any, int, int]]) -> list[Outcome]:
    return await asyncio.gather(*(timed_request(engine, prompt, output_len) for prompt, _, output_len in sampled))


async def timed_request(engine: Engine, prompt: str | list[int], output_len: int, **sampling: Any) -> Outcome:
    """One greedy request of its full length."""
    began = last = time.perf_counter()
    outcome = Outcome(sent_at=0.0)
    params = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True, **sampling}
    text, ids = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    async for reply in await engine.async_generate(prompt=text, input_ids=ids, sampling_params=params, stream=True):
        now = time.perf_counter()
        if outcome.first:
            outcome.gaps.append(now - last)
        else:
            outcome.first = now - began
        last, outcome.total = now, now - began
        meta = reply["meta_info"]
        outcome.input_len, outcome.output_len = meta["prompt_tokens"], meta["completion_tokens"]
        outcome.cached_len = meta["cached_tokens"]
    return outcome
