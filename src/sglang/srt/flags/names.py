"""Resolves names of flags: fields of ServerArgs, and the names and values in flags/compatible.py."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from sglang.common.suggest import nearest
from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, ELSEWHERE, FLAGS, REFUSED_VALUES, VALUES, OtherFlag

logger = logging.getLogger("sglang")

T = TypeVar("T")


def option(name: str) -> str:
    """A flag as it is written on a command line."""
    return "--" + name.replace("_", "-")


def other_names(name: str) -> list[str]:
    """The aliases of a field or flag."""
    return [alias for alias, target in ALIASES.items() if target == name]


def translate(given: Mapping[str, Any], fields: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Translates `given` to names of `fields`, with a line for each flag that means less here than in the original. Raises
    ConfigError for a flag that is refused, TypeError for an unknown one or for two names of one."""
    known: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in given.items():
        target = ALIASES.get(name, name)
        if target in FLAGS:
            notes += _notes_on(name, FLAGS[target], value)
        elif target not in fields:
            raise TypeError(f"there is no flag {name!r}{hint(name, fields)}")
        elif target in known:
            raise TypeError(f"{name!r} is another name of {target!r}: give one of them")
        elif value is not None:  # None asks for the default
            known[target] = _our_value(target, value, notes)
    return known, notes


def nearest_flag(name: str, fields: Collection[str]) -> str | None:
    """The flag that an unknown name may mean: another server's name of it, or a misspelt one."""
    return ELSEWHERE.get(name) or nearest(name, [*fields, *ALIASES, *FLAGS])


def hint(name: str, fields: Collection[str]) -> str:
    """The end of an error about an unknown name."""
    close = nearest_flag(name, fields)
    return f"; did you mean {close!r}?" if close else ""


def _notes_on(name: str, flag: OtherFlag, value: Any) -> list[str]:
    if _asks_for_nothing(value, flag.neutral):
        return []
    if not flag.refused:
        return [f"{option(name)} has no effect here: {flag.here}"]
    words = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    shown = "" if flag.takes == "none" else f" {words}"
    raise ConfigError(f"{option(name)}{shown:.80} is not possible here: {flag.here}")


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or value is False or value == [] or any(_same(value, one) for one in neutral)


def _same(value: Any, neutral: Any) -> bool:
    """Values of a command line are text."""
    try:
        return float(value) == float(neutral)
    except (TypeError, ValueError):
        return str(value) == str(neutral)


def _our_value(field: str, value: Any, notes: list[str]) -> Any:
    if isinstance(value, (list, tuple)):  # fields are text: names stand between commas
        value = ",".join(json.dumps(one) if isinstance(one, Mapping) else str(one) for one in value)
    elif isinstance(value, Mapping):
        value = json.dumps(value)
    if not isinstance(value, str):
        return value
    why = REFUSED_VALUES.get(field, {}).get(value)
    if why is not None:
        raise ConfigError(f"{option(field)} {value} is not possible here: {why}")
    ours, note = VALUES.get(field, {}).get(value, (value, ""))
    if note:
        notes.append(f"{option(field)} {value} has no effect here: {note}")
    return ours


def takes_other_names(cls: type[T]) -> type[T]:
    """Decorates a dataclass of flags: its constructor takes all names above. What they mean here is logged."""
    plain = cls.__init__
    fields = frozenset(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @functools.wraps(plain)
    def construct(self: T, *args: Any, **flags: Any) -> None:
        known, notes = translate(flags, fields)
        for note in notes:
            logger.warning("%s", note)
        plain(self, *args, **known)
        keep_others(self, flags)

    cls.__init__ = construct  # type: ignore[assignment]
    return cls


class OtherFlags:
    """Base of a dataclass of flags: what is no field of it may be read as an attribute, too, as programs of the original do."""

    __slots__ = ("_notes", "_origins", "_others")  # no part of vars()
    _others: dict[str, Any]
    _origins: dict[str, str]
    _notes: list[str]

    def notes(self) -> list[str]:
        """Lines for the log about the flags."""
        return getattr(self, "_notes", [])

    def named(self, name: str) -> str:
        """A flag as an error calls it: with the line of the file or the variable that gives it, if it is not the command line."""
        try:
            return f"{option(name)} ({self._origins[name]})"
        except (AttributeError, KeyError):
            return option(name)

    def __getattr__(self, name: str) -> Any:
        target = ALIASES.get(name, name)
        if name in ("_notes", "_origins", "_others"):
            raise AttributeError(name)
        if target in FLAGS:
            others: dict[str, Any] = getattr(self, "_others", {})
            return others.get(target, _default(FLAGS[target]))
        if target == name:
            fields = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
            raise AttributeError(f"there is no flag {name!r}" + (hint(name, fields) if name[:1] != "_" else ""))
        return getattr(self, target)


def keep_others(flags: Any, given: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> None:
    """Lets `flags` have those of FLAGS that were given as attributes, and know where its fields come from. Nothing happens if it is
    no OtherFlags."""
    if isinstance(flags, OtherFlags):
        flags._origins = dict(origins or {})
        others = {ALIASES.get(name, name): value for name, value in given.items()}
        flags._others = {name: _typed(value, _default(FLAGS[name])) for name, value in others.items() if name in FLAGS}


def _default(flag: OtherFlag) -> Any:
    return False if flag.takes == "none" else next(iter(flag.neutral), None)


def _typed(value: Any, default: Any) -> Any:
    """Words of a command line as what the default is."""
    try:
        return type(default)(value) if isinstance(value, str) and isinstance(default, (int, float)) else value
    except ValueError:
        return value


def add_other_flags(parser: argparse.ArgumentParser) -> None:
    """Adds FLAGS, which --help does not show; those that are not given leave nothing behind."""
    for name, flag in FLAGS.items():
        names = [option(one) for one in (name, *other_names(name))]
        if flag.takes == "none":
            parser.add_argument(*names, dest=name, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        else:
            nargs = "*" if flag.takes == "many" else None
            parser.add_argument(*names, dest=name, nargs=nargs, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
