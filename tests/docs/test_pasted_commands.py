"""What README.md, the pages of docs/ and the server print for pasting is whole: a shell reads it, Python reads the programs in it, and no
command leaves it to chance which Python is meant. `make test-newcomer` pastes it into a real terminal."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.commands.serve import _print_welcome
from sglang.srt.server_args import ServerArgs
from tests.conftest import ROOT

BLOCK = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
OTHERS = re.compile(r"^\s*(pip|pip3|python|python3|sglang)\b(?! -m venv )", re.MULTILINE)
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if BLOCK.search(path.read_text("utf-8"))]


def check_shell(text: str) -> list[str]:
    """The programs of Python in it."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    programs = re.findall(r"<<'EOF'\n(.*?)^EOF$", text, re.MULTILINE | re.DOTALL)
    for program in programs:
        ast.parse(program)
    assert not OTHERS.search(re.sub(r"<<'EOF'\n.*?^EOF$", "", text, flags=re.MULTILINE | re.DOTALL)), text
    return programs


def test_the_readme() -> None:
    assert len(BLOCKS) >= 5
    assert sum(len(check_shell(block)) for block in BLOCKS) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages(page: Path) -> None:
    for block in BLOCK.findall(page.read_text("utf-8")):
        check_shell(block)


NOT_INSTALLED = {"openai": r"^\s*(?:import|from) openai\b|\bsgl\.OpenAI\(", "anthropic": r"^\s*(?:import|from) anthropic\b"}
"""package that `make serve` does not install -> what needs it"""


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.stem)
def test_what_programs_need_besides_is_installed_by_a_command_of_the_page(page: Path) -> None:
    text = page.read_text("utf-8")
    programs = "\n".join(re.findall(r"^```(?:python|sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for package, use in NOT_INSTALLED.items():
        if re.search(use, programs, re.MULTILINE):
            assert f".venv/bin/python -m pip install {package}" in text


def test_the_welcome(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "an env" / "bin"
    place.mkdir(parents=True)
    for name in ("activate", "python", "sglang"):
        (place / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    monkeypatch.setattr(sys, "prefix", str(place.parent))
    monkeypatch.setenv("PATH", "/usr/bin")
    _print_welcome(ServerArgs(port=31234))
    shown = capsys.readouterr().out
    commands = shown.split("In another terminal:", 1)[1].split("To call these commands", 1)[0]
    (program,) = check_shell(commands)
    assert "temperature=0" in program and "http://localhost:31234" in program
    assert f"source '{place}/activate'" in shown and f"'{place}/sglang' chat --url" in shown
    monkeypatch.setenv("PATH", str(place))
    _print_welcome(ServerArgs())
    shown = capsys.readouterr().out
    assert "\nsglang chat" in shown and "source" not in shown
