"""The site of the documents: it builds strictly and without a network, is complete, and loads nothing from other hosts.

.venv-test/bin/python -m pytest -m slow tests/docs/test_site.py        after make docs, which installs its tools
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOWHERE = "http://127.0.0.1:9"
SITE = ROOT / "build" / "site"


@pytest.fixture(scope="module")
def site() -> Path:
    pytest.importorskip("mkdocs", reason="make docs installs the tools")
    environment = os.environ | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    command = [str(ROOT / "scripts" / "build_docs"), str(Path(sys.executable).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return SITE


class Loaded(HTMLParser):
    """What a browser fetches with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADS and values.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(values.get(LOADS[tag]) or "")


def test_every_page_is_there(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    made = [Path("reference/http.html"), *(Path(f"{name}.html") for name in ("contributing", "security", "changelog"))]
    assert [str(page) for page in (*pages, *made) if not (site / page).is_file()] == []


def test_nothing_comes_from_other_hosts(site: Path) -> None:
    found: dict[str, list[str]] = {}
    for path in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(path.read_text("utf-8"))
        foreign = [url for url in parser.urls if re.match(r"(https?:)?//", url)]
        if foreign:
            found[path.name] = foreign
    assert found == {}
    styles = [path for path in site.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//|@import", path.read_text("utf-8"))]
    assert styles == []


def test_references_are_made_from_the_code(site: Path) -> None:
    python = (site / "reference/python.html").read_text("utf-8")
    assert "RuntimeEndpoint" in python and "max_tokens" in python
    document = json.loads((site / "reference/openapi.json").read_text("utf-8"))
    http = (site / "reference/http.html").read_text("utf-8")
    assert {"/generate", "/v1/chat/completions", "/health"} <= set(document["paths"])
    assert [path for path in document["paths"] if path not in http] == []
    assert "sampling_params" in http and "response_format" in http
