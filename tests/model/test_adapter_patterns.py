"""Patterns of adapter_config.json: as Python's matcher reads them, and in bounded time where that would take years."""

from __future__ import annotations

import random
import re

import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.adapters.peft_config import check_pattern, first_match, is_target

NAMES = [
    f"{root}layers.{i}.{end}"
    for root in ("model.", "model.visual.", "")
    for i in (0, 1, 12)
    for end in ("mlp.up_proj", "q_proj")
]
UNSLOTH = (
    r"(?:.*?(?:language|text|layers).*?(?:self_attn|attn|mlp|ffn).*?(?:q_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:(?:q_proj|up_proj)))"
)
PATTERNS = [
    *(
        UNSLOTH,
        ".*",
        "",
        "q_proj",
        r".*\.[01]\..*",
        r"^(?!.*visual).*up_proj$",
        r".*(?<!visual\.)layers\.\d+\.q_proj",
        r".*\bmlp\b.*",
    ),
    *(
        r"(model\.)?(visual\.)*layers\.(0|1)\.\w+",
        r"[^v]*",
        r"[a-z.]+\d{2}.*",
        r"(?:.+\.){2,3}q_proj",
        r"(a|b|)*.*",
        r"\S+\D",
        r".*\B_.*",
    ),
    *(
        r"model.layers.0.q_proj",
        r"(?=model).*(?=proj)proj",
        r"(.*\.)?x{0}q_proj",
        r"(?:.{3})*",
        r"(?:.{2,3}){4,5}",
    ),
]
SLOW = [
    "(?:){3000000000}(.*a)*zz",
    ".*" * 40 + "zz",
    ".?" * 60 + "zz",
    "(.|..)" * 40 + "zz",
    "(.*a+)+zz",
    "(([a-z.]*)*)*Z",
    r"(?=(.*.*.*.*.*.*.*.*.*.*Z))y",
]
BAD = ["(", "*", "(?i)q_proj", r"(q)\1", "x" * 1025, "(?P<a>q)(?P=a)", "(" * 500 + ")" * 500, "a{3,2}"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_python_says(pattern: str) -> None:
    check_pattern("target_modules", pattern)
    for name in NAMES:
        assert is_target(name, pattern) == bool(re.fullmatch(pattern, name)), name
        assert (first_match(name, [pattern]) is not None) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


def test_random_patterns_mean_what_python_says() -> None:
    rng = random.Random(1)
    pieces = [
        "a",
        "b",
        ".",
        "[ab]",
        "[^a]",
        "(a|ab)",
        "(?:b|)",
        r"\.",
        r"\w",
        r"\b",
        "(?=a)",
        "(?!b)",
        "a{1,2}",
        "(?:ab){2}",
        "b*?",
        "(?:a|b)+",
    ]
    for _ in range(3000):
        pattern = "".join(
            rng.choice(pieces) + rng.choice(["", "", "?", ""]) * (rng.random() < 0.3) for _ in range(rng.randint(1, 6))
        )
        text = "".join(rng.choice("ab.") for _ in range(rng.randint(0, 8)))
        try:
            wanted = bool(re.fullmatch(pattern, text))
        except re.error:
            continue
        try:
            assert is_target(text, pattern) == wanted, (pattern, text)
        except ModelError as error:
            assert "not read here" in str(error), pattern


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    check_pattern("target_modules", pattern)
    assert not is_target("model.layers.0.self_attn.q_proj", pattern)


@pytest.mark.parametrize("pattern", BAD)
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(ModelError, match="target_modules"):
        check_pattern("target_modules", pattern)


def test_nested_repetitions_are_given_up() -> None:
    pattern = "a{1,60}"
    for _ in range(5):
        pattern = f"(?:{pattern}){{1,60}}"
    with pytest.raises(ModelError, match="steps"):
        is_target("a" * 200 + "b", pattern + "c")
