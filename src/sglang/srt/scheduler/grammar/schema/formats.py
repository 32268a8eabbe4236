"""Regular expressions for the string formats of JSON Schema.

Every match is valid under the document that defines the format: no 29th of February outside leap years, no year 0, no second 60, at
most 63 characters in a label of a host name. Where a format sets no length, `bounded` expressions do: a small model may never end an
address of unbounded length.
"""

from __future__ import annotations

from collections.abc import Callable

Count = Callable[[int, int], str]
"""how often something may stand: from the first number to the second, which holds where lengths are bounded"""

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_BY_FOUR = "(0[48]|[2468][048]|[13579][26])"
_DAYS = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"({_YEAR}-{_DAYS}|([0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)-02-29)"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_HEX = "[0-9a-fA-F]"
_LABEL = "[a-zA-Z0-9]{1,15}(-[a-zA-Z0-9]{1,15})?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,6}}"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]"
_STEP = r"([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"


def _bounded(low: int, high: int) -> str:
    return f"{{{low},{high}}}"


def _unbounded(low: int, high: int) -> str:
    return f"{{{low},}}"


def _time(count: Count) -> str:
    return rf"{_CLOCK}:[0-5][0-9](\.[0-9]{count(1, 6)})?(Z|[+-]{_CLOCK})"


def _date_time(count: Count) -> str:
    return f"{_DATE}T{_time(count)}"


def _duration(count: Count) -> str:
    n = f"[0-9]{count(1, 4)}"
    date = f"({n}Y({n}M({n}D)?)?|{n}M({n}D)?|{n}D)"
    time = f"T({n}H({n}M({n}S)?)?|{n}M({n}S)?|{n}S)"
    return f"P({date}({time})?|{time}|{n}W)"


def _ipv6(count: Count) -> str:
    group = f"{_HEX}{{1,4}}"
    forms = [f"({group}:){{7}}{group}"]
    for left in range(8):  # groups before ::
        right = 7 - left
        begin = f"({group}:){{{left - 1}}}{group}" if left else ""
        forms.append(f"{begin}::" + (f"(({group}:){{0,{right - 1}}}{group})?" if right else ""))
    return "(" + "|".join(forms) + ")"


def _email(count: Count) -> str:
    local = rf"{_ATOM}{count(1, 24)}(\.{_ATOM}{count(1, 24)}){count(0, 1)}"
    return rf"{local}@({_LABEL}(\.{_LABEL}){{0,2}}|\[{_IPV4}\])"


def _uri(count: Count) -> str:
    after = rf"(\?({_STEP}|[/?]){count(0, 32)})?(#({_STEP}|[/?]){count(0, 16)})?"
    path = f"(/{_STEP}{count(0, 20)}){count(0, 4)}"
    return f"[a-zA-Z][a-zA-Z0-9+.-]{count(0, 9)}:(//{_HOST}(:[0-9]{{1,5}})?{path}|{_STEP}{count(1, 40)}{path}){after}"


def _uri_reference(count: Count) -> str:
    return f"({_uri(count)}|(/{_STEP}{count(1, 20)}){count(1, 4)})"


def _pointer(count: Count, least: int = 0) -> str:
    return f"(/[a-zA-Z0-9_.-]{count(0, 20)}){count(least, 6)}"


_FORMATS: dict[str, Callable[[Count], str]] = {
    "date": lambda count: _DATE,
    "time": _time,
    "date-time": _date_time,
    "duration": _duration,
    "email": _email,
    "idn-email": _email,
    "hostname": lambda count: _HOST,
    "idn-hostname": lambda count: _HOST,
    "ipv4": lambda count: _IPV4,
    "ipv6": _ipv6,
    "uuid": lambda count: f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": _uri,
    "iri": _uri,
    "uri-reference": _uri_reference,
    "iri-reference": _uri_reference,
    "json-pointer": _pointer,
    "relative-json-pointer": lambda count: f"(0|[1-9][0-9]{count(0, 2)})(#|{_pointer(count, 1)})",
    "regex": lambda count: rf"\^?([a-zA-Z0-9_ .-][*+?]?){count(0, 40)}\$?",
}
FORMATS = frozenset(_FORMATS)


def format_pattern(name: str, bounded: bool = True) -> str:
    """An expression for whole strings of a format in FORMATS."""
    return f"^({_FORMATS[name](_bounded if bounded else _unbounded)})$"
