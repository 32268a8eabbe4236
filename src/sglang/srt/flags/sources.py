"""Merges the sources of flags. Precedence: the command line, the environment, the file of `--config`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, FLAGS
from sglang.srt.flags.config_file import MAX_NAME, TRUTHS, Given, read_config_file
from sglang.srt.flags.environment import read_environment
from sglang.srt.flags.names import nearest_flag, option, translate
from sglang.srt.flags.parser import FlagParser, check_unknown, spell_out
from sglang.srt.flags.values import open_to_all

_UNSET: Any = object()


@dataclass
class Flags:
    """`known`: values of fields. `others`: what else was given. `origins`: field -> the line or variable that gives it. `notes`: what
    the operator should know."""

    known: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class FlagReader:
    """Reads flags for the dataclass `cls`. What is wrong ends the program with status 2 and one line, which says where it stands."""

    def __init__(self, parser: FlagParser, cls: type[Any]) -> None:
        self._parser = parser
        self._cls = cls
        self._fields = [f.name for f in dataclasses.fields(cls)]
        self._secret = [f.name for f in dataclasses.fields(cls) if f.metadata.get("secret")]
        self._flags = Flags()

    def read(self, argv: list[str], environ: Mapping[str, str]) -> Flags:
        files, rest = self._config_files(argv, environ)
        for path in files:
            self._read_file(path)
        names = [*self._fields, *ALIASES, *FLAGS]
        found, notes = read_environment(
            {k: v for k, v in environ.items() if k != "SGLANG_CONFIG"}, names, ("api_key", "admin_api_key")
        )
        self._flags.notes += notes
        self._take_all(found)
        self._take(spell_out(rest, self._parser, self._cls))
        return self._flags

    def read_lines(self, lines: list[Given]) -> Flags:
        """The flags of a part of some other file."""
        self._take_all(lines)
        return self._flags

    def _config_files(self, argv: list[str], environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
        files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        files.add_argument("--config", action="append", default=[])
        try:
            found, rest = files.parse_known_args(argv)
        except argparse.ArgumentError as error:
            self._parser.error(str(error))
        by_default = [environ["SGLANG_CONFIG"]] if environ.get("SGLANG_CONFIG") else []
        return found.config or by_default, rest

    def _read_file(self, path: str) -> None:
        try:
            found = read_config_file(path)
        except ConfigError as error:
            self._parser.error(str(error))
        if any(ALIASES.get(_plain(given.name), _plain(given.name)) in self._secret for given in found):
            note = open_to_all("--config", path, os.stat(path).st_mode)
            self._flags.notes += [note] if note else []
        self._take_all(found)

    def _take_all(self, found: list[Given]) -> None:
        """Takes all flags of a source, each of which stands there once."""
        seen: dict[str, Given] = {}
        for given in found:
            self._parser.where = given.where
            name = self._full_name(given.name)
            before = seen.setdefault(name, given)
            if before is not given:
                self._parser.error(
                    f"{given.name:.{MAX_NAME}} is there a second time; the first is {before.where}: leave one out"
                )
            self._take(self._words(name, given), given.where)
        self._parser.where = ""

    def _full_name(self, written: str) -> str:
        """The field or other flag that is meant."""
        name = _plain(spell_out([option(_plain(written))], self._parser, self._cls)[0])
        name = ALIASES.get(name, name)
        if name not in self._fields and name not in FLAGS:
            close = nearest_flag(name, self._fields)
            hint = f"; did you mean {close.replace('_', '-')}?" if close else "; sglang serve --help all lists them"
            self._parser.error(f"unknown flag {written:.{MAX_NAME}}{hint}")
        return name

    def _words(self, name: str, given: Given) -> list[str]:
        """The values as words of a command line."""
        action, value = self._parser.action_of(name), given.value
        if given.is_object and name in self._fields and action.default != "{}":
            self._parser.error(f"{name.replace('_', '-')} takes one value, not an object")
        if action.nargs == 0:
            truth = TRUTHS.get(value.lower()) if isinstance(value, str) else None
            if truth is None:
                self._parser.error(f"{name.replace('_', '-')} must be true or false")
            return [option(name)] if truth else [] if name in FLAGS else [f"--no-{option(name)[2:]}"]
        if isinstance(value, str):
            return [option(name), *value.split()] if action.nargs == "*" else [f"{option(name)}={value}"]
        if action.nargs not in ("+", "*"):
            self._parser.error(f"{name.replace('_', '-')} takes one value, not a list")
        return [option(name), *value] if value else []

    def _take(self, words: list[str], where: str = "") -> None:
        blank = argparse.Namespace(**dict.fromkeys(self._fields, _UNSET))
        given, unknown = self._parser.parse_known_args(words, blank)
        check_unknown(self._parser, unknown, self._cls)
        values = {name: value for name, value in vars(given).items() if value is not _UNSET}
        try:
            known, notes = translate(values, self._fields)
        except ConfigError as error:
            self._parser.error(str(error))
        flags = self._flags
        flags.notes += [f"{where}: {note}" if where else note for note in notes]
        flags.known |= known
        flags.others |= {name: value for name, value in values.items() if name not in self._fields}
        flags.origins = {name: origin for name, origin in flags.origins.items() if name not in known}
        flags.origins |= dict.fromkeys(known, where) if where else {}


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
