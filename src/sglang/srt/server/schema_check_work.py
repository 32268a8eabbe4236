"""The work of a schema-checking child: parses an answer and validates it with `jsonschema` against the original schema.

A pattern of a schema may take exponential time, so validation runs in a child with limits (schema_checks.py starts it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import msgspec

from sglang.srt.json_drafts import ANY, NEWEST, draft_of

MAX_ERROR = 300
MAX_DEPTH = 10_000
_VALUES = frozenset({"enum", "const", "default", "examples"})
"""keywords at which values stand that are no schemas"""
Rule = Callable[[Any, Any, Any, dict[str, Any]], Any]
"""of one keyword, as `jsonschema` has it: (validator, what stands there, the value, the schema) to errors"""


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """`error`: what is wrong; None: the answer is valid. `is_final`: no other answer would be found to be right either. `is_whole`: the
    answer is JSON."""

    error: str | None = None
    is_final: bool = False
    is_whole: bool = True


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
    """Checks an answer. References are never fetched: nothing outside the schema is read."""
    from referencing import Registry

    try:
        value = json.loads(answer)
    except ValueError as error:
        return Verdict(f"the answer is not JSON: {error}", is_whole=False)
    try:
        errors = list(validator_of(draft_of(schema))(_canonical(schema, ANY), registry=Registry()).iter_errors(value))
    except Exception as error:  # noqa: BLE001  whatever a schema that is none makes of the library
        return Verdict(f"the schema cannot be checked: {type(error).__name__}: {error}"[:MAX_ERROR], is_final=True)
    if not errors:
        return Verdict()
    worst = _worst(errors)
    return Verdict(f"{worst.json_path}: {worst.message}"[:MAX_ERROR])


@cache
def validator_of(draft: int) -> Any:
    """The validator of a draft. Where none is declared, older keywords count beside the newest, as they do while decoding."""
    from jsonschema import validators

    known = {
        3: validators.Draft3Validator,
        4: validators.Draft4Validator,
        6: validators.Draft6Validator,
        7: validators.Draft7Validator,
        2019: validators.Draft201909Validator,
    }
    if draft in known:
        return known[draft]
    validator: Any = validators.Draft202012Validator
    if draft == NEWEST:
        return validator
    older, oldest = known[2019].VALIDATORS, known[4].VALIDATORS
    more = {"additionalItems": older["additionalItems"], "dependencies": known[7].VALIDATORS["dependencies"]}
    more["items"] = _either(validator.VALIDATORS["items"], older["items"], lambda schema: isinstance(schema["items"], list))
    for key, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        is_old = partial(_is_flag, key)
        more[limit] = _either(validator.VALIDATORS[limit], oldest[limit], is_old)
        more[key] = _either(validator.VALIDATORS[key], _says_nothing, is_old)
    return validators.extend(validator, more)


def _either(new: Rule, old: Rule, is_old: Callable[[dict[str, Any]], bool]) -> Rule:
    """A keyword's rule, of the form that stands in the schema."""
    return lambda validator, value, instance, schema: (old if is_old(schema) else new)(validator, value, instance, schema)


def _is_flag(key: str, schema: dict[str, Any]) -> bool:
    return isinstance(schema.get(key), bool)


def _says_nothing(validator: Any, value: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    return iter(())


def _canonical(schema: Any, around: int) -> Any:
    """A copy in which schemas declare their drafts and names as the library knows them."""
    if isinstance(schema, list):
        return [_canonical(part, around) for part in schema]
    if not isinstance(schema, dict):
        return schema
    draft = draft_of(schema, around)
    out = {key: value if key in _VALUES else _canonical(value, draft) for key, value in schema.items()}
    if isinstance(schema.get("$schema"), str):
        del out["$schema"]
        if draft != ANY:
            out["$schema"] = validator_of(draft).META_SCHEMA.get("$id") or validator_of(draft).META_SCHEMA["id"]
    if draft == ANY and str(schema.get("$id")).startswith("#"):
        out.setdefault("$anchor", out.pop("$id")[1:])
    return out


# --- what is told of an answer that is not valid ----------------------------------------------------------------------------


def _worst(errors: list[Any]) -> Any:
    """The error to tell. Of a choice, that of the branch with which the answer agrees furthest: it was most likely meant."""
    worst = min(errors, key=lambda error: (len(error.absolute_path), str(error.absolute_path)))
    while worst.validator in ("anyOf", "oneOf") and worst.context:
        branches: dict[Any, list[Any]] = {}
        for error in worst.context:
            branches.setdefault(error.schema_path[0], []).append(error)
        meant = max(branches.values(), key=lambda found: (min(_depth(error) for error in found), -len(found)))
        worst = min(meant, key=_depth)
    return worst


def _depth(error: Any) -> int:
    """The depth of an error in the answer; within a choice, that of its best branch."""
    here = len(error.absolute_path)
    if error.validator not in ("anyOf", "oneOf") or not error.context:
        return here
    branches: dict[Any, int] = {}
    for inner in error.context:
        branch = inner.schema_path[0]
        branches[branch] = min(branches.get(branch, MAX_DEPTH), _depth(inner))
    return max(branches.values())
