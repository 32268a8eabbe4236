"""The notebooks of examples/notebooks run from the first cell to the last, and show what their text says.

.venv-test/bin/python -m pytest -m slow tests/docs/test_notebooks.py
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOLDER = ROOT / "examples" / "notebooks"
SHOWN = {
    "language_tour": [
        "The capital of France is Paris.",
        "calculator -> ",
        "City(name='Rome'",
        "'colour': [",
        "the server answered 400: json_schema",
    ],
    "vision_tour": [
        "The image shows a red circle.",
        "The image shows a blue square to the left of a yellow triangle.",
        "The first image shows a red circle. The second image shows a blue square",
        "What color is the circle? -> It is red.",
    ],
}


def shown(cell: Any) -> str:
    """The text below a cell."""
    outputs = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())]
    return "".join(outputs)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells), "commit notebooks without outputs"
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    text = "".join(map(shown, book.cells))
    assert [words for words in SHOWN[path.stem] if words not in text] == [], text
    for cell in book.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
