"""Fingerprints: equal for the same files and options wherever they lie, different when anything that computes changes."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sglang.srt.checkpoint import fingerprint as module
from sglang.srt.checkpoint.fingerprint import code_digest, fingerprint, weights_digest
from sglang.srt.config import DeviceOptions, ModelFiles, ModelOptions
from sglang.srt.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    rng = np.random.default_rng(0)
    save_file({f"layers.{i}.weight": rng.standard_normal((64, 64), np.float32) for i in range(4)}, path / "model.safetensors")
    return path


def files(path: Path) -> ModelFiles:
    return ModelFiles("folder", path, "model")


def test_the_place_and_the_time_of_the_files_say_nothing(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "config.json").touch()
    assert weights_digest(files(copy)) == weights_digest(files(folder))


def test_any_byte_of_weights_or_config_matters(folder: Path) -> None:
    seen, rng = [weights_digest(files(folder))], random.Random(1)
    for name in ("config.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        for at in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(20))}:
            (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            seen.append(weights_digest(files(folder)))
        (folder / name).write_bytes(data)
    assert len(set(seen)) == len(seen)


def test_large_files_are_sampled_all_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint trained further differs nearly everywhere; whichever tensor alone changed, its samples show it."""
    monkeypatch.setattr(module, "WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr(module, "HEADER_BYTES", 1 << 10)
    monkeypatch.setattr(module, "PIECE", 1 << 10)
    monkeypatch.setattr(module, "STRIDE", 4 << 10)
    monkeypatch.setattr(module, "SAMPLE", 256)
    data = (folder / "model.safetensors").read_bytes()
    seen = {weights_digest(files(folder))}
    for at in range(2048, len(data) - 16384, 16384):  # as large as a tensor
        (folder / "model.safetensors").write_bytes(data[:at] + bytes(b ^ 1 for b in data[at : at + 16384]) + data[at + 16384 :])
        seen.add(weights_digest(files(folder)))
    assert len(seen) == 1 + len(range(2048, len(data) - 16384, 16384))


def test_what_changes_numbers_changes_the_fingerprint(folder: Path) -> None:
    model, device = ModelOptions("x"), DeviceOptions()

    def value(model: ModelOptions = model, device: DeviceOptions = device, kernels: str = "cpu a", code: str = "c") -> str:
        return fingerprint(model, files(folder), device, kernels, code)

    others = [
        value(kernels="cpu b"),
        value(code="d"),
        value(dataclasses.replace(model, dtype="float16")),
        value(dataclasses.replace(model, quantization="int8")),
        value(dataclasses.replace(model, json_model_override_args={"rope_theta": 1})),
        value(dataclasses.replace(model, load_format="dummy", random_seed=1)),
        value(dataclasses.replace(model, load_format="dummy", random_seed=2)),
        value(device=dataclasses.replace(device, tp_size=2)),
    ]
    assert len({value(), *others}) == len(others) + 1
    same = dataclasses.replace(model, model_path="elsewhere", random_seed=7)
    assert value() == value(same) == value(device=dataclasses.replace(device, threads=1, use_tape=False))


def test_code_is_named_and_read_whole(tmp_path: Path) -> None:
    for name, text in (("a.py", "1"), ("b.py", "2")):
        (tmp_path / name).write_text(text)
    one = code_digest([tmp_path / "a.py", tmp_path / "b.py"])
    assert one == code_digest([tmp_path / "b.py", tmp_path / "a.py"])
    (tmp_path / "b.py").write_text("3")
    assert one != code_digest([tmp_path / "a.py", tmp_path / "b.py"])


def test_weights_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match="model.safetensors"):
        weights_digest(files(folder))
