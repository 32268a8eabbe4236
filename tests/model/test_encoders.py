"""Encoders against transformers: all rows of tiny random models, alone and in batches, and published configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import DeviceOptions, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.forward_batch import Embedder
from sglang.srt.model.embedder import EncoderEmbedder, create_embedder, embeds_by_itself
from sglang.srt.model.weights.families.encoders import find_encoder, read_encoder_config
from sglang.srt.model.weights.loader import load_checkpoint
from tests.model.tiny import save_model

TEXTS = [[5, 9, 3], [7], list(range(3, 90)), [4, 4, 4, 4, 8], list(range(60, 20, -1))]
KERNELS = ["reference", "cpu"]
LIMITS = {"reference": 1e-4, "cpu": 1e-3}

BERT = {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
LONG = {**BERT, "max_position_embeddings": 100}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", LONG),
    "bert, one type, tanh gelu": ("Bert", {**LONG, "type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "roberta": ("Roberta", {**LONG, "type_vocab_size": 1}),
    "roberta, other padding": ("Roberta", {**LONG, "pad_token_id": 0, "max_position_embeddings": 91}),
    "xlm-roberta": ("XLMRoberta", {**LONG, "type_vocab_size": 1, "num_attention_heads": 3}),
    "camembert": ("Camembert", LONG),
    "mpnet": ("MPNet", {**LONG, "pad_token_id": 1}),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 120, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 100},
    ),
    "distilbert, relu": (
        "DistilBert",
        {"vocab_size": 120, "dim": 40, "n_layers": 1, "n_heads": 5, "hidden_dim": 96, "activation": "relu", "max_position_embeddings": 90},
    ),
    "modernbert": ("ModernBert", {**LONG, "local_attention": 16, "num_hidden_layers": 5, "pad_token_id": 0}),
    "modernbert, all biases": (
        "ModernBert",
        {
            **LONG, "local_attention": 9, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "pad_token_id": 0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),  # fmt: skip
    "nomic": ("NomicBert", LONG),
    "gte": ("Gte", {**LONG, "type_vocab_size": 1}),
    "gte, no types": ("Gte", {**LONG, "type_vocab_size": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
}  # fmt: skip


def save(folder: Path, row: str, head: str = "Model", **more: Any) -> Any:
    """A random model of a row; returns it."""
    import torch
    import transformers

    name, fields = ROWS[row]
    ids = (
        {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None} if name == "ModernBert" else {}
    )
    config = getattr(transformers, f"{name}Config")(**{**fields, **ids, **more})
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}{head}")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5))
    model.save_pretrained(folder)
    return model


def embedder(folder: Path, kernels: str, **options: Any) -> Embedder:
    return create_embedder(ModelOptions(str(folder), **options), DeviceOptions(kernels=kernels, threads=2))  # type: ignore[arg-type]


def rows_of(one: Embedder, texts: list[list[int]]) -> list[Any]:
    assert isinstance(one, EncoderEmbedder)
    rows = one._model.ops.fetch(one._model.encode(texts)).result()
    return np.split(rows, np.cumsum([len(text) for text in texts])[:-1])


def expected_rows(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).last_hidden_state[0].numpy()


@pytest.mark.parametrize("row", ROWS)
def test_all_rows_are_those_of_transformers(tmp_path: Path, row: str) -> None:
    model = save(tmp_path, row)
    assert embeds_by_itself(ModelOptions(str(tmp_path)))
    for kernels in KERNELS:
        one = embedder(tmp_path, kernels)
        together = rows_of(one, TEXTS)
        for ids, rows in zip(TEXTS, together, strict=True):
            expected = expected_rows(model, ids)
            assert np.abs(rows - expected).max() <= LIMITS[kernels] * np.abs(expected).max()
            assert np.array_equal(rows_of(one, [ids])[0], rows), "company changes no bit"


# --- files as they are published ----------------------------------------------------------------------------------------------

FACTS = json.loads((Path(__file__).parent / "facts" / "encoders.json").read_text())["config.json"]


@pytest.mark.parametrize("name", FACTS)
def test_a_published_config_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FACTS[name]))
    config = read_encoder_config(tmp_path, {})
    raw = FACTS[name]
    assert config.hidden_size == raw.get("hidden_size", raw.get("n_embd", raw.get("dim")))
    assert config.context_len in (512, 8192)
    assert config.num_labels == len(raw.get("id2label", ()))
    assert (config.rope is None) == ("rope" not in str(raw) and "rotary" not in str(raw))
    for key in raw:
        for value in ("x", -1, [], {}, 1 << 70, 1.5, None, True):
            (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
            try:
                if find_encoder(tmp_path) is not None:
                    read_encoder_config(tmp_path, {})
            except ModelError as error:
                assert str(tmp_path) in str(error)


def test_nomic_as_it_is_published(tmp_path: Path) -> None:
    """Its config has names of its own. (The tensors do too, and transformers writes them so.)"""
    model = save(tmp_path, "nomic")
    sizes = {"n_embd": 48, "n_head": 4, "n_inner": 80, "n_layer": 3, "n_positions": 100, "vocab_size": 120}
    (tmp_path / "config.json").write_text(json.dumps({**FACTS["nomic-ai/nomic-embed-text-v1.5"], **sizes}))
    check_rows(tmp_path, model)


@pytest.mark.parametrize("num_types", [0, 1])
def test_gte_as_it_is_published(tmp_path: Path, num_types: int) -> None:
    """Its long context comes from frequencies that are changed as a whole."""
    factor, theta = 2.0, 500.0
    model = save(
        tmp_path, "gte", type_vocab_size=num_types, rope_parameters={"rope_type": "default", "rope_theta": theta * factor}
    )
    model.rotary_emb.inv_freq /= factor ** (2 / 12)
    sizes = {**LONG, "type_vocab_size": num_types, "rope_theta": theta, "rope_scaling": {"type": "ntk", "factor": factor}}
    (tmp_path / "config.json").write_text(json.dumps({**FACTS["Alibaba-NLP/gte-base-en-v1.5"], **sizes}))
    check_rows(tmp_path, model)


def check_rows(folder: Path, model: Any) -> None:
    for ids, rows in zip(TEXTS, rows_of(embedder(folder, "reference"), TEXTS), strict=True):
        expected = expected_rows(model, ids)
        assert np.abs(rows - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("row", "changes", "words"),
    [
        ("bert", {"is_decoder": True}, "is_decoder must be False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ("roberta", {"pad_token_id": None}, "pad_token_id must be a token id"),
        ("roberta", {"pad_token_id": 99}, "leaves no positions"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets must be 32"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types must name 5 layers"),
        ("nomic", {"moe_every_n_layers": 2}, "moe_every_n_layers must be 0"),
        ("nomic", {"rotary_scaling_factor": 2}, "rotary_scaling_factor is not supported"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale must be False"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, row: str, changes: dict[str, Any], words: str) -> None:
    name, fields = ROWS[row]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [f"{name}Model"], **fields, **changes}))
    with pytest.raises(ModelError, match=words):
        read_encoder_config(tmp_path, {})


# --- decoders whose rows see what follows them --------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
def test_embedding_gemma(tmp_path: Path, kernels: str) -> None:
    """Both ways, in full layers and in those with a window; texts are not cut into steps."""
    import torch

    model = save_model(tmp_path / "whole", "gemma3", use_bidirectional_attention=True, sliding_window=10)
    model.model.save_pretrained(tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["sliding_window"] == 10
    assert embeds_by_itself(ModelOptions(str(tmp_path / "bare")))
    texts = [*TEXTS, [3 + i * 7 % 150 for i in range(190)]]
    one = embedder(tmp_path / "bare", kernels)
    together = one.embed(texts)
    for ids, vector in zip(texts, together, strict=True):
        with torch.no_grad():
            rows = model.model(torch.tensor([ids])).last_hidden_state[0].numpy().mean(axis=0)
        np.testing.assert_allclose(vector, rows / np.linalg.norm(rows), atol=2e-6 if kernels == "reference" else 1e-3)
        assert np.array_equal(one.embed([ids])[0], vector)
    assert all(map(np.array_equal, one.embed(texts * 8)[-len(texts) :], together)), "more texts than a step takes"


def test_other_decoders_that_see_both_ways(tmp_path: Path) -> None:
    """A field of the config says so; the class name is that of a model that generates."""
    model = save_model(tmp_path, "qwen2")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "is_causal": False}))
    options = ModelOptions(str(tmp_path))
    assert embeds_by_itself(options)
    with pytest.raises(ModelError, match="does not generate"):
        load_checkpoint(find_files(options), options)
    (alone,) = embedder(tmp_path, "reference").embed([TEXTS[2]])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    causal = hidden_mean(model, TEXTS[2])
    assert np.abs(alone - causal).max() > 1e-3
    mask = {"attention_mask": {"full_attention": np.zeros((1, 1, 87, 87), np.float32)}}
    np.testing.assert_allclose(alone, hidden_mean(model, TEXTS[2], **mask), atol=2e-6)


def hidden_mean(model: Any, ids: list[int], **masks: Any) -> Any:
    import torch

    masks = {name: {kind: torch.tensor(value) for kind, value in mask.items()} for name, mask in masks.items()}
    with torch.no_grad():
        rows = model.model(torch.tensor([ids]), **masks).last_hidden_state[0].numpy().mean(axis=0)
    return rows / np.linalg.norm(rows)


# --- heads for labels ---------------------------------------------------------------------------------------------------------

PAIRS = [([2, 5, 9, 3, 7, 8, 3], 4), ([2, 7, 3], 0), ([2, *range(9, 70), 3, 8, 4, 3], 63)]
"""ids, and where the second text begins"""
FIRST_LENS = [first for _, first in PAIRS]


def logits_of(model: Any, ids: list[int], first: int) -> Any:
    import torch

    takes_types = model.config.model_type in ("bert", "camembert", "gte") and model.config.type_vocab_size > 1
    types = {"token_type_ids": torch.tensor([[0] * first + [1] * (len(ids) - first)])} if first and takes_types else {}
    with torch.no_grad():
        mask = torch.ones(1, len(ids), dtype=torch.long)
        return model(torch.tensor([ids]), attention_mask=mask, **types).logits[0].double().numpy()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(
    "row",
    ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "modernbert", "modernbert, all biases", "gte"],
)
def test_scores_of_labels(tmp_path: Path, row: str, num_labels: int, kernels: str) -> None:
    more: dict[str, Any] = {"num_labels": num_labels}
    if row.startswith("modernbert"):
        more |= {"classifier_pooling": "mean" if num_labels == 3 else "cls", "classifier_bias": num_labels == 3}
    model = save(tmp_path, row, "ForSequenceClassification", **more)
    one = embedder(tmp_path, kernels)
    assert one.info.num_labels == one.info.embedding_dim == num_labels
    together = one.embed([ids for ids, _ in PAIRS], FIRST_LENS)
    for (ids, first), scores in zip(PAIRS, together, strict=True):
        expected = logits_of(model, ids, first)
        expected = 1 / (1 + np.exp(-expected)) if num_labels == 1 else expected
        np.testing.assert_allclose(scores, expected, atol=LIMITS[kernels] * max(1, np.abs(expected).max()))
        assert np.array_equal(one.embed([ids], [first])[0], scores)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_decoder_with_a_head_for_labels(tmp_path: Path, family: str, kernels: str) -> None:
    import torch
    import transformers

    save_model(tmp_path / "whole", family)
    name = {"qwen3": "Qwen3", "llama": "Llama"}[family]
    torch.manual_seed(3)
    kind = getattr(transformers, f"{name}ForSequenceClassification")
    model = kind.from_pretrained(tmp_path / "whole", num_labels=1, pad_token_id=None).float().eval()
    with torch.no_grad():
        model.score.weight.copy_(torch.randn_like(model.score.weight) * 0.3)
    model.save_pretrained(tmp_path / "judge")
    assert embeds_by_itself(ModelOptions(str(tmp_path / "judge")))
    for ids, scores in zip(TEXTS, embedder(tmp_path / "judge", kernels).embed(TEXTS), strict=True):
        expected = 1 / (1 + np.exp(-logits_of(model, ids, 0)))
        np.testing.assert_allclose(scores, expected, atol=1e-5 if kernels == "reference" else 2e-3)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Identity"}),
    ],
)
def test_the_folder_names_what_is_done_with_scores(tmp_path: Path, place: str, value: dict[str, Any]) -> None:
    model = save(tmp_path, "bert", "ForSequenceClassification", num_labels=1)
    path = tmp_path / place
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **value}))
    ids, first = PAIRS[0]
    (score,) = embedder(tmp_path, "reference").embed([ids], [first])
    np.testing.assert_allclose(score, logits_of(model, ids, first), atol=1e-4)
    path.write_text(json.dumps({**before, **json.loads(json.dumps(value).replace("Identity", "Softplus"))}))
    with pytest.raises(ModelError, match=f"{place}: .*Softplus"):
        embedder(tmp_path, "reference")


def test_a_head_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, "roberta")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": ["RobertaForSequenceClassification"]}))
    with pytest.raises(ModelError, match=r"must hold the tensor 'classifier\.dense\.bias'"):
        embedder(tmp_path, "reference")


@pytest.mark.parametrize("has_dense", [False, True])
def test_embedding_gemma_as_a_gguf_file(tmp_path: Path, has_dense: bool) -> None:
    """With the modules that stand behind it in the same file."""
    import torch

    gguf = pytest.importorskip("gguf")
    from tests.model.test_dense_files import write_metadata

    model = save_model(tmp_path / "whole", "gemma3", use_bidirectional_attention=True, sliding_window=10)
    config = model.config
    # the file says what config.json does, which is no more what the loaded config holds
    path, window = tmp_path / "m.gguf", 10
    writer = gguf.GGUFWriter(str(path), "gemma-embedding")
    inner, config.sliding_window = config.sliding_window, window
    write_metadata(writer, "gemma3_text", config)
    config.sliding_window = inner
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA_EMBEDDING, config.num_hidden_layers)
    for key, value in model.model.state_dict().items():
        data = value.numpy() + (1 if key.endswith("norm.weight") else 0)
        writer.add_tensor(names.get_name(f"model.{key}", try_suffixes=(".weight",)), data.astype(np.float32))
    rng = np.random.default_rng(2)
    width = config.hidden_size
    dense = [rng.standard_normal((96, width), np.float32), rng.standard_normal((width, 96), np.float32)]
    for number, weight in enumerate(dense if has_dense else [], 2):
        writer.add_tensor(f"dense_{number}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert embeds_by_itself(ModelOptions(str(path)))
    for ids, vector in zip(TEXTS, embedder(path, "reference").embed(TEXTS), strict=True):
        with torch.no_grad():
            expected = model.model(torch.tensor([ids])).last_hidden_state[0].numpy().mean(axis=0)
        for weight in dense if has_dense else []:
            expected = weight @ expected
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
