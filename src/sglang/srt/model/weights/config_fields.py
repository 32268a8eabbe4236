"""A config.json as typed fields: every read is checked, and fields that were never read can be listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sglang.common.suggest import did_you_mean
from sglang.srt.checkpoint.files import read_object, shown
from sglang.srt.errors import ModelError

T = TypeVar("T")

MAX_SIZE = 1 << 24
"""no width, number of heads or vocabulary of a real model comes near"""
MAX_LAYERS = 1 << 12
MAX_POSITIONS = 1 << 28
"""of a context: the longest published one has 10 million"""
MIN_EPS, MAX_EPS = 1e-30, 1.0
"""of a norm: less vanishes in float32"""
SMALLEST_DIVISOR = 1e-6
"""of frequencies"""
MAX_ID = (1 << 31) - 1
LARGEST = 3e38
"""of float32, in which the kernels compute"""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file."""
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


class Fields:
    """Values of `overrides`, else of `raw`, else of `defaults` (what transformers' config class assumes for absent fields)."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        source: Path,
        defaults: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        where: str = "",
        spelled: Mapping[str, str] | None = None,
    ) -> None:
        """`where`: stands before the names in errors. `spelled`: the source's own spelling of names, where it differs; both are
        read."""
        self.overrides = overrides or {}
        self.raw = {**raw, **self.overrides}
        self.source = source
        self._where = where
        self.defaults = defaults or {}
        self._spelled = spelled or {}
        self.read: set[str] = set()

    def bad(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.source}: {self._where}{self._name(name)} {what}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is; None if absent or null."""
        found = self._name(name)
        self.read.add(found)
        return self.raw[found] if found in self.raw else self.defaults.get(name, default)

    def _name(self, name: str) -> str:
        own = self._spelled.get(name, name)
        return name if name in self.overrides or (name in self.raw and own not in self.raw) else own

    def count(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """An integer from 1 to `most`; absent or null is an error unless there is a default."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, "is missing")
        if type(value) is not int or value < 1:
            raise self.bad(name, f"must be a positive integer, got {shown(value)}")
        if value > most:
            raise self.bad(name, f"must be at most {most}, got {shown(value)}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = -LARGEST, most: float = LARGEST) -> float:
        """A number within `above` (excluded) and `most`; absent or null is an error unless there is a default."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value <= most:
            low = f" above {above:g}" if above > -LARGEST else ""
            high = f" up to {most:g}" if most < LARGEST else ""
            raise self.bad(name, f"must be a number{low}{high}, got {shown(value)}")
        return float(value)

    def optional(self, name: str, *, above: float = -LARGEST, most: float = LARGEST) -> float | None:
        """A number, or None if absent or null."""
        return None if self.get(name) is None else self.number(name, above=above, most=most)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, f"must be true or false, got {shown(value)}")
        return value

    def choice(self, name: str, known: Mapping[str, T], default: Any = None) -> T:
        """The value of a name of `known`; absent or null means `default`."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            raise self.bad(name, f"is {shown(value)}; known: {', '.join(known)}")
        return known[value]

    def layers(self, name: str, default: list[int] | None, num_layers: int) -> tuple[int, ...]:
        """A list of layers, each below `num_layers` and named once."""
        value: Any = self.get(name)
        value = default if value is None else value
        valid = isinstance(value, list) and all(type(i) is int and 0 <= i < num_layers for i in value)
        if not valid or len(set(value)) != len(value):
            raise self.bad(name, f"must list layers below {num_layers}, each once, got {shown(value)}")
        return tuple(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of so many positive numbers."""
        value: Any = self.get(name)
        valid = isinstance(value, list) and all(
            type(v) in (int, float) and SMALLEST_DIVISOR < v < 1 / SMALLEST_DIVISOR for v in value
        )
        if not valid or len(value) != length:
            raise self.bad(name, f"must be {length} positive numbers, got {shown(value)}")
        return tuple(float(v) for v in value)

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if absent or null."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.bad(name, f"must be an object, got {shown(value)}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(i) is int and 0 <= i <= MAX_ID for i in ids):
            raise self.bad(name, f"must be a token id or a list of them, got {shown(value)}")
        return tuple(ids)

    def settle(self, name: str) -> None:
        """A list with one value again and again is read as that value."""
        found = self._name(name)
        value = self.raw.get(found)
        if isinstance(value, list):
            if not value or any(type(each) is not int or each != value[0] for each in value):
                raise self.bad(name, f"must be the same number for all layers, got {shown(value)}")
            self.raw[found] = value[0]

    def check_used(self) -> None:
        """Raises ModelError for an override that nothing has read: it would change nothing."""
        for name in self.overrides:
            if name not in self.read:
                hint = did_you_mean(name, self.read) or f"; known here: {', '.join(sorted(self.read))}"
                raise ModelError(f"json_model_override_args: {name!r} means nothing for this model{hint}")
