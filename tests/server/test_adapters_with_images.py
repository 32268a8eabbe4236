"""Adapters and images together, on the trained toy-vlm: what adapters say of a picture, beside others and out of the cache."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sglang as sgl
from tests.conftest import ROOT

torch = pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "examples"))

from safetensors.torch import load_file, save_file  # noqa: E402
from toy_vlm import pictures  # noqa: E402

TOY = ROOT / "models" / "toy-vlm"
PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What do you see?<|im_end|>\n<|im_start|>assistant\n"
PARAMS = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
SIZES = {"self_attn.q_proj": (192, 192), "self_attn.o_proj": (192, 192), "mlp.up_proj": (384, 192), "mlp.down_proj": (192, 384)}


def write_adapter(folder: Path, seed: int) -> Path:
    """Named as PEFT names the modules of this family (transformers 5). At rank 4 and scale 2."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        for module, (rows, width) in SIZES.items():
            stem = f"base_model.model.model.language_model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, width, generator=generator) * width**-0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [module.rpartition(".")[2] for module in SIZES]
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def write_merged(folder: Path, adapter: Path) -> Path:
    """The model with the adapter added to its weights."""
    shutil.copytree(TOY, folder)
    weights = {name: value.float() for name, value in load_file(TOY / "model.safetensors").items()}
    parts = load_file(adapter / "adapter_model.safetensors")
    for name, b in parts.items():
        if ".lora_B." in name:
            module = name.split("language_model.")[1].split(".lora_B")[0]
            weights[f"model.{module}.weight"] += 2 * b @ parts[name.replace("lora_B", "lora_A")]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision-adapters")
    return {name: write_adapter(root / name, seed) for seed, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module")
def engine(adapters: dict[str, Path]) -> Iterator[sgl.Engine]:
    paths = {name: str(path) for name, path in adapters.items()}
    with sgl.Engine(model_path=str(TOY), lora_paths=paths, random_seed=1) as engine:
        yield engine


def picture(seed: int) -> Image.Image:
    return pictures.scene(random.Random(seed)).image


def ask(engine: sgl.Engine, cases: list[tuple[str | None, Image.Image]]) -> list[Any]:
    """One batch: adapters and pictures."""
    names, images = [name for name, _ in cases], [[image] for _, image in cases]
    more = {"lora_path": names} if any(names) else {}
    return engine.generate([PROMPT] * len(cases), PARAMS, image_data=images, return_logprob=True, **more)


def scores(reply: Any) -> list[tuple[float, int]]:
    return [(row[0], row[1]) for row in reply["meta_info"]["output_token_logprobs"]]


def test_adapters_see_what_the_merged_model_sees(engine: sgl.Engine, adapters: dict[str, Path], tmp_path: Path) -> None:
    image = picture(1)
    plain, adapted = (scores(reply) for reply in ask(engine, [(None, image), ("a", image)]))
    with sgl.Engine(model_path=str(write_merged(tmp_path / "merged", adapters["a"]))) as merged:
        wanted = scores(ask(merged, [(None, image)])[0])
    assert [i for _, i in adapted] == [i for _, i in wanted] != [i for _, i in plain]
    np.testing.assert_allclose([x for x, _ in adapted], [x for x, _ in wanted], atol=0.02)


def test_pictures_in_the_cache_belong_to_one_adapter(engine: sgl.Engine) -> None:
    """The same picture and text for the base model and two adapters, one after the other and all at once: none finds what another one has
    computed, each finds its own again, and the bits are those of the first time."""
    engine.flush_cache()
    images = [picture(seed) for seed in (1, 2)]
    cases = [(name, image) for image in images for name in (None, "a", "b")]
    first = [ask(engine, [case])[0] for case in cases]
    assert len({str(scores(reply)) for reply in first}) == len(cases)
    shared = first[3]["meta_info"]["cached_tokens"]  # what stands before the second picture
    assert [reply["meta_info"]["cached_tokens"] for reply in first] == [0, 0, 0, shared, shared, shared]
    again = ask(engine, cases)
    for one, other in zip(first, again, strict=True):
        assert scores(one) == scores(other)
        assert other["meta_info"]["cached_tokens"] > shared + 10
