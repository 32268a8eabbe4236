"""What a program is made of: small immutable expressions.

`"text" + gen("x") + "."` builds an ExprList; nothing runs until it is added to a state. The interpreter has one method per
class below.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sglang.lang.choices import ChoicesSamplingMethod
from sglang.lang.errors import BackendError, TypedValueError
from sglang.lang.generation import Generation

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""


class Expr:
    """A piece of a prompt. Pieces and strings are joined with `+`."""

    __slots__ = ()

    def __add__(self, other: Expr | str) -> ExprList:
        return ExprList((*leaves(self), *leaves(as_expr(other))))

    def __radd__(self, other: Expr | str) -> ExprList:
        return ExprList((*leaves(as_expr(other)), *leaves(self)))

    @property
    def written_names(self) -> tuple[str | None, ...]:
        """Variables that this piece sets."""
        return ()


def as_expr(value: object) -> Expr:
    """Strings become Text. Raises ValueError for None, TypeError for anything else that is not an expression."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return Text(value)
    if value is None:
        raise ValueError("None cannot be added to a state: a function that builds a prompt must return its expression")
    raise TypeError(f"only strings and expressions can be added to a prompt, not {type(value).__name__}; use str(...)")


def leaves(expr: Expr) -> tuple[Expr, ...]:
    """The expression without lists."""
    return expr.items if isinstance(expr, ExprList) else (expr,)


@dataclass(frozen=True, slots=True, repr=False)
class ExprList(Expr):
    """Expressions one after the other; never nested."""

    items: tuple[Expr, ...]

    def __iter__(self) -> Iterator[Expr]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Expr:
        return self.items[index]

    def __repr__(self) -> str:
        return f"ExprList({list(self.items)})"


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """Literal text."""

    value: str


class OutputType(Protocol):
    """A type that the text of a gen is decoded to and read as. `typed/output.py` makes them."""

    @property
    def wanted(self) -> str:
        """The type in words, for a model that has to be asked."""
        ...

    def constrain(self, options: Mapping[str, Any], kinds: Collection[str]) -> dict[str, Any]:
        """`options` with the constraint, if its kind is among `kinds`, those that the backend knows."""
        ...

    def unconstrain(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `constrain` without the constraint."""
        ...

    def is_refused(self, error: BackendError, options: Mapping[str, Any]) -> bool:
        """Whether a server says that it cannot decode under the constraint."""
        ...

    async def check(
        self, generation: Generation, options: Mapping[str, Any], again: Callable[[TypedValueError], Awaitable[Generation]]
    ) -> tuple[Generation, list[Any]]:
        """The generation to keep and its values. Where a text has none, `again` may be asked for another generation."""
        ...


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """Text written by the model. `options` holds only what was set (names of sampling.ALL_WIRES). `typed` makes an object of
    the text; `tools` are functions the model may call; `reasoning` names the format to split thinking from the answer."""

    name: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    typed: OutputType | None = None
    reasoning: str | None = None
    stream: bool = False

    @property
    def written_names(self) -> tuple[str | None, ...]:
        return (self.name,) if self.reasoning is None else (self.name, f"{self.name}_reasoning_content")


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """The most likely of some texts."""

    name: str | None
    choices: tuple[str, ...]
    temperature: float
    method: ChoicesSamplingMethod

    @property
    def written_names(self) -> tuple[str | None, ...]:
        return (self.name,)


@dataclass(frozen=True, slots=True)
class RoleBegin(Expr):
    role: str


@dataclass(frozen=True, slots=True)
class RoleEnd(Expr):
    role: str


@dataclass(frozen=True, slots=True)
class Image(Expr):
    """An image, or a video as the original packs it. `data` is bare base64, or "video:" and base64, or an http URL that the
    server fetches; `mime` says what the bytes are."""

    data: str = field(repr=False)
    mime: str = "image/png"


@dataclass(frozen=True, slots=True)
class VarBegin(Expr):
    """Start of a variable that collects all text up to its VarEnd."""

    name: str


@dataclass(frozen=True, slots=True)
class VarEnd(Expr):
    name: str

    @property
    def written_names(self) -> tuple[str | None, ...]:
        return (self.name,)


@dataclass(frozen=True, slots=True)
class SeparateReasoning(Expr):
    """Marks the end of an expression whose gens are split into reasoning and answer; the gens themselves carry the format."""

    model_type: str | None
    name: str

    def __repr__(self) -> str:
        return f"SeparateReasoning(model_type={self.model_type}, name={self.name})"


def with_reasoning(expr: Expr, model_type: str) -> tuple[Expr, ...]:
    """The leaves of `expr` with every gen told to split its text. Raises ValueError for a gen without a name."""
    found = []
    for leaf in leaves(expr):
        if isinstance(leaf, Gen):
            if leaf.name is None:
                raise ValueError("separate_reasoning needs a name for every gen inside: the reasoning is stored beside it")
            leaf = replace(leaf, reasoning=model_type)
        found.append(leaf)
    return tuple(found)
