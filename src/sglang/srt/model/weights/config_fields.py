"""A config.json as typed fields: every read is checked, and what was never read can be told afterwards."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.srt.errors import ModelError

MAX_COUNT = 1 << 31
"""no size of a real model comes near; arrays of such a length cannot be allocated by mistake"""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object, and holds a {type(value).__name__}")
    return value


class Fields:
    """Values of `overrides`, else of `raw`, else of `defaults` (what transformers' config class assumes for absent fields)."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        source: Path,
        defaults: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.overrides = overrides or {}
        self.raw = {**raw, **self.overrides}
        self.source = source
        self.defaults = defaults or {}
        self.read: set[str] = set()

    def bad(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.source}: {name} {what}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is; None if absent or null."""
        self.read.add(name)
        return self.raw[name] if name in self.raw else self.defaults.get(name, default)

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer; absent or null is an error unless there is a default."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, "is missing")
        if type(value) is not int or not 0 < value < MAX_COUNT:
            raise self.bad(name, f"must be a positive integer, and is {value!r}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = -math.inf) -> float:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= above:
            raise self.bad(name, f"must be a number{'' if above == -math.inf else f' above {above:g}'}, and is {value!r}")
        return float(value)

    def optional(self, name: str, *, above: float = -math.inf) -> float | None:
        """A number, or None if absent or null."""
        return None if self.get(name) is None else self.number(name, above=above)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, f"must be true or false, and is {value!r}")
        return value

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if absent or null."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.bad(name, f"must be an object, and is {value!r}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise self.bad(name, f"must be a token id or a list of them, and is {value!r}")
        return tuple(ids)

    def check_used(self) -> None:
        """Raises ModelError for an override that nothing has read: it would change nothing."""
        for name in self.overrides:
            if name not in self.read:
                close = difflib.get_close_matches(name, sorted(self.read), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(self.read))}"
                raise ModelError(f"json_model_override_args: {name!r} means nothing for this model{hint}")
