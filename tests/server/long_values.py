"""Long values of every kind, for any field of any route."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.server.fuzzing import NEEDED, SEEDS


def _repeated(item: bytes) -> Callable[[int], bytes]:
    return lambda size: b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


VALUES: dict[str, Callable[[int], bytes]] = {
    "text": lambda size: b'"' + b"word " * (size // 5) + b'"',
    "one word": lambda size: b'"' + b"x" * size + b'"',
    "escapes": lambda size: b'"' + b"\\u00e9\\n" * (size // 8) + b'"',
    "emoji": lambda size: b'"' + "🎉 ".encode() * (size // 5) + b'"',
    "a number": lambda size: b"1" * size,
    "texts": _repeated(b'"ab"'),
    "numbers": _repeated(b"1"),
    "fractions": _repeated(b"-1.5e3"),
    "lists": _repeated(b"[]"),
    "rows": _repeated(b"[1,2,3]"),
    "objects": _repeated(b'{"type":"text","text":"a"}'),
    "messages": _repeated(b'{"role":"user","content":"a"}'),
    "tools": _repeated(b'{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{}}}}}'),
    "one long text": lambda size: b'["' + b"word " * (size // 5) + b'"]',
    "names": lambda size: b"{" + b",".join(b'"%07d":1' % i for i in range(size // 12)) + b"}",
    "one long name": lambda size: b'{"' + b"x" * size + b'":1}',
    "depth": lambda size: b"[" * 120 + b'"' + b"a" * size + b'"' + b"]" * 120,
    "a schema": lambda size: json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(size // 27)}}).encode(),
    "a schema in a text": lambda size: json.dumps(json.dumps({"enum": list(range(size // 9))})).encode(),
    "brackets in a text": lambda size: b'"' + b"[" * size + b'"',
}  # fmt: skip
ROUTES = sorted(path for path in SEEDS if "#" not in path)
CASES = [
    (path, field, value)
    for path in ROUTES
    for field in dict.fromkeys([*SEEDS[path], "unknown", *(("sampling_params.json_schema", "sampling_params.stop") if path == "/generate" else ())])
    for value in VALUES
]  # fmt: skip
_PLACE = "@value@"


def body_of(path: str, field: str, value: bytes) -> bytes:
    """The smallest body of a route, with `value` in one more field, or in the place of one."""
    body: dict[str, Any] = {name: SEEDS[path][name] for name in NEEDED.get(path, ())}
    outer, _, inner = field.partition(".")
    body[outer] = {inner: _PLACE, "max_new_tokens": 1} if inner else _PLACE
    for name in ("max_tokens", "max_output_tokens"):
        if name in SEEDS[path] and field != name:
            body[name] = 1
    return json.dumps(body).encode().replace(json.dumps(_PLACE).encode(), value)
