"""Getting started, serving, and coming from other programs: the commands and programs on the pages work when pasted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import sglang as sgl
from sglang.srt.server_args import ServerArgs, parse_server_args
from tests.conftest import ROOT

NAMES = (
    "index",
    "getting-started",
    "serving",
    *(f"migrating-from-{name}" for name in ("llama-cpp", "ollama", "vllm", "guidance", "outlines")),
)
PAGES = [ROOT / "docs" / f"{name}.md" for name in NAMES]
ADDRESS = "http://localhost:30000"
BLOCK = re.compile(r"```(python|sh)\n(.*?)```", re.DOTALL)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Command lines of `sglang`, in blocks and in lines of text."""
    text = page.read_text("utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    found = [shlex.split(line.replace(".venv/bin/", "")) for line in lines if re.match(r"(\.venv/bin/)?sglang ", line)]
    return [words for words in found if len(words) > 1]


def test_pages_have_programs_requests_and_command_lines() -> None:
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5
    assert sum(block.startswith("curl") for page in PAGES for block in blocks(page, "sh")) > 1
    assert all(commands(page) for page in PAGES if page.stem != "index")


@pages
def test_programs_run(page: Path, server: Any) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for code in blocks(page, "python"):
            exec(compile(code.replace(ADDRESS, server.url), str(page), "exec", dont_inherit=True), names)
    finally:
        sgl.set_default_backend(None)


@pages
def test_requests_are_answered(page: Path, server: Any) -> None:
    for block in blocks(page, "sh"):
        if block.startswith("curl"):
            command = block.replace(ADDRESS, server.url).replace("curl ", "curl -sS --noproxy '*' ", 1)
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
            assert json.loads(done.stdout)["choices"], done.stdout + done.stderr


@pages
def test_command_lines_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        if words[1] == "serve":
            rest = words[2:]
            arguments = ["--model-path", *rest] if rest and not rest[0].startswith("-") else rest
            assert isinstance(parse_server_args(arguments, "sglang serve"), ServerArgs)
        else:
            command, flags = words[1 : 3 if words[1] == "bench" else 2], [word for word in words if word.startswith("--")]
            assert set(flags) <= known_flags(*command), words
    capsys.readouterr()


@cache
def known_flags(*command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-m", "sglang.cli", *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(--[a-z][a-z-]*)", done.stdout))


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {"reference/http.md", "contributing.md", "security.md", "changelog.md"}
    assert sorted((pages | made) ^ set(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))) == []


def leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for child in node if isinstance(node, list) else node.values():
            yield from leaves(child)
