"""The text of --help: the common flags, one group (--help GROUP), one flag (--help FLAG), or everything (--help all)."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import NoReturn

from sglang.common.suggest import nearest
from sglang.srt.flags.environment import variable
from sglang.srt.flags.parser import FlagParser

ALL = "all"
COMMON = (
    *("model_path", "host", "port", "api_key_file", "served_model_name", "context_length", "mem_fraction_static"),
    *(
        "max_running_requests",
        "threads",
        "chat_template",
        "reasoning_parser",
        "tool_call_parser",
        "enable_metrics",
        "log_format",
    ),
)
"""fields that the overview shows"""
SOURCES = """every flag may be given in three ways, the first of which counts:
  on the command line            --max-body-bytes 64MiB
  in the environment             SGLANG_MAX_BODY_BYTES=64MiB    SGLANG_ and the name in capitals
  in a YAML file, --config FILE  max-body-bytes: 64MiB          a line for each flag
Sizes take units (64MiB, 2G). --no-FLAG takes back a switch of the environment or the file.
"""
EXAMPLES = """examples:
  {prog}                                 the default model, at http://127.0.0.1:30000
  {prog} ./model.gguf --port 8000
  {prog} --host 0.0.0.0 --api-key-file keys.txt
  {prog} --config server.yaml --log-level debug
"""
WIDTH = 100


class Formatter(argparse.HelpFormatter):
    """Lines end at blanks only, so that no flag is broken, and a value that has several names is written once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(WIDTH, shutil.get_terminal_size((WIDTH, 1)).columns - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


def asked_for_help(argv: list[str]) -> str | None:
    """The word after --help; empty if there is none, None without --help."""
    for i, word in enumerate(argv):
        if word in ("-h", "--help"):
            topic = argv[i + 1 :]
            end = next((j for j, other in enumerate(topic) if other.startswith("-")), len(topic))
            return " ".join(topic[:end])
        if word.startswith("--help="):
            return word.removeprefix("--help=")
    return None


def show_help(parser: FlagParser, topic: str) -> NoReturn:
    """Prints it and ends the program; with status 2 for a topic that is none."""
    print(_overview(parser) if not topic else _everything(parser) if topic == ALL else _about(parser, topic), end="")
    sys.exit(0)


def _overview(parser: FlagParser) -> str:
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, [], [])
    formatter.add_text(parser.description)
    formatter.start_section("flags that most people need")
    formatter.add_arguments([parser.action_of(name) for name in COMMON])
    formatter.add_argument(_said("--config", "FILE", "flags in a YAML file"))
    formatter.end_section()
    formatter.start_section(f"all flags, by group: {parser.prog} --help GROUP, or FLAG, or {ALL}")
    for group in _groups(parser):
        formatter.add_argument(_said(str(group.title), None, f"{group.description} ({_count(group)})"))
    formatter.end_section()
    return f"{formatter.format_help()}\n{SOURCES}\n{EXAMPLES.format(prog=parser.prog)}"


def _everything(parser: FlagParser) -> str:
    parts = [parser.format_usage(), *(_section(parser, group) for group in _groups(parser)), SOURCES]
    return "\n".join([*parts, EXAMPLES.format(prog=parser.prog)])


def _about(parser: FlagParser, topic: str) -> str:
    groups = {str(group.title): group for group in _groups(parser)}
    asked = topic.lower().strip()
    for title, group in groups.items():
        if asked == title.lower() or asked in title.lower().split():
            return _section(parser, group)
    flag = "--" + asked.lstrip("-").replace("_", "-")
    flags = {option: action for action in parser._actions for option in action.option_strings if _is_shown(action)}
    if flag in flags:
        formatter = parser._get_formatter()
        formatter.add_argument(flags[flag])
        return f"{formatter.format_help()}  in the environment: {variable(flags[flag].dest)}\n"
    close = nearest(asked, [*(title.lower() for title in groups), *(option[2:] for option in flags)])
    hint = f"; did you mean {close!r}?" if close else ""
    parser.error(f"there is no group and no flag {topic[:80]!r}{hint}; groups are {', '.join(groups)}")


def _section(parser: FlagParser, group: argparse._ArgumentGroup) -> str:
    formatter = parser._get_formatter()
    formatter.start_section(group.title)
    formatter.add_text(group.description)
    formatter.add_arguments(group._group_actions)
    formatter.end_section()
    return formatter.format_help()


def _groups(parser: FlagParser) -> list[argparse._ArgumentGroup]:
    return [group for group in parser._action_groups if any(map(_is_shown, group._group_actions)) and group.description]


def _count(group: argparse._ArgumentGroup) -> str:
    number = len({action.dest for action in group._group_actions if _is_shown(action)})
    return f"{number} flags"


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS


def _said(name: str, value: str | None, text: str) -> argparse.Action:
    """A line that looks like a flag's."""
    return argparse.Action([name], dest="", nargs=0 if value is None else None, metavar=value, help=text.replace("%", "%%"))
