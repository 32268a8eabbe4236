"""docs/models.md lists the families that load, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from sglang.srt.model.weights.families.encoders import ENCODER_FAMILIES
from sglang.srt.model.weights.families.table import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


DECODERS, ENCODERS = PAGE.read_text().split("## Encoders")


def rows_of(text: str) -> list[list[str]]:
    return [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ") and "`" in line]


def test_every_encoder_is_listed() -> None:
    rows = rows_of(ENCODERS)
    assert [re.findall(r"`([^`]*)`", row[1]) for row in rows] == [[f"{f.name}Model"] for f in ENCODER_FAMILIES]
    for row, family in zip(rows, ENCODER_FAMILIES, strict=True):
        assert ("without `...ForSequenceClassification`" in row[2]) == (not family.head)


def test_every_family_is_listed() -> None:
    rows = rows_of(DECODERS)
    listed = {re.findall(r"`([^`]*)`", row[1])[0]: re.findall(r"`([^`]*)`", row[2]) for row in rows}
    assert list(dict.fromkeys(listed)) == list(listed)
    read_as = {
        "MistralForCausalLM": "llama",
        "Olmo3ForCausalLM": "olmo2",
        "MixtralForCausalLM": "llama",
    }  # by what else their metadata says
    known = {f.class_name: [f.gguf.architecture] if f.gguf else [] for f in FAMILIES}
    assert listed == {**known, **{name: [architecture] for name, architecture in read_as.items()}}
