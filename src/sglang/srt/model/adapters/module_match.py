"""Which modules the names and patterns of an adapter_config.json mean, as PEFT reads them (peft/tuners/tuners_utils.py,
check_target_module_exists).

Patterns come from a stranger and Python's matcher can be kept busy for ever by some: those are refused before they are tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError

ALL_LINEAR = "all-linear"
MAX_PATTERN_LEN = 1024
MAX_REPEATS = 12
_REPEATED_GROUP = re.compile(r"\)(\*|\+|\{)")
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_BACK_REFERENCE = re.compile(r"\\[1-9]|\(\?P=")


def check_pattern(name: str, pattern: str) -> None:
    """Raises ModelError for a pattern that is none, or that might take for ever: with repeated groups, or many repetitions."""
    if len(pattern) > MAX_PATTERN_LEN:
        raise ModelError(f"{name}: a pattern may have {MAX_PATTERN_LEN} characters, got {len(pattern)}")
    if _REPEATED_GROUP.search(pattern) or _BACK_REFERENCE.search(pattern) or len(_REPEAT.findall(pattern)) > MAX_REPEATS:
        raise ModelError(
            f"{name}: the pattern {shown(pattern)} repeats a group, refers back to one, or has more than {MAX_REPEATS} repetitions: "
            "name the modules instead"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"{name}: {shown(pattern)} is not a regular expression ({error})") from error


def is_target(module: str, targets: str | Sequence[str]) -> bool:
    """Whether `targets` mean the module: one regular expression for the whole name, or the ends of names. "all-linear" means all."""
    if isinstance(targets, str):
        return targets == ALL_LINEAR or re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def first_match(module: str, patterns: Sequence[str]) -> str | None:
    """The first of the patterns that means the module, of rank_pattern and alpha_pattern (get_pattern_key in
    peft/utils/other.py)."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
