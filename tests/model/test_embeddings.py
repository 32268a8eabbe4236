"""Vectors of texts against transformers, alone and in batches, and the loop that serves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import DeviceOptions, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.forward_batch import Embedder
from sglang.srt.messages import (
    AbortReq,
    BatchEmbedOut,
    BatchTokenOut,
    EmbedOut,
    EmbedReq,
    PauseReq,
    ShutdownReq,
    StateReq,
    TokenizedReq,
)
from sglang.srt.model.embedder import DecoderEmbedder, create_embedder, embeds_by_itself
from sglang.srt.model.pooling import gguf_pooling
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.embedding import EmbeddingScheduler
from tests.model.tiny import save_model

TEXTS = [[5, 9, 3], [7], list(range(3, 90)), [4, 4, 4, 4, 8], list(range(60, 20, -1))]
KERNELS = ["reference", "cpu"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=120,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=100,
    )
    torch.manual_seed(1)
    model = transformers.BertModel(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, save_model(folder, "llama")


def embedder(folder: Path, kernels: str, **options: Any) -> Embedder:
    return create_embedder(ModelOptions(str(folder), **options), DeviceOptions(kernels=kernels, threads=2))  # type: ignore[arg-type]


def hidden(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        rows: np.ndarray[Any, Any] = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    return rows


def unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_encoder_agrees_with_transformers(bert: tuple[Path, Any], kernels: str) -> None:
    folder, model = bert
    for ids, vector in zip(TEXTS, embedder(folder, kernels).embed(TEXTS), strict=True):
        np.testing.assert_allclose(vector, unit(hidden(model, ids).mean(axis=0)), atol=2e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_decoder_gives_its_last_row(llama: tuple[Path, Any], kernels: str) -> None:
    folder, model = llama
    for ids, vector in zip(TEXTS, embedder(folder, kernels).embed(TEXTS), strict=True):
        np.testing.assert_allclose(vector, unit(hidden(model.model, ids)[-1]), atol=2e-3)


@pytest.mark.parametrize(("kernels", "rounds"), [("reference", False), ("cpu", True)])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_decoder_differs_by_the_bits_of_its_cache_alone(tmp_path: Path, family: str, kernels: str, rounds: bool) -> None:
    """The CPU kernels keep K and V in 16 bits: with the same rounding transformers gives the same vectors."""
    import torch
    import transformers

    class Rounded(transformers.DynamicCache):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().update(key_states.half().float(), value_states.half().float(), *args, **kwargs)

    model = save_model(tmp_path, family)
    for ids, vector in zip(TEXTS, embedder(tmp_path, kernels, is_embedding=True).embed(TEXTS), strict=True):
        with torch.no_grad():
            cache = {"past_key_values": Rounded(), "use_cache": True} if rounds else {}
            rows = model.model(torch.tensor([ids]), **cache).last_hidden_state[0].numpy()
        np.testing.assert_allclose(vector, unit(rows[-1]), atol=2e-5 if rounds else 2e-6)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_batches_change_no_bit(request: pytest.FixtureRequest, kind: str, kernels: str) -> None:
    one = embedder(request.getfixturevalue(kind)[0], kernels)
    together = one.embed(TEXTS)
    for ids, vector in zip(TEXTS, together, strict=True):
        assert np.array_equal(one.embed([ids])[0], vector)
    assert all(map(np.array_equal, one.embed(TEXTS[::-1])[::-1], together))


def test_a_decoder_takes_more_texts_than_fit_at_once(llama: tuple[Path, Any]) -> None:
    one = embedder(llama[0], "cpu")
    assert isinstance(one, DecoderEmbedder)
    texts = [[3 + i % 190, 5] * (1 + i % 100) for i in range(150)]  # beyond the pool, the group and the step
    vectors = one.embed(texts)
    for i in (0, 63, 64, 99, 149):
        assert np.array_equal(vectors[i], one.embed([texts[i]])[0])


# --- the modules of sentence-transformers -------------------------------------------------------------------------------------

MODULES = "sentence_transformers.models."


def linked(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).symlink_to(file)
    return to


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def list_modules(folder: Path, *names: str, prefix: str = MODULES) -> None:
    """modules.json as sentence-transformers writes it; the folder of module 2, a Dense, is 2_Dense."""
    entries = [
        {"idx": i, "name": str(i), "path": "" if name == "Transformer" else f"{i}_{name}", "type": prefix + name}
        for i, name in enumerate(names)
    ]
    write_json(folder / "modules.json", entries)


def save_dense(folder: Path, size_in: int, size_out: int, **config: Any) -> Any:
    """A random Dense module on disk; returns it as a function of a vector."""
    import torch
    from safetensors.torch import save_file

    linear = torch.nn.Linear(size_in, size_out, bias=config.get("bias", True)).double()
    tensors = {f"linear.{name}": value.float().contiguous() for name, value in linear.state_dict().items()}
    residual = torch.randn(size_out, size_in)
    if config.get("use_residual") and size_in != size_out:
        tensors["residual.weight"] = residual
    write_json(folder / "config.json", {"in_features": size_in, "out_features": size_out, **config})
    save_file(tensors, folder / "model.safetensors")
    kind = (config.get("activation_function", "Tanh") or "Identity").rpartition(".")[2]

    def apply(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            x = torch.tensor(vector, dtype=torch.float64)
            y = getattr(torch.nn, kind)()(linear(x))
            if config.get("use_residual"):
                y = y + (x if size_in == size_out else residual.double() @ x)
        result: np.ndarray[Any, Any] = y.numpy()
        return result

    return apply


def weighted_mean(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weights = np.arange(1, len(rows) + 1)[:, None]
    mean: np.ndarray[Any, Any] = (rows * weights).sum(axis=0) / weights.sum()
    return mean


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({"pooling_mode_cls_token": True}, lambda rows: rows[0]),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda rows: rows[-1]),
        ({"pooling_mode_max_tokens": True}, lambda rows: rows.max(axis=0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda rows: rows.sum(axis=0) / len(rows) ** 0.5),
        ({"pooling_mode_weightedmean_tokens": True}, weighted_mean),
        ({"word_embedding_dimension": 64}, lambda rows: rows.mean(axis=0)),
        ({"pooling_mode": "mean", "embedding_dimension": 64, "include_prompt": True}, lambda rows: rows.mean(axis=0)),
        ({"pooling_mode": "cls", "embedding_dimension": 64}, lambda rows: rows[0]),
        ({"pooling_mode": "lasttoken"}, lambda rows: rows[-1]),
        ({"pooling_mode": "weightedmean"}, weighted_mean),
        ({"pooling_mode": ["lasttoken", "max"]}, lambda rows: np.concatenate([rows[-1], rows.max(axis=0)])),
        (
            {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
            lambda rows: np.concatenate([rows[0], rows.max(axis=0)]),
        ),
    ],
)
def test_rows_are_pooled_as_the_folder_says(
    bert: tuple[Path, Any], llama: tuple[Path, Any], tmp_path: Path, config: dict[str, Any], pool: Any
) -> None:
    """By the flags of earlier versions and by the name of the current one; by turns of an encoder and of a decoder."""
    folder, model = bert if len(config) % 2 else llama
    linked(folder, tmp_path)
    list_modules(tmp_path, "Transformer", "Pooling")
    write_json(tmp_path / "1_Pooling" / "config.json", config)
    one = embedder(tmp_path, "reference")
    for ids, vector in zip(TEXTS, one.embed(TEXTS), strict=True):
        expected = pool(hidden(getattr(model, "model", model), ids))
        np.testing.assert_allclose(vector, expected, rtol=2e-3, atol=2e-3)
        assert len(vector) == one.info.embedding_dim


@pytest.mark.parametrize(
    ("names", "prefix", "config"),
    [
        (("Transformer", "Pooling", "Dense"), MODULES, {"activation_function": "torch.nn.modules.activation.Tanh"}),
        (("Transformer", "Pooling", "Dense", "Normalize"), MODULES, {"bias": False, "activation_function": None}),
        (("Transformer", "Pooling", "Dense", "Dropout", "Normalize"), "sentence_transformers.base.modules.x.", {}),
        (("Transformer", "Pooling", "Dense"), MODULES, {"activation_function": "torch.nn.modules.activation.GELU"}),
        (("Transformer", "Pooling", "Dense"), MODULES, {"activation_function": "torch.nn.modules.linear.Identity"}),
        (
            ("Transformer", "Pooling", "Dense"),
            MODULES,
            {"use_residual": True, "module_input_name": "sentence_embedding", "activation_function": "torch.nn.ReLU"},
        ),
    ],
)
def test_a_dense_module_is_applied(
    bert: tuple[Path, Any], tmp_path: Path, names: tuple[str, ...], prefix: str, config: dict[str, Any]
) -> None:
    folder, model = bert
    linked(folder, tmp_path)
    list_modules(tmp_path, *names, prefix=prefix)
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    dense = save_dense(tmp_path / "2_Dense", 64, 48, **config)
    one = embedder(tmp_path, "reference")
    assert one.info.embedding_dim == 48
    for ids, vector in zip(TEXTS, one.embed(TEXTS), strict=True):
        expected = dense(hidden(model, ids).mean(axis=0))
        np.testing.assert_allclose(vector, unit(expected) if "Normalize" in names else expected, atol=2e-5)


def test_two_dense_modules_follow_one_another(llama: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = llama
    linked(folder, tmp_path)
    list_modules(tmp_path, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    first, second = save_dense(tmp_path / "2_Dense", 64, 256, **identity), save_dense(tmp_path / "3_Dense", 256, 64, **identity)
    for ids, vector in zip(TEXTS, embedder(tmp_path, "cpu").embed(TEXTS), strict=True):
        np.testing.assert_allclose(vector, unit(second(first(hidden(model.model, ids).mean(axis=0)))), atol=2e-3)


@pytest.mark.parametrize(
    ("names", "pooling", "dense", "words"),
    [
        (("Transformer", "Pooling", "LSTM"), {}, None, "'LSTM'"),
        (("Transformer", "WeightedLayerPooling", "Pooling"), {}, None, "'WeightedLayerPooling'"),
        (("StaticEmbedding", "Pooling"), {}, None, "'StaticEmbedding'"),
        (("Transformer", "Pooling", "LayerNorm"), {}, None, "'LayerNorm'"),
        (("Transformer", "Dense", "Pooling"), {}, None, "Dense before Pooling"),
        (("Transformer", "Normalize", "Pooling"), {}, None, "Normalize before Pooling"),
        (("Transformer", "Pooling", "Pooling"), {}, None, "second module Pooling"),
        (("Transformer", "Pooling"), {"pooling_mode": "attention"}, None, "pooling_mode is 'attention'"),
        (("Transformer", "Pooling"), {"pooling_mode": []}, None, "pooling_mode"),
        (("Transformer", "Pooling"), {"embedding_dimension": 32}, None, "embedding_dimension must be 64"),
        (("Transformer", "Pooling"), {"heads": 4}, None, "'heads' is not known"),
        (("Transformer", "Pooling", "Dense"), {}, {"activation_function": "my.Swish"}, "activation_function is 'my.Swish'"),
        (("Transformer", "Pooling", "Dense"), {}, {"in_features": 32}, "in_features must be 64"),
        (("Transformer", "Pooling", "Dense"), {}, {"out_features": 32}, "linear.weight"),
        (("Transformer", "Pooling", "Dense"), {}, {"module_input_name": "token_embeddings"}, "token_embeddings"),
        (("Transformer", "Pooling", "Dense"), {}, {"gate": True}, "'gate' is not known"),
    ],
)
def test_what_is_not_applied_is_refused_by_name(
    bert: tuple[Path, Any],
    tmp_path: Path,
    names: tuple[str, ...],
    pooling: dict[str, Any],
    dense: dict[str, Any] | None,
    words: str,
) -> None:
    linked(bert[0], tmp_path)
    list_modules(tmp_path, *names)
    write_json(tmp_path / f"{names.index('Pooling')}_Pooling" / "config.json", {"pooling_mode": "mean", **pooling})
    if dense is not None:
        save_dense(tmp_path / "2_Dense", 64, 48)
        config = {"in_features": 64, "out_features": 48, **dense}
        write_json(tmp_path / "2_Dense" / "config.json", config)
    with pytest.raises(ModelError, match=words):
        embedder(tmp_path, "reference")


@pytest.mark.parametrize(
    ("names", "prefix", "words"),
    [
        (("StaticEmbedding",), MODULES, "'StaticEmbedding'"),
        (("MLMTransformer", "SpladePooling"), "sentence_transformers.sparse_encoder.models.", "'MLMTransformer'"),
        (("Transformer", "Pooling", "Normalize"), "custom_st.", r"'custom_st\.Transformer'"),
        (("Transformer",), MODULES, "1_Pooling"),
    ],
)
def test_modules_of_other_kinds_are_refused_by_name(
    bert: tuple[Path, Any], tmp_path: Path, names: tuple[str, ...], prefix: str, words: str
) -> None:
    """Whether or not there is a pooling; and classes that only have the names of known ones."""
    linked(bert[0], tmp_path)
    list_modules(tmp_path, *names, prefix=prefix)
    with pytest.raises(ModelError, match=words):
        embedder(tmp_path, "reference")


def test_a_dense_module_in_a_pickle_is_not_read(bert: tuple[Path, Any], tmp_path: Path) -> None:
    linked(bert[0], tmp_path)
    list_modules(tmp_path, "Transformer", "Pooling", "Dense")
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    save_dense(tmp_path / "2_Dense", 64, 48)
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="2_Dense has no model.safetensors"):
        embedder(tmp_path, "reference")
    for damaged in ("{", '{"a": 1}', '[{"type": 3}]', '[{"type": "x.Pooling", "path": "../other"}]'):
        (tmp_path / "modules.json").write_text(damaged)
        with pytest.raises(ModelError, match=r"modules\.json"):
            embedder(tmp_path, "reference")


# --- decoders without a head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_decoder_saved_without_its_head_embeds(tmp_path: Path, family: str) -> None:
    """As AutoModel saves it: a bare class name, names without a prefix, no lm_head though the head is not tied."""
    model = save_model(tmp_path / "whole", family, tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["architectures"][0].endswith("Model")
    assert embeds_by_itself(ModelOptions(str(tmp_path / "bare")))
    for ids, vector in zip(TEXTS, embedder(tmp_path / "bare", "reference").embed(TEXTS), strict=True):
        np.testing.assert_allclose(vector, unit(hidden(model.model, ids)[-1]), atol=2e-3)


def test_an_absent_head_is_not_missed(tmp_path: Path) -> None:
    """The class name of a model that generates, and weights that only embed."""
    model = save_model(tmp_path / "whole", "qwen3", tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    write_json(tmp_path / "bare" / "config.json", config)
    options = ModelOptions(str(tmp_path / "bare"), is_embedding=True)
    assert not embeds_by_itself(options)
    (vector,) = create_embedder(options, DeviceOptions(kernels="reference")).embed(TEXTS[:1])
    np.testing.assert_allclose(vector, unit(hidden(model.model, TEXTS[0])[-1]), atol=2e-3)


def test_gguf_metadata_says_how_rows_are_pooled() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for kind, expected in ((1, [2, 3]), (2, [0, 1]), (3, [4, 5]), (0, [4, 5]), (None, [4, 5])):
        metadata = {"general.architecture": "qwen3"} | ({} if kind is None else {"qwen3.pooling_type": kind})
        vector = gguf_pooling(metadata, 2).apply(rows)
        np.testing.assert_allclose(vector, unit(np.array(expected)), atol=1e-6)
    with pytest.raises(ModelError, match="pooling_type 4"):
        gguf_pooling({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, 2)


def test_what_is_wrong_with_an_encoder_is_told(bert: tuple[Path, Any], tmp_path: Path) -> None:
    folder = bert[0]
    assert embeds_by_itself(ModelOptions(str(folder)))
    with pytest.raises(ModelError, match="quantization"):
        embedder(folder, "reference", quantization="int8")
    with pytest.raises(ModelError, match="position_embedding_type"):
        embedder(folder, "reference", json_model_override_args={"position_embedding_type": "relative_key"})
    with pytest.raises(ModelError, match="shape"):
        embedder(folder, "reference", json_model_override_args={"vocab_size": 121})


# --- the loop ---------------------------------------------------------------------------------------------------------------


class Wires:
    """The inbox and outbox of a loop that is stepped by hand."""

    def __init__(self, one: Embedder, max_waiting: int = 1000) -> None:
        self.sent: list[Any] = []
        self.loop = EmbeddingScheduler(one, self, self, max_waiting)

    def receive(self, timeout: float) -> list[Any]:
        return []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def outs(self) -> dict[str, EmbedOut]:
        return {out.rid: out for message in self.sent if isinstance(message, BatchEmbedOut) for out in message.outs}


def test_every_text_gets_one_answer(bert: tuple[Path, Any]) -> None:
    one = embedder(bert[0], "cpu")
    wires = Wires(one)
    for i in range(150):
        wires.loop.handle(EmbedReq(f"r{i}", TEXTS[i % len(TEXTS)]))
    wires.loop.handle(AbortReq(rid="r149", message="gone"))
    wires.loop.handle(PauseReq(1, True))
    assert not wires.loop.step()
    wires.loop.handle(PauseReq(2, False))
    while wires.loop.step():
        pass
    outs = wires.outs()
    assert len(outs) == 150
    assert outs["r149"].finish is not None
    expected = [vector.tobytes() for vector in one.embed(TEXTS)]
    assert all(outs[f"r{i}"].vector == expected[i % len(TEXTS)] for i in range(149))


def test_what_cannot_be_embedded_is_refused(bert: tuple[Path, Any]) -> None:
    wires = Wires(embedder(bert[0], "cpu"), max_waiting=1)
    for rid, ids in (("empty", []), ("long", [3] * 101), ("outside", [500]), ("first", [3]), ("second", [3])):
        wires.loop.handle(EmbedReq(rid, ids))
    statuses = {rid: out.finish.status_code for rid, out in wires.outs().items() if out.finish is not None}
    assert statuses == {"empty": 400, "long": 400, "outside": 400, "second": 503}
    wires.loop.handle(TokenizedReq("text", [3], SamplingParams()))
    (refused,) = [message for message in wires.sent if isinstance(message, BatchTokenOut)]
    assert refused.outs[0].finish is not None
    assert refused.outs[0].finish.status_code == 400
    wires.loop.handle(StateReq(7))
    assert wires.sent[-1].stats.num_waiting == 1
    wires.loop.handle(ShutdownReq())
    wires.loop.run()
    assert wires.outs()["first"].finish is not None


def test_clients_take_turns_and_none_fills_the_line(bert: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.scheduler.embedding.GROUP_TEXTS", 4)
    wires = Wires(embedder(bert[0], "cpu"), max_waiting=100)
    for client, count in (("a", 80), ("b", 4), ("c", 1), ("", 3)):
        for i in range(count):
            wires.loop.handle(EmbedReq(f"{client}{i}", [3], client))
    statuses = {out.finish.status_code for rid, out in wires.outs().items() if out.finish is not None and rid[0] == "a"}
    assert statuses == {503} and len(wires.outs()) == 30, "half of the line is left for others"
    wires.sent.clear()
    wires.loop.step()
    assert list(wires.outs()) == ["a0", "b0", "c0", "0"]
    while wires.loop.step():
        pass
    order = list(wires.outs())
    assert set(order[:12]) >= {"b0", "b1", "b2", "b3", "c0", "0", "1", "2"}
    assert [rid for rid in order if rid[0] == "a"] == [f"a{i}" for i in range(50)]


def test_a_failure_goes_on_to_whoever_can_start_another(bert: tuple[Path, Any]) -> None:
    one = embedder(bert[0], "cpu")

    class Broken:
        info = replace(one.info)

        def embed(self, texts: Any, first_lens: Any) -> Any:
            raise RuntimeError("out of luck")

    wires = Wires(Broken())
    wires.loop.handle(EmbedReq("a", [3]))
    wires.loop.handle(EmbedReq("b", [4]))
    with pytest.raises(RuntimeError, match="out of luck"):
        wires.loop.run()
    assert wires.outs() == {}
