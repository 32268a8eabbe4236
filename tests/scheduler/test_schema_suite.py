"""The table of keywords in docs/structured.md is what the engines do, and JSON-Schema-Test-Suite finds nothing let through."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.schema_suite import DRAFTS, PROBES, backends, count_suite, status
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING

DOCS = Path(__file__).parents[2] / "docs" / "structured.md"
OLD = {"additionalItems", "dependencies", "then", "else", "nullable", "divisibleBy", "disallow", "extends", "$recursiveRef"}
SDIST = "jsonschema==4.26.0"


def test_the_table_in_the_documents_is_true() -> None:
    lines = DOCS.read_text().splitlines()
    names = [cell.strip() for cell in next(line for line in lines if line.startswith("| keyword ")).strip("|").split("|")]
    rows = {
        line.split("|")[1].strip().strip("`"): [c.strip() for c in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    }
    engines = backends()
    assert engines.keys() == {"llguidance", "xgrammar"}, "both are installed for tests"
    for name, backend in engines.items():
        for keyword in PROBES:
            assert rows[keyword][names.index(name)] == status(backend, keyword), (name, keyword)


def test_every_keyword_that_constrains_is_probed() -> None:
    assert CONSTRAINING - PROBES.keys() == OLD


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the source distribution of jsonschema, through pip."""
    folder = tmp_path_factory.mktemp("suite")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", SDIST, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"{SDIST} cannot be had as source: {done.stderr[-300:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
    return next(folder.glob("jsonschema-*")) / "json" / "tests"


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_the_suite_finds_nothing_invalid_let_through(name: str, draft: str, suite: Path) -> None:
    counts = count_suite(suite / draft, backends()[name])
    assert counts["wrong"] == 0
    assert counts["compiled"] >= counts["refused"] * {"llguidance": 2, "xgrammar": 0.25}[name], counts
