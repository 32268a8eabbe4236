"""python -m sglang.test.send_one: sends one prompt, or one batch of it, to a running server, and tells how fast the answer came."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import httpx

from sglang.commands.arguments import CommandError
from sglang.compat.bench.profiling import ask, steps_taken

PROG = "python -m sglang.test.send_one"


@dataclass
class BenchArgs:
    """The request, and the server that it is sent to."""

    host: str = "localhost"
    port: int = 30000
    batch_size: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 512
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    json: bool = False
    return_logprob: bool = False
    prompt: str = "Human: Write a program that sorts a list of names.\n\nAssistant:"

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        for field in fields(BenchArgs):
            name = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                parser.add_argument(name, action="store_true")
            else:
                parser.add_argument(name, type=type(field.default), default=field.default)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> BenchArgs:
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROG, description="Send one prompt and measure the answer.")
    BenchArgs.add_cli_args(parser)
    try:
        send_one_prompt(BenchArgs.from_cli_args(parser.parse_args(argv)))
    except CommandError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    return 0


def send_one_prompt(args: BenchArgs) -> tuple[float, float]:
    """Prints the answer and its times; returns the tokens of an answer for each step of the server (which is to have
    nothing else to do), and the tokens a second. Raises CommandError."""
    params: dict[str, Any] = {
        name: getattr(args, name) for name in ("temperature", "max_new_tokens", "frequency_penalty", "presence_penalty")
    }
    if args.json:
        params["json_schema"] = "$$ANY$$"
    text = args.prompt if args.batch_size == 1 else [args.prompt] * args.batch_size
    body = {"text": text, "sampling_params": params, "return_logprob": args.return_logprob}
    with httpx.Client(base_url=f"http://{args.host}:{args.port}", timeout=None) as client:
        steps, began = steps_taken(client), time.perf_counter()
        answers = ask(client, "POST", "/generate", body)
        seconds = time.perf_counter() - began
        steps = steps_taken(client) - steps
    answers = answers if isinstance(answers, list) else [answers]
    tokens = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
    length = tokens / len(answers) / max(steps, 1)
    print(answers[0]["text"])
    print(
        f"\nlatency (s): {seconds:.3f}   tokens: {tokens}   acc_length: {length:.3f}   speed (token/s): {tokens / seconds:.2f}"
    )
    return length, tokens / seconds
