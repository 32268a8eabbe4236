"""Reads PEFT's adapter_config.json (source: LoraConfig in peft/tuners/lora/config.py).

What would change the arithmetic and is not done here is refused by its name, and so is a field that is not known and says something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import ADAPTER_CONFIG, read_object, shown
from sglang.srt.errors import ModelError
from sglang.srt.model.adapters.patterns import PatternError, compiled

MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 4096
MAX_NAMES = 1 << 12
MAX_INVOCATION = 256
ALL_LINEAR = "all-linear"
MAX_PATTERNS = 64
"""that are more than names, in one field"""

_NEUTRAL = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
        *("lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules", "bias"),
        *("layers_to_transform", "layers_pattern", "alora_invocation_tokens", "init_lora_weights", "ensure_weight_tying"),
    }
)
"""fields that are read below, and those that say nothing about what an adapter computes"""
_REFUSED = {
    "use_dora": "DoRA also changes the length of each column",
    "lora_bias": "biases are not added",
    "modules_to_save": "whole modules are not replaced",
    "trainable_token_indices": "embeddings are not changed",
    "target_parameters": "parameters that belong to no linear module are not changed",
    "layer_replication": "layers are not repeated",
    "use_qalora": "QA-LoRA pools the inputs",
    "alora_invocation_string": "give alora_invocation_tokens",
}
_PLAIN_STARTS = (True, False, "true", "false", "gaussian", "orthogonal", "eva", None)
"""init_lora_weights that leave the base model as it is"""


@dataclass(frozen=True)
class PeftConfig:
    """What of it counts. `target_modules`: None where the file does not say. `invocation`: the ids after which an activated adapter
    (aLoRA, arXiv 2504.12397) begins to act; empty: it acts everywhere."""

    path: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    invocation: tuple[int, ...] = ()

    def rank_of(self, module: str) -> int:
        key = first_match(module, list(self.rank_pattern))
        return self.rank if key is None else self.rank_pattern[key]

    def scale_of(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rslora (arXiv 2312.03732)."""
        key = first_match(module, list(self.alpha_pattern))
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str, layer: int) -> bool:
        """Whether the module of this layer is one that the adapter changes."""
        if self.exclude_modules and is_target(module, self.exclude_modules):
            return False
        if self.target_modules is None:
            return True
        return is_target(module, self.target_modules) and (self.layers is None or layer in self.layers)


def read_peft_config(folder: Path) -> PeftConfig:
    """Raises ModelError naming the file and the field."""
    path = folder / ADAPTER_CONFIG
    try:
        raw = read_object(path, MAX_CONFIG_BYTES)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no {ADAPTER_CONFIG}, which says rank and alpha: it is not a PEFT adapter") from error
    return _Reader(path, raw).read()


class _Reader:
    """One file's fields."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self._path, self._raw = path, raw

    def bad(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self._path}: {name} {what}")

    def read(self) -> PeftConfig:
        self._check_kind()
        layers = self._layers()
        alpha_pattern = {k: self._number("alpha_pattern", v) for k, v in self._patterns("alpha_pattern").items()}
        rank_pattern = {k: self._rank("rank_pattern", v) for k, v in self._patterns("rank_pattern").items()}
        return PeftConfig(
            path=self._path,
            rank=self._rank("r", self._raw.get("r", 8)),
            alpha=self._number("lora_alpha", self._raw.get("lora_alpha", 8)),
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            use_rslora=self._flag("use_rslora"),
            target_modules=self._modules("target_modules"),
            exclude_modules=self._modules("exclude_modules"),
            layers=layers,
            invocation=self._invocation(),
        )

    def _check_kind(self) -> None:
        kind = self._raw.get("peft_type")
        if not isinstance(kind, str) or kind.upper() != "LORA":
            raise self.bad("peft_type", f"is {shown(kind)}; only LORA is served")
        if self._raw.get("bias", "none") != "none":
            raise self.bad("bias", f"is {shown(self._raw['bias'])}: biases of adapters are not added; train with bias none")
        start = self._raw.get("init_lora_weights")
        if start not in _PLAIN_STARTS:
            raise self.bad("init_lora_weights", f"is {shown(start)}, which changed the base model: convert it to a plain LoRA")
        for name, value in self._raw.items():
            if name in _REFUSED and value:
                raise self.bad(name, f"is not supported: {_REFUSED[name]}")
            if name not in _NEUTRAL and name not in _REFUSED and value:
                raise self.bad(shown(name), f"is not known here, and says {shown(value)}")

    def _flag(self, name: str) -> bool:
        value = self._raw.get(name, False)
        if not isinstance(value, bool):
            raise self.bad(name, f"must be true or false, got {shown(value)}")
        return value

    def _rank(self, name: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            raise self.bad(name, f"must be a rank between 1 and {MAX_RANK}, got {shown(value)}")
        return value

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
            raise self.bad(name, f"must be a number up to 1e6, got {shown(value)}")
        return float(value)

    def _patterns(self, name: str) -> dict[str, Any]:
        found = self._raw.get(name) or {}
        if not isinstance(found, dict) or len(found) > MAX_NAMES:
            raise self.bad(name, f"must be an object of patterns, got {shown(found)}")
        check_patterns(f"{self._path}: {name}", list(found))
        return found

    def _modules(self, name: str) -> str | tuple[str, ...] | None:
        found = self._raw.get(name)
        if found is None or found == []:
            return None
        if isinstance(found, str):
            check_pattern(f"{self._path}: {name}", found)
            return found
        if not isinstance(found, list) or len(found) > MAX_NAMES or not all(isinstance(one, str) for one in found):
            raise self.bad(name, f"must be a regular expression or a list of names, got {shown(found)}")
        return tuple(found)

    def _layers(self) -> tuple[int, ...] | None:
        found = self._raw.get("layers_to_transform")
        if found is None or found == []:
            return None
        if isinstance(self._raw.get("target_modules"), str):
            raise self.bad("layers_to_transform", "goes with a list of target_modules only")
        layers: Sequence[Any] = found if isinstance(found, list) else [found]
        if len(layers) > MAX_NAMES or not all(type(one) is int and one >= 0 for one in layers):
            raise self.bad("layers_to_transform", f"must be numbers of layers, got {shown(found)}")
        return tuple(layers)

    def _invocation(self) -> tuple[int, ...]:
        found = self._raw.get("alora_invocation_tokens")
        if found is None:
            return ()
        if not isinstance(found, list) or not 1 <= len(found) <= MAX_INVOCATION or any(type(one) is not int for one in found):
            raise self.bad("alora_invocation_tokens", f"must be 1 to {MAX_INVOCATION} token ids, got {shown(found)}")
        return tuple(found)


# --- which modules a name or a pattern means (check_target_module_exists in peft/tuners/tuners_utils.py) -------------------------


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
