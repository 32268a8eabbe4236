"""Which part counts where the two parts of a vision model's config say different things about the head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.mllama import save_mllama
from tests.model.tiny import open_worker
from tests.model.vision import Shown, logits, randomize, save_qwen
from tests.model.vision_families import (
    QWEN2_5,
    QWEN3,
    gemma3,
    glm4v,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    mistral3,
    pixtral,
    qwen,
    smolvlm,
)

FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma3": gemma3,
    "llava_onevision": llava_onevision,
    "smolvlm": smolvlm,
    "idefics3": lambda: smolvlm("Idefics3"),
    "qwen2_5_vl": lambda: qwen("Qwen2_5_VL", QWEN2_5),
    "qwen3_vl": lambda: qwen("Qwen3VL", QWEN3),
}
IDS = [5, 9, 30, 17]


def save(folder: Path, family: str) -> Any:
    """A model with its own head; returns transformers' logits with that head."""
    import torch

    if family == "qwen2_vl":
        model = save_qwen(folder, "Qwen2VL")
    elif family == "mllama":
        model = save_mllama(folder)
    else:
        model = FAMILIES[family]()
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        randomize(model, 3)
        model.save_pretrained(folder)
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([IDS])).logits[0])


def tell(folder: Path, outer: bool | None, inner: bool | None) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part, value in ((config, outer), (config["text_config"], inner)):
        part.pop("tie_word_embeddings", None)
        if value is not None:
            part["tie_word_embeddings"] = value
    path.write_text(json.dumps(config))


def found(folder: Path) -> Any:
    return logits(open_worker(folder, ReferenceOps()), Shown(IDS, (), None, 0))


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_vl", "mllama"])
def test_the_outer_part_counts(family: str, tmp_path: Path) -> None:
    want = save(tmp_path, family)
    tell(tmp_path, outer=False, inner=True)
    assert np.abs(found(tmp_path) - want).max() < 3e-4 * np.abs(want).max()
    tell(tmp_path, outer=True, inner=False)
    if family == "mllama":  # its embedding has rows that its head has not, so it is never tied
        assert np.abs(found(tmp_path) - want).max() < 3e-4 * np.abs(want).max()
        return
    assert np.abs(found(tmp_path) - want).max() > 0.1 * np.abs(want).max()


def test_a_checkpoint_without_a_head_has_the_one_that_its_decoder_names(tmp_path: Path) -> None:
    """transformers before 5 tied the head by the decoder's part alone, and saved none."""
    import transformers

    model = llava_onevision()
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    tell(tmp_path, outer=False, inner=True)
    theirs = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path)
    assert theirs.config.tie_word_embeddings
    assert open_worker(tmp_path, ReferenceOps()).info.vocab_size == 240


BY_HEAD: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "llava_next": llava_next,
    "pixtral": pixtral,
    "mistral3": mistral3,
    "internvl": internvl,
    "glm4v": glm4v,
}


@pytest.mark.parametrize("family", BY_HEAD)
def test_the_checkpoint_says_whether_there_is_a_head(family: str, tmp_path: Path) -> None:
    """As transformers 5 does it: a head that is there is used, whatever the config says; without one it is the embedding."""
    import torch
    from safetensors.torch import load_file, save_file

    model = BY_HEAD[family]()
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    randomize(model, 3).save_pretrained(tmp_path)
    with torch.no_grad():
        want = np.asarray(model(input_ids=torch.tensor([IDS])).logits[0])
    for outer, inner in ((None, None), (False, False), (True, False), (False, True)):
        tell(tmp_path, outer, inner)
        assert np.abs(found(tmp_path) - want).max() < 3e-4 * np.abs(want).max()
    path = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "lm_head" not in name}
    save_file(tensors, path)
    with torch.no_grad():
        model.lm_head.weight = model.get_input_embeddings().weight
        want = np.asarray(model(input_ids=torch.tensor([IDS])).logits[0])
    for outer, inner in ((None, None), (True, None), (False, True)):
        tell(tmp_path, outer, inner)
        assert np.abs(found(tmp_path) - want).max() < 3e-4 * np.abs(want).max()
    tell(tmp_path, outer=False, inner=False)
    with pytest.raises(ModelError, match="lm_head"):
        found(tmp_path)


def test_gemma_ties_where_nothing_is_said(tmp_path: Path) -> None:
    save(tmp_path, "gemma3")
    tied = []
    for outer, inner in ((None, None), (True, None), (None, True)):
        tell(tmp_path, outer, inner)
        tied.append(found(tmp_path))
    assert np.array_equal(tied[0], tied[1]) and np.array_equal(tied[0], tied[2])
