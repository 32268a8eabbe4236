"""Popular clients: each in its own environment, newly installed, against a real server.

    pytest -m slow tests/clients            # those that need npm are skipped where there is none
    pytest -m slow tests/clients -k codex

The programs in programs/ get the server's address; they check their answers themselves. table.py names them, with what each asks.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clients.environments import Client, run_client
from tests.clients.scripted import scripted_server
from tests.clients.table import CLIENTS
from tests.conftest import DEFAULT_MODEL, RunningServer, start_server
from tests.server.conftest import MakeStand, folder, make_stand, tokenizer

__all__ = ["folder", "make_stand", "tokenizer"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def check(client: Client, url: str, model: str, tmp_path: Path) -> None:
    if client.npm and shutil.which("npm") is None:
        pytest.skip("needs npm")
    done = run_client(client, url, model, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.rstrip().endswith("all good"), done.stdout[-3000:]


@pytest.mark.parametrize("client", [one for one in CLIENTS if not (one.script or one.flags)], ids=lambda client: client.name)
def test_client(server: RunningServer, client: Client, tmp_path: Path) -> None:
    check(client, server.url, DEFAULT_MODEL, tmp_path)


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.flags], ids=lambda client: client.name)
def test_client_with_its_own_server(client: Client, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    server = start_server(tmp_path / "log", *client.flags)
    try:
        check(client, server.url, DEFAULT_MODEL, tmp_path / "client")
    finally:
        server.stop()


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.script], ids=lambda client: client.name)
def test_client_whose_model_has_a_script(make_stand: MakeStand, client: Client, tmp_path: Path) -> None:
    with scripted_server(make_stand, client.script) as url:
        check(client, url, "test-model", tmp_path)
