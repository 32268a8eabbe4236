"""What a child process does to check an answer: reads it, and asks `jsonschema` whether it is valid under the schema as it was written.

A pattern of a schema may take for ever on some texts, so none is tried where others wait (schema_checks.py starts and limits the child).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

MAX_ERROR = 300


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """`error`: what is wrong; None: the answer is valid. `is_final`: no other answer would be found to be right either."""

    error: str | None = None
    is_final: bool = False


def prepare(setup: bytes) -> Checker:
    """Called once in the fork server."""
    import jsonschema  # noqa: F401  so that children have it already

    return Checker()


class Checker:
    """Does the jobs of children: (schema, answer) as msgpack to a Verdict."""

    def __call__(self, payload: bytes) -> bytes:
        schema, answer = msgspec.msgpack.decode(payload, type=tuple[str, str])
        return msgspec.msgpack.encode(check(json.loads(schema), answer))


def check(schema: Any, answer: str) -> Verdict:
    """Nothing is fetched that a reference leads to: outside of the schema there is nothing."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        value = json.loads(answer)
    except ValueError as error:
        return Verdict(f"the answer is no JSON: {error}")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        worst = best_match(kind(schema, registry=Registry()).iter_errors(value))
    except Exception as error:  # noqa: BLE001  whatever a schema that is none makes of the library
        return Verdict(f"the schema cannot be checked: {type(error).__name__}: {error}"[:MAX_ERROR], is_final=True)
    if worst is None:
        return Verdict()
    return Verdict(f"{worst.json_path}: {worst.message}"[:MAX_ERROR])
