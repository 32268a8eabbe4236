"""Schemas for each rewriting that schemas undergo before an engine reads them (json_schema.py and the modules it names): what a client
may write so that the rewriting applies, and then some that it must leave alone.

Only values that the engines are to follow stand here; whether they do is asked of `jsonschema`, with the schema as it was written.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Schemas = st.SearchStrategy[Schema]

NAMES = st.sampled_from(["a", "b", "c", "kind"])
LIMITS = st.sampled_from([-3, -1, 0, 1, 2, 5, 0.5, -2.25])
COUNTS = st.sampled_from([0, 1, 2, 3])
VALUES = st.sampled_from([0, 1, 2, 1.0, 2.5, "a", "b", "", True, False, None, [], [1], {}, {"a": 1}])
SIMPLE: Schemas = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 3}]),
    st.sampled_from(
        [{"type": "string", "maxLength": 2}, {"const": "a"}, {"const": 1}, {"enum": ["a", "b", 1]}, {"const": "b"}]
    ),
)


def some(**parts: Any) -> Schemas:
    """A schema with some of these keywords."""
    return st.fixed_dictionaries({}, optional=parts)


def record(inner: Schemas = SIMPLE) -> Schemas:
    """An object as people write it: open, closed, with or without required properties."""
    parts = {
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": st.one_of(st.just(False), inner),
    }
    return st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)}, optional=parts
    )


def branches(inner: Schemas, most: int = 3) -> st.SearchStrategy[list[Schema]]:
    return st.lists(inner, min_size=1, max_size=most)


RECORDS = record()
TAGGED: Schemas = st.builds(
    lambda kind, more, needed: {
        "type": "object",
        "properties": {"kind": {"const": kind}, **more},
        "required": ["kind"] if needed else [],
    },
    st.sampled_from(["x", "y", "z"]),
    st.dictionaries(NAMES, SIMPLE, max_size=2),
    st.booleans(),
)
NUMBERS: Schemas = some(
    type=st.sampled_from(["integer", "number", ["integer", "null"]]),
    minimum=LIMITS,
    maximum=LIMITS,
    exclusiveMinimum=LIMITS,
    exclusiveMaximum=LIMITS,
    multipleOf=st.sampled_from([1, 2, 0.5]),
)


def with_definitions(make: st.SearchStrategy[Any]) -> Schemas:
    """The branches that `make` lists, behind references."""

    def build(listed: list[Schema], key: str) -> Schema:
        refs = [{"$ref": f"#/$defs/D{i}"} for i in range(len(listed))]
        return {key: refs, "$defs": {f"D{i}": schema for i, schema in enumerate(listed)}}

    return st.builds(build, make, st.sampled_from(["oneOf", "anyOf", "allOf"]))


RECURSIVE: Schemas = st.builds(
    lambda first, second, key: {
        "$ref": "#/$defs/Tree",
        "$defs": {
            "Tree": {key: [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Pair"}]},
            "Leaf": first,
            "Pair": {**second, "properties": {**second["properties"], "next": {"$ref": "#/$defs/Tree"}}},
        },
    },
    TAGGED,
    TAGGED,
    st.sampled_from(["oneOf", "anyOf"]),
)

KINDS = st.sampled_from([{"enum": ["x", "y", "z"]}, {"type": "string"}, {"type": "boolean"}, {"const": "x"}])
PARTS: Schemas = some(required=st.lists(NAMES, max_size=2, unique=True), properties=st.dictionaries(NAMES, SIMPLE, max_size=2))
TESTS: Schemas = st.one_of(
    st.builds(
        lambda value, needed: {"properties": {"kind": {"const": value}}, "required": ["kind"] if needed else []},
        st.sampled_from(["x", "y", "xy", True]),
        st.booleans(),
    ),
    st.builds(lambda name: {"required": [name]}, st.sampled_from(["a", "kind"])),
)
CONDITIONS: Schemas = st.fixed_dictionaries(
    {
        "if": st.one_of(
            TESTS, st.builds(lambda test: {"not": test}, TESTS), st.builds(lambda tests: {"anyOf": tests}, branches(TESTS))
        )
    },
    optional={"then": PARTS, "else": st.one_of(PARTS, st.just(False))},
)
NESTED: Schemas = st.recursive(
    CONDITIONS,
    lambda inner: st.builds(
        lambda outer, key, branch, beside: {**outer, key: {**branch, **beside}},
        CONDITIONS,
        st.sampled_from(["then", "else"]),
        st.one_of(inner, st.builds(lambda parts: {"allOf": parts}, branches(inner, 2))),
        PARTS,
    ),
    max_leaves=3,
)


def with_conditions(one: Schema, kind: Schema, conditions: list[Schema], together: bool) -> Schema:
    """An object with `a` and `kind`, and conditions in it or in allOf."""
    whole = {**one, "properties": {"a": {"type": "null"}, **one["properties"], "kind": kind}}
    return {**whole, "allOf": conditions} if together else {**whole, **conditions[0]}


TREES: Schemas = st.builds(
    lambda beside, one, inner: {
        "$ref": "#/$defs/T",
        "$defs": {"T": {**one, "properties": {**one["properties"], "next": inner({"$ref": "#/$defs/T"}, beside)}}},
    },
    PARTS,
    RECORDS,
    st.sampled_from(
        [
            lambda ref, beside: {**ref, **beside},
            lambda ref, beside: {"allOf": [ref, beside]},
            lambda ref, beside: {"anyOf": [ref, {"type": "null"}], **beside},
        ]
    ),
)

REWRITTEN: dict[str, Schemas] = {
    "cases": st.builds(with_conditions, RECORDS, KINDS, branches(CONDITIONS), st.booleans()),
    "cases within cases": st.builds(with_conditions, RECORDS, KINDS, branches(NESTED, 2), st.booleans()),
    "references that lead back": TREES,
    "objects are closed": st.one_of(
        RECORDS,
        record(st.one_of(SIMPLE, RECORDS)),
        st.builds(lambda one, more: {**one, **more}, RECORDS, some(minProperties=COUNTS, maxProperties=COUNTS)),
    ),
    "objects are closed together": st.one_of(
        st.builds(lambda one, parts: {**one, "allOf": parts}, some(type=st.just("object")), branches(RECORDS)),
        st.builds(lambda one, parts, key: {**one, key: parts}, RECORDS, branches(RECORDS), st.sampled_from(["anyOf", "oneOf"])),
        st.builds(lambda parts, more: {"allOf": [{"anyOf": parts}, *more]}, branches(RECORDS), branches(RECORDS, 2)),
        with_definitions(branches(RECORDS)),
    ),
    "oneOf": st.one_of(
        *(st.builds(lambda parts: {"oneOf": parts}, branches(inner)) for inner in (SIMPLE, RECORDS, TAGGED, NUMBERS)),
        with_definitions(branches(TAGGED)),
        with_definitions(branches(RECORDS)),
    ),
    "references": st.one_of(RECURSIVE, with_definitions(branches(SIMPLE))),
    "listed values": st.builds(
        lambda values, more: {**values, **more},
        st.one_of(
            st.builds(lambda v: {"enum": v}, st.lists(VALUES, min_size=1, max_size=4)),
            st.builds(lambda v: {"const": v}, VALUES),
        ),
        some(type=st.sampled_from(["integer", "number", "string", "object", ["string", "null"], ["integer", "boolean"]])),
    ),
    "numbers": NUMBERS,
    "counts": st.one_of(
        some(type=st.just("string"), minLength=COUNTS, maxLength=st.sampled_from([2.0, 3])),
        some(type=st.just("array"), items=SIMPLE, minItems=COUNTS, maxItems=COUNTS, uniqueItems=st.booleans()),
        some(type=st.just("object"), minProperties=COUNTS, maxProperties=COUNTS, additionalProperties=SIMPLE),
    ),
    "lists": some(
        type=st.just("array"),
        prefixItems=branches(SIMPLE),
        items=st.one_of(SIMPLE, st.just(False)),
        unevaluatedItems=st.one_of(SIMPLE, st.just(False)),
        minItems=COUNTS,
        maxItems=COUNTS,
        contains=SIMPLE,
        minContains=COUNTS,
    ),
    "names": some(
        type=st.just("object"),
        properties=st.dictionaries(NAMES, SIMPLE, max_size=2),
        patternProperties=st.dictionaries(
            st.sampled_from(["^a$", "^(a|b)$", "^[bc]$", "^a", "b", "[a-k]$"]), SIMPLE, min_size=1, max_size=3
        ),
        propertyNames=st.sampled_from(
            [{"enum": ["a", "b"]}, {"const": "c"}, {"pattern": "^[ab]{1,2}$"}, {"type": "string"}, True]
        ),
        required=st.lists(NAMES, max_size=2, unique=True),
        additionalProperties=st.one_of(st.just(False), SIMPLE),
        unevaluatedProperties=st.one_of(st.just(False), SIMPLE),
        minProperties=COUNTS,
    ),
    "dependencies": some(
        type=st.just("object"),
        properties=st.dictionaries(NAMES, SIMPLE, max_size=3),
        required=st.lists(NAMES, max_size=2, unique=True),
        dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
    ),
    "conditions": some(
        **{"if": SIMPLE, "then": st.one_of(SIMPLE, st.just(True)), "else": st.one_of(SIMPLE, st.just({}))},
        type=st.sampled_from(["string", "integer"]),
    ),
    "formats": st.builds(
        lambda name, more: {"type": "string", "format": name, **more},
        st.sampled_from(["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration", "uri", "regex"]),
        some(pattern=st.sampled_from(["^[12]", "1"]), maxLength=st.just(60)),
    ),
    "patterns": st.builds(
        lambda pattern, more: {"type": "string", "pattern": pattern, **more},
        st.sampled_from(
            ["^(kg|pounds)$", r"^\d{2}$", r"^\w+\s\S$", "^(a|b|cd) (e|fg)$", "a|b$", r"^[^\d]{2}$", "^.{3}$", r"^\D\W$"]
        ),
        some(maxLength=st.just(12)),
    ),
}
"""for each rewriting, schemas to try it with"""

OLD_DRAFTS: dict[str, Schemas] = {
    "http://json-schema.org/draft-06/schema#": some(
        type=st.just("object"),
        properties=st.dictionaries(NAMES, SIMPLE, max_size=2),
        dependencies=st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        unevaluatedProperties=st.just(False),
        propertyNames=st.just({"enum": ["a", "b"]}),
    ),
    "https://json-schema.org/draft/2019-09/schema": some(
        type=st.just("array"),
        items=st.one_of(SIMPLE, branches(SIMPLE)),
        prefixItems=branches(SIMPLE),
        additionalItems=st.one_of(SIMPLE, st.just(False)),
        unevaluatedItems=st.just(False),
        minItems=COUNTS,
    ),
    "http://json-schema.org/draft-04/schema#": some(
        type=st.sampled_from(["integer", "number"]),
        minimum=LIMITS,
        maximum=LIMITS,
        exclusiveMinimum=st.booleans(),
        exclusiveMaximum=st.booleans(),
    ).map(lambda schema: {"minimum": -9, "maximum": 9, **schema}),
    "http://json-schema.org/draft-07/schema#": some(
        type=st.just("array"),
        items=st.one_of(SIMPLE, branches(SIMPLE)),
        additionalItems=st.one_of(SIMPLE, st.just(False)),
        minItems=COUNTS,
    ),
}
"""keywords that older drafts read in another way"""
