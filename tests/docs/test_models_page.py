"""docs/models.md lists the families that load, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from sglang.srt.config import DeviceOptions
from sglang.srt.model.device import create_ops
from sglang.srt.model.quant.blocks import packable_format
from sglang.srt.model.quant.formats import FORMATS
from sglang.srt.model.weights.families.encoders import ENCODER_FAMILIES
from sglang.srt.model.weights.families.table import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


DECODERS, ENCODERS = PAGE.read_text().split("## Encoders")


def test_what_gguf_types_take_in_memory() -> None:
    """The table of bits has every type of GGUF files, with what the kernels make of it."""
    table = DECODERS.split("| type | bits in the file | bits in memory | times the file |")[1].split("\n\n")[0]
    found: dict[str, tuple[float, ...]] = {}
    for line in table.splitlines()[2:]:
        names, *numbers = (cell.strip() for cell in line.split("|")[1:-1])
        found |= {name.lower(): tuple(float(n) for n in numbers) for name in names.split(", ")}
    ops = create_ops(DeviceOptions(device="cpu", kernels="cpu", threads=1), 0, None)
    expected = {}
    for name, form in FORMATS.items():
        if name == "f8":  # of folders
            continue
        kept = name if name in getattr(ops, "formats", ()) else packable_format(name)
        stored, packed = 8 * form.block_bytes / form.block_len, ops.packed_bits(kept)
        expected[name] = (stored, packed, packed / stored)
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert all(abs(a - b) < 0.006 for a, b in zip(found[name], numbers, strict=True)), (name, found[name], numbers)


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
        "DeepseekV3ForCausalLM": "deepseek2",
        "Glm4MoeLiteForCausalLM": "deepseek2",
    }  # by what else their metadata says
    known = {f.class_name: [f.gguf.architecture] if f.gguf else [] for f in FAMILIES}
    assert listed == {**known, **{name: [architecture] for name, architecture in read_as.items()}}
