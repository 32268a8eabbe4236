"""`sglang run MODEL "prompt"`: prints the answer to one prompt on standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from sglang.commands.arguments import CommandError, Parser, add_server_choice
from sglang.commands.chat import MAX_TOKENS, printable, response_format
from sglang.commands.connection import Connection, connect
from sglang.commands.media import media_part

PROG = "sglang run"


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(PROG, "One prompt, one answer on standard output. With --url there is no MODEL.")
    parser.add_argument("words", nargs="+", metavar="[MODEL] PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument("--system", metavar="TEXT", help="system message; default: the model's for the terminal, if it has one")
    parser.add_argument("--image", action="append", default=[], metavar="PATH|URL", help="an image; may be repeated")
    parser.add_argument("--json", metavar="SCHEMA", help="the answer follows this JSON schema (text or file)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt, without a chat template")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help=f"longest answer (default: {MAX_TOKENS})"
    )
    parser.add_argument("--seed", type=int, metavar="N")
    add_server_choice(parser)
    parser.end_with(
        "'What is the capital of France?'",
        "./model.gguf 'List three colours as JSON.' --json '{\"type\": \"array\"}'",
        "--url http://localhost:30000 - < prompt.txt",
    )
    args, serve_flags = parser.parse_split(argv)
    if len(args.words) > 2 or (len(args.words) == 2 and args.url is not None):
        parser.error("the prompt must be one argument: put it in quotes")
    return args, serve_flags


def run(argv: list[str]) -> int:
    """The command."""
    args, serve_flags = _parse(argv)
    prompt = sys.stdin.read() if args.words[-1] == "-" else args.words[-1]
    model = args.words[0] if len(args.words) == 2 else None
    fmt = response_format(args.json) if args.json is not None else None
    images = [media_part(source) for source in args.image]
    if args.raw and (images or args.system):
        raise CommandError("--raw goes without --system and --image: there are no messages")
    with connect(args, model, serve_flags, PROG) as connection:
        path, body = _request(args, connection, prompt, images)
        if fmt is not None:
            body["response_format"] = fmt
        _print_answer(connection, path, body)
    return 0


def _request(
    args: argparse.Namespace, connection: Connection, prompt: str, images: list[dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """A chat where the model has a template, else a text to continue."""
    given = {"temperature": args.temperature, "max_tokens": args.max_tokens, "seed": args.seed}
    body = {k: v for k, v in given.items() if v is not None} | {"model": connection.model_name(), "stream": True}
    info = connection.get("/get_model_info") or {}
    if args.raw or not info.get("has_chat_template", True):
        return "/v1/completions", body | {"prompt": prompt}
    content: Any = [*images, {"type": "text", "text": prompt}] if images else prompt
    text = info.get("suggested_system_prompt") if args.system is None else args.system
    system = [{"role": "system", "content": text}] if text else []
    return "/v1/chat/completions", body | {"messages": [*system, {"role": "user", "content": content}]}


def _print_answer(connection: Connection, path: str, body: dict[str, Any]) -> None:
    events = connection.events(path, body)
    with contextlib.closing(events):
        for event in events:
            for choice in event.get("choices") or []:
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print()
