"""Builds the command line parser of a dataclass of flags: its fields by heading, and the flags in flags/compatible.py."""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Collection
from typing import Any, NoReturn

from sglang.srt.errors import one_line
from sglang.srt.flags.compatible import ALIASES, FLAGS, REFUSED_VALUES, VALUES
from sglang.srt.flags.names import add_other_flags, nearest_flag, option, other_names
from sglang.srt.flags.values import parse_size, show_size


class FlagParser(argparse.ArgumentParser):
    """Errors are one line, and an unknown flag names the most similar one. `where`: what is read, if it is no command line."""

    where = ""

    def action_of(self, name: str) -> argparse.Action:
        """The argparse action of a field's flag."""
        return next(action for action in self._actions if action.dest == name)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): ignored explicit argument (.*)$", r"\1 takes no value, got \2", message)
        self.exit(2, f"{self.prog}: error: {one_line(f'{self.where}: {message}' if self.where else message)}\n")


NO_EFFECT = "accepted, without effect here"

_ABOUT = {
    "model": "what is served",
    "several models": "several models behind one port, each in a process of its own",
    "device and memory": "where it runs, and how much of the machine it may take",
    "scheduling": "which requests run next",
    "constrained decoding": "answers that follow a JSON schema, a regular expression or a grammar",
    "images and videos": "images and videos in requests",
    "adapters": "LoRA adapters, which requests name",
    "batches": "files and batches of OpenAI's API, and what survives the server",
    "HTTP": "address, authentication and limits",
    "operation": "watching and stopping the server",
    NO_EFFECT: "flags of other servers that mean nothing here; a warning is shown",
}


def add_fields(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Adds a flag for each field of the dataclass, grouped by heading, and the flags of flags/compatible.py."""
    groups: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    # what only matters for moving here from elsewhere comes last
    for f in sorted(dataclasses.fields(cls), key=lambda f: bool(f.metadata.get("no_effect"))):
        heading = NO_EFFECT if f.metadata.get("no_effect") else f.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading, _ABOUT.get(heading))
        kinds = [k for k in typing.get_args(hints[f.name]) or (hints[f.name],) if k is not type(None)]
        _add_field(groups[heading], f, kinds[0])
    add_other_flags(parser)


def _add_field(group: Any, f: dataclasses.Field[Any], kind: type[Any]) -> None:
    names = [option(name) for name in (f.name, *other_names(f.name))]
    common = {"dest": f.name, "default": f.default, "help": _help(f)}
    if kind is bool and f.default:
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
    elif kind is bool:
        group.add_argument(*names, action="store_true", **common)
        takes_back = common | {"help": argparse.SUPPRESS, "action": "store_false"}
        group.add_argument(*(f"--no-{name[2:]}" for name in names), **takes_back)
    else:
        read = parse_size if f.metadata.get("is_size") else kind
        nargs = "+" if f.metadata.get("several") else None
        group.add_argument(*names, type=read, nargs=nargs, choices=_words(f), metavar=_metavar(f, kind), **common)


def _help(f: dataclasses.Field[Any]) -> str:
    """The text, and the default where the text does not say what happens without the flag."""
    text = str(f.metadata["help"])
    if text == argparse.SUPPRESS:
        return text
    text = re.sub(r"; default: (.*)$", r" (default: \1)", text).replace("%", "%%")
    default: Any = f.default
    if "default: " in text or default in (None, True, False, "", "{}"):
        return text
    return f"{text} (default: {show_size(default) if f.metadata.get('is_size') else _shown(default)})"


def _shown(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _words(f: dataclasses.Field[Any]) -> list[Any] | None:
    choices = f.metadata.get("choices")
    return [*choices, *VALUES.get(f.name, ()), *REFUSED_VALUES.get(f.name, ())] if choices else None


def _metavar(f: dataclasses.Field[Any], kind: type[Any]) -> str:
    choices = f.metadata.get("choices")
    if choices:
        return f"{{{','.join(map(str, choices))}}}"
    if kind is float and {"timeout", "seconds"} & set(f.name.split("_")):
        return "SECONDS"
    by_kind = {int: "SIZE" if f.metadata.get("is_size") else "N", float: "X"}
    return by_kind.get(kind) or ("JSON" if f.default == "{}" else f.name.rsplit("_", 1)[-1].upper())


def spell_out(words: list[str], parser: FlagParser, cls: type[Any]) -> list[str]:
    """The command line with abbreviated flags in full. One that fits a single field means that; then come all other names."""
    own = [option(f.name) for f in dataclasses.fields(cls) if f.metadata["help"] != argparse.SUPPRESS]
    others = [option(name) for name in (*ALIASES, *FLAGS)]
    spelled = []
    for word in words:
        flag, equals, value = word.partition("=")
        flag = _with_dashes(flag, {*own, *others})
        if flag.startswith("--") and len(flag) > 2 and flag not in own and flag not in others:
            begin = flag.replace("_", "-")
            fits = [name for name in own if name.startswith(begin)]
            fits = fits if len(fits) == 1 else [name for name in (*own, *others) if name.startswith(begin)]
            if len(fits) > 1:
                parser.error(f"{flag} may mean {', '.join(fits[:8])}{', ...' if len(fits) > 8 else ''}: write it out")
            flag = fits[0] if fits else flag
        spelled.append(flag + equals + value)
    return spelled


def _with_dashes(flag: str, known: Collection[str]) -> str:
    """-tp and --model_path, as some write --tp and --model-path."""
    written = option(flag.lstrip("-"))
    return written if flag.startswith("-") and len(flag) > 2 and written in known else flag


def check_unknown(parser: FlagParser, unknown: list[str], cls: type[Any]) -> None:
    """Raises an error for arguments that the parser left over; an unknown flag names the most similar one."""
    for token in unknown:
        if not token.startswith("--"):
            parser.error(f"unexpected argument {token!r}: every argument is a flag; a model is given as --model-path MODEL")
        flag = token.split("=", 1)[0]
        close = nearest_flag(flag.lstrip("-").replace("-", "_"), [f.name for f in dataclasses.fields(cls)])
        parser.error(f"unknown flag {flag}" + (f"; did you mean {option(close)}?" if close else "; see --help"))
