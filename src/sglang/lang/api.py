"""The words a program is written in."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sglang.lang.choices import ChoicesSamplingMethod, token_length_normalized
from sglang.lang.ir import (
    Expr,
    ExprList,
    Gen,
    Image,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    as_expr,
    leaves,
    with_reasoning,
)
from sglang.lang.program.options import resolve_backend
from sglang.lang.program.program import function
from sglang.lang.sampling import (
    ALL_WIRES,
    CONSTRAINTS,
    INHERIT,
    ConstraintOptions,
    Inherit,
    SamplingOptions,
    check_names,
    set_only,
)
from sglang.lang.settings import global_config

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sglang.lang.typed.grammar import Piece
    from sglang.lang.typed.output import TypedOutput

MAX_GREEDY_TEMPERATURE = 1e-5


class GenOptions(SamplingOptions, ConstraintOptions, total=False):
    """Keywords of `gen` besides those of its sampling: `dtype` (a type whose value `s.value(name)` gives), `choices` and
    `choices_method` (make it a select), `min_tokens` (another name of min_new_tokens), `tools` (functions the model may
    call, see tools.py), `grammar` (see grammar.py), `stream` (stream this gen in a run that does not), `max_retries` (how often to ask again for a value of `dtype`
    where the backend cannot be held to it)."""

    min_tokens: int | None
    dtype: Any
    choices: Sequence[str] | None
    choices_method: ChoicesSamplingMethod | None
    grammar: Piece | None
    tools: Sequence[Callable[..., Any]] | None
    stream: bool
    max_retries: int


_SPECIAL = ("min_tokens", "dtype", "choices", "choices_method", "grammar", "tools", "stream", "max_retries", "max_tokens")


def gen(name: str | None = None, max_tokens: int | None | Inherit = INHERIT, **options: Unpack[GenOptions]) -> Expr:
    """Text written by the model, stored in variable `name`.

    Keywords are the fields of SamplingOptions (None or absent: as in `run`), at most one of `regex`, `json_schema` (JSON
    text or dict) and `ebnf`, and those of GenOptions. `max_tokens=None` means the rest of the context. Raises re.error for a
    bad `regex`, ValueError for a bad `json_schema`, TypeError for an unknown keyword.
    """
    given: dict[str, Any] = dict(options)
    check_names(given, (*ALL_WIRES, *_SPECIAL), "gen()")
    choices, method = given.pop("choices", None), given.pop("choices_method", None)
    if choices is not None:
        return _gen_choices(name, choices, method, given)
    dtype, tools, grammar = (given.pop(key, None) for key in ("dtype", "tools", "grammar"))
    stream, max_retries = bool(given.pop("stream", False)), given.pop("max_retries", 2)
    if max_tokens is not INHERIT:
        given["max_new_tokens"] = max_tokens
    if given.get("min_tokens") is not None:
        given["min_new_tokens"] = given["min_tokens"]
    given.pop("min_tokens", None)
    given = set_only(given)
    _check_constraints(given, dtype)
    return Gen(name, given, _typed(given, dtype, tools, grammar, max_retries), stream=stream)


def _typed(given: Mapping[str, Any], dtype: Any, tools: Any, grammar: Piece | None, max_retries: int) -> TypedOutput | None:
    """What the text is to be read as; these modules are loaded when first needed."""
    asked = [key for key, value in (("dtype", dtype), ("tools", tools), ("grammar", grammar)) if value is not None]
    asked += [key for key in CONSTRAINTS if given.get(key) is not None]
    if len(asked) > 1:
        raise ValueError(f"gen takes one constraint, got {' and '.join(asked)}")
    if dtype is not None:
        from sglang.lang.typed.output import typed_output

        return typed_output(dtype, max_retries)
    if tools is not None:
        from sglang.lang.typed.tools import tool_output

        return tool_output(tools, max_retries)
    if grammar is not None:
        from sglang.lang.typed.output import grammar_output

        return grammar_output(grammar, max_retries)
    return None


def _gen_choices(name: str | None, choices: Sequence[str], method: ChoicesSamplingMethod | None, given: dict[str, Any]) -> Expr:
    temperature = given.pop("temperature", None)
    unused = sorted(set_only(given))
    if unused:
        warnings.warn(f"gen with choices scores them and does not use {', '.join(unused)}", stacklevel=3)
    return select(name, choices, 0.0 if temperature is None else temperature, method)


def _check_constraints(given: dict[str, Any], dtype: Any) -> None:
    if given.get("regex") is not None:
        re.compile(given["regex"])
        if dtype is not None:
            warnings.warn("gen with both dtype and regex uses dtype", stacklevel=3)
            del given["regex"]
    schema = given.get("json_schema")
    if schema is not None:
        if not isinstance(schema, str):
            schema = given["json_schema"] = json.dumps(schema)
        if schema != "$$ANY$$":
            try:
                json.loads(schema)
            except ValueError as error:
                raise ValueError(f"json_schema is not JSON: {error}") from error


def gen_int(name: str | None = None, max_tokens: int | None | Inherit = INHERIT, **options: Unpack[SamplingOptions]) -> Expr:
    """gen with dtype=int."""
    return gen(name, max_tokens, dtype=int, **options)


def gen_string(name: str | None = None, max_tokens: int | None | Inherit = INHERIT, **options: Unpack[SamplingOptions]) -> Expr:
    """gen with dtype=str: text in double quotes."""
    return gen(name, max_tokens, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod | None = None,
) -> Expr:
    """The most likely of `choices` by `choices_method`, stored in variable `name`. Raises ValueError without choices."""
    if not choices:
        raise ValueError("select needs at least one choice")
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError("choices must be a sequence of strings")
    if any(not choice for choice in choices):
        raise ValueError("a choice must not be empty")
    if temperature > MAX_GREEDY_TEMPERATURE:
        raise ValueError(f"select takes the best choice: its temperature must be 0, got {temperature:g}")
    return Select(name, tuple(choices), temperature, choices_method or token_length_normalized)


def image(source: Any) -> Expr:
    """An image in the prompt: a path, http(s) URL, data URL, bytes, PIL image, or array (height, width, 3) of bytes."""
    from sglang.lang.media import load_image_data

    data, mime = load_image_data(source)
    return Image(data, mime)


def video(path: str, num_frames: int) -> Expr:
    """`num_frames` evenly spaced frames of a video file (needs OpenCV)."""
    from sglang.lang.media import load_video_data

    return Image(load_video_data(path, num_frames), "video/raw")


def _message(role: str, expr: Expr | str | None) -> ExprList:
    inside = () if expr is None else leaves(as_expr(expr))
    return ExprList((RoleBegin(role), *inside, RoleEnd(role)))


def system(expr: Expr | str | None = None) -> Expr:
    """A system message."""
    return _message("system", expr)


def user(expr: Expr | str | None = None) -> Expr:
    """A user message."""
    return _message("user", expr)


def assistant(expr: Expr | str | None = None) -> Expr:
    """An assistant message."""
    return _message("assistant", expr)


def system_begin() -> Expr:
    return RoleBegin("system")


def system_end() -> Expr:
    return RoleEnd("system")


def user_begin() -> Expr:
    return RoleBegin("user")


def user_end() -> Expr:
    return RoleEnd("user")


def assistant_begin() -> Expr:
    return RoleBegin("assistant")


def assistant_end() -> Expr:
    return RoleEnd("assistant")


def separate_reasoning(expr: Expr | str | None = None, model_type: str | None = None) -> Expr:
    """Splits what the gens of `expr` write into thinking and answer: variable X becomes the answer, which alone stays in the
    prompt, and `X_reasoning_content` the thinking. Raises ValueError for a gen without a name or an unknown model_type."""
    if model_type is None:
        raise ValueError("separate_reasoning needs model_type, the model's reasoning format (for example 'qwen3')")
    from sglang.lang.typed.reasoning import reasoning_format

    reasoning_format(model_type)
    inside = with_reasoning(as_expr(expr), model_type)
    names = [leaf.name for leaf in inside if isinstance(leaf, Gen)]
    return ExprList((*inside, SeparateReasoning(model_type, ", ".join(f"{name}_reasoning_content" for name in names))))


def set_default_backend(backend: Any) -> None:
    """What programs run on when they are not told otherwise: a RuntimeEndpoint, Runtime, Engine, OpenAI, ..."""
    if backend is not None:
        resolve_backend(backend)  # raises for what is no backend
    global_config.default_backend = backend


def flush_cache(backend: Any = None) -> bool:
    """Empties the backend's prefix cache; False when there is no backend or it could not."""
    if backend is None and global_config.default_backend is None:
        return False
    return resolve_backend(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """How the backend's model is served; None when there is no backend."""
    if backend is None and global_config.default_backend is None:
        return None
    return resolve_backend(backend).get_server_info()


__all__ = [
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "user",
    "user_begin",
    "user_end",
    "video",
]
