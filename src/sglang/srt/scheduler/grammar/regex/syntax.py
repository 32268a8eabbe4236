r"""Python's regular expressions, rewritten for engines that speak the dialect of Rust's crate `regex`.

Whatever the rewritten expression matches, Python's `re.fullmatch` accepts with the expression as it was written:
- \d \w \s are the ASCII sets (and thereby right for readers of JSON Schema patterns as well), \D \W \S exclude the Unicode
  sets; inside a negated class it is the other way round. Both readings of the shorthand are then satisfied.
- {,n}, literal braces, literal [ and spaces in classes, and octal escapes, which the dialect reads differently, are spelled out; \Z
  becomes \z, and the flags a and u, which change nothing here, are left out.
- \p{Lu} and its like are taken, for patterns of JSON Schema; Python has no such escapes.
- What has no counterpart (look-around, back references, word boundaries, possessive and conditional groups) is refused by name.
"""

from __future__ import annotations

import re

from sglang.srt.errors import GrammarError

# Letters, numbers and the like: the dialect's \w, and some numerals that Python's has as well. Spelled out, since an engine may take
# \w and \d for ASCII sets in one place and not in another.
_WORD = r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}"
# The dialect's \s lacks some separators of Python's.
_POSITIVE = {
    "d": "[0-9]",
    "D": r"\P{Nd}",
    "w": "[0-9A-Za-z_]",
    "W": f"[^{_WORD}]",
    "s": r"[\x20\t\n\r\f\v]",
    "S": r"[^\s\x1c-\x1f]",
}
_NEGATED = {"d": r"\p{Nd}", "w": _WORD, "W": "[^0-9A-Za-z_]", "s": r"\s\x1c-\x1f", "S": r"[^\x20\t\n\r\f\v]", "D": "[^0-9]"}
_QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUPS = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "an atomic group",
    "(?(": "a conditional group",
    "(?P=": "a back reference",
}
_ESCAPES = {"b": "a word boundary", "B": "a word boundary", "N": "a character by name", "G": "an anchor", "K": "a reset"}
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")
_OCTAL, _CLASS_OCTAL = re.compile(r"\\(0[0-7]{0,2}|[1-3][0-7]{2})"), re.compile(r"\\([0-7]{1,3})")
_PROPERTY = re.compile(r"\\[pP]\{[\w=: ]+\}", re.ASCII)
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(-[a-zA-Z]+)?([:)])")
_SPACES = " \t\n\r\f\v"
"""between parts of a verbose expression"""


def to_engine_regex(text: str) -> str:
    """`text` in the engines' dialect. Raises GrammarError naming what has no counterpart; other mistakes are the engine's to
    find."""
    return _Rewriter(text).run()


class _Rewriter:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.out: list[str] = []
        self.verbose = False
        self._global_flags = ""
        self._outer: list[bool] = []
        """whether the groups around the open ones are verbose"""

    def run(self) -> str:
        while self.pos < len(self.text):
            char = self.text[self.pos]
            if char == "\\":
                self._escape(_POSITIVE)
            elif char == "[":
                self._char_class()
            elif char == "(":
                self._group()
            elif char == ")":
                self._copy(1)
                self.verbose = self._outer.pop() if self._outer else self.verbose
            elif char in "*+?{":
                self._quantifier(char)
            elif self.verbose and char == "#":
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) if end < 0 else end + 1
            elif self.verbose and char in _SPACES:
                self.pos += 1
            else:
                self._character()
        return self._global_flags + "".join(self.out)

    def _copy(self, n: int) -> None:
        self.out.append(self.text[self.pos : self.pos + n])
        self.pos += n

    def _character(self) -> None:
        """One that means itself, also where the dialect would leave it out of a verbose expression."""
        char = self.text[self.pos]
        self.out.append(f"\\x{{{ord(char):x}}}" if char.isspace() or char in "#\u200e\u200f" else char)
        self.pos += 1

    def _refuse(self, what: str, n: int) -> GrammarError:
        piece = self.text[self.pos : self.pos + n]
        return GrammarError(f"regex: {what} ({piece!r}, at position {self.pos}) is not supported", "regex")

    def _escape(self, shorthand: dict[str, str]) -> None:
        char = self.text[self.pos + 1 : self.pos + 2]
        if not char:
            raise GrammarError("regex: it ends in a single backslash: write two for the character", "regex")
        if (known := _PROPERTY.match(self.text, self.pos)) is not None:
            self._copy(len(known[0]))
            return
        if (octal := _OCTAL.match(self.text, self.pos)) is not None:
            self._octal(octal)
            return
        if char in shorthand:
            self.out.append(shorthand[char])
        elif char == "Z":
            self.out.append(r"\z")
        elif char in _ESCAPES:
            raise self._refuse(_ESCAPES[char], 2)
        elif char.isdigit():
            raise self._refuse("a back reference", 2)
        else:
            self.out.append("\\" + char)
        self.pos += 2

    def _octal(self, escape: re.Match[str]) -> None:
        if int(escape[1], 8) > 0o377:
            raise self._refuse("an octal escape above 377", len(escape[0]))
        self.out.append(f"\\x{int(escape[1], 8):02x}")
        self.pos = escape.end()

    def _group(self) -> None:
        for start, what in _GROUPS.items():
            if self.text.startswith(start, self.pos):
                raise self._refuse(what, len(start))
        if self.text.startswith("(?#", self.pos):
            end = self.text.find(")", self.pos)
            self.pos = len(self.text) if end < 0 else end + 1
            return
        flags = _FLAGS.match(self.text, self.pos)
        if flags is not None:
            self._flags(flags)
            return
        self._outer.append(self.verbose)
        self._copy(1)
        if self.text.startswith("?", self.pos):
            self._copy(1)

    def _flags(self, flags: re.Match[str]) -> None:
        """(?flags) holds for the whole text, and stands at its start; (?flags-flags:...) for a group."""
        on, off, end = flags[1], flags[2] or "", flags[3]
        kept = re.sub("[au]", "", on)
        if end == ":":
            self._outer.append(self.verbose)
            self.out.append(f"(?{kept}{off}:")
        elif self.out or off or not on:
            raise self._refuse("a group of flags that are not set at the start, for the whole expression,", len(flags[0]))
        elif kept:
            self._global_flags += f"(?{kept})"
        self.verbose = (self.verbose or "x" in on) and "x" not in off
        self.pos = flags.end()

    def _quantifier(self, char: str) -> None:
        n = 1
        if char == "{":
            match = _QUANTIFIER.match(self.text, self.pos)
            if match is None or not (match[1] or match[2]):
                self.out.append(r"\{")
                self.pos += 1
                return
            self.out.append("{" + (match[1] or "0") + match[2] + match[3] + "}")
            n = match.end() - match.start()
        else:
            self.out.append(char)
        after = self.text[self.pos + n : self.pos + n + 1]
        if after == "+":
            raise self._refuse("a possessive quantifier", n + 1)
        if after == "?":
            self.out.append("?")
            n += 1
        self.pos += n

    def _char_class(self) -> None:
        negated = self.text.startswith("[^", self.pos)
        self._copy(2 if negated else 1)
        shorthand = _NEGATED if negated else _POSITIVE
        if self.text.startswith("]", self.pos):
            self.out.append(r"\]")
            self.pos += 1
        while self.pos < len(self.text):
            if self.text.startswith("]", self.pos):
                self._copy(1)
                return
            self._class_item(shorthand)
            if self.text.startswith("-", self.pos) and not self.text.startswith("-]", self.pos):
                self._copy(1)  # a range
                if self.pos < len(self.text):
                    self._class_item(shorthand)

    def _class_item(self, shorthand: dict[str, str]) -> None:
        char = self.text[self.pos]
        posix = _POSIX.match(self.text, self.pos)
        if char == "\\":
            self._class_escape(shorthand)
        elif posix is not None:
            self._copy(len(posix[0]))
        elif char in "[&~-":
            self.out.append("\\" + char)
            self.pos += 1
        else:
            self._character()

    def _class_escape(self, shorthand: dict[str, str]) -> None:
        char = self.text[self.pos + 1 : self.pos + 2]
        if char == "b":  # inside a class, Python's backspace
            self.out.append(r"\x08")
            self.pos += 2
        elif (octal := _CLASS_OCTAL.match(self.text, self.pos)) is not None:
            self._octal(octal)
        else:
            self._escape(shorthand)
