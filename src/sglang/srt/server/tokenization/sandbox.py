"""The sandbox of chat templates: an untrusted template takes bounded time and memory.

    what grows           + ~ * % ** and results of filters, methods and captured blocks are charged to a meter, one a rendering
    what multiplies      replace, join, indent, formats and widths: the size of the result is worked out first
    what repeats         every turn of a loop, every call and every filter looks at the clock
    what is shared       lists inside lists are walked as often as they would be written, so that [x, x] in [x, x] ... ends early

Widths, counts and sizes here are far above what a template for people's messages needs.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from time import monotonic
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

MAX_CHARS = 32 << 20
"""of one text"""
MAX_WORK = 256 << 20
"""characters of all texts, and eight for each element of all lists, that one rendering makes"""
MAX_COUNT = 1 << 20
"""largest number that is a width or a repetition; most elements of what is written out"""
MAX_INDENT = 64
SHORT = 4096
MAX_WIDTH_DIGITS = 4

_WIDTH = re.compile(rf"\d{{{MAX_WIDTH_DIGITS + 1},}}|\*")
_PERCENT_WIDTH = re.compile(rf"\d{{{MAX_WIDTH_DIGITS + 1},}}|[%.][-+ #0]*\*")
_PLAIN = (str, int, float, type(None))
_OF_LOOPS = frozenset({"first", "last", "index", "index0"})
_TAKE_CONTAINERS = frozenset(
    [
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "format",
        "groupby",
        "items",
        "join",
        "last",
        "length",
        "list",
    ]
    + [
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "tojson",
    ]
    + ["unique"]
)
"""filters that do not write out a list or object they are given"""
_COUNTING_FILTERS = frozenset({"batch", "center", "indent", "round", "slice", "truncate", "wordwrap"})
_COUNTING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_REMOVED_FILTERS = ("pprint", "striptags", "urlize", "xmlattr")
_REMOVED_METHODS = frozenset({"fromkeys", "translate", "maketrans", "to_bytes", "encode"})


class TemplateStop(Exception):
    """Raised inside a template by itself (`raise_exception`)."""


class TemplateLimit(TemplateStop):
    """A template takes more time or memory than any real one."""


class Meter(threading.local):
    """The budget that is left for the rendering on this thread."""

    deadline = float("inf")
    left = MAX_WORK

    def start(self, seconds: float) -> None:
        self.deadline = monotonic() + seconds
        self.left = MAX_WORK


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model is trained on; to render it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(CodeGenerator):
    """Puts calls of the sandbox around what makes new values."""

    def _around(self, method: str, node: nodes.Node, visit: Callable[[Any, Frame], None], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        visit(node, frame)
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Measures sums: of a + b + c ... the whole sum and every eighth part."""
        operands, left = [node.right], node.left
        while isinstance(left, nodes.Add):
            operands.append(left.right)
            left = left.left
        count = len(operands)
        self.write("environment.added(" * -(-count // 8))
        self.visit(left, frame)
        for i, operand in enumerate(reversed(operands), 1):
            self.write(" + ")
            self.visit(operand, frame)
            if i % 8 == 0 or i == count:
                self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._around("nested", node, super().visit_List, frame) if node.items else super().visit_List(node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        loads = node.ctx == "load" and node.items
        self._around("nested", node, super().visit_Tuple, frame) if loads else super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._around("nested", node, super().visit_Dict, frame) if node.items else super().visit_Dict(node, frame)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        self.write("environment.text(")


class _Formatter(SandboxedFormatter):
    """str.format without huge widths, whose fields are charged one by one."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._sandbox = sandbox

    def format_field(self, value: Any, format_spec: str) -> Any:
        if _WIDTH.search(format_spec):
            raise TemplateLimit("a width in it is too large")
        return self._sandbox.grown(super().format_field(self._sandbox.checked(value), format_spec))


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which templates are compiled and rendered. `meter` is started before each rendering."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag], cache_size=0
        )
        self.meter = Meter()
        self.concat = self.joined  # type: ignore[method-assign]
        self.filters.update(tojson=self._tojson, join=self._join, sum=self._sum)
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters = {name: self._guarded(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if tree.find(nodes.EvalContextModifier) or tree.find(nodes.ScopedEvalContextModifier):
            raise TemplateSyntaxError("autoescape has no place in a chat template", 1, name, filename)
        loops: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for loop in loops:
            loop.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("tick")).set_lineno(loop.lineno))
        return tree

    # --- the meter ------------------------------------------------------------------------------------------------------------

    @property
    def tick(self) -> None:
        """Looked up, it looks at the clock: a template calls nothing for it."""
        if monotonic() > self.meter.deadline:
            raise TemplateLimit("it takes too long")

    def added(self, value: Any) -> Any:
        """The result of an addition. Short ones are free: nothing collects more of them than lists and output, which are charged,
        have room for."""
        if type(value) is str and len(value) < SHORT:
            return value
        return self.grown(value)

    def grown(self, value: Any) -> Any:
        """A new value, charged."""
        if isinstance(value, str):
            self._charge(len(value))
        elif isinstance(value, (list, tuple, dict, bytes)):
            self._charge(8 * len(value))
        return value

    def _charge(self, size: int) -> None:
        meter = self.meter
        meter.left = left = meter.left - size - 1
        if left < 0 or size > 2 * MAX_CHARS:
            raise TemplateLimit("it makes too much text")

    def expect(self, size: int) -> None:
        """Refuses a text before it is made."""
        if size > min(MAX_CHARS, self.meter.left):
            raise TemplateLimit("it makes too much text")

    def text(self, value: Any) -> str:
        """A value as it is written."""
        return value if type(value) is str else str(self.checked(value))

    def joined(self, parts: Iterable[Any]) -> str:
        texts = [self.text(part) for part in parts]
        size = sum(map(len, texts))
        self.expect(size)
        self._charge(size)
        return "".join(texts)

    def checked(self, value: Any) -> Any:
        """The value, which can be written out: not too large in all, however often its parts are shared."""
        if not isinstance(value, _PLAIN):
            self.expect(self.written_len(value))
        return value

    def nested(self, value: Any) -> Any:
        """A new list, tuple or object."""
        return self.checked(value)

    def written_len(self, value: Any) -> int:
        """About how long a value is when it is written out. Raises TemplateLimit for a huge one."""
        size = count = 0
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, (str, bytes)):
                size += len(item)
                continue
            if isinstance(item, Namespace):
                raise TemplateLimit("it writes out a namespace")
            if isinstance(item, dict):
                inner = [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, set, frozenset)) or type(item).__name__ in (
                "dict_items",
                "dict_values",
                "dict_keys",
            ):
                inner = list(item)
            else:
                size += 16
                continue
            count += len(inner) + 1
            size += 4 * len(inner) + 2
            if count > MAX_COUNT or size > MAX_CHARS:
                raise TemplateLimit("it makes too much text")
            waiting += inner
        return size

    # --- operators ------------------------------------------------------------------------------------------------------------

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, (str, bytes)):
                self._check_percent(left, right)
        else:
            for count, other in ((left, right), (right, left)):
                size = len(other) if isinstance(other, (str, list, tuple, bytes)) else 1
                if isinstance(count, int) and abs(count) * max(size, 1) > MAX_COUNT:
                    raise TemplateLimit("a product in it is too large")
        return self.grown(super().call_binop(context, operator, left, right))

    def _check_percent(self, pattern: Any, values: Any) -> None:
        text = pattern if isinstance(pattern, str) else str(pattern)
        if _PERCENT_WIDTH.search(text):
            raise TemplateLimit("a width in it is too large")
        self.expect(len(text) + text.count("%") * self.written_len(values))

    # --- attributes -----------------------------------------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As jinja2 has it, which looks for long at what every message asks for: the numbers of its loop."""
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    # --- calls ----------------------------------------------------------------------------------------------------------------

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if monotonic() > self.meter.deadline:
            raise TemplateLimit("it takes too long")
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes, int, list, tuple, dict)):
            args = self._check_method(owner, obj.__name__, args, kwargs)
        return self.grown(super().call(context, obj, *args, **kwargs))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments for a method of a built-in type. Raises TemplateLimit for a result that would be huge."""
        if name in _REMOVED_METHODS:
            raise TemplateLimit(f"it uses the method {name}")
        if name in _COUNTING_METHODS:
            _check_counts(args, kwargs)
        if name == "replace" and isinstance(owner, str) and len(args) > 1:
            self._expect_replaced(owner, args[0], args[1])
        elif name == "join" and isinstance(owner, str) and args:
            parts = list(args[0])
            self.expect(sum(map(self.written_len, parts)) + len(owner) * len(parts))
            return (parts, *args[1:])
        elif name == "expandtabs":
            self.expect(len(owner) + owner.count("\t") * max((*args, *kwargs.values(), 8), default=8))
        elif name in ("split", "rsplit", "splitlines") and len(owner) > MAX_COUNT:
            mark = args[0] if args and isinstance(args[0], str) and args[0] else None
            if (owner.count(mark) if mark else len(owner) // 2) > MAX_COUNT:
                raise TemplateLimit("it makes too many pieces")
        return args

    def _expect_replaced(self, text: Any, old: Any, new: Any) -> None:
        text, old, new = self.text(text), self.text(old), self.text(new)
        self.expect(len(text) + (text.count(old) if old else len(text) + 1) * len(new))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        formatter, pattern, is_map = _Formatter(self), value.__self__, value.__name__ == "format_map"

        def wrapped(*args: Any, **kwargs: Any) -> str:
            if is_map:
                return str(self.grown(formatter.vformat(pattern, (), args[0])))
            return str(self.grown(formatter.vformat(pattern, args, kwargs)))

        return functools.update_wrapper(wrapped, value)

    # --- filters --------------------------------------------------------------------------------------------------------------

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        takes_more = getattr(function, "jinja_pass_arg", None) is not None  # the context or the environment comes first

        meter, num_args = self.meter, 2 if takes_more else 1

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if monotonic() > meter.deadline:
                raise TemplateLimit("it takes too long")
            if len(args) != num_args or kwargs or type(args[-1]) is not str:
                self._check_filter(name, args[1:] if takes_more else args, kwargs)
            return self.grown(function(*args, **kwargs))

        return guarded

    def _check_filter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:
            return
        value = args[0]
        if name not in _TAKE_CONTAINERS and not isinstance(value, _PLAIN):
            self.expect(self.written_len(value))
        if len(args) == 1 and not kwargs:
            return
        if name in _COUNTING_FILTERS:
            _check_counts(args[1:], kwargs)
        if name == "format":
            self._check_percent(value if isinstance(value, (str, bytes)) else self.text(value), kwargs or args[1:])
        elif name == "replace":
            rest = dict(zip(("old", "new"), args[1:], strict=False)) | kwargs
            self._expect_replaced(value, rest.get("old", ""), rest.get("new", ""))
        elif name == "indent":
            width = args[1] if len(args) > 1 else kwargs.get("width", 4)
            text = self.text(value)
            self.expect(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))
        elif name == "wordwrap":
            mark = kwargs.get("wrapstring", args[3] if len(args) > 3 else None)
            self.expect(len(self.text(value)) * max(8, len(mark or "")))

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Plain JSON: Jinja's own filter escapes for HTML."""
        if not (indent is None or (isinstance(indent, int) and indent <= MAX_INDENT)):
            raise TemplateLimit(f"tojson takes an indent of at most {MAX_INDENT}")
        if separators is not None and sum(map(len, separators)) > MAX_INDENT:
            raise TemplateLimit("tojson takes short separators")
        return json.dumps(
            self.checked(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        parts = list(value) if attribute is None else list(map(make_attrgetter(self, attribute), value))
        texts = [self.text(part) for part in parts]
        self.expect(sum(map(len, texts)) + len(d) * len(texts))
        return d.join(texts)

    def _sum(self, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        """Jinja's own adds lists up in quadratic time without a look at the clock."""
        total = start
        for item in iterable if attribute is None else map(make_attrgetter(self, attribute), iterable):
            self.tick  # noqa: B018
            total = self.grown(total + item)
        return total


def _check_counts(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_COUNT:
            raise TemplateLimit("a number in it is too large")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateStop(str(message))


def _strftime_now(pattern: str) -> str:
    if _PERCENT_WIDTH.search(pattern) or len(pattern) > MAX_INDENT * MAX_INDENT:
        raise TemplateLimit("a width in it is too large")
    return datetime.now().strftime(pattern)
