"""Counts the simple questions that a served model answers right, and the answers that end at the length limit.

    python -m benchmarks.questions --url http://localhost:30000 [--set first|second|other] [--parameters '{"temperature": 0}'] [--plain] [--show]

Each question is one chat request, as `sglang chat` sends it. Without --parameters the server's own defaults apply.
"""

from __future__ import annotations

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = Path(__file__).parents[1] / "tests" / "server" / "facts" / "simple_questions.json"
MAX_TOKENS = 512
"""the length limit of an answer in the terminal"""


@dataclass(frozen=True)
class Asked:
    """A question, and what became of it."""

    question: str
    answer: str
    right: bool
    cut: bool


def load(name: str) -> list[tuple[str, list[str]]]:
    """The questions of a set, each with the words of which a right answer has one."""
    return [(question, accepted) for question, accepted in json.loads(QUESTIONS.read_text())[name]]


def is_right(answer: str, accepted: list[str]) -> bool:
    """Whether one of the accepted words stands in the answer as its own word."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in accepted)


def terminal_system(client: httpx.Client) -> list[dict[str, str]]:
    """The message with which chats in the terminal begin, if there is one."""
    text = client.get("/get_model_info").json()["suggested_system_prompt"]
    return [{"role": "system", "content": text}] if text else []


def ask(
    client: httpx.Client, system: list[dict[str, str]], question: str, accepted: list[str], parameters: dict[str, Any]
) -> Asked:
    """One chat of one message."""
    messages = [*system, {"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": MAX_TOKENS, **parameters}
    reply = client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    choice = reply.json()["choices"][0]
    answer = choice["message"]["content"] or ""
    return Asked(question, answer, is_right(answer, accepted), choice["finish_reason"] == "length")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://localhost:30000")
    parser.add_argument("--set", default="first", choices=("first", "second", "other"))
    parser.add_argument("--parameters", type=json.loads, default={}, metavar="JSON", help="fields of each request")
    parser.add_argument("--plain", action="store_true", help="without the system message of the terminal")
    parser.add_argument("--show", action="store_true", help="print the answers")
    args = parser.parse_args()
    with httpx.Client(base_url=args.url, timeout=600, trust_env=False) as client, ThreadPoolExecutor(8) as threads:
        system = [] if args.plain else terminal_system(client)
        asking = [threads.submit(ask, client, system, *question, args.parameters) for question in load(args.set)]
        asked = [future.result() for future in asking]
    if args.show:
        for one in asked:
            print(f"{'right' if one.right else 'wrong'}{' cut' if one.cut else ''}: {one.question} {one.answer[:200]!r}")
    right, cut = sum(one.right for one in asked), sum(one.cut for one in asked)
    print(f"{args.set}: {right} of {len(asked)} right, {cut} at the length limit")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
