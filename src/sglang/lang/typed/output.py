"""Generated text as values of a Python type: the constraint on decoding, and the parser of the text.

    int float bool str           regular expressions; numbers end at a space or a line end
    Literal[...], Enum           one of the texts
    list, dict, TypedDict,       a JSON schema (by pydantic)
    dataclass, pydantic model, unions...

Where a backend has no such constraint, or a server refuses the schema, the text is validated, and the model is asked again with the
validation error, a bounded number of times.
"""

from __future__ import annotations

import enum
import json
import re
import types
import typing
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sglang.lang.errors import BackendError, TypedValueError
from sglang.lang.generation import Generation
from sglang.lang.ir import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR
from sglang.lang.sampling import as_list
from sglang.lang.typed.grammar import Piece, compile_grammar, parse_captures


@dataclass(frozen=True)
class TypedOutput:
    """An ir.OutputType. `constraint`: the field ("regex" or "json_schema") and its text; `stop`: strings that end such a value;
    `wanted`: the type in words, for a model that has to be asked."""

    constraint: tuple[str, str]
    parse: Callable[[str], Any]
    wanted: str
    stop: tuple[str, ...] = ()
    max_retries: int = 2

    def constrain(self, options: Mapping[str, Any], kinds: Collection[str]) -> dict[str, Any]:
        """`options` with the constraint and the stop strings, if the constraint is among `kinds`, those that the backend has."""
        kind, text = self.constraint
        options = dict(options)
        if kind in kinds:
            options[kind] = text
            stop = as_list(options.get("stop"))
            options["stop"] = stop + [string for string in self.stop if string not in stop]
        return options

    def is_refused(self, error: BackendError, options: Mapping[str, Any]) -> bool:
        """Whether the server says that it does not support the constraint."""
        kind = self.constraint[0]
        return kind in options and error.status_code == 400 and f"{kind}:" in (error.server_message or error.message)

    def unconstrain(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `constrain` without the constraint."""
        return {name: value for name, value in options.items() if name != self.constraint[0]}

    def _was_constrained(self, generation: Generation, options: Mapping[str, Any]) -> bool:
        """Whether decoding was constrained to the type: then asking again does not help. A server says so in `schema_check` where it
        could only validate."""
        checks = [(meta.get("finish_reason") or {}) for meta in generation.metas]
        failed = any(isinstance(end, dict) and not end.get("schema_check", {}).get("valid", True) for end in checks)
        return self.constraint[0] in options and not failed

    def read(self, text: str) -> Any:
        """The value, or the TypedValueError to raise when it is read."""
        try:
            return self.parse(text)
        except ValueError as error:
            reason = str(error).split("\n  For further information")[0]
            return TypedValueError(f"{text[-200:]!r} is not {self.wanted}: {reason}", text)

    async def check(
        self,
        generation: Generation,
        options: Mapping[str, Any],
        again: Callable[[TypedValueError], Awaitable[Generation]],
    ) -> tuple[Generation, list[Any]]:
        """The values; where decoding was not constrained, after asking again for those that are invalid."""
        values = [self.read(text) for text in generation.texts]
        tries = 0 if self._was_constrained(generation, options) else self.max_retries
        for _ in range(tries):
            wrong = next((value for value in values if isinstance(value, TypedValueError)), None)
            if wrong is None:
                break
            generation = await again(wrong)
            values = [self.read(text) for text in generation.texts]
        return generation, values


def typed_output(dtype: Any, max_retries: int = 2) -> TypedOutput:
    """Raises TypeError for something that is not a type of values."""
    basic = _BASIC.get(dtype) if isinstance(dtype, (str, type)) else None
    if basic is not None:
        return replace(basic, max_retries=max_retries)
    if typing.get_origin(dtype) is typing.Literal:
        return _one_of({str(value): value for value in typing.get_args(dtype)}, max_retries)
    if isinstance(dtype, type) and issubclass(dtype, enum.Enum):
        return _one_of({str(member.value): member for member in dtype}, max_retries)
    return _by_schema(dtype, max_retries)


def _parse_int(text: str) -> int:
    return int(text.strip())


def _parse_float(text: str) -> float:
    return float(text.strip())


def _parse_bool(text: str) -> bool:
    words = {"true": True, "false": False}
    try:
        return words[text.strip().lower()]
    except KeyError:
        raise ValueError("neither True nor False") from None


def _parse_str(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


_INT = TypedOutput(("regex", REGEX_INT), _parse_int, "an integer", (" ", "\n"))
_FLOAT = TypedOutput(("regex", REGEX_FLOAT), _parse_float, "a decimal number", (" ", "\n"))
_BOOL = TypedOutput(("regex", REGEX_BOOL), _parse_bool, "True or False")
_STR = TypedOutput(("regex", REGEX_STR), _parse_str, "a text in double quotes")
_BASIC: Mapping[Any, TypedOutput] = {
    int: _INT,
    "int": _INT,
    float: _FLOAT,
    "float": _FLOAT,
    bool: _BOOL,
    "bool": _BOOL,
    str: _STR,
    "str": _STR,
}


def _one_of(values: Mapping[str, Any], max_retries: int) -> TypedOutput:
    def parse(text: str) -> Any:
        try:
            return values[text.strip()]
        except KeyError:
            raise ValueError(f"not one of {', '.join(values)}") from None

    # longer texts first, so that a prefix of another value does not hide it from engines that take the first match
    pattern = "(" + "|".join(re.escape(text) for text in sorted(values, key=len, reverse=True)) + ")"
    return TypedOutput(("regex", pattern), parse, f"one of: {', '.join(values)}", max_retries=max_retries)


def grammar_output(piece: Piece, max_retries: int = 2) -> TypedOutput:
    """A text that matches a grammar; its value is the captures."""
    kind, text = compile_grammar(piece)
    return TypedOutput(
        (kind, text), lambda written: parse_captures(piece, written), f"a text that matches the grammar {text}", (), max_retries
    )


def _by_schema(dtype: Any, max_retries: int) -> TypedOutput:
    import pydantic

    if not isinstance(dtype, type) and typing.get_origin(dtype) is None:
        raise TypeError(f"dtype {dtype!r} is not a type")
    try:
        adapter: Any = pydantic.TypeAdapter(_readable(dtype))
        schema = adapter.json_schema()
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError) as error:
        raise TypeError(f"dtype {dtype!r} is not a type that text can be read as: {error}") from error

    def parse(text: str) -> Any:
        return adapter.validate_json(_without_fence(text))

    wanted = f"JSON that fits the schema {json.dumps(schema)}"
    return TypedOutput(("json_schema", json.dumps(schema)), parse, wanted, max_retries=max_retries)


def _readable(dtype: Any) -> Any:
    """The type with every TypedDict in it made anew: before Python 3.12 pydantic cannot read those of `typing`."""
    if typing.is_typeddict(dtype):
        import typing_extensions

        fields = {name: _readable(hint) for name, hint in typing.get_type_hints(dtype, include_extras=True).items()}
        return typing_extensions.TypedDict(dtype.__name__, fields, total=dtype.__total__)  # type: ignore[operator]
    if typing.get_origin(dtype) in (list, tuple, dict, set):
        return types.GenericAlias(typing.get_origin(dtype), tuple(_readable(one) for one in typing.get_args(dtype)))
    return dtype


def _without_fence(text: str) -> str:
    """The inside of a Markdown code block, which chat models like to put around JSON."""
    found = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", text, re.DOTALL)
    return found.group(1) if found else text
