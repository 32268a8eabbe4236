"""scripts/structure finds what is over its limits."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from importlinter import api

SCRIPT = Path(__file__).parents[2] / "scripts" / "structure"


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("structure", str(SCRIPT))
    spec = importlib.util.spec_from_loader("structure", loader)
    assert spec is not None
    module = sys.modules["structure"] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_cycles_are_found(structure: ModuleType) -> None:
    edges = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["d", "f"], "f": ["e"]}
    assert sorted(sorted(group) for group in structure.strongly_connected(edges) if len(group) > 1) == [
        ["a", "b", "c"],
        ["e", "f"],
    ]


def test_imports_in_functions_and_for_types_count(
    structure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ringed"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "low.py").write_text("def f():\n    import ringed.high\n")
    (package / "high.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ringed.low import f\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    build = structure.grimp.build_graph
    monkeypatch.setattr(structure.grimp, "build_graph", lambda name, **options: build("ringed", **options))
    assert structure.import_cycles().findings == ["import cycle: ringed.high, ringed.low"]


def test_limits(structure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "sglang"
    (root / "lang" / "sub").mkdir(parents=True)
    for i in range(17):
        (root / "lang" / f"file_{i}.py").write_text("")
    (root / "lang" / "sub" / "file_3.py").write_text("x = 0\n" * 501)
    monkeypatch.setattr(structure, "ROOT", root)
    files = sorted(root.rglob("*.py"))
    assert structure.flat_folders().findings == ["sglang/lang: more than 16 files"]
    assert structure.long_files(files).findings == ["sglang/lang/sub/file_3.py: more than 500 lines"]
    assert structure.repeated_names(files).findings == ["file_3.py twice in lang"]
    monkeypatch.setattr(structure, "TWICE", {"lang": {"file_3": "a reason", "file_4": "there was one"}})
    assert structure.repeated_names(files).findings == []
    assert structure.no_longer_repeated(files) == ["lang: file_4"]


def test_every_module_has_a_layer() -> None:
    """Contracts are exhaustive: a new module gets a place, or lint-imports fails."""
    contracts = api.read_configuration(str(SCRIPT.parents[1] / "pyproject.toml"))["contracts_options"]
    layered = {contract["containers"][0]: contract for contract in contracts if contract["type"] == "layers"}
    assert len(layered) > 20
    for package, contract in layered.items():
        assert contract.get("exhaustive"), package
        for child in contract.get("exhaustive_ignores", []):
            assert f"{package}.{child}" in layered, (
                f"{package}.{child} is on several layers of {package}, and has none of its own"
            )


def test_long_functions(structure: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("def f():\n" + "    x = 0\n" * 24 + "\n\ndef g(): ...\n")
    assert sorted(structure.function_lengths(file)) == [1, 25]
    assert structure.long_functions([file] * 10).findings == ["functions: p90 over 20 lines"]
