"""Vectors of texts against transformers, alone and in company, and the loop that serves them."""

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


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_company_changes_no_bit(request: pytest.FixtureRequest, kind: str, kernels: str) -> None:
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


@pytest.mark.parametrize(("mode", "at"), [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1)])
def test_the_folder_says_how_rows_are_pooled(bert: tuple[Path, Any], tmp_path: Path, mode: str, at: int) -> None:
    folder, model = bert
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, mode: True}))
    (tmp_path / "modules.json").write_text("[]")  # nothing normalises
    (vector,) = embedder(tmp_path, "reference").embed(TEXTS[:1])
    np.testing.assert_allclose(vector, hidden(model, TEXTS[0])[at], atol=5e-6)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="max_tokens"):
        embedder(tmp_path, "reference")


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

        def embed(self, texts: Any) -> Any:
            raise RuntimeError("out of luck")

    wires = Wires(Broken())
    wires.loop.handle(EmbedReq("a", [3]))
    wires.loop.handle(EmbedReq("b", [4]))
    with pytest.raises(RuntimeError, match="out of luck"):
        wires.loop.run()
    assert wires.outs() == {}
