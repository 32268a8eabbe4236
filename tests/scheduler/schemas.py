"""Schemas as people write them, made at random from parts: objects in objects, lists, choices, limits, formats, references."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

NAMES = [
    "name",
    "title",
    "id",
    "email",
    "age",
    "price",
    "count",
    "tags",
    "items",
    "status",
    "city",
    "address",
    "notes",
    "score",
    "active",
    "created_at",
    "kind",
    "owner",
    "unit",
]
WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "open",
    "closed",
    "pending",
    "Paris",
    "Rome",
    "north",
    "south",
    "yes",
    "no",
    "maybe",
    "high",
    "low",
]
PATTERNS = [r"^[A-Z]{2}-[0-9]{3}$", r"^[a-z]+(_[a-z]+){0,2}$", r"^\d{4}$", r"^(\+\d{1,3} )?\d{6,9}$", r"^#[0-9a-fA-F]{6}$"]
FORMATS = ["date", "time", "date-time", "uuid", "email", "ipv4"]


class SchemaMaker:
    """`plain`: only what every engine follows."""

    def __init__(self, seed: int, plain: bool = False) -> None:
        self._rng = random.Random(seed)
        self._plain = plain

    def make(self) -> Schema:
        """A whole schema, an object at the top."""
        rng = self._rng
        schema = self._object(0)
        if rng.random() < 0.25:
            schema["$defs"] = {"part": self._object(2)}
            schema["properties"]["part"] = {"$ref": "#/$defs/part"}
            schema["required"] = [*schema["required"], "part"]
        if rng.random() < 0.15:
            schema["$defs"] = {**schema.get("$defs", {}), "node": self._tree()}
            schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        if rng.random() < 0.3:
            schema["title"], schema["description"] = "Thing", "What is known of a thing."
        return schema

    def _tree(self) -> Schema:
        children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
        return {"type": "object", "properties": {"value": {"type": "integer"}, "children": children}, "required": ["value"]}

    def _object(self, depth: int) -> Schema:
        rng = self._rng
        names = rng.sample(NAMES, rng.randint(1, 5 if depth == 0 else 3))
        schema: Schema = {"type": "object", "properties": {name: self._value(depth + 1) for name in names}}
        schema["required"] = [name for name in names if rng.random() < 0.7]
        if rng.random() < 0.6:
            schema["additionalProperties"] = False
        return schema

    def _value(self, depth: int) -> Schema:
        makers = [self._string, self._string, self._integer, self._number, self._choice, self._simple]
        if depth < 3:
            makers += [self._object_below, self._list, self._union]
            if not self._plain:
                makers += [self._map, self._variants, self._both]
        self._depth = depth
        return self._rng.choice(makers)()

    def _object_below(self) -> Schema:
        return self._object(self._depth)

    def _string(self) -> Schema:
        rng = self._rng
        kind = rng.randrange(6)
        if kind == 0:
            return {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 12)}
        if kind == 1:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        if kind == 2 and not self._plain:
            return {"type": "string", "format": rng.choice(FORMATS)}
        if kind == 3 and not self._plain:
            return {"type": "string", "pattern": "^[a-z ]*$", "maxLength": rng.randint(2, 9)}
        return {"type": "string", "maxLength": 20}

    def _integer(self) -> Schema:
        rng = self._rng
        low = rng.randint(-200, 200)
        schemas: list[Schema] = [
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)},
            {"type": "integer", "exclusiveMinimum": 0},
            {"type": "integer"},
        ]
        return rng.choice(schemas if self._plain else [*schemas, {"type": "integer", "multipleOf": rng.choice([5, 12])}])

    def _number(self) -> Schema:
        low = self._rng.randint(-20, 20)
        return self._rng.choice([{"type": "number"}, {"type": "number", "minimum": low, "maximum": low + 7}])

    def _choice(self) -> Schema:
        rng = self._rng
        return rng.choice([{"enum": rng.sample(WORDS, 3)}, {"const": rng.choice(WORDS)}, {"enum": [1, "one", None, True]}])

    def _simple(self) -> Schema:
        return {"type": self._rng.choice(["boolean", "null"])}

    def _list(self) -> Schema:
        rng, depth = self._rng, self._depth
        if rng.random() < 0.25:
            parts = [self._value(depth + 1) for _ in range(rng.randint(1, 3))]
            return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts), "maxItems": len(parts)}
        low = rng.randint(0, 2)
        return {"type": "array", "items": self._value(depth + 1), "minItems": low, "maxItems": low + rng.randint(0, 2)}

    def _union(self) -> Schema:
        depth = self._depth
        return {"anyOf": [self._value(depth + 1), {"type": "null"}]}

    def _map(self) -> Schema:
        if self._rng.random() < 0.5:
            names = {"propertyNames": {"enum": self._rng.sample(WORDS, 2)}}
        else:
            names = {"propertyNames": {"pattern": "^[a-z]{1,5}$"}}
        return {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}, **names}

    def _variants(self) -> Schema:
        kinds = self._rng.sample(WORDS, 2)
        shapes = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "n": {"type": "integer", "minimum": 0}},
                "required": ["kind"],
            }
            for kind in kinds
        ]
        return {"oneOf": shapes}

    def _both(self) -> Schema:
        return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": self._rng.randint(3, 400)}]}
