"""xgrammar, the other engine (an extra: it pulls in Triton and torch): slower to compile, quicker at masks.

It lets additional property names be written with escapes, so that "\\\\u0061" would count as another name than "a": therefore objects
that list properties get no others. It accepts keywords that it does not enforce, so only verified keywords are passed on (the table in
docs/structured.md); regular expressions are translated to grammars (regex/ebnf.py).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xgrammar

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError, GrammarError
from sglang.srt.json_style import JsonStyle, split_style
from sglang.srt.scheduler.grammar.encoder import Encoder
from sglang.srt.scheduler.grammar.engines.base import GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.low_priority import LowPriorityThreads
from sglang.srt.scheduler.grammar.regex.ebnf import to_ebnf, to_plain_regex
from sglang.srt.scheduler.grammar.schema.bounds import finish_schema, nodes_of
from sglang.srt.scheduler.grammar.schema.formats import FORMATS
from sglang.srt.scheduler.grammar.schema.json_schema import prepare_schema
from sglang.srt.scheduler.grammar.schema.keywords import LOWER, UPPER, Node
from sglang.srt.scheduler.grammar.schema.layout import FIELD, LEVEL_BLANKS, num_levels
from sglang.srt.scheduler.grammar.schema.loosening import Loose, compile_loosely
from sglang.srt.scheduler.grammar.structural_tags import blame, read_structural_tag
from sglang.srt.vocabulary import Vocabulary

FOLLOWED = frozenset(
    [
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "anyOf",
        "oneOf",
        "$ref",
        "pattern",
        "format",
    ]
)
DECIMALS = 6
SCALAR_TYPES = frozenset({"string", "integer", "number", "boolean", "null"})
SAFE = r"[ !#-\[\]-" + chr(0xD7FF) + chr(0xE000) + "-" + chr(0x10FFFF) + "]"
"""characters that stand for themselves in JSON strings; surrogates are none"""
ANY_SPACE = frozenset({r"[\n\t ]*", r"[ \n\t]*", r"\s*", r"[\s]*"})
"""whitespace patterns that xgrammar's own option amounts to"""


SURROGATE_LEAD = b"\xed"
SURROGATE = re.compile(b"\xed[\xa0-\xbf]")


class XGrammarState:
    """A matcher of xgrammar. `_dead`: why it cannot be used any more. `leads`: for each token accepted, whether it ends with the
    byte that a surrogate begins with: xgrammar would let one through, which is no UTF-8."""

    def __init__(
        self, matcher: Any, backend: XGrammarBackend, unenforced: tuple[str, ...] = (), leads: Sequence[bool] = ()
    ) -> None:
        self._matcher = matcher
        self._backend = backend
        self.unenforced = unenforced
        self._dead: str | None = None
        self._leads = list(leads)

    @property
    def may_be_surrogate(self) -> bool:
        """Whether the next byte could make one."""
        return bool(self._leads) and self._leads[-1]

    @property
    def matcher(self) -> Any:
        return self._matcher

    @property
    def is_finished(self) -> bool:
        """xgrammar does not say that nothing may follow but the end: the mask does."""
        if self._matcher.is_terminated():
            return self._dead is None
        if self._dead is not None or not self._matcher.is_completed():
            return False
        own = np.zeros(self._backend.num_words, dtype=np.uint32)
        self.fill_mask(own)
        return not (own & self._backend.not_eos).any()

    @property
    def error(self) -> str | None:
        return self._dead

    def fill_mask(self, out: UInt32Array) -> None:
        own = np.zeros((1, self._backend.num_words), dtype=np.int32)
        if not self._matcher.is_terminated() and self._dead is None:
            self._matcher.fill_next_token_bitmask(own, 0)
        n = min(own.shape[1], len(out))
        out[:n] = own[0, :n].view(np.uint32) & self._backend.known[:n]
        if self.may_be_surrogate:
            out[:n] &= self._backend.no_surrogate[:n]
        out[n:] = 0

    def accept(self, token_id: int) -> bool:
        if self._dead is None and not self._matcher.is_terminated() and self._matcher.accept_token(token_id):
            self._leads.append(token_id in self._backend.leads)
            return True
        self._dead = f"the token {token_id} is not allowed here"
        return False

    def accept_all(self, token_ids: list[int]) -> bool:
        return all(self.accept(token_id) for token_id in token_ids)

    def rollback(self, num_tokens: int) -> bool:
        if self._dead is not None:
            return False
        self._matcher.rollback(num_tokens)
        del self._leads[len(self._leads) - num_tokens :]
        return True

    def forced_tokens(self) -> list[int]:
        """The last token of a forced stretch may be the beginning of a longer one, unless the output ends with it."""
        if self._dead is not None or self._matcher.is_terminated():
            return []
        text = self._matcher.find_jump_forward_string()
        ids = self._backend.encode(text) if text else []
        if not ids:
            return []
        after = self.copy()
        return ids if after.accept_all(ids) and after.is_finished else ids[:-1]

    def copy(self) -> GrammarState:
        return XGrammarState(self._matcher.fork(), self._backend, self.unenforced, self._leads)


class XGrammarBackend:
    """Compiles for one vocabulary. Raises ConfigError for a whitespace pattern that xgrammar has no counterpart of."""

    def __init__(self, vocabulary: Vocabulary, options: GrammarOptions, threads: bool = True) -> None:
        try:
            _layout({}, options.whitespace_pattern)
        except GrammarError as error:
            raise ConfigError(str(error)) from error
        if not vocabulary.eos_token_ids:
            raise ConfigError("the model has no end-of-text token, so constraints cannot end: use --grammar-backend none")
        self._vocabulary = vocabulary
        self._whitespace = options.whitespace_pattern
        self._bounded = options.bounded
        self._lock = threading.Lock()
        self._compiler: Any = None
        self._batch: Any = None
        self._low_priority = LowPriorityThreads(1 if threads else 0)
        self._encoder: Encoder | None = None
        self.num_words = (vocabulary.size + 31) // 32
        self.not_eos: UInt32Array = np.full(self.num_words, 0xFFFFFFFF, dtype=np.uint32)
        self.known: UInt32Array = self.not_eos.copy()  # no bits beyond the vocabulary: xgrammar leaves some there
        if vocabulary.size % 32:
            self.known[-1] = np.uint32((1 << vocabulary.size % 32) - 1)
        for i in vocabulary.eos_token_ids:
            self.not_eos[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
        self.no_surrogate = self.known.copy()
        tokens = [token if i not in vocabulary.special_ids else b"" for i, token in enumerate(vocabulary.token_bytes)]
        self.leads = frozenset(i for i, token in enumerate(tokens) if token.endswith(SURROGATE_LEAD))
        for i, token in enumerate(tokens):
            if SURROGATE.search(token):
                self.known[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)
            if 0xA0 <= (token or b"a")[0] <= 0xBF:
                self.no_surrogate[i // 32] &= np.uint32(~(1 << (i % 32)) & 0xFFFFFFFF)

    def encode(self, text: str) -> list[int]:
        assert self._encoder is not None, "prepare comes first"
        return self._encoder.encode(text)

    def prepare(self) -> None:
        with self._lock:
            if self._compiler is not None:
                return
            v = self._vocabulary
            special = v.special_ids | v.eos_token_ids
            table = [
                b"" if i in special else token for i, token in enumerate(v.token_bytes)
            ]  # xgrammar never allows empty ones
            info = xgrammar.TokenizerInfo(
                table, xgrammar.VocabType.RAW, vocab_size=len(table), stop_token_ids=sorted(v.eos_token_ids)
            )
            self._encoder = Encoder(v)
            self._batch = xgrammar.BatchGrammarMatcher(max_threads=1)
            self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, kind: str, text: str, prefix: str = "") -> GrammarState:
        self.prepare()
        try:
            style, text = split_style(text)
        except ValueError as error:
            raise GrammarError(f"{kind}: {error}", kind) from error
        if kind == "json_schema" and style.check:
            return compile_loosely(lambda loose: self._build(kind, text, prefix, style, loose), len(text), style.parts)
        try:
            return self._build(kind, text, prefix, style, None)
        except GrammarError as error:
            if kind != "structural_tag":
                raise
            raise blame(text, error, partial(self.compile, "json_schema")) from error

    def _build(self, kind: str, text: str, prefix: str, style: JsonStyle, loose: Loose | None) -> XGrammarState:
        try:
            compiled = self._compile(kind, text, style, loose)
            if prefix:
                said = xgrammar.Grammar.from_ebnf(to_ebnf(re.escape(prefix)))
                compiled = self._low_priority.run(
                    self._compiler.compile_grammar, xgrammar.Grammar.concat(said, compiled.grammar)
                )
        except (RuntimeError, ValueError, TypeError) as error:
            raise GrammarError(f"{kind}: {_message(error)}", kind) from error
        return XGrammarState(xgrammar.GrammarMatcher(compiled), self, tuple(loose.dropped) if loose is not None else ())

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        live = [isinstance(s, XGrammarState) and s.error is None and not s.matcher.is_terminated() for s in states]
        if not all(live) or out.shape[1] != self.num_words or not out.flags.c_contiguous:
            for i, state in enumerate(states):
                state.fill_mask(out[i])
            return
        matchers = [s.matcher for s in states if isinstance(s, XGrammarState)]
        self._batch.batch_fill_next_token_bitmask(matchers, out.view(np.int32))
        out &= self.known
        for i, state in enumerate(states):
            if isinstance(state, XGrammarState) and state.may_be_surrogate:
                out[i] &= self.no_surrogate

    def _compile(self, kind: str, text: str, style: JsonStyle, loose: Loose | None) -> Any:
        if kind == "regex":
            return self._low_priority.run(self._compiler.compile_grammar, to_ebnf(text))
        if kind == "json_schema":
            schema = self._prepared(text, loose)
            layout = _layout(schema, self._whitespace if style.whitespace is None else style.whitespace)
            if schema == {}:
                schema = {"anyOf": [{"type": t} for t in ("object", "array", *sorted(SCALAR_TYPES))]}
            return self._low_priority.run(
                self._compiler.compile_json_schema,
                json.dumps(schema),
                strict_mode=False,
                **layout,
            )
        if kind == "ebnf":
            return self._low_priority.run(self._compiler.compile_grammar, text)
        if kind == "structural_tag":
            return self._low_priority.run(self._compiler.compile_structural_tag, _structural_tag(text, self._prepared))
        raise GrammarError(f"constraints of the kind {kind} are not supported by xgrammar", kind)

    def _prepared(self, text: str, loose: Loose | None = None) -> Node:
        schema = prepare_schema(text, FOLLOWED, _check_node, loose)
        for node in nodes_of(schema):
            _list_properties(node)
        formatted = [node for node in nodes_of(schema) if "format" in node]
        finish_schema(schema, self._bounded, plain=True)
        for node in formatted:
            node["pattern"] = f"^({to_plain_regex(node['pattern'])})$"
        return schema


def _layout(schema: Node, pattern: str | None) -> dict[str, Any]:
    """White space as xgrammar's options have it: none, any, or so much that the default fits in. Raises GrammarError for others."""
    if pattern is None:
        levels = num_levels(schema)
        return {"any_whitespace": True, "max_whitespace_cnt": 1 + LEVEL_BLANKS * levels}
    if pattern == "":
        return {"any_whitespace": False, "separators": (",", ":")}
    if pattern in ANY_SPACE:
        return {"any_whitespace": True}
    known = " or ".join(sorted(ANY_SPACE))
    raise GrammarError(
        f"{FIELD}: the grammar backend xgrammar cannot follow the whitespace pattern {pattern!r}; it can follow {known}", FIELD
    )


def _check_node(node: Node, path: str) -> None:
    """Combinations that xgrammar reads in part."""

    def refuse(key: str, why: str) -> GrammarError:
        return GrammarError(f"json_schema: {path}/{key}: {why}; the grammar backend llguidance may follow it", "json_schema")

    _spread_type(node)
    chosen = [key for key in ("$ref", "enum", "const", "anyOf", "oneOf") if key in node]
    others = node.keys() & FOLLOWED - {"type"} - set(chosen[:1])
    if chosen and (others or "type" in node and chosen[0] in ("$ref", "anyOf", "oneOf")):
        raise refuse(chosen[0], f"not supported beside {', '.join(sorted(others)) or 'type'}")
    lengths = node.keys() & {"minLength", "maxLength"}
    if "pattern" in node and lengths:
        raise refuse("pattern", "not supported beside lengths")
    if "format" in node and (node["format"] not in FORMATS or lengths or "pattern" in node):
        raise refuse("format", "not supported beside a pattern or lengths" if node["format"] in FORMATS else "not known")
    if isinstance(node.get("pattern"), str):
        try:
            node["pattern"] = "^(" + to_plain_regex(node["pattern"]) + ")$"
        except GrammarError as error:
            raise refuse("pattern", str(error)) from error
    elif lengths:  # xgrammar's own rule lets control characters through
        node["pattern"] = f"^{SAFE}{{{node.pop('minLength', 0)},{node.pop('maxLength', '')}}}$"
    limits = [key for key in ("properties", "items", "prefixItems", "required", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format",
              "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "additionalProperties") if key in node]  # fmt: skip
    if limits and not isinstance(node.get("type"), str):
        raise refuse(limits[0], "needs a single type beside it")
    _check_limits(node, refuse)
    if node.get("additionalProperties") is False and set(node.get("required", [])) - node.get("properties", {}).keys():
        raise refuse("required", "names a property that is not listed")


def _spread_type(node: Node) -> None:
    """A type beside a choice stands in each branch instead."""
    branches = node.get("anyOf", node.get("oneOf"))
    if "type" not in node or not isinstance(branches, list) or not all(isinstance(branch, dict) for branch in branches):
        return
    wanted = _types(node["type"])
    if any(branch.keys() & {"$ref", "anyOf", "oneOf"} or not _types(branch.get("type", [])) <= wanted for branch in branches):
        return
    node["anyOf" if "anyOf" in node else "oneOf"] = [{"type": node["type"], **branch} for branch in branches]
    del node["type"]


def _types(kinds: Any) -> set[Any]:
    return set(kinds) if isinstance(kinds, list) else {kinds}


def _list_properties(node: Node) -> None:
    """Objects that list properties have no others: the engine would let their names be written in other ways."""
    listed, others = node.get("properties", {}), node.get("additionalProperties", True)
    if node.get("type") == "object":
        listed = {**listed, **{name: others for name in node.get("required", []) if name not in listed}}
    if listed:
        node["properties"], node["additionalProperties"] = listed, False


def _check_limits(node: Node, refuse: Callable[[str, str], GrammarError]) -> None:
    """xgrammar writes numbers between limits with six decimals; where none lies between them, it writes nothing at all."""
    if node.get("type") == "integer":
        return
    lower = [node[key] for key in LOWER if isinstance(node.get(key), (int, float))]
    upper = [node[key] for key in UPPER if isinstance(node.get(key), (int, float))]
    for key in (*LOWER, *UPPER):
        if isinstance(node.get(key), float) and round(node[key], DECIMALS) != node[key]:
            raise refuse(key, f"has more than {DECIMALS} decimals")
    if lower and upper and min(upper) - max(lower) < 10**-DECIMALS * 10:
        raise refuse(next(key for key in UPPER if key in node), "too close to the lower limit")


def _structural_tag(text: str, prepare: Callable[[str], Node]) -> str:
    """The request's {"structures", "triggers"} in xgrammar's form."""
    tag, tags = read_structural_tag(text), []
    for structure in tag.structures:
        if structure.keywords:
            raise ValueError("keyword arguments are not supported by xgrammar; the grammar backend llguidance follows them")
        ready = prepare(json.dumps(structure.schema))
        content = {"type": "json_schema", "json_schema": ready}
        tags.append({"begin": structure.begin, "end": structure.end, "content": content})
    return json.dumps({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": tag.triggers, "tags": tags}})


def _message(error: Exception) -> str:
    """Without the time and place in the engine's source that its messages begin with."""
    text = " ".join(str(error).split())
    return text.split(": ", 1)[1] if text.startswith("[") and ": " in text else text[:1000]
