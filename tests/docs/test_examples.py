"""The example programs of the language: they run, and type checkers see the API through them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl
from tests.conftest import start_server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "language").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        module.main(server.url)
    finally:
        sgl.set_default_backend(None)
        del sys.modules[spec.name]
    assert capsys.readouterr().out.strip()


def test_mypy_accepts_it() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *map(str, EXAMPLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_trained_adapter_answers_as_it_was_taught(tmp_path: Path) -> None:
    """`pytest -m slow tests/docs/test_examples.py`: what docs/adapters.md has for pasting, in its order and in a folder of its own."""
    pytest.importorskip("peft")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "docs" / "adapters.md").read_text(), re.DOTALL)
    shell, programs = ([text for kind, text in blocks if kind == wanted] for wanted in ("bash", "python"))
    install, serve, ask, load = shell
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert len(programs) == 1 and [line.split()[0] for line in install.splitlines()] == [".venv/bin/pip"] * 2 + [
        ".venv/bin/python"
    ]

    def paste(text: str, port: int = 0) -> str:
        text = (
            text.replace(".venv/bin/python", sys.executable)
            .replace(":30000", f":{port}")
            .replace("curl ", "curl -fsS --noproxy '*' ")
        )
        done = subprocess.run(["bash", "-ec", text], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "said the captain" in paste(install.splitlines()[2])
    done = subprocess.run([sys.executable, "-c", programs[0]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("said the captain") == 1, done.stdout + done.stderr
    (flags,) = re.findall(r"sglang serve (.*)", serve)
    running = start_server(tmp_path / "log", *flags.replace("./", f"{tmp_path}/").replace("root .", f"root {tmp_path}").split())
    try:
        port = int(running.url.rpartition(":")[2])
        assert "said the captain" in paste(ask, port)
        assert "mate" in paste(load, port)
    finally:
        running.process.terminate()
        running.process.wait(30)
