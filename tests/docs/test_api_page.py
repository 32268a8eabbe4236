"""docs/api.md: its code runs in order against the default model, and its table names every endpoint there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.server.http.openapi import _POSTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
ADDRESS = "http://127.0.0.1:30000"


def test_every_block_runs(server: Any) -> None:
    pytest.importorskip("openai")
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) >= 7
    for block in blocks:
        source = "\n" * text[: block.start(1)].count("\n") + block.group(1).replace(ADDRESS, server.url)
        exec(compile(source, str(PAGE), "exec", dont_inherit=True), names)


def test_the_page_names_every_endpoint() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [path for path in _POSTS if f"`{path}`" not in text]
    assert missing == []
