"""Requests to an engine in this process, timed."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglang.commands.bench_offline import timed_request
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
    return await asyncio.gather(*(timed_request(engine, row.prompt, row.output_len, **(extra or {})) for row in rows))
