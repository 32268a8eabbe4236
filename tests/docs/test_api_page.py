"""docs/api.md: its code runs in order against the default model, and its table names every endpoint there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

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


def test_the_page_names_every_endpoint(server: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    posts = [path for path, methods in document["paths"].items() if "post" in methods and not methods["post"].get("deprecated")]
    missing = [path for path in posts if f"`{path}`" not in text and f"`{path.removeprefix('/v1')}`" not in text]
    assert missing == [] and len(posts) > 20
