"""Which modules the names and patterns of an adapter_config.json mean, as PEFT reads them (peft/tuners/tuners_utils.py,
check_target_module_exists)."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.model.adapters.patterns import PatternError, compiled

ALL_LINEAR = "all-linear"
MAX_PATTERNS = 64
"""that are more than names, in one field"""


def check_pattern(name: str, pattern: str) -> None:
    """Raises ModelError for a pattern that cannot be used."""
    try:
        compiled(pattern)
    except PatternError as error:
        raise ModelError(f"{name}: {shown(pattern)} {error}: name the modules instead") from error


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """The same for many of them. Names, as programs write for each module, may be as many as there are."""
    for pattern in patterns:
        check_pattern(name, pattern)
    count = sum(not compiled(pattern).is_plain for pattern in patterns)
    if count > MAX_PATTERNS:
        raise ModelError(
            f"{name} has {count} regular expressions, and {MAX_PATTERNS} at most are read: name the modules instead"
        )


def is_target(module: str, targets: str | Sequence[str]) -> bool:
    """Whether `targets` mean the module: one regular expression for the whole name, or the ends of names. "all-linear" means all."""
    if isinstance(targets, str):
        return targets == ALL_LINEAR or len(module) in _ends(targets, module, {0})
    return any(module == target or module.endswith(f".{target}") for target in targets)


def first_match(module: str, patterns: Sequence[str]) -> str | None:
    """The first of the patterns that means the module or the end of its name after a dot, of rank_pattern and alpha_pattern
    (get_pattern_key in peft/utils/other.py)."""
    starts = {0, *(i + 1 for i, char in enumerate(module) if char == ".")}
    return next((key for key in patterns if len(module) in _ends(key, module, starts)), None)


def _ends(pattern: str, module: str, starts: set[int]) -> AbstractSet[int]:
    try:
        return compiled(pattern).ends(module, starts)
    except PatternError as error:
        raise ModelError(f"the pattern {shown(pattern)} {error}: name the modules instead") from error
