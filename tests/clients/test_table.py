"""The table of clients: each program is there, once, and its packages have a version."""

from __future__ import annotations

import re

from tests.clients.environments import PROGRAMS
from tests.clients.table import CLIENTS

_PIP = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+")
_NPM = re.compile(r"(@[\w-]+/)?[\w.-]+@\d[\w.-]*")


def test_every_program_is_in_the_table() -> None:
    assert {client.program for client in CLIENTS} == {
        path.name for path in PROGRAMS.iterdir() if path.suffix in (".py", ".mjs")
    }
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)


def test_versions_are_pinned() -> None:
    for client in CLIENTS:
        assert all(_PIP.fullmatch(package) for package in client.pip), client.program
        assert all(_NPM.fullmatch(package) for package in client.npm), client.program
