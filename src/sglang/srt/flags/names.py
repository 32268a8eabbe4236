"""What a given flag means here: fields of ServerArgs, and the names and values of flags/compatible.py."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from sglang.common.suggest import did_you_mean
from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, FLAGS, REFUSED_VALUES, VALUES, OtherFlag

logger = logging.getLogger("sglang")

T = TypeVar("T")


def option(name: str) -> str:
    """A flag as it is written on a command line."""
    return "--" + name.replace("_", "-")


def other_names(name: str) -> list[str]:
    """The aliases of a field or flag."""
    return [alias for alias, target in ALIASES.items() if target == name]


def translate(given: Mapping[str, Any], fields: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """What `given` means in terms of `fields`, and a line for each flag that means less here than in the original. Raises
    ConfigError for a flag that is refused, TypeError for an unknown one or for two names of one."""
    known: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in given.items():
        target = ALIASES.get(name, name)
        if target in FLAGS:
            notes += _notes_on(name, FLAGS[target], value)
        elif target not in fields:
            raise TypeError(f"there is no flag {name!r}{nearest(name, fields)}")
        elif target in known:
            raise TypeError(f"{name!r} is another name of {target!r}: give one of them")
        elif value is not None:  # None asks for the default
            known[target] = _our_value(target, value, notes)
    return known, notes


def nearest(name: str, fields: Collection[str]) -> str:
    """A hint for an unknown name."""
    return did_you_mean(name, [*fields, *ALIASES, *FLAGS])


def _notes_on(name: str, flag: OtherFlag, value: Any) -> list[str]:
    if _asks_for_nothing(value, flag.neutral):
        return []
    if not flag.refused:
        return [f"{option(name)} has no effect here: {flag.here}"]
    shown = "" if flag.takes == "none" else f" {value}"
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
        value = ",".join(map(str, value))
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

    cls.__init__ = construct  # type: ignore[assignment]
    return cls


def add_other_flags(parser: argparse.ArgumentParser) -> None:
    """Adds FLAGS, which --help does not show; those that are not given leave nothing behind."""
    for name, flag in FLAGS.items():
        names = [option(one) for one in (name, *other_names(name))]
        if flag.takes == "none":
            parser.add_argument(*names, dest=name, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        else:
            nargs = "*" if flag.takes == "many" else None
            parser.add_argument(*names, dest=name, nargs=nargs, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
