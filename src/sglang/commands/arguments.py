"""Parser helpers that all commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class CommandError(Exception):
    """The command cannot go on. The message is one sentence; the exit status is 1."""


SERVE_FLAGS = "Behind -- come flags of sglang serve, such as: -- --threads 4 --context-length 4096"


class Parser(argparse.ArgumentParser):
    """Errors are one line; no abbreviations."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def end_with(self, *examples: str, starts_server: bool = True) -> None:
        """The end of --help: how flags of a server are given, and examples."""
        shown = "\n  ".join(("examples:", *(f"{self.prog} {example}" for example in examples)))
        self.epilog = f"{SERVE_FLAGS}\n\n{shown}" if starts_server else shown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def parse_split(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The command's own flags, and what stands behind `--`: flags of `sglang serve`."""
        if "--" not in argv:
            return self.parse_args(argv), []
        at = argv.index("--")
        return self.parse_args(argv[:at]), argv[at + 1 :]


def add_server_choice(parser: Parser) -> None:
    """Flags that name a running server."""
    group = parser.add_argument_group("server", "a running one by --url; else MODEL is started and stopped with the command")
    group.add_argument("--url", help="a running server: http://HOST:PORT, https://..., or unix:PATH of a socket")
    group.add_argument("--api-key", metavar="KEY", help="key of that server (default: SGLANG_API_KEY, which ps does not show)")
    group.add_argument("--ca-file", metavar="FILE", help="authority of its certificate (PEM; default: the system's)")
