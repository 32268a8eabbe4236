"""The sampling parameters of one request.

One struct from the HTTP endpoint to the sampler. Fields have the names and defaults of the native API; the OpenAI layer translates
its names into these. `check_sampling_params` has every rule that needs no model; the tokenizer manager has the rules that do (ids
inside the vocabulary, lengths).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sglang.common.suggest import did_you_mean
from sglang.srt.errors import RequestError
from sglang.srt.json_style import JsonStyle, with_style

SEED_BITS = 53
"""of seeds that the server chooses: every JSON parser reads them as they are, so that whoever is told one can send it back"""
GREEDY_TEMPERATURE = 1e-6
"""Temperatures below this are greedy: the largest logit wins."""

MAX_STOP_STRINGS = 64
MAX_STOP_BYTES = 4096
MAX_N = 128
MAX_COUNT = 2**31 - 1
MAX_WHITESPACE_PATTERN = 256
MAX_PARTS = 1024
CONSTRAINTS = ("json_schema", "regex", "ebnf", "structural_tag")


class SamplingParams(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Sampling parameters of one request (source: the original's native API).

    `max_new_tokens=None` means the rest of the context; the tokenizer manager fills it in. At most one of `json_schema`
    (JSON text, or "$$ANY$$" for any value), `regex`, `ebnf` and `structural_tag` is set. `json_schema_strict`: a schema that
    decoding cannot follow as a whole is refused; otherwise what is left of it is checked at the end. By path, for parts of it such as
    {"#/$defs/a": true}, which are their own schemas: of those with false, one that cannot be taken at all is any object.
    `spaces_between_special_tokens`: where these are shown, a blank stands between one and what is beside it; None: as the
    tokenizer has it, without. `seed`: each
    sampled token depends on (seed, position) alone, whatever shares the batch.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    json_schema_strict: bool | dict[str, bool] = False
    constrained_json_whitespace_pattern: str | None = None
    """a regular expression of the white space between the parts of JSON; empty: none; None: the server's"""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    @property
    def adjusts_logits(self) -> bool:
        """Whether it asks for more than a choice among the model's own logits."""
        return any(getattr(self, name) not in (default, {}) for name, default in _ADJUSTING)

    @property
    def allows_drafts(self) -> bool:
        """Whether tokens may be sampled after draft tokens: all that it asks for depends on prompt and output alone, and is computed
        along a draft. Otherwise tokens are sampled one at a time."""
        return not any(getattr(self, name) not in (default, {}) for name, default in _ADJUSTING if name not in _ALONG_DRAFTS)

    @property
    def spaces_specials(self) -> bool:
        """Whether there are special tokens to be seen, with blanks around them."""
        return bool(self.spaces_between_special_tokens) and not self.skip_special_tokens

    @property
    def grammar(self) -> tuple[str, str] | None:
        """The constraint as (kind, text), kind being a field name; None when unconstrained."""
        if self.json_schema is self.regex is self.ebnf is self.structural_tag is None:
            return None
        for kind in CONSTRAINTS:
            text = getattr(self, kind)
            if text is not None:
                return kind, text
        return None

    @property
    def is_short(self) -> bool:
        """Whether none of those is given that may be long."""
        free = self.json_schema is self.regex is self.ebnf is self.structural_tag is None
        return free and not (self.stop or self.stop_token_ids or self.stop_regex or self.logit_bias)

    @property
    def styled_grammar(self) -> tuple[str, str] | None:
        """The same for the grammar engine: the text with its style (json_style.py)."""
        if self.grammar is None:
            return None
        kind, text = self.grammar
        white = self.constrained_json_whitespace_pattern if kind != "regex" else None
        if kind != "json_schema":
            return kind, with_style(text, JsonStyle(white))
        strict = self.json_schema_strict
        parts = strict if isinstance(strict, dict) else {}
        return kind, with_style(text, JsonStyle(white, check=strict is not True, parts=parts))


_CHOOSING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "n"),
        *("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex", "ignore_eos"),
        *(*CONSTRAINTS, "json_schema_strict", "constrained_json_whitespace_pattern"),
        *("skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    }
)
"""Parameters that leave logits as the model computed them. One that is not named here is taken to change them."""
_ALONG_DRAFTS = frozenset({"frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"})
"""Those that change them, and that the sampler follows along drafts (model/sampling/penalties.py)."""
_ADJUSTING = tuple(
    (name, default)
    for name, default in zip(SamplingParams.__struct_fields__, SamplingParams.__struct_defaults__, strict=True)
    if name not in _CHOOSING
)


def _out_of_range(name: str, value: float, interval: str) -> RequestError:
    return RequestError(f"{name} must be in {interval}, got {value:g}", name)


def check_sampling_params(params: SamplingParams) -> None:
    """Raises RequestError for the first rule that `params` breaks."""
    if params.max_new_tokens is not None and params.max_new_tokens < 0:
        raise RequestError(f"max_new_tokens must be at least 0, got {params.max_new_tokens}", "max_new_tokens")
    if params.min_new_tokens < 0:
        raise RequestError(f"min_new_tokens must be at least 0, got {params.min_new_tokens}", "min_new_tokens")
    if params.max_new_tokens is not None and params.min_new_tokens > params.max_new_tokens:
        raise RequestError(
            f"min_new_tokens ({params.min_new_tokens}) must not exceed max_new_tokens ({params.max_new_tokens})",
            "min_new_tokens",
        )
    _check_ranges(params)
    if params.top_k < -1 or params.top_k == 0:
        raise RequestError(f"top_k must be -1 (off) or at least 1, got {params.top_k}", "top_k")
    if max(params.max_new_tokens or 0, params.min_new_tokens, params.top_k) > MAX_COUNT:
        name = next(n for n in ("max_new_tokens", "min_new_tokens", "top_k") if (getattr(params, n) or 0) > MAX_COUNT)
        raise RequestError(f"{name} must be at most {MAX_COUNT}", name)
    if params.stop_token_ids or params.logit_bias:
        _check_ids(params)
    if not 1 <= params.n <= MAX_N:
        raise RequestError(f"n must be between 1 and {MAX_N}, got {params.n}", "n")
    if params.seed is not None and not -(2**63) <= params.seed < 2**64:
        raise RequestError("seed must fit in 64 bits", "seed")
    if params.stop or params.stop_regex:
        _check_stops(params)
    for bias in (params.logit_bias or {}).values():
        if not -100.0 <= bias <= 100.0:
            raise _out_of_range("logit_bias", bias, "[-100, 100]")
    white = params.constrained_json_whitespace_pattern
    if white is not None and (len(white) > MAX_WHITESPACE_PATTERN or not white.isascii()):
        name = "constrained_json_whitespace_pattern"
        raise RequestError(f"{name} is a regular expression of at most {MAX_WHITESPACE_PATTERN} ASCII characters", name)
    if isinstance(params.json_schema_strict, dict) and len(params.json_schema_strict) > MAX_PARTS:
        raise RequestError(f"json_schema_strict names at most {MAX_PARTS} parts", "json_schema_strict")
    if params.grammar is not None:
        kinds = [k for k in CONSTRAINTS if getattr(params, k) is not None]
        if len(kinds) > 1:
            raise RequestError(f"only one constraint is allowed, got {' and '.join(kinds)}", kinds[1])


def _check_ranges(params: SamplingParams) -> None:
    """Written out, since every request comes here. No comparison holds for NaN."""
    if not 0.0 <= params.temperature <= 1e4:
        raise _out_of_range("temperature", params.temperature, "[0, 10000]")
    if not 0.0 < params.top_p <= 1.0:
        raise _out_of_range("top_p", params.top_p, "(0, 1]")
    if not 0.0 <= params.min_p <= 1.0:
        raise _out_of_range("min_p", params.min_p, "[0, 1]")
    if not -2.0 <= params.frequency_penalty <= 2.0:
        raise _out_of_range("frequency_penalty", params.frequency_penalty, "[-2, 2]")
    if not -2.0 <= params.presence_penalty <= 2.0:
        raise _out_of_range("presence_penalty", params.presence_penalty, "[-2, 2]")
    if not 0.0 < params.repetition_penalty <= 2.0:
        raise _out_of_range("repetition_penalty", params.repetition_penalty, "(0, 2]")


def _check_ids(params: SamplingParams) -> None:
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias or ())):
        if any(not -MAX_COUNT <= i <= MAX_COUNT for i in ids):
            raise RequestError(f"{name}: token ids are at most {MAX_COUNT}", name)


def _check_stops(params: SamplingParams) -> None:
    for name, strings in (("stop", params.stop), ("stop_regex", params.stop_regex)):
        if len(strings) > MAX_STOP_STRINGS:
            raise RequestError(f"{name}: at most {MAX_STOP_STRINGS} strings are allowed, got {len(strings)}", name)
        if any(len(s.encode(errors="surrogatepass")) > MAX_STOP_BYTES for s in strings):
            raise RequestError(f"{name}: a string is longer than {MAX_STOP_BYTES} bytes", name)
        if any(not s for s in strings):
            raise RequestError(f"{name} must not contain an empty string", name)


_FIELDS = frozenset(SamplingParams.__struct_fields__)
_ALIASES = {"sampling_seed": "seed"}
_TUPLES = frozenset({"stop", "stop_token_ids", "stop_regex"})
_NOTHING = frozenset({"stream_interval", "custom_params"})


def parse_sampling_params(raw: dict[str, Any], defaults: dict[str, Any] | None = None) -> SamplingParams:
    """A native API `sampling_params` object as a checked SamplingParams.

    A value of None means the default, save for `max_new_tokens`, where it means the rest of the context. Raises RequestError
    for unknown names (naming the nearest), wrong types and broken rules.
    """
    if not isinstance(raw, dict):
        raise RequestError("sampling_params must be an object", "sampling_params")
    values: dict[str, Any] = dict(defaults or {})
    for given, value in raw.items():
        name = _ALIASES.get(given, given)
        if name in _NOTHING and value is None:
            continue
        if name not in _FIELDS:
            raise RequestError(f"unknown sampling parameter {given[:100]!r}{did_you_mean(given[:100], _FIELDS)}", given[:100])
        if value is None and name != "max_new_tokens":
            continue
        if name in _TUPLES and isinstance(value, (str, int)):
            value = [value]
        values[name] = value
    try:
        params = _converted(values)
        check_sampling_params(params)
    except RequestError as error:
        error.rename({name: given for given, name in _ALIASES.items() if given in raw})
        raise
    return params


def _converted(values: dict[str, Any]) -> SamplingParams:
    try:
        return msgspec.convert(values, SamplingParams, str_keys=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        name = re.search(r"\$\.(\w+)", where)
        param = name[1] if name is not None else "sampling_params"
        raise RequestError(f"{param}: {what}", param) from error
