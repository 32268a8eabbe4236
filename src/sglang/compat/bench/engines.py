"""Requests to an engine in this process, timed."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang.commands.report import Outcome
from sglang.compat.bench.datasets import Encode, Row
from sglang.srt.errors import ConfigError
from sglang.srt.server_args import ServerArgs, parse_server_args

if TYPE_CHECKING:
    from sglang.srt.engine import Engine


def parse_with_server_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, ServerArgs]:
    """A benchmark's own flags, and the server's among which they stand. Exits with one line for one that is neither."""
    args, rest = parser.parse_known_args(argv)
    server_args = parse_server_args(rest, parser.prog)
    return args, server_args


def encoder(engine: Engine) -> Encode:
    """The engine's own tokenizer."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ConfigError("a data set of texts needs a tokenizer")
    return lambda texts: [tokenizer.encode(text, add_special_tokens=False) for text in texts]


async def run_requests(engine: Engine, rows: Sequence[Row], extra: dict[str, Any] | None = None) -> list[Outcome]:
    """All at once."""
    return await asyncio.gather(*(_one(engine, row, extra or {}) for row in rows))


async def _one(engine: Engine, row: Row, extra: dict[str, Any]) -> Outcome:
    """One greedy request of its full length."""
    began = last = time.perf_counter()
    outcome = Outcome(sent_at=0.0)
    params = {"max_new_tokens": row.output_len, "temperature": 0, "ignore_eos": True, **extra}
    text, ids = (row.prompt, None) if isinstance(row.prompt, str) else (None, row.prompt)
    async for reply in await engine.async_generate(prompt=text, input_ids=ids, sampling_params=params, stream=True):
        now = time.perf_counter()
        if outcome.first:
            outcome.gaps.append(now - last)
        else:
            outcome.first = now - began
        last, outcome.total = now, now - began
        meta = reply["meta_info"]
        outcome.input_len, outcome.output_len = meta["prompt_tokens"], meta["completion_tokens"]
    return outcome
