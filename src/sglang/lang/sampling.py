"""The one table of sampling parameters.

`SamplingOptions` lists every parameter once: its Python type for type checkers, and in its `Wire` its name in each API. Everything
else (which keywords `run` and `gen` accept, which fields are sent to which API) is computed from it: a new sampling parameter
is one line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Final, TypedDict, get_type_hints

from sglang.common.suggest import did_you_mean


class _Inherit(Enum):
    INHERIT = "inherit"


INHERIT: Final = _Inherit.INHERIT
"""`max_tokens` was not given: the value of `run` counts. (None would mean the rest of the context.)"""
Inherit = _Inherit


@dataclass(frozen=True)
class Wire:
    """How one field travels. A name of None: that API does not have it. `open_models`: its name for OpenAI-compatible servers other than
    OpenAI's. `beside`: a native field that stands next to `sampling_params`, not in it. `default`: what the language sends when nobody sets
    it (None: nothing)."""

    native: str
    openai: str | None = None
    anthropic: str | None = None
    vertex: str | None = None
    default: Any = None
    beside: bool = False
    open_models: str | None = None


class SamplingOptions(TypedDict, total=False):
    """Sampling parameters that `run`, `run_batch` and `gen` accept. None: not set here."""

    max_new_tokens: Annotated[int | None, Wire("max_new_tokens", "max_tokens", "max_tokens", "max_output_tokens", default=128)]
    min_new_tokens: Annotated[int | None, Wire("min_new_tokens", default=0, open_models="min_tokens")]
    n: Annotated[int | None, Wire("n", "n", None, "candidate_count", default=1)]
    stop: Annotated[str | Sequence[str] | None, Wire("stop", "stop", "stop_sequences", "stop_sequences", default=())]
    stop_token_ids: Annotated[Sequence[int] | None, Wire("stop_token_ids", default=(), open_models="stop_token_ids")]
    stop_regex: Annotated[str | Sequence[str] | None, Wire("stop_regex")]
    temperature: Annotated[float | None, Wire("temperature", "temperature", "temperature", "temperature", default=1.0)]
    top_p: Annotated[float | None, Wire("top_p", "top_p", "top_p", "top_p", default=1.0)]
    top_k: Annotated[int | None, Wire("top_k", None, "top_k", "top_k", default=-1, open_models="top_k")]
    min_p: Annotated[float | None, Wire("min_p", default=0.0, open_models="min_p")]
    frequency_penalty: Annotated[
        float | None, Wire("frequency_penalty", "frequency_penalty", None, "frequency_penalty", default=0.0)
    ]
    presence_penalty: Annotated[
        float | None, Wire("presence_penalty", "presence_penalty", None, "presence_penalty", default=0.0)
    ]
    repetition_penalty: Annotated[float | None, Wire("repetition_penalty", open_models="repetition_penalty")]
    ignore_eos: Annotated[bool | None, Wire("ignore_eos", default=False, open_models="ignore_eos")]
    no_stop_trim: Annotated[bool | None, Wire("no_stop_trim", open_models="no_stop_trim")]
    seed: Annotated[int | None, Wire("seed", "seed", None, "seed")]
    logit_bias: Annotated[Mapping[int, float] | None, Wire("logit_bias", "logit_bias")]
    constrained_json_whitespace_pattern: Annotated[str | None, Wire("constrained_json_whitespace_pattern")]
    json_schema_strict: Annotated[bool | None, Wire("json_schema_strict")]
    lora: Annotated[str | None, Wire("lora_path", beside=True)]
    return_logprob: Annotated[bool | None, Wire("return_logprob", beside=True)]
    logprob_start_len: Annotated[int | None, Wire("logprob_start_len", beside=True)]
    top_logprobs_num: Annotated[int | None, Wire("top_logprobs_num", beside=True)]
    return_text_in_logprobs: Annotated[bool | None, Wire("return_text_in_logprobs", beside=True)]


class ConstraintOptions(TypedDict, total=False):
    """Constraints: of one gen only, at most one of them."""

    regex: Annotated[str | None, Wire("regex", open_models="regex")]
    json_schema: Annotated[str | None, Wire("json_schema")]
    ebnf: Annotated[str | None, Wire("ebnf", open_models="ebnf")]
    structural_tag: Annotated[str | None, Wire("structural_tag")]


def _wires(table: type) -> dict[str, Wire]:
    hints = get_type_hints(table, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


FIELDS: Final[dict[str, Wire]] = _wires(SamplingOptions)
CONSTRAINTS: Final[dict[str, Wire]] = _wires(ConstraintOptions)
ALL_WIRES: Final[dict[str, Wire]] = {**FIELDS, **CONSTRAINTS}
DEFAULT_MAX_NEW_TOKENS: Final = 128


def take_options(kwargs: dict[str, Any], own: Iterable[str] = ()) -> dict[str, Any]:
    """Removes the sampling fields from `kwargs` and returns those that were set. Names in `own` (a program's own
    arguments) are left where they are."""
    keep = frozenset(own)
    taken = {name: kwargs.pop(name) for name in list(kwargs) if name in FIELDS and name not in keep}
    return set_only(taken)


def set_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without the Nones that mean `not set`; `max_new_tokens=None` stays: it asks for the rest of the context."""
    return {k: v for k, v in options.items() if v is not None or k == "max_new_tokens"}


def check_names(options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises TypeError for a name that is not known, with the nearest one that is."""
    names = set(known)
    for name in options:
        if name not in names:
            raise TypeError(f"{where} got an unexpected argument {name!r}{did_you_mean(name, names)}")


def as_list(stop: str | Sequence[str] | None) -> list[str]:
    """Stop strings as their own list; never the caller's."""
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else list(stop)


def resolve(run: Mapping[str, Any], gen: Mapping[str, Any], extra_stop: Sequence[str] = ()) -> dict[str, Any]:
    """The options of one gen: those of `run` overwritten by its own, and the template's stop strings after the user's."""
    merged = {**run, **gen}
    stop = as_list(merged.get("stop"))
    stop += [s for s in extra_stop if s not in stop]
    if stop:
        merged["stop"] = stop
    else:
        merged.pop("stop", None)
    merged.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    return merged


def to_native(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(sampling_params, fields beside it) of the native API. Every field with a default is always present."""
    params = {wire.native: wire.default for wire in FIELDS.values() if wire.default is not None and not wire.beside}
    beside: dict[str, Any] = {}
    for name, value in options.items():
        wire = ALL_WIRES[name]
        (beside if wire.beside else params)[wire.native] = value
    params["stop"] = list(params["stop"])
    params["stop_token_ids"] = list(params["stop_token_ids"])
    if "logit_bias" in params:
        params["logit_bias"] = {str(k): v for k, v in params["logit_bias"].items()}
    return params, beside


def to_api(options: Mapping[str, Any], api: str) -> tuple[dict[str, Any], list[str]]:
    """(keywords, names that this API does not have) for api "openai", "anthropic" or "vertex"."""
    kwargs: dict[str, Any] = {}
    missing: list[str] = []
    for name, value in options.items():
        theirs = getattr(ALL_WIRES[name], api)
        if theirs is not None:
            kwargs[theirs] = list(value) if name == "stop" else value
        elif value != ALL_WIRES[name].default:
            missing.append(name)
    return kwargs, missing
