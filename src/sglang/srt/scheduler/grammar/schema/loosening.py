"""What decoding cannot follow of a schema is left out of it, and noted: the whole answer is checked against it afterwards.

    prepare, compile --refused--> without what is to blame, if that is known --> compiled, `Loose.dropped` says what is missing
                                  otherwise refused

Only keywords are left out that make a schema stricter, so that every valid answer can still be generated. What leads to nothing, is
too large, or cannot be satisfied at all stays refused: no check would make an answer of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING, Node

Check = Callable[[Node, str], None]
"""(a schema object, its path): raises GrammarError for what cannot be followed"""
T = TypeVar("T")

MAX_DROPPED = 2000

BESIDE = {"if": ("then", "else"), "contains": ("minContains", "maxContains")}
"""keywords that say nothing without another one"""
SIBLINGS = "beside $ref"
"""all keywords that stand there"""
REMEDIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cannot accept any value", ("dependentRequired", "dependencies")),
    ("min/maxProperties only supported", ("minProperties", "maxProperties")),
    ("circular references with sibling keys", (SIBLINGS,)),
    ("regex parse error", ("pattern",)),
    ("lookarounds", ("pattern",)),
    ("regex parse error", ("patternProperties",)),
    ("lookarounds", ("patternProperties",)),
    ("patternPropert", ("patternProperties",)),
)
"""what an engine complains of without saying where, and the keywords that are left out then, everywhere"""


class Loose:
    """What is left out. `everywhere`: keywords that no schema keeps. `dropped`: paths of keywords that were left out."""

    def __init__(self, everywhere: frozenset[str] = frozenset()) -> None:
        self.everywhere = everywhere
        self.dropped: list[str] = []

    def drop_everywhere(self, node: Node, path: str) -> None:
        """Takes out of `node` what no schema keeps."""
        for key in sorted(self.everywhere & node.keys()):
            self._drop(node, key, path)
        if SIBLINGS in self.everywhere and "$ref" in node:
            for key in sorted(node.keys() & CONSTRAINING - {"$ref"}):
                self._drop(node, key, path)

    def loosen(self, node: Node, path: str, follows: frozenset[str], check: Check) -> None:
        """Takes out of `node` the keywords that are not among those an engine `follows`, and what `check` refuses."""
        for key in [key for key in node if key in CONSTRAINING and key not in follows]:
            if key in node:
                self._drop(node, key, path)
        while (refusal := _refusal(node, path, check)) is not None:
            for key in [key for key in node if key in CONSTRAINING or key.startswith(("$dynamic", "$recursive"))]:
                if _refusal({name: value for name, value in node.items() if name != key}, path, check) != refusal:
                    self._drop(node, key, path)
                    break
            else:
                return

    def _drop(self, node: Node, key: str, path: str) -> None:
        del node[key]
        for other in BESIDE.get(key, ()):
            node.pop(other, None)
        self.note(f"{path}/{key}")

    def note(self, path: str) -> None:
        """What is left to a check. Raises GrammarError where that is too much: finding out takes time."""
        self.dropped.append(path)
        if len(self.dropped) > MAX_DROPPED:
            raise GrammarError(f"json_schema: more than {MAX_DROPPED} keywords cannot be followed", "json_schema")


def _refusal(node: Node, path: str, check: Check) -> str | None:
    try:
        check(dict(node), path)
    except GrammarError as error:
        return str(error)
    return None


def compile_loosely(build: Callable[[Loose], T]) -> T:
    """`build` with as little left out as will do. Raises GrammarError."""
    everywhere: frozenset[str] = frozenset()
    while True:
        try:
            return build(Loose(everywhere))
        except GrammarError as error:
            more = next((keys for sign, keys in REMEDIES if sign in str(error) and not everywhere.issuperset(keys)), None)
            if more is None:
                raise
            everywhere |= frozenset(more)
