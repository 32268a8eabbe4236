"""Style of a constraint's JSON (white space, and whether the answer is checked afterwards), encoded as a line before the constraint's text.

    RS {"whitespace": "[ ]?", "check": true} LF {"type": "object"}

A constraint is identified by its kind and its text: in the cache, in trials, in the journal and in refusals. As part of the text, the
style needs no field of its own. No JSON text and no grammar begins with RS.
"""

from __future__ import annotations

import msgspec

_BEGIN, _END = "\x1e", "\n"


class JsonStyle(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`whitespace`: a regular expression of the white space between the parts of JSON; empty: none; None: the server's.
    `check`: keywords of a schema that the engine cannot follow while decoding are left to a check of the whole answer; otherwise
    the schema is refused for them. `parts`: paths of schemas in it, such as those of tools, and whether for each of them `check` is
    off."""

    whitespace: str | None = None
    check: bool = False
    parts: dict[str, bool] = {}


PLAIN = JsonStyle()


def with_style(text: str, style: JsonStyle) -> str:
    """The constraint's text with its style in front."""
    return text if style == PLAIN else f"{_BEGIN}{msgspec.json.encode(style).decode()}{_END}{text}"


def split_style(text: str) -> tuple[JsonStyle, str]:
    """The style and the text behind it. Raises ValueError for a style that is none."""
    if not text.startswith(_BEGIN):
        return PLAIN, text
    head, _, rest = text[1:].partition(_END)
    try:
        return msgspec.json.decode(head, type=JsonStyle), rest
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a style of JSON: {error}") from error
