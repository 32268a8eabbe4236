"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class CommandError(Exception):
    """The command cannot go on. The message is one sentence; the exit status is 1."""


class Parser(argparse.ArgumentParser):
    """Errors are one line; no abbreviations."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_server_choice(parser: Parser) -> None:
    """Flags that name a running server, or the model to start one with. Other flags are those of `sglang serve`."""
    group = parser.add_argument_group("server", "a running one by --url; else MODEL is started and stopped with the command")
    group.add_argument("--url", help="base address of a running server, such as http://localhost:30000")
    group.add_argument("--api-key", help="key of that server")
