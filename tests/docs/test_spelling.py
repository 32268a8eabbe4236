"""One spelling of a word, so that a search for it finds every place: -ize, as the field, its formats and flags write."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT
from tests.docs.test_references import SOURCES, files

OTHER = re.compile(
    r"\w*(?:authori|finali|initiali|normali|optimi|penali|quanti|randomi|recogni|saniti|seriali|tokeni|vectori)"
    r"s(?:e[drs]?|ing|ations?)(?![a-z])\w*|\w*licence\w*",
    re.IGNORECASE,
)


def test_one_spelling() -> None:
    found = {}
    for name in files():
        if Path(name).suffix in (*SOURCES, ".md") and "/vendor/" not in name:
            text = name + (ROOT / name).read_text("utf-8", errors="replace")
            found[name] = set(OTHER.findall(text))
    found.pop("tests/docs/test_spelling.py", None)
    assert {name: words for name, words in found.items() if words} == {}
    assert OTHER.findall("dequantised, test_normalise_rows: recognised") == ["dequantised", "test_normalise_rows", "recognised"]
    assert OTHER.findall("optimistic, otherwise, organism, initial, finalists, tokens") == []
