"""python -m sglang.test.few_shot_gsm8k: arithmetic word problems, by a program of the language, against a running server."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

from sglang.commands.arguments import CommandError
from sglang.compat.bench.evals import URLS, last_number
from sglang.compat.files import download_and_cache_file, dump_state_text, read_jsonl


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.few_shot_gsm8k", description="Count the right answers to sums."
    )
    parser.add_argument("--num-shots", type=int, default=5, help="worked examples before each sum")
    parser.add_argument("--data-path", help="JSON lines with question and answer; fetched if not given")
    parser.add_argument("--num-questions", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--parallel", type=int, default=128, help="programs at once")
    parser.add_argument("--host", default="http://127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--temperature", type=float, default=0.0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run_eval(create_parser().parse_args(argv))
    except CommandError as error:
        print(f"python -m sglang.test.few_shot_gsm8k: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_eval(args: Any) -> dict[str, float]:
    """Asks and prints; returns accuracy, invalid (the share of answers without a number), latency (seconds) and output_throughput
    (tokens a second). `args`: a command line, or any object with some of its attributes. Raises CommandError."""
    given = create_parser().parse_args([])
    for name, value in vars(args).items():
        setattr(given, name, value)
    rows = _rows(given)
    began = time.perf_counter()
    states = _ask(given, rows)
    seconds = time.perf_counter() - began
    preds = [last_number(state["answer"]) for state in states]
    labels = [last_number(row["answer"]) for row in rows[given.num_shots :]]
    num_tokens = sum(state.get_meta_info("answer")["completion_tokens"] for state in states)
    metrics = {
        "accuracy": sum(map(str.__eq__, preds, labels)) / len(labels),
        "invalid": preds.count("") / len(preds),
        "latency": seconds,
        "output_throughput": num_tokens / seconds,
    }
    print(f"Accuracy: {metrics['accuracy']:.3f}\nInvalid: {metrics['invalid']:.3f}")
    print(f"Latency: {seconds:.3f} s\nOutput throughput: {metrics['output_throughput']:.3f} token/s")
    dump_state_text("tmp_output_gsm8k.txt", states)
    return metrics


def _rows(args: Any) -> list[dict[str, str]]:
    """The worked examples, and then the questions."""
    try:
        path = args.data_path or download_and_cache_file(URLS["gsm8k"])
        rows = list(read_jsonl(path))[: args.num_shots + args.num_questions]
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise CommandError(f"the questions cannot be read ({error}): give their file with --data-path") from error
    if len(rows) <= args.num_shots:
        raise CommandError(f"{path} has {len(rows)} questions, and {args.num_shots} are the worked examples")
    return rows


def _ask(args: Any, rows: list[dict[str, str]]) -> list[Any]:
    import sglang as sgl

    examples = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[: args.num_shots])

    @sgl.function
    def sums(s: Any, question: str) -> None:
        s += examples + f"Question: {question}\nAnswer:"
        s += sgl.gen("answer", max_tokens=args.max_new_tokens, stop=["Question", "Assistant:", "<|separator|>"])

    host = args.host if "://" in args.host else f"http://{args.host}"
    return sums.run_batch(  # type: ignore[no-any-return]
        [{"question": row["question"]} for row in rows[args.num_shots :]],
        temperature=args.temperature,
        backend=sgl.RuntimeEndpoint(f"{host}:{args.port}"),
        num_threads=args.parallel,
        progress_bar=True,
    )
