"""docs/models.md lists the families that load, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from sglang.srt.model.weights.families.table import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_every_family_is_listed() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
    listed = {re.findall(r"`([^`]*)`", row[1])[0]: re.findall(r"`([^`]*)`", row[2]) for row in rows}
    assert list(dict.fromkeys(listed)) == list(listed)
    read_as = {"MistralForCausalLM": "llama", "Olmo3ForCausalLM": "olmo2"}  # by what else their metadata says
    known = {f.class_name: [f.gguf.architecture] if f.gguf else [] for f in FAMILIES}
    assert listed == {**known, **{name: [architecture] for name, architecture in read_as.items()}}
