"""Which JSON Schema keywords the grammar engines follow, measured.

    .venv-test/bin/python -m benchmarks.schema_suite                   the table of docs/structured.md
    .venv-test/bin/python -m benchmarks.schema_suite SUITE_FOLDER      and what JSON-Schema-Test-Suite says (.../tests/draft2020-12)

The suite is in the source distribution of jsonschema, in json/tests: pip download --no-deps --no-binary :all: jsonschema==4.26.0

A keyword *constrains* when every schema below compiles, takes the good value and leaves out the bad one. It does so *in some
forms* when some of the schemas are refused. It is *noted* when it says nothing about validity, and *refused*, by its path,
otherwise: there is no other case.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError, GrammarError
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.vocabulary import Vocabulary

END = 256
BYTES = Vocabulary((*(bytes([i]) for i in range(256)), b"<end>"), frozenset({END}), frozenset({END}))
UUID = "2eb8aa08-aa98-11ea-b4aa-73b441d16380"
Probe = tuple[dict[str, Any], Any, Any]
"""a schema, a value that it allows, one that it does not"""

INTEGER, STRING, OBJECT, ARRAY = {"type": "integer"}, {"type": "string"}, {"type": "object"}, {"type": "array"}
PROBES: dict[str, list[Probe]] = {
    "type": [(INTEGER, 3, "x"), ({"type": ["string", "null"]}, None, 3)],
    "enum": [({"enum": [1, "a", None]}, "a", "b")],
    "const": [({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]})],
    "properties": [
        ({**OBJECT, "properties": {"a": INTEGER}}, {"a": 1}, {"a": "x"}),
        ({"properties": {"a": INTEGER}}, {"a": 1}, {"a": "x"}),
    ],
    "required": [({**OBJECT, "properties": {"a": INTEGER}, "required": ["a"]}, {"a": 1}, {})],
    "additionalProperties": [
        ({**OBJECT, "additionalProperties": INTEGER}, {"b": 1}, {"b": "x"}),
        ({**OBJECT, "additionalProperties": False}, {}, {"b": 1}),
    ],
    "patternProperties": [
        ({**OBJECT, "patternProperties": {"^x": INTEGER}, "additionalProperties": False}, {"xy": 1}, {"xy": "s"})
    ],
    "propertyNames": [
        ({**OBJECT, "propertyNames": {"enum": ["a", "b"]}}, {"a": 1}, {"c": 1}),
        ({**OBJECT, "propertyNames": {"pattern": "^[a-z]+$"}}, {"a": 1}, {"A": 1}),
        ({**OBJECT, "propertyNames": {"maxLength": 2}}, {"a": 1}, {"abc": 1}),
    ],
    "minProperties": [({**OBJECT, "minProperties": 1}, {"a": 1}, {})],
    "maxProperties": [({**OBJECT, "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1})],
    "dependentRequired": [
        (
            {**OBJECT, "properties": {"a": {}, "b": {}}, "required": ["a"], "dependentRequired": {"a": ["b"]}},
            {"a": 1, "b": 1},
            {"a": 1},
        ),
        ({**OBJECT, "dependentRequired": {"a": ["b"]}}, {}, {"a": 1}),
    ],
    "dependentSchemas": [({**OBJECT, "dependentSchemas": {"a": {"required": ["b"]}}}, {}, {"a": 1})],
    "unevaluatedProperties": [
        ({**OBJECT, "properties": {"a": INTEGER}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
        ({"allOf": [{"properties": {"a": INTEGER}}], "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
    ],
    "items": [({**ARRAY, "items": INTEGER}, [1, 2], ["x"])],
    "prefixItems": [({**ARRAY, "prefixItems": [INTEGER], "items": False}, [1], ["x"])],
    "minItems": [({**ARRAY, "items": INTEGER, "minItems": 2}, [1, 2], [1])],
    "maxItems": [({**ARRAY, "items": INTEGER, "maxItems": 1}, [1], [1, 2])],
    "uniqueItems": [
        ({**ARRAY, "items": INTEGER, "maxItems": 1, "uniqueItems": True}, [1], [1, 1]),
        ({**ARRAY, "uniqueItems": True}, [1], [1, 1]),
    ],
    "contains": [({**ARRAY, "contains": INTEGER}, [1], [])],
    "minContains": [({**ARRAY, "contains": INTEGER, "minContains": 2}, [1, 1], [1])],
    "maxContains": [({**ARRAY, "contains": INTEGER, "maxContains": 1}, [1], [1, 1])],
    "unevaluatedItems": [
        ({**ARRAY, "prefixItems": [INTEGER], "unevaluatedItems": False}, [1], [1, 2]),
        ({"allOf": [{"prefixItems": [INTEGER]}], "unevaluatedItems": False}, [1], [1, 2]),
    ],
    "minLength": [({**STRING, "minLength": 2}, "ab", "a")],
    "maxLength": [({**STRING, "maxLength": 2}, "ab", "abc")],
    "pattern": [
        ({**STRING, "pattern": "^[a-c]+$"}, "ab", "x"),
        ({**STRING, "pattern": "^a.*z$"}, "a-z", "b"),
        ({**STRING, "pattern": "a(?=b)"}, "ab", "a"),
    ],
    "format": [({**STRING, "format": "date"}, "2024-02-29", "x"), ({**STRING, "format": "uuid"}, UUID, "x")],
    "minimum": [({**INTEGER, "minimum": -3}, -3, -4), ({"type": "number", "minimum": 0.5}, 0.5, 0.25)],
    "maximum": [({**INTEGER, "maximum": 12}, 12, 13)],
    "exclusiveMinimum": [({**INTEGER, "exclusiveMinimum": 3}, 4, 3)],
    "exclusiveMaximum": [({**INTEGER, "exclusiveMaximum": 3}, 2, 3)],
    "multipleOf": [({**INTEGER, "multipleOf": 7}, 14, 15), ({"type": "number", "multipleOf": 0.01}, 0.25, 0.255)],
    "anyOf": [({"anyOf": [INTEGER, {"type": "null"}]}, None, "x")],
    "oneOf": [
        ({"oneOf": [INTEGER, STRING]}, 1, None),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, 2, 3),
        ({"oneOf": [{"minimum": 2}, {"maximum": 3}]}, 1, 3),
    ],
    "allOf": [({"allOf": [INTEGER, {"minimum": 3}]}, 3, 2)],
    "not": [({"not": STRING}, 1, "x"), ({**STRING, "not": {"pattern": "^a"}}, "b", "a")],
    "if": [({"if": {"type": "integer"}}, 1, None), ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {}, {"a": 1})],
    "$ref": [({"$ref": "#/$defs/n", "$defs": {"n": INTEGER}}, 1, "x"), ({"$ref": "http://example.com/n"}, 1, "x")],
    "$anchor": [({"$ref": "#n", "$defs": {"a": {"$anchor": "n", "type": "integer"}}}, 1, "x")],
    "$dynamicRef": [
        ({"$dynamicRef": "#n", "$defs": {"a": {"$dynamicAnchor": "n", "type": "integer"}}}, 1, "x"),
        (
            {
                "$id": "https://example.com/r",
                "$dynamicRef": "a#n",
                "$defs": {
                    "a": {"$id": "a", "$dynamicAnchor": "n", "type": "integer"},
                    "b": {"$id": "b", "$dynamicAnchor": "n", "type": "string"},
                },
            },
            1,
            "x",
        ),
    ],
}
NOTED = [
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$id",
    "contentEncoding",
]


def accepts(backend: GrammarBackend, schema: dict[str, Any], value: Any) -> bool:
    """Whether the value's compact JSON is an output. Raises GrammarError for a schema that is refused."""
    state = backend.compile("json_schema", json.dumps(schema)).copy()
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    if not state.accept_all(list(text)):
        return False
    mask = np.zeros(9, np.uint32)
    state.fill_mask(mask)
    return state.is_finished or bool(mask[END // 32] >> (END % 32) & 1)


def status(backend: GrammarBackend, keyword: str) -> str:
    """constrains, in some forms, refused; raises AssertionError if a schema that compiles lets the bad value through."""
    followed = 0
    for schema, good, bad in PROBES[keyword]:
        try:
            takes = accepts(backend, schema, good)
        except GrammarError:
            continue
        if keyword == "if" and bad is None:  # an `if` alone says nothing
            followed += 1
            continue
        assert not accepts(backend, schema, bad), (keyword, schema, bad)
        followed += takes
    return "constrains" if followed == len(PROBES[keyword]) else "in some forms" if followed else "refused"


def backends() -> dict[str, GrammarBackend]:
    """The engines that are installed."""
    found: dict[str, GrammarBackend] = {}
    for name in ("llguidance", "xgrammar"):
        try:
            made = create_backend(BYTES, GrammarOptions(backend=cast(Literal["llguidance", "xgrammar"], name)))
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        assert made is not None
        found[name] = made
    return found


def table(engines: dict[str, GrammarBackend]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| keyword | " + " | ".join(engines) + " |", "|---|" + "---|" * len(engines)]
    for keyword in PROBES:
        lines.append(f"| `{keyword}` | " + " | ".join(status(engine, keyword) for engine in engines.values()) + " |")
    names = ", ".join(f"`{name}`" for name in NOTED)
    return [*lines, f"| {names} | " + " | ".join("noted" for _ in engines) + " |"]


DRAFTS = {
    **{f"draft{number}": f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 4, 6, 7)},
    **{f"draft{date}": f"https://json-schema.org/draft/{date}/schema" for date in ("2019-09", "2020-12")},
}
"""folders of the suite, and what a schema of theirs declares"""


def count_suite(folder: Path, backend: GrammarBackend) -> collections.Counter[str]:
    """Over all groups, whose schemas declare the draft of the folder: `compiled` and `refused` schemas; of the tests of compiled ones, how many values are treated `right`,
    are `narrower` (valid, but not generated) or `wrong` (invalid, and could be generated: there must be none)."""
    counts: collections.Counter[str] = collections.Counter()
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[folder.name], **schema}
            try:
                backend.compile("json_schema", json.dumps(schema))
            except GrammarError:
                counts["refused"] += 1
                continue
            counts["compiled"] += 1
            for test in group["tests"]:
                taken = accepts(backend, schema, test["data"])
                counts["right" if taken == test["valid"] else "wrong" if taken else "narrower"] += 1
    return counts


def main() -> None:
    engines = backends()
    print("\n".join(table(engines)))
    for folder in sys.argv[1:]:
        for name, engine in engines.items():
            print(name, dict(count_suite(Path(folder), engine)))


if __name__ == "__main__":
    main()
