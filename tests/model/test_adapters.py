"""Adapters against models that have them merged, by transformers and by PEFT: every family, option and kernel set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import AdapterOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.adapters import LLAMA, linear_modules, logits_of, merged, write_adapter
from tests.model.conftest import create_ops
from tests.model.dense_families import ROWS, save_family
from tests.model.tiny import Driver, Seq, open_worker, save_model

torch = pytest.importorskip("torch")

OPTIONS = AdapterOptions(max_loras_per_batch=9, max_rank=24)
PROMPT = [int(i) for i in np.random.default_rng(3).integers(3, 199, 45)]


def open_driver(path: Path, ops: Any, **options: Any) -> Driver:
    return Driver(open_worker(path, ops, adapters=OPTIONS, **options))


def place(driver: Driver, folder: Path, slot: int) -> None:
    """Loads an adapter, by a number that is its slot's."""
    store: Any = driver.worker.adapters
    store.load(100 + slot, str(folder)).result()
    store.place(100 + slot, slot)


def adapted(driver: Driver, prompt: list[int], slot: int, chunk: int = 1000) -> Any:
    seq = driver.add(prompt)
    seq.slot = slot
    return np.concatenate([driver.logits([(seq, min(chunk, len(prompt) - i))]) for i in range(0, len(prompt), chunk)])


def close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=tolerance)


def targets_of(model: Any) -> tuple[str, ...]:
    """Ends of the names of all linear modules but the head."""
    every = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    return tuple(sorted(every - {"lm_head", "embed_out"}))


@pytest.mark.parametrize("family", [name for name in ROWS if not name.startswith(("gemma3n", "gemma4"))])
def test_every_family_equals_the_merged_model(family: str, tmp_path: Path) -> None:
    """In float32, by the reference and by the native kernels, of the family's own names of modules."""
    model = save_family(tmp_path / "base", family, 0)
    adapter = write_adapter(tmp_path / "adapter", model, targets_of(model), rank=5)
    prompt = PROMPT[: model.config.max_position_embeddings]
    plain, theirs = logits_of(model, prompt), logits_of(merged(model, adapter), prompt)
    assert np.abs(plain - theirs).max() > 0.05 * np.abs(theirs).max()
    for ops, tolerance in ((ReferenceOps(), 1e-4), (create_ops("cpu"), 1e-2)):
        driver = open_driver(tmp_path / "base", ops)
        place(driver, adapter.folder, 3)
        close(adapted(driver, prompt, 3), theirs, tolerance)
        close(adapted(driver, prompt, -1), plain, tolerance)


CASES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "rank and alpha by pattern": {"rank_pattern": {"q_proj": 3, "down_proj": 17}, "alpha_pattern": {"q_proj": 5, "o_proj": 40}},
    "attention alone": {"ends": ("q_proj", "v_proj")},
    "gate alone": {"ends": ("gate_proj",)},
    "one layer": {"layers_to_transform": [1]},
    "regular expression": {"target_modules": r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"},
    "all linear": {"target_modules": "all-linear"},
    "large rank": {"rank": 24},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("base")
    return folder, save_model(folder, "llama", tie_word_embeddings=False)


@pytest.mark.parametrize("case", list(CASES))
def test_options(case: str, base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    adapter = write_adapter(tmp_path, model, **CASES[case])
    driver = open_driver(folder, ReferenceOps())
    place(driver, adapter.folder, 0)
    close(adapted(driver, PROMPT, 0), logits_of(merged(model, adapter), PROMPT))


def test_the_same_weights_under_another_scale_are_another_adapter(base: tuple[Path, Any], tmp_path: Path) -> None:
    """One that is loaded again after a crash must be what it was, not only its file of weights."""
    folder, model = base
    found = {}
    for name, alpha in (("a", 16), ("same", 16), ("other", 8)):
        write_adapter(tmp_path / name, model, lora_alpha=16)
        config = tmp_path / name / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 16', f'"lora_alpha": {alpha}'))
        store: Any = open_driver(folder, ReferenceOps()).worker.adapters
        found[name] = store.load(1, str(tmp_path / name)).result().digest
    assert found["a"] == found["same"] != found["other"]


@pytest.mark.parametrize("case", list(CASES))
def test_options_as_peft_reads_them(case: str, base: tuple[Path, Any], tmp_path: Path) -> None:
    """The same files, read and merged by PEFT."""
    peft = pytest.importorskip("peft")
    import copy

    folder, model = base
    adapter = write_adapter(tmp_path, model, **CASES[case])
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).merge_and_unload().eval()
    driver = open_driver(folder, ReferenceOps())
    place(driver, adapter.folder, 0)
    close(adapted(driver, PROMPT, 0), logits_of(theirs, PROMPT))


def test_what_peft_saves(base: tuple[Path, Any], tmp_path: Path) -> None:
    """Configs with all the fields that PEFT writes, and its names of tensors."""
    peft = pytest.importorskip("peft")
    import copy

    folder, model = base
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=list(LLAMA), init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    tuned.save_pretrained(str(tmp_path))
    driver = open_driver(folder, ReferenceOps())
    place(driver, tmp_path, 0)
    close(adapted(driver, PROMPT, 0), logits_of(tuned, PROMPT))


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_on_quantized_weights(quantization: str | None, base: tuple[Path, Any], tmp_path: Path) -> None:
    """What an adapter adds is nearly the same on weights of every kind."""
    folder, model = base
    adapter = write_adapter(tmp_path, model)
    driver = open_driver(folder, create_ops("cpu"), quantization=quantization)
    place(driver, adapter.folder, 0)
    plain, theirs = logits_of(model, PROMPT), logits_of(merged(model, adapter), PROMPT)
    ours = adapted(driver, PROMPT, 0) - adapted(driver, PROMPT, -1)
    error = np.abs(ours - (theirs - plain)).mean() / np.abs(theirs - plain).mean()
    assert error < {None: 0.01, "int8": 0.05, "int4": 0.35}[quantization]


@pytest.fixture(scope="module")
def eight(base: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters that differ in ranks and in what they change."""
    folder = tmp_path_factory.mktemp("eight")
    ends = (LLAMA, ("q_proj", "v_proj"), ("gate_proj", "down_proj"), LLAMA)
    return [write_adapter(folder / str(i), base[1], ends[i % 4], rank=3 * i + 1, seed=i).folder for i in range(8)]


@pytest.mark.parametrize("use_tape", [True, False])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_bits_do_not_depend_on_company(
    kernels: str, use_tape: bool, base: tuple[Path, Any], eight: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an adapter alone, with seven others and rows of the base, in chunks, in another slot: the same bits. Rows of the base:
    those of a model without adapters."""
    make = ReferenceOps if kernels == "reference" else lambda: create_ops("cpu")
    plain = Driver(open_worker(base[0], make(), use_tape))
    driver = open_driver(base[0], make(), use_tape=use_tape)
    for i, folder in enumerate(eight):
        place(driver, folder, i)
    bits = lambda x: np.ascontiguousarray(x).view(np.int32)  # noqa: E731
    alone = [bits(adapted(driver, PROMPT, slot)) for slot in range(8)]
    assert len({one.tobytes() for one in alone}) == 8
    without = bits(adapted(plain, PROMPT, -1))
    np.testing.assert_array_equal(bits(adapted(driver, PROMPT, -1)), without)
    seqs: list[Seq] = []
    for slot in (*range(8), -1):
        seqs.append(driver.add(PROMPT))
        seqs[-1].slot = slot
    together = bits(driver.logits([(seq, len(PROMPT)) for seq in seqs]))
    for i, want in enumerate((*alone, without)):
        np.testing.assert_array_equal(together[i * len(PROMPT) : (i + 1) * len(PROMPT)], want)
    np.testing.assert_array_equal(bits(adapted(driver, PROMPT, 5, chunk=7)), alone[5])
    place(driver, eight[5], 1)
    np.testing.assert_array_equal(bits(adapted(driver, PROMPT, 1)), alone[5])


def test_memory_goes_back_when_adapters_do(base: tuple[Path, Any], eight: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """That of each one's matrices, and with the last one that of the slots."""
    trims: list[int] = []
    monkeypatch.setattr("sglang.srt.model.adapters.store.release_freed_memory", lambda: trims.append(1))
    driver = open_driver(base[0], create_ops("cpu"))
    store: Any = driver.worker.adapters
    place(driver, eight[3], 0)
    place(driver, eight[7], 1)
    want, banks = adapted(driver, PROMPT, 1), [site.bank for site in store._sites]
    store.forget(100)
    np.testing.assert_array_equal(adapted(driver, PROMPT, 1), want)
    assert any(bank.a.any() for bank in banks)
    store.forget(101)
    assert not any(bank.a.any() or bank.b.any() for bank in banks)
    place(driver, eight[7], 1)
    np.testing.assert_array_equal(adapted(driver, PROMPT, 1), want)
    assert len(trims) == 2


def test_tokens_of_a_batch_are_those_of_each_alone(base: tuple[Path, Any], eight: list[Path]) -> None:
    def run(slots: list[int]) -> list[list[int]]:
        driver = open_driver(base[0], create_ops("cpu"))
        for i, folder in enumerate(eight):
            place(driver, folder, i)
        seqs = [driver.add(PROMPT[: 20 + slot]) for slot in slots]
        for seq, slot in zip(seqs, slots, strict=True):
            seq.slot = slot
        driver.generate(seqs, 12, chunk=8)
        return [seq.output for seq in seqs]

    slots = [*range(8), -1]
    together = run(slots)
    assert together == [run([slot])[0] for slot in slots] and len(set(map(tuple, together))) > 4


def test_on_cuda_kernels(base: tuple[Path, Any], tmp_path: Path) -> None:
    """In Triton's interpreter, decode graphs included."""
    pytest.importorskip("triton")
    from sglang.srt.model.kernels.cuda import ops as cuda

    if not cuda.INTERPRETED:
        pytest.skip("Triton compiles here")
    folder, model = base
    adapter = write_adapter(tmp_path, model, rank=5)
    driver = open_driver(folder, cuda.create_cuda_ops("cpu", "float32"))
    runner: Any = driver.worker._runner
    runner.record_graphs(4)
    place(driver, adapter.folder, 2)
    prompt = PROMPT[:9]
    seqs = [driver.add(prompt), driver.add(prompt)]
    seqs[0].slot = 2
    together = driver.logits([(seq, 8) for seq in seqs])
    for i, theirs in enumerate((merged(model, adapter), model)):
        close(together[8 * i : 8 * i + 8], logits_of(theirs, prompt)[:8])
    batch = driver.batch([(seq, 1) for seq in seqs])
    driver.worker.forward(batch)
    last = np.array(driver.worker.ops.fetch(runner.head(batch.sample_rows)).result())
    for i, theirs in enumerate((merged(model, adapter), model)):
        close(last[i], logits_of(theirs, prompt)[8])


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_gguf_adapters(family: str, kernels: str, base: tuple[Path, Any], tmp_path: Path) -> None:
    """What llama.cpp's converter makes of PEFT's files: rows of q and k are put into its order for some families, and alpha is one."""
    model = save_family(tmp_path / "base", family, 0) if family in ROWS else save_model(tmp_path / "base", family)
    adapter = write_adapter(tmp_path / "adapter", model, rank=4)
    write_gguf(tmp_path / "adapter.gguf", family, model, adapter.folder)
    driver = open_driver(tmp_path / "base", ReferenceOps() if kernels == "reference" else create_ops("cpu"))
    place(driver, tmp_path / "adapter.gguf", 0)
    close(adapted(driver, PROMPT, 0), logits_of(merged(model, adapter), PROMPT), 1e-4 if kernels == "reference" else 1e-2)


def test_activated_gguf_adapters(base: tuple[Path, Any], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base[1], rank=4)
    store: Any = open_driver(base[0], ReferenceOps()).worker.adapters
    key, path = "adapter.alora.invocation_tokens", tmp_path / "adapter.gguf"
    write_gguf(path, "llama", base[1], adapter.folder, lambda writer: writer.add_array(key, [7, 8]))
    assert store.load(1, str(path)).result().invocation == (7, 8)
    for wrong in ([1.5], [7, -8], [5000], list(range(300)), ["a"]):
        write_gguf(path, "llama", base[1], adapter.folder, lambda writer, ids=wrong: writer.add_array(key, ids))
        assert "alora" in refusal(base, path), wrong


def test_gguf_adapters_that_are_refused(base: tuple[Path, Any], tmp_path: Path) -> None:
    """Another part could be a link that leads anywhere; a long file is not read."""
    adapter, path = write_adapter(tmp_path / "adapter", base[1], rank=4), tmp_path / "adapter-00001-of-00002.gguf"
    write_gguf(path, "llama", base[1], adapter.folder, lambda writer: writer.add_uint16("split.count", 2))
    write_gguf(tmp_path / "adapter-00002-of-00002.gguf", "llama", base[1], adapter.folder)
    assert "several parts" in refusal(base, path)
    write_gguf(path, "llama", base[1], adapter.folder)
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    assert "--max-lora-rank" in refusal(base, path)


def write_gguf(path: Path, arch: str, model: Any, folder: Path, more: Callable[[Any], object] = bool) -> None:
    """The adapter in `folder` as llama.cpp's converter writes it; `more`: adds to its metadata."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    more(writer)
    for key, value in tensors_of(folder).items():
        layer, module, side = key.split(".layers.")[1].split(".")[0], key.split(".")[-3], key.split(".")[-2][-1]
        values = value.numpy()
        if side == "B" and arch == "llama" and module in ("q_proj", "k_proj"):
            heads = model.config.num_attention_heads if module == "q_proj" else model.config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight.lora_{side.lower()}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- what is refused ------------------------------------------------------------------------------------------------------------


def refusal(base: tuple[Path, Any], folder: Path) -> str:
    store: Any = open_driver(base[0], ReferenceOps()).worker.adapters
    with pytest.raises(ModelError) as caught:
        store.load(1, str(folder)).result()
    assert "\n" not in str(caught.value)
    return str(caught.value)


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "target_parameters": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "trainable_token_indices": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    "another method": ({"peft_type": "IA3"}, "peft_type"),
    "unknown field": ({"use_something_new": True}, "use_something_new"),
    "rank": ({"r": 9}, "rank"),
    "rank of no kind": ({"r": "8"}, "r must"),
    "alpha": ({"lora_alpha": float("inf")}, "lora_alpha"),
    "too few targets": ({"target_modules": ["q_proj"]}, "target_modules"),
    "pattern with flags": ({"target_modules": "(?i)q_proj"}, "flags"),
    "too many patterns": ({"rank_pattern": {f"q{i}|r": 8 for i in range(65)}}, "65 regular expressions"),
    "many names": ({"rank_pattern": {f"model.layers.{i}.z_proj": 3 for i in range(2000)}, "r": 9}, "the rank of"),
    "broken pattern": ({"target_modules": "(q_proj"}, "regular expression"),
    "invocation": ({"alora_invocation_tokens": [5000]}, "alora_invocation_tokens"),
}


@pytest.mark.parametrize("case", list(FIELDS))
def test_fields_that_are_refused(case: str, base: tuple[Path, Any], tmp_path: Path) -> None:
    fields, name = FIELDS[case]
    write_adapter(tmp_path, base[1])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert name in refusal(base, tmp_path)


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


PREFIX = "base_model.model.model.layers.0."
TENSORS: dict[str, tuple[dict[str, tuple[int, ...] | None], str]] = {
    "a bias": ({PREFIX + "self_attn.q_proj.lora_B.bias": (64,)}, "lora_B.bias"),
    "a magnitude": ({PREFIX + "self_attn.q_proj.lora_magnitude_vector": (64,)}, "DoRA"),
    "a whole module": ({"base_model.model.lm_head.modules_to_save.weight": (199, 64)}, "lm_head"),
    "an unknown module": (
        {PREFIX + "self_attn.z_proj.lora_A.weight": (8, 64), PREFIX + "self_attn.z_proj.lora_B.weight": (64, 8)},
        "z_proj",
    ),
    "a layer too many": (
        {f"base_model.model.model.layers.7.self_attn.q_proj.lora_{s}.weight": (8, 64) if s == "A" else (64, 8) for s in "AB"},
        "layers.7",
    ),
    "the head": (
        {"base_model.model.lm_head.lora_A.weight": (8, 64), "base_model.model.lm_head.lora_B.weight": (199, 8)},
        "lm_head",
    ),
    "the embedding": ({"base_model.model.model.embed_tokens.lora_embedding_A": (8, 199)}, "lora_embedding_A"),
    "experts": (
        {PREFIX + f"mlp.experts.0.up_proj.lora_{s}.weight": (8, 64) if s == "A" else (96, 8) for s in "AB"},
        "experts.0.up_proj",
    ),
    "one of two": ({PREFIX + "self_attn.q_proj.lora_B.weight": None}, "q_proj"),
    "another width": ({PREFIX + "self_attn.q_proj.lora_A.weight": (8, 65)}, "another model"),
    "another height": ({PREFIX + "self_attn.q_proj.lora_B.weight": (60, 8)}, "another model"),
    "ranks that differ": ({PREFIX + "self_attn.q_proj.lora_B.weight": (64, 7)}, "rank"),
    "a missing module": (
        {PREFIX + "self_attn.q_proj.lora_A.weight": None, PREFIX + "self_attn.q_proj.lora_B.weight": None},
        "no tensors",
    ),
}


@pytest.mark.parametrize("case", list(TENSORS))
def test_tensors_that_are_refused(case: str, base: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    changes, name = TENSORS[case]
    write_adapter(tmp_path, base[1])
    tensors = tensors_of(tmp_path) | {key: torch.zeros(shape) for key, shape in changes.items() if shape is not None}
    kept = {key: value for key, value in tensors.items() if changes.get(key, ()) is not None}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    if case in ("an unknown module", "the head", "experts"):
        path = tmp_path / "adapter_config.json"
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(fields | {"target_modules": [*LLAMA, "z_proj", "lm_head"]}))
    assert name in refusal(base, tmp_path)


def test_files_that_are_refused(base: tuple[Path, Any], tmp_path: Path) -> None:
    assert "there is no adapter at" in refusal(base, tmp_path / "none")
    assert "adapter_model.safetensors" in refusal(base, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    assert "pickled" in refusal(base, tmp_path)
    write_adapter(tmp_path / "good", base[1])
    good = (tmp_path / "good" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "good" / "adapter_model.safetensors").write_bytes(good[:-5])
    assert "truncated" in refusal(base, tmp_path / "good")
    with open(tmp_path / "good" / "adapter_model.safetensors", "wb") as file:
        file.truncate(1 << 40)
    assert "bytes" in refusal(base, tmp_path / "good")
    write_adapter(tmp_path / "large", base[1], rank=25)
    assert "--max-lora-rank is 24" in refusal(base, tmp_path / "large")
    (tmp_path / "large" / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(base, tmp_path / "large")


def test_values_that_are_no_numbers(base: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_adapter(tmp_path, base[1])
    tensors = tensors_of(tmp_path)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert "finite" in refusal(base, tmp_path)


def test_modules_of_the_model_are_all_found(base: tuple[Path, Any]) -> None:
    """What the tests above adapt is all there is."""
    assert len(linear_modules(base[1], targets_of(base[1]))) == 7 * 3


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_beside_experts(family: str, tmp_path: Path) -> None:
    """Attention, dense layers and shared experts of a mixture of experts can be adapted; what is chosen is computed as without adapters."""
    model = save_family(tmp_path / "base", family, 0)
    adapter = write_adapter(tmp_path / "adapter", model, LLAMA, rank=4)
    assert family != "glm4_moe" or any("shared_experts.up_proj" in name for name in tensors_of(adapter.folder))
    driver = open_driver(tmp_path / "base", ReferenceOps())
    place(driver, adapter.folder, 0)
    close(adapted(driver, PROMPT, 0), logits_of(merged(model, adapter), PROMPT))
    native, plain = open_driver(tmp_path / "base", create_ops("cpu")), open_worker(tmp_path / "base", create_ops("cpu"))
    place(native, adapter.folder, 0)
    seqs = [native.add(PROMPT), native.add(PROMPT)]
    seqs[0].slot = 0
    together = native.logits([(seq, len(PROMPT)) for seq in seqs])
    np.testing.assert_array_equal(together[len(PROMPT) :], adapted(Driver(plain), PROMPT, -1))
    np.testing.assert_array_equal(together[: len(PROMPT)], adapted(native, PROMPT, 0))


def test_over_two_ranks(base: tuple[Path, Any], tmp_path: Path) -> None:
    """Each rank has its part of every adapter, also of one that is loaded later; tokens are those of one rank."""
    from sglang.srt.engine import Engine

    folder, model = base
    for i, name in enumerate("ab"):
        write_adapter(tmp_path / name, model, seed=i, size=0.6)
    flags: dict[str, Any] = {
        **{"model_path": str(folder), "skip_tokenizer_init": True, "grammar_backend": "none", "device": "cpu"},
        **{"max_total_tokens": 1024, "context_length": 128, "max_lora_rank": 16, "lora_paths": {"a": str(tmp_path / "a")}},
    }
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    answers = {}
    for size in (1, 2):
        with Engine(**flags, tp_size=size) as engine:
            engine.load_lora_adapter("b", str(tmp_path / "b"))
            replies = engine.generate(input_ids=[PROMPT[:12]] * 3, sampling_params=params, lora_path=["a", None, "b"])
            answers[size] = [reply["output_ids"] for reply in replies]
            engine.unload_lora_adapter("b")
    assert answers[1] == answers[2] and len(set(map(tuple, answers[1]))) == 3
