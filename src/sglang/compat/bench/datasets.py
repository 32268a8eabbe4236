"""The requests of a benchmark: random ids, groups with a common prefix, conversations from a file."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.commands.arguments import CommandError
from sglang.compat.files import download_and_cache_file, read_jsonl

SHAREGPT_URL = (
    "https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered/resolve/main/"
    "ShareGPT_V3_unfiltered_cleaned_split.json"
)
NAMES = ("sharegpt", "custom", "openai", "random", "random-ids", "generated-shared-prefix")
NO_IMAGES = ("image", "mmmu", "mooncake", "longbench_v2")
"""data sets of the original that are not here"""
_FIRST_ID = 256
"""the lowest ids are special in many vocabularies"""

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Row:
    """One request. `prompt` is text or ids of `prompt_len` tokens; `output_len` tokens are to be generated."""

    prompt: str | list[int]
    prompt_len: int
    output_len: int


def add_dataset_args(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is asked."""
    group = parser.add_argument_group("data set")
    group.add_argument("--dataset-name", default="sharegpt", choices=[*NAMES, *NO_IMAGES])
    group.add_argument("--dataset-path", default="", help="a file of conversations; fetched if it is ShareGPT and not given")
    group.add_argument("--num-prompts", type=int, default=1000)
    group.add_argument("--seed", type=int, default=1)
    group.add_argument(
        "--sharegpt-output-len", type=int, help="tokens to generate instead of as many as the data set's answer has"
    )
    group.add_argument("--sharegpt-context-len", type=int, help="leave out conversations that are longer")
    group.add_argument("--random-input-len", type=int, default=1024)
    group.add_argument("--random-output-len", type=int, default=1024)
    group.add_argument("--random-range-ratio", type=float, default=0.0, help="lengths are at least this share of the longest")
    group.add_argument("--gsp-num-groups", type=int, default=64)
    group.add_argument("--gsp-prompts-per-group", type=int, default=16)
    group.add_argument("--gsp-system-prompt-len", type=int, default=2048)
    group.add_argument("--gsp-question-len", type=int, default=128)
    group.add_argument("--gsp-output-len", type=int, default=256)
    group.add_argument("--prompt-suffix", default="", help="text behind every prompt of a file")


def load_rows(args: argparse.Namespace, encode: Encode, vocab_size: int) -> list[Row]:
    """The requests. `encode` counts tokens of texts. Raises CommandError for a data set that is not there."""
    rng = random.Random(args.seed)
    name = args.dataset_name
    if name in NO_IMAGES:
        raise CommandError(f"--dataset-name {name} is not possible here; there are {', '.join(NAMES)}")
    if name == "generated-shared-prefix":
        return _shared_prefixes(args, rng, vocab_size)
    if name in ("random", "random-ids"):
        return _random_rows(args, rng, vocab_size)
    return _conversations(args, rng, encode)


def _ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(min(_FIRST_ID, vocab_size // 2), vocab_size) for _ in range(count)]


def _length(rng: random.Random, longest: int, ratio: float) -> int:
    return rng.randint(min(max(int(longest * ratio), 1), longest), longest)


def _random_rows(args: argparse.Namespace, rng: random.Random, vocab_size: int) -> list[Row]:
    if min(args.random_input_len, args.random_output_len) < 1 or not 0 <= args.random_range_ratio <= 1:
        raise CommandError("--random-input-len and --random-output-len are at least 1, --random-range-ratio is between 0 and 1")
    rows = []
    for _ in range(args.num_prompts):
        length = _length(rng, args.random_input_len, args.random_range_ratio)
        output_len = _length(rng, args.random_output_len, args.random_range_ratio)
        rows.append(Row(_ids(rng, length, vocab_size), length, output_len))
    return rows


def _shared_prefixes(args: argparse.Namespace, rng: random.Random, vocab_size: int) -> list[Row]:
    rows = []
    for _ in range(args.gsp_num_groups):
        common = _ids(rng, args.gsp_system_prompt_len, vocab_size)
        for _ in range(args.gsp_prompts_per_group):
            prompt = common + _ids(rng, args.gsp_question_len, vocab_size)
            rows.append(Row(prompt, len(prompt), args.gsp_output_len))
    rng.shuffle(rows)
    return rows


# --- conversations ----------------------------------------------------------------------------------------------------------


def _conversations(args: argparse.Namespace, rng: random.Random, encode: Encode) -> list[Row]:
    """First questions of conversations, and as many tokens as their answers have."""
    pairs = [pair for value in _values(args) if (pair := _pair(value)) is not None]
    rng.shuffle(pairs)
    rows: list[Row] = []
    for at in range(0, len(pairs), 64):
        if len(rows) >= args.num_prompts:
            break
        some = [(question + args.prompt_suffix, answer) for question, answer in pairs[at : at + 64]]
        lengths = zip(encode([q for q, _ in some]), encode([a for _, a in some]), strict=True)
        for (question, _), (asked, answered) in zip(some, lengths, strict=True):
            output_len = args.sharegpt_output_len or len(answered)
            limit = args.sharegpt_context_len
            if min(len(asked), output_len) >= 2 and (limit is None or len(asked) + output_len <= limit):
                rows.append(Row(question, len(asked), output_len))
    if not rows:
        raise CommandError(f"{args.dataset_path or 'the data set'} has no conversations of two turns that fit")
    return rows[: args.num_prompts]


def _values(args: argparse.Namespace) -> list[Any]:
    path = args.dataset_path or _sharegpt()
    try:
        if path.endswith(".jsonl") or args.dataset_name in ("custom", "openai"):
            return list(read_jsonl(path))
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"--dataset-path {path} cannot be read: {error}") from error
    return values if isinstance(values, list) else []


def _sharegpt() -> str:
    import httpx

    try:
        return download_and_cache_file(SHAREGPT_URL)
    except (httpx.HTTPError, OSError) as error:
        raise CommandError(
            f"ShareGPT cannot be fetched ({error}): give its file with --dataset-path, or take --dataset-name random"
        ) from error


def _pair(value: Any) -> tuple[str, str] | None:
    """Question and answer of one conversation, in any of the forms that files have them."""
    turns = value.get("conversations", value.get("conversation", value.get("messages"))) if isinstance(value, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    texts = [turn.get("value", turn.get("content")) if isinstance(turn, dict) else None for turn in turns[:2]]
    return (texts[0], texts[1]) if isinstance(texts[0], str) and isinstance(texts[1], str) else None
