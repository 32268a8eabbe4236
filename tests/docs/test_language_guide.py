"""Every code block of docs/language.md, in order, against the default model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "language.md"
ADDRESS = "http://localhost:30000"


def blocks() -> list[tuple[int, str]]:
    """(line, code) of each block."""
    text = GUIDE.read_text(encoding="utf-8")
    return [
        (text[: found.start(1)].count("\n"), found.group(1)) for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    ]


def test_the_guide_runs(server: Any) -> None:
    pytest.importorskip("openai")
    names: dict[str, Any] = {"__name__": "guide"}
    found = blocks()
    assert len(found) > 12
    try:
        for line, code in found:
            source = "\n" * line + code.replace(ADDRESS, server.url)
            exec(compile(source, str(GUIDE), "exec", dont_inherit=True), names)
    finally:
        sgl.set_default_backend(None)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDE.read_text(encoding="utf-8")):
        assert target.startswith("http") or (GUIDE.parent / target).exists(), target
