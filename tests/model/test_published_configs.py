"""The configs of published models, at their real sizes, with every value changed to what no model has: each is planned, or refused in a
sentence that says which value is wrong. No memory is taken for weights."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.errors import SglangError
from sglang.srt.model.capacity import HostMemory
from sglang.srt.model.device import create_ops
from sglang.srt.model.embedder import embeds_by_itself
from sglang.srt.model.image_limits import fit_images
from sglang.srt.model.kernel_limits import check_decoder
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.weights.loader import load_checkpoint, read_config
from sglang.srt.model.worker import check_needs
from tests.model.hostile import dump, mutations, outcome

FACTS = Path(__file__).parent / "facts"
CONFIGS: dict[str, dict[str, Any]] = {
    name: config
    for file in ("published.json", "families.json")
    for name, config in json.loads((FACTS / file).read_text())["config.json"].items()
}
MEMORY = MemoryOptions(max_total_tokens=8192, max_running_requests=4, chunked_prefill_size=256)
MACHINE = HostMemory(1 << 40, 1 << 40)
"""all of the published sizes fit"""
ALSO = ("head_dim", "rope_scaling", "quantization_config", "layer_types", "sliding_window", "text_config", "vision_config", "x")


@pytest.fixture(scope="module")
def ops() -> Ops:
    return create_ops(DeviceOptions(device="cpu", kernels="cpu", threads=1), 0, None)


def plan(folder: Path, ops: Ops) -> None:
    """All that a start does before it takes memory for weights."""
    options = ModelOptions(str(folder), load_format="dummy")
    options = replace(options, is_embedding=embeds_by_itself(options))
    files = find_files(options)
    config = read_config(files, options)
    if config.quantization is None:
        check_needs(files.name, load_checkpoint(files, options), ops, MEMORY, MACHINE)
    check_decoder(ops, config)
    fit_images(MEMORY, config, ops, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_planned(tmp_path: Path, ops: Ops, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    plan(tmp_path, ops)


def fuzz(folder: Path, ops: Ops, name: str, share: float) -> list[str]:
    rng = random.Random(name)
    path, found = folder / "config.json", []
    for what, value in mutations(CONFIGS[name], ALSO):
        if rng.random() < share:
            path.write_bytes(dump(value))
            wrong = outcome(lambda: plan(folder, ops)) or unnamed(folder, ops, what)
            if wrong is not None:
                found.append(f"{what}: {wrong}")
    return found


def unnamed(folder: Path, ops: Ops, what: str) -> str | None:
    """A refusal that names neither the value at fault nor one that it makes wrong."""
    try:
        plan(folder, ops)
    except SglangError as error:
        if "weights of" in str(error) or "context of" in str(error):
            return None  # several values make them
        known = set(re.findall(r"\w+", json.dumps(CONFIGS))) | set(ALSO)
        if not known & {
            word
            for word in re.findall(r"\w+", str(error))
            if "_" in word or word in ("depth", "architectures", "bias", "dtype", "x")
        }:
            return f"names nothing: {error}"
    return None


@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_of_a_published_config(tmp_path: Path, ops: Ops, name: str, share: float) -> None:
    assert not fuzz(tmp_path, ops, name, share)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_that_are_nested_deep(tmp_path: Path, ops: Ops, name: str) -> None:
    for key in CONFIGS[name]:
        for depth in (100, 5000):
            text = json.dumps({k: v for k, v in CONFIGS[name].items() if k != key})[:-1]
            (tmp_path / "config.json").write_text(f'{text},"{key}":{"[" * depth}1{"]" * depth}}}')
            assert outcome(lambda: plan(tmp_path, ops)) is None, (key, depth)
