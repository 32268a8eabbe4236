"""python -m sglang.test.run_eval: the accuracy of a running server on a dataset.

mmlu    questions with four choices; a CSV with Question, A, B, C, D, Answer, Subject
gpqa    the same, harder; a CSV with Question, Correct Answer, Incorrect Answer 1, 2, 3
gsm8k   arithmetic word problems after worked examples; JSON lines with question, answer
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from sglang.commands.arguments import CommandError
from sglang.compat.files import download_and_cache_file, read_jsonl

URLS = {
    "mmlu": "https://openaipublic.blob.core.windows.net/simple-evals/mmlu.csv",
    "gpqa": "https://openaipublic.blob.core.windows.net/simple-evals/gpqa_diamond.csv",
    "gsm8k": "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/test.jsonl",
}
NOT_HERE = ("math", "mgsm", "mgsm_en", "humaneval", "simpleqa", "mmmu", "longbench_v2", "aime25", "livecodebench")
"""evaluations of the original that are not here: they need other models, or run what a model writes"""
LETTERS = "ABCD"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ANSWER = re.compile(r"(?i)answer\s*(?:is)?\s*:?\s*[*$({\[]*([A-D])\b")


@dataclass(frozen=True)
class Question:
    prompt: str
    answer: str


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sglang.test.run_eval", description="Count the right answers of a running server."
    )
    parser.add_argument("--base-url", help="instead of --host and --port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--model", help="name of the model in requests; default: the one that the server lists")
    parser.add_argument("--eval-name", default="mmlu", choices=[*URLS, *NOT_HERE])
    parser.add_argument("--dataset-path", help="the questions; fetched if not given")
    parser.add_argument("--num-examples", type=int, help="so many of them; default: all")
    parser.add_argument("--num-threads", type=int, default=512, help="requests at once")
    parser.add_argument("--num-shots", type=int, default=5, help="worked examples before each sum")
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--reasoning-effort")
    parser.add_argument("--repeat", type=int, default=1)
    for name in ("--thinking-mode", "--return-latency", "--api"):
        parser.add_argument(name, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run_eval(create_parser().parse_args(argv))
    except (CommandError, httpx.HTTPError) as error:
        print(f"python -m sglang.test.run_eval: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_eval(args: Any) -> dict[str, float]:
    """Asks, prints and writes the score; returns it, with the seconds. `args`: a command line, or any object with some of its
    attributes. Raises CommandError."""
    given = create_parser().parse_args([])
    for name, value in vars(args).items():
        setattr(given, name, value)
    if given.eval_name not in URLS:
        raise CommandError(f"--eval-name {given.eval_name} is not possible here; there are {', '.join(URLS)}")
    questions = load_questions(given)
    began = time.perf_counter()
    scores = [_score_of(given, questions) for _ in range(max(given.repeat, 1))]
    seconds = time.perf_counter() - began
    score = sum(scores) / len(scores)
    metrics = {"score": score, "latency": seconds, "num_examples": len(questions)}
    print(f"Total latency: {seconds:.3f} s")
    print(f"Score: {score:.3f}")
    path = Path("/tmp") / f"{given.eval_name}_{str(given.model).replace('/', '_')}.json"
    path.write_text(json.dumps(metrics | {"scores": scores}))
    print(f"Writing results to {path}")
    return metrics


# --- questions --------------------------------------------------------------------------------------------------------------


def load_questions(args: Any) -> list[Question]:
    """Raises CommandError for a data set that cannot be read."""
    name, rng = args.eval_name, random.Random(0)
    path = args.dataset_path or _fetched(name)
    try:
        if name == "gsm8k":
            return _sums(list(read_jsonl(path)), args.num_shots, args.num_examples)
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        picked = rng.sample(rows, min(args.num_examples or len(rows), len(rows)))
        return [_choices(row) if name == "mmlu" else _shuffled_choices(row, rng) for row in picked]
    except (OSError, KeyError, ValueError) as error:
        raise CommandError(f"{path} holds no questions of {name}: {error!r}") from error


def _fetched(name: str) -> str:
    try:
        return download_and_cache_file(URLS[name], f"/tmp/{name}_questions{Path(URLS[name]).suffix}")
    except (httpx.HTTPError, OSError) as error:
        raise CommandError(
            f"the questions of {name} cannot be fetched ({error}): give their file with --dataset-path"
        ) from error


def _asked(question: str, choices: Sequence[str], answer: str) -> Question:
    lines = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    how = 'Think, then end with a line "Answer: X", X being the letter of the right choice.'
    return Question("\n".join([how, "", question.strip(), "", *lines]), answer)


def _choices(row: dict[str, str]) -> Question:
    return _asked(row["Question"], [row[letter] for letter in LETTERS], row["Answer"])


def _shuffled_choices(row: dict[str, str], rng: random.Random) -> Question:
    right = row["Correct Answer"]
    choices = [right, *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    rng.shuffle(choices)
    return _asked(row["Question"], choices, LETTERS[choices.index(right)])


def _sums(rows: list[dict[str, str]], num_shots: int, count: int | None) -> list[Question]:
    """The first ones are the worked examples of all others."""
    examples = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[:num_shots])
    asked = rows[num_shots:][: count or None]
    return [Question(f"{examples}Question: {row['question']}\nAnswer:", last_number(row["answer"])) for row in asked]


def last_number(text: str) -> str:
    """The last number of a text, without separators; "" if there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else ""


def chosen_letter(text: str) -> str:
    """The letter that an answer ends with; "" if there is none."""
    found = _ANSWER.findall(text)
    return found[-1].upper() if found else ""


# --- asking -----------------------------------------------------------------------------------------------------------------


def _score_of(args: Any, questions: Sequence[Question]) -> float:
    url = (args.base_url or f"{args.host if '://' in args.host else 'http://' + args.host}:{args.port}").removesuffix("/v1")
    read: Callable[[str], str] = last_number if args.eval_name == "gsm8k" else chosen_letter
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as client:
        args.model = args.model or client.get("/v1/models").raise_for_status().json()["data"][0]["id"]

        def is_right(question: Question) -> bool:
            return read(_answer(client, args, question.prompt)) == question.answer

        with ThreadPoolExecutor(min(args.num_threads, max(len(questions), 1))) as pool:
            right = list(tqdm(pool.map(is_right, questions), total=len(questions)))
    return sum(right) / max(len(right), 1)


def _answer(client: httpx.Client, args: Any, prompt: str) -> str:
    options = {"temperature": args.temperature, "max_tokens": args.max_tokens, "model": args.model}
    options |= {name: value for name in ("top_p", "reasoning_effort") if (value := getattr(args, name)) is not None}
    if args.eval_name == "gsm8k":  # a text that goes on: the examples show how
        reply = client.post("/v1/completions", json={"prompt": prompt, "stop": ["Question:", "\n\n\n"], **options})
        return str(reply.raise_for_status().json()["choices"][0]["text"])
    reply = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": prompt}], **options})
    return str(reply.raise_for_status().json()["choices"][0]["message"]["content"])
