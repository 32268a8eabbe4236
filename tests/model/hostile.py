"""Changes single values of a model's files to what no model has, and tells what loading the result may come to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sglang.srt.errors import SglangError

DROP = object()
VALUES: tuple[Any, ...] = (
    DROP, None, True, False, "", "x", "\ud800", "7" * 5000, -1, 0, 1, 2, 3, 7, 33, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 10**400,
    0.5, -0.5, 1e-300, 1e300, float("inf"), float("nan"), [], [0], [-1], [2**40], ["x", 3], [[]] * 3, [1.5, None], {}, {"a": {"b": []}},
    {"type": "x"}, {"content": 5},
)  # fmt: skip

Path_ = tuple[Any, ...]


def places(value: Any, at: Path_ = (), most_items: int = 4) -> Iterator[Path_]:
    """The way to every value inside a JSON value; of long lists and objects to the first and last few."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    if len(items) > 40:
        items = items[:most_items] + items[-most_items:]
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key), most_items)


def changed(value: Any, at: Path_, new: Any) -> Any:
    """A copy of `value` with something else in one place."""
    result = copy.deepcopy(value)
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    if new is DROP:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return result


def mutations(value: Any, also: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(what was done, the result) for each place and each of VALUES, and for absent keys of `also`."""
    for at in [*places(value), *((name,) for name in also if name not in value)]:
        for new in VALUES:
            if new is DROP and (len(at) == 1 and at[0] not in value):
                continue
            name = "dropped" if new is DROP else repr(new)[:30]
            yield f"{'.'.join(map(str, at))} = {name}", changed(value, at, new)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def outcome(load: Callable[[], Any]) -> str | None:
    """None if `load` works or says in one sentence why not; else what it did instead."""
    try:
        load()
    except SglangError as error:
        text = str(error)
        if "\n" in text.strip() or not 10 < len(text) < 1000:
            return f"no sentence: {text[:300]!r}"
        return None
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def try_file(path: Path, cases: Iterator[tuple[str, bytes]], load: Callable[[], Any]) -> list[str]:
    """What went wrong for which content of a file. The file is put back at the end."""
    kept = path.read_bytes() if path.exists() else None
    found = []
    try:
        for name, content in cases:
            path.write_bytes(content)
            if (wrong := outcome(load)) is not None:
                found.append(f"{path.name}: {name}: {wrong}")
    finally:
        path.unlink() if kept is None else path.write_bytes(kept)
    return found
