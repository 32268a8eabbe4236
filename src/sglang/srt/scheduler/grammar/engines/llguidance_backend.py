"""The default engine: llguidance (Earley parser over derivative-based lexers; masks in tens of microseconds).

Its tokenizer wants the bytes of every token, which `Vocabulary` has, and an encoder for the forced stretches of a grammar:
Hugging Face's own when the vocabulary brings its JSON, so that the canonical tokens are used, else longest match.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError, GrammarError
from sglang.srt.json_style import JsonStyle, split_style
from sglang.srt.scheduler.grammar.encoder import LongestMatch
from sglang.srt.scheduler.grammar.engines.base import GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.engines.keyword_arguments import Prepare, keyword_grammar
from sglang.srt.scheduler.grammar.engines.lark_schemas import prepare_lark
from sglang.srt.scheduler.grammar.low_priority import LowPriorityThreads
from sglang.srt.scheduler.grammar.regex.syntax import to_engine_regex
from sglang.srt.scheduler.grammar.schema.bounds import finish_schema, nodes_of
from sglang.srt.scheduler.grammar.schema.json_schema import prepare_schema, prepare_value
from sglang.srt.scheduler.grammar.schema.keywords import IN_PLACE, LOWER, UPPER, Node
from sglang.srt.scheduler.grammar.schema.layout import checked_whitespace, default_whitespace
from sglang.srt.scheduler.grammar.schema.loosening import FollowedInPartError, Loose, compile_loosely
from sglang.srt.scheduler.grammar.schema.numbers import check_floats, check_joined_steps
from sglang.srt.scheduler.grammar.schema.recursion import join_references, without_definition
from sglang.srt.scheduler.grammar.schema.rewriting.properties import group_names, name_counted
from sglang.srt.scheduler.grammar.structural_tags import Structure, blame, read_structural_tag
from sglang.srt.vocabulary import Vocabulary

MAX_FORCED_BYTES = 1024
"""Beyond this length the beginning of a forced text is sampled token by token: tokenizing it would delay other requests."""
NUM_LOW_PRIORITY = 2
FEW_CORES = 2
"""With so few cores, masks are filled one after the other: more threads cost as much as they save."""
MEANINGS = {
    "NoExtensionBias": "no text satisfies it",
    "recursion limit exceeded": "nested too deeply for the engine (128 levels of JSON)",
}
"""engine messages that are replaced"""
CIRCULAR = "circular references with sibling keys"
FOLLOWED = frozenset(
    [
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
    ]
)
_UNSATISFIABLE = re.compile(r"Unsatisfiable schema.*json-schema:///#/\$defs/([^ |]+)$")
MAX_FALSE = 16
"""definitions that nothing satisfies, one compilation each"""
_CONTROLS = re.compile(r"\\u00[01]|\\u007f|\\\\x[01]|\\\\c[A-Za-z]")
LARGEST_STEP = 10**4
"""of multipleOf, in units of its last decimal: there is a state for each remainder"""
LEAST = 1e-9
"""the smallest step between limits"""
MAX_STEPPED = 100_000
"""up to here a limit and one such step above it are held exactly"""
MAX_ITEMS_IN_ROW = 20_000
"""Limit of the parser: four items for each optional property that may come next."""
ESCAPES = 'nrbtf\\"'
"""Characters after a backslash that cannot be written without one. \\u would be a second spelling of a name that a schema
lists."""


class LLGuidanceState:
    """A matcher of llguidance. Its masks have as many words as the tokenizer has ids, which may be fewer or more than the
    model has."""

    def __init__(self, matcher: Any, num_words: int) -> None:
        self._matcher = matcher
        self._num_words = num_words
        self.unenforced: tuple[str, ...] = ()

    @property
    def matcher(self) -> Any:
        return self._matcher

    @property
    def is_finished(self) -> bool:
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        return _first_lines(self._matcher.get_error()) if self._matcher.is_error() else None

    def fill_mask(self, out: UInt32Array) -> None:
        if len(out) == self._num_words and out.flags.c_contiguous:
            self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
            return
        own = np.zeros(self._num_words, dtype=np.uint32)
        self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
        n = min(len(own), len(out))
        out[:n] = own[:n]
        out[n:] = 0

    def accept(self, token_id: int) -> bool:
        """In an error the mask has nothing but ends of text, and one is consumed: what it ends is not valid."""
        return bool(self._matcher.consume_token(token_id)) and not self._matcher.is_error()

    def accept_all(self, token_ids: list[int]) -> bool:
        return bool(self._matcher.consume_tokens(token_ids)) and not self._matcher.is_error()

    def rollback(self, num_tokens: int) -> bool:
        return bool(self._matcher.rollback(num_tokens))

    def forced_tokens(self) -> list[int]:
        if len(self._matcher.compute_ff_bytes()) > MAX_FORCED_BYTES:
            return []
        return list(self._matcher.compute_ff_tokens())

    def copy(self) -> GrammarState:
        state = LLGuidanceState(self._matcher.deep_copy(), self._num_words)
        state.unenforced = self.unenforced
        return state


class LLGuidanceBackend:
    """Compiles with limits of llguidance's own, so that no grammar takes unbounded time or memory."""

    def __init__(self, vocabulary: Vocabulary, options: GrammarOptions, threads: bool = True) -> None:
        try:
            checked_whitespace(options.whitespace_pattern or "")
        except GrammarError as error:
            raise ConfigError(str(error)) from error
        self._vocabulary = vocabulary
        self._options = options
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._executor: Any = None
        self._threads = threads
        self._low_priority = LowPriorityThreads(NUM_LOW_PRIORITY if threads else 0)
        self.num_words = (vocabulary.size + 31) // 32
        # Kept small: a step of one request must not stall the others, and compiling must come to an end by itself.
        self._limits = llguidance.LLParserLimits(
            verbose_errors=False,
            max_lexer_states=50_000,
            max_items_in_row=MAX_ITEMS_IN_ROW,
            step_max_items=5 * MAX_ITEMS_IN_ROW,
            max_grammar_size=100_000,
        )

    def prepare(self) -> None:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _create_tokenizer(self._vocabulary)
                few = not self._threads or (os.cpu_count() or 1) <= FEW_CORES
                self._executor = None if few else llguidance.LLExecutor()
                self.num_words = (self._tokenizer.vocab_size + 31) // 32

    def compile(self, kind: str, text: str, prefix: str = "") -> GrammarState:
        self.prepare()
        try:
            style, text = split_style(text)
        except ValueError as error:
            raise GrammarError(f"{kind}: {error}", kind) from error
        if kind == "json_schema" and style.check:
            return compile_loosely(lambda loose: self._compile_schema(text, prefix, style, loose), len(text), style.parts)
        if kind == "json_schema":
            return self._compile_schema(text, prefix, style, None)
        try:
            return self._build(kind, self._translate(kind, text, style), prefix)
        except GrammarError as error:
            if kind != "structural_tag":
                raise
            raise blame(text, error, partial(self.compile, "json_schema")) from error

    def _compile_schema(self, text: str, prefix: str, style: JsonStyle, loose: Loose | None) -> LLGuidanceState:
        """Compiles a schema. With `loose`, omits parts that cannot be followed."""
        schema = self._finished(prepare_schema(text, FOLLOWED, _check_node, loose), style)
        try:
            state = self._build_schema(schema, prefix)
        except GrammarError as error:
            if CIRCULAR not in str(error):
                raise
            state = self._build_schema(join_references(schema), prefix)
        state.unenforced = tuple(loose.dropped) if loose is not None else ()
        return state

    def _build_schema(self, schema: Node, prefix: str) -> LLGuidanceState:
        """The engine refuses a whole schema for a definition that nothing satisfies, though there be a choice."""
        for _ in range(MAX_FALSE):
            try:
                return self._build("json_schema", _as_grammar(schema), prefix)
            except GrammarError as error:
                found = _UNSATISFIABLE.search(str(error))
                if found is None or found[1] not in schema.get("$defs", {}):
                    raise
                schema = without_definition(schema, found[1])
        return self._build("json_schema", _as_grammar(schema), prefix)

    def _build(self, kind: str, grammar: str, prefix: str) -> LLGuidanceState:
        if prefix:
            grammar = _after(prefix, grammar)
        matcher = self._low_priority.run(llguidance.LLMatcher, self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise GrammarError(f"{kind}: {_first_lines(matcher.get_error())}", kind)
        state = LLGuidanceState(matcher, self.num_words)
        self._begin(state, kind)
        return state

    def _begin(self, state: LLGuidanceState, kind: str) -> None:
        """Builds what the first token needs, on a side thread, once for all copies. The mask comes first: it lets go of the
        interpreter's lock, and what it finds out makes the rest short."""
        self._low_priority.run(state.fill_mask, np.zeros(self.num_words, dtype=np.uint32))
        state.forced_tokens()
        if state.error is not None:
            raise GrammarError(f"{kind}: too complex: {state.error}", kind)

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        if self._executor is None or len(states) < 2 or out.shape[1] != self.num_words or not out.flags.c_contiguous:
            for i, state in enumerate(states):
                state.fill_mask(out[i])
            return
        matchers = [(state.matcher, i) for i, state in enumerate(states) if isinstance(state, LLGuidanceState)]
        self._executor.unsafe_compute_mask_ptr(matchers, out.ctypes.data, out.shape[1] * 4, len(states))

    def _translate(self, kind: str, text: str, style: JsonStyle) -> str:
        """The grammar in llguidance's own form. Raises GrammarError."""
        if kind == "regex":
            return str(llguidance.LLMatcher.grammar_from_regex(to_engine_regex(text)))
        try:
            if kind == "ebnf":
                prepare = partial(self._prepared, style=style)
                return str(llguidance.LLMatcher.grammar_from_lark(prepare_lark(_as_lark(text), prepare)))
            if kind == "structural_tag":
                return self._translate_tags(text, style)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"{kind}: {_first_lines(str(error))}", kind) from error
        raise GrammarError(f"constraints of the kind {kind} are not supported by llguidance", kind)

    def _prepared(self, schema: Any, style: JsonStyle) -> Node:
        """A schema inside another grammar."""
        return self._finished(prepare_value(schema, FOLLOWED, _check_node), style)

    def _finished(self, schema: Node, style: JsonStyle) -> Node:
        """Adds the engine's settings. `lenient` would drop keywords that the engine does not know; a schema may not enable it
        itself."""
        layout = self._layout(schema, style)
        finish_schema(schema, self._options.bounded)
        if any(node.keys() & IN_PLACE for node in nodes_of(schema)):
            check_joined_steps((node["multipleOf"] for node in nodes_of(schema) if "multipleOf" in node), LARGEST_STEP)
        for node in nodes_of(schema):
            name_counted(node)
            group_names(node)
        own = schema.pop("x-guidance", {}) if style.whitespace is None else {}
        chosen = {**layout, **own, "lenient": False}
        if not _has_controls(schema):
            chosen["json_allowed_escapes"] = ESCAPES
        return {**schema, "x-guidance": chosen}

    def _layout(self, schema: Node, style: JsonStyle) -> dict[str, Any]:
        white = self._options.whitespace_pattern if style.whitespace is None else style.whitespace
        white = default_whitespace(schema) if white is None else checked_whitespace(white)
        return {"whitespace_flexible": True, "whitespace_pattern": white} if white else {"whitespace_flexible": False}

    def _translate_tags(self, text: str, style: JsonStyle) -> str:
        structures = read_structural_tag(text).structures
        names = {self._vocabulary.token_bytes[i].decode(errors="replace") for i in self._vocabulary.special_ids}
        prepare = partial(self._prepared, style=style)
        tags = [_structure_tag(structure, prepare) for structure in structures]
        special = all(tag.trigger in names for tag in tags)
        grammar = str(llguidance.StructTag.to_grammar(tags, assume_special=special))
        return grammar if grammar.startswith("{") else str(llguidance.grammar_from("lark", grammar))


def _as_grammar(schema: Node) -> str:
    """The schema as text: the engine reads it much faster than Python objects, and without the interpreter's lock."""
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"json_schema: {_first_lines(str(error))}", "json_schema") from error


def _after(prefix: str, grammar: str) -> str:
    """`grammar`, with a text before it."""
    value = json.loads(grammar) if grammar.startswith("{") else {"grammars": [{"lark_grammar": grammar}]}
    first, *others = value["grammars"]
    start = {"name": "start", "lark_grammar": f"start: {json.dumps(prefix)} @rest"}
    return json.dumps({**value, "grammars": [start, {**first, "name": "rest"}, *others]})


_MARKED_START = re.compile(r"(?m)^\s*[?!]+start\s*:(?!:=)")
"""Lark's first rule with a mark: what becomes of it in a tree says nothing about the text"""


def _as_lark(text: str) -> str:
    """GBNF in Lark's form; Lark as it is."""
    if _MARKED_START.search(text) is not None:  # which the converter would not know
        return text
    try:
        return str(any_to_lark(text))
    except Exception as error:  # noqa: BLE001  the converter's own are of no special kind
        raise ValueError(f"failed to convert the grammar from GBNF to Lark: {error}") from error


def _has_controls(schema: Node) -> bool:
    """Whether it names control characters, which only \\u can write. Raises GrammarError where that could be a second way to write
    a listed name."""
    if _CONTROLS.search(json.dumps(schema)) is None:
        return False
    if any("properties" in node and node.get("additionalProperties") is not False for node in nodes_of(schema)):
        raise GrammarError(
            "json_schema: control characters are not supported beside objects of further properties", "json_schema"
        )
    return True


def _check_node(node: Node, path: str) -> None:
    """Refuses keywords that llguidance refuses without naming the place, or does not enforce."""
    check_floats(node, path, LARGEST_STEP)
    if node.get("type") != "integer":
        for key, instead, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
            _step_off(node, key, instead, sign, path)
    if isinstance(node.get("pattern"), str):
        node["pattern"] = _as_pattern(node["pattern"], f"{path}/pattern")
    least = node.get("minProperties", 0)
    is_closed = node.get("additionalProperties", False) is False and len(node.get("properties", {})) >= least
    if least - len(set(node.get("required", []))) > 1 and (not is_closed or node.get("patternProperties")):
        raise FollowedInPartError(
            f"json_schema: the keyword at {path}/minProperties is not supported: a name that occurs twice would count twice; "
            "require the properties by name",
            "minProperties",
        )
    if (
        node.get("patternProperties")
        and node.get("additionalProperties") is False
        and 0 < len(node.get("properties", {})) < least
    ):
        raise GrammarError(
            f"json_schema: the keyword at {path}/minProperties is not supported: properties named by a pattern are not counted",
            "json_schema",
        )


def _as_pattern(pattern: str, path: str) -> str:
    try:
        return to_engine_regex(pattern)
    except GrammarError as error:
        raise GrammarError(f"json_schema: {path}: {error}", "json_schema") from error


def _step_off(node: Node, key: str, instead: str, sign: int, path: str) -> None:
    """llguidance lets a whole number through that is excluded, where the other limit lies within 1 of it."""
    value, other = node.get(key), node.get(instead)
    across = [node[k] for k in (UPPER if sign > 0 else LOWER) if isinstance(node.get(k), (int, float))]
    if not isinstance(value, (int, float)) or value != int(value) or all(abs(limit - value) > 1 for limit in across):
        return
    if abs(value) > MAX_STEPPED:
        raise GrammarError(f"json_schema: the limits at {path}/{key} are too close for numbers of that size", "json_schema")
    del node[key]
    stepped = value + sign * LEAST
    node[instead] = sign * max(sign * stepped, sign * other) if isinstance(other, (int, float)) else stepped


def _structure_tag(structure: Structure, prepare: Prepare) -> Any:
    schema = structure.schema
    grammar = keyword_grammar(schema, prepare) if structure.keywords else prepare(schema)
    return llguidance.StructTag(trigger=structure.trigger, begin=structure.begin, grammar=grammar, end=structure.end)


def _first_lines(message: str) -> str:
    """The engine's message without the state dump that may follow it, on one line."""
    for sign, meaning in MEANINGS.items():
        if sign in message:
            return meaning
    lines = [line.rstrip() for line in message.split("<state>")[0].replace("<non-verbose/>", "").splitlines()]
    return " | ".join(line for line in lines if line)[:1000]


# --- the tokenizer ----------------------------------------------------------------------------------------------------------


def _create_tokenizer(vocabulary: Vocabulary) -> Any:
    if not vocabulary.eos_token_ids:
        raise GrammarError("the model has no end-of-text token, so constraints cannot end")
    eos = sorted(vocabulary.eos_token_ids)
    if vocabulary.tokenizer_json is not None:
        try:
            tokenizer = llguidance.LLTokenizer(vocabulary.tokenizer_json, eos_token=eos)
        except ValueError:  # a kind of tokenizer that llguidance cannot read
            tokenizer = None
        if tokenizer is not None and _same_bytes(tokenizer, vocabulary):
            return tokenizer
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(LongestMatch(vocabulary)), eos_token=eos)


def _same_bytes(tokenizer: Any, vocabulary: Vocabulary) -> bool:
    """Whether llguidance reads every token as the same bytes as we do: masks and text must not disagree."""
    if tokenizer.vocab_size != vocabulary.size:
        return False
    special = vocabulary.special_ids | vocabulary.eos_token_ids
    return all(i in special or tokenizer.decode_bytes([i]) == token for i, token in enumerate(vocabulary.token_bytes))
