"""Programs that people have: each client in an environment of its own, newly installed, against a real server.

    pytest -m slow tests/clients

The programs in programs/ are run with the environment's interpreter and the server's address; they check their answers
themselves. Environments are kept in the user's cache between runs.
"""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.conftest import DEFAULT_MODEL, RunningServer

HERE = Path(__file__).parent
CLIENTS = {
    "openai_client": ["openai"],
    "langchain_client": ["langchain-openai"],
    "litellm_client": ["litellm"],
    "instructor_client": ["instructor"],
    "lm_eval_client": ["lm-eval[api]"],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def interpreter(name: str, packages: list[str]) -> Path:
    """Python of the environment with the packages; it is made if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-anywhere" / "test-clients" / name
    python, done = cache / "bin" / "python", cache / "installed"
    if not done.exists() or done.read_text() != " ".join(packages):
        venv.create(cache, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        done.write_text(" ".join(packages))
    return python


@pytest.mark.parametrize("name", CLIENTS)
def test_client(server: RunningServer, name: str, tmp_path: Path) -> None:
    python = interpreter(name, CLIENTS[name])
    command = [str(python), str(HERE / "programs" / f"{name}.py"), server.url, DEFAULT_MODEL]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.endswith("_API_KEY")}
    environment = clean | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "None"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.rstrip().endswith("all good"), done.stdout[-3000:]
