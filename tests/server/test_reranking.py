"""/v1/rerank and /v1/score with a head for labels, and with a model that is asked in words."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Pieces
from tokenizers import models, normalizers, pre_tokenizers, processors

from sglang.srt.config import DeviceOptions, HttpOptions, ModelFiles, ModelOptions, TextOptions
from sglang.srt.messages import BatchEmbedOut, EmbedOut, EmbedReq
from sglang.srt.model.embedder import create_embedder
from sglang.srt.server.tokenization.model_files import TextFacts
from sglang.srt.server.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.server.conftest import Stand, model_info
from tests.server.echo_scheduler import EchoScheduler, logprob_of
from tests.server.http_tools import client_of
from tests.server.models import train_byte_level

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
QUERY, DOCUMENTS = "a cat", ["The cat sat", "stocks fell", "x", "the " * 8]
CONTEXT = 40


def pair_pieces() -> Pieces:
    """Letters as tokens; pairs as BERT has them."""
    pieces = Pieces(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return pieces


class Scheduler(EchoScheduler):
    """Texts go to a real model."""

    model: Any

    def send(self, message: Any) -> None:
        if not isinstance(message, EmbedReq):
            return super().send(message)
        (vector,) = self.model.embed([list(message.input_ids)], [message.first_len])
        out = BatchEmbedOut([EmbedOut(message.rid, np.asarray(vector, np.float32).tobytes())])
        asyncio.get_running_loop().call_soon(self.reply, out)


@pytest.fixture(scope="module", params=[1, 3])
def judge(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    """A cross-encoder as ms-marco's are published, smaller."""
    folder = tmp_path_factory.mktemp("judge")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=48, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1,
        num_labels=request.param, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5))
    model.save_pretrained(folder)
    pair_pieces().save(str(folder / "tokenizer.json"))
    return folder, model


def open_stand(folder: Path, **options: Any) -> Stand:
    tokenizer = load_tokenizer(TextOptions(str(folder)), ModelFiles("folder", folder, "test"))
    model = create_embedder(ModelOptions(str(folder)), DeviceOptions(kernels="reference"))
    scheduler = Scheduler(tokenizer.vocabulary, 1)
    scheduler.model = model
    info = {name: getattr(model.info, name) for name in ("context_len", "embedding_dim", "num_labels")}
    return Stand(tokenizer, model_info(tokenizer, **info), HttpOptions(served_model_name="test", **options), scheduler)


def judged(model: Any, query: str, document: str) -> list[float]:
    pieces = pair_pieces()
    pieces.enable_truncation(CONTEXT)
    e = pieces.encode(query, document)
    with torch.no_grad():
        logits = model(torch.tensor([e.ids]), token_type_ids=torch.tensor([e.type_ids])).logits[0]
    scores: list[float] = (torch.sigmoid(logits) if len(logits) == 1 else logits).tolist()
    return scores


@pytest.mark.parametrize("cuts", [False, True])
async def test_a_cross_encoder_judges_pairs(judge: tuple[Path, Any], cuts: bool) -> None:
    folder, model = judge
    documents = [*DOCUMENTS, "long " * 40] if cuts else DOCUMENTS
    body = {"query": QUERY, "items": documents}
    want = [judged(model, QUERY, document) for document in documents]
    async with client_of(open_stand(folder, allow_auto_truncate=cuts)) as client:
        reply = (await client.post("/v1/score", json=body)).json()
        np.testing.assert_allclose(reply["scores"], want, atol=1e-4)
        swapped = (await client.post("/v1/score", json={**body, "item_first": True})).json()["scores"]
        np.testing.assert_allclose(swapped[0], judged(model, documents[0], QUERY), atol=1e-4)
        soft = (await client.post("/v1/score", json={**body, "apply_softmax": True})).json()["scores"]
        assert all(sum(row) == pytest.approx(1.0) for row in soft)
        ranked = await client.post("/v1/rerank", json={"query": QUERY, "documents": documents})
        if len(want[0]) > 1:
            assert ranked.status_code == 400 and "3 labels" in ranked.text
        else:
            rows = ranked.json()
            assert [row["score"] for row in rows] == sorted((score for (score,) in reply["scores"]), reverse=True)
            assert all(row["score"] == reply["scores"][row["index"]][0] for row in rows)
        for path, wrong in (
            ("/v1/embeddings", {"input": "a"}),
            ("/encode", {"text": "a"}),
            ("/v1/rerank", {"query": QUERY, "documents": ["a"], "instruct": "b"}),
            ("/v1/rerank", {"query": QUERY, "documents": ["a", ""]}),
            ("/v1/score", {**body, "label_token_ids": [4]}),
            ("/v1/score", {"query": [4], "items": [[5]]}),
            ("/v1/score", {"query": QUERY, "items": ["\ud800"]}),
            *([] if cuts else [("/v1/score", {"query": QUERY, "items": ["long " * 40]})]),
        ):
            assert (await client.post(path, content=json.dumps(wrong))).status_code == 400, (path, wrong)


@pytest.mark.parametrize(
    ("a", "b", "limit"),
    [("abcdefgh", "ab", 8), ("ab", "abcdefgh", 8), ("abcdefgh", "abcdefghij", 9), ("a", "b", 5), ("abc", "abc", 8)],
)
def test_pairs_are_cut_as_tokenizers_cuts_them(a: str, b: str, limit: int) -> None:
    """The longer of the two first."""
    a, b = " ".join(a), " ".join(b)
    tokenizer = Tokenizer(pair_pieces(), TextFacts())
    oracle = pair_pieces()
    oracle.enable_truncation(limit)
    expected = oracle.encode(a, b)
    assert tokenizer.encode_pairs([(a, b)], limit) == [(expected.ids, expected.type_ids.index(1))]


# --- asked in words -----------------------------------------------------------------------------------------------------------

PUBLISHED = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" \
or "no".<|im_end|>
<|im_start|>user
<Instruct>: {instruct}
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
"""Qwen3-Reranker's model card"""
QWEN3 = (Path(__file__).parent / "facts" / "templates" / "Qwen-Qwen3-0.6B.jinja").read_text()


def words_stand(template: str | None, *words: str) -> Stand:
    pieces = train_byte_level(700, [*(["yes no "] * 400 if words else []), "The quick brown fox"])
    tokenizer = Tokenizer(pieces, TextFacts(templates={"default": template} if template else {}))
    scheduler = EchoScheduler(tokenizer.vocabulary, 1)
    return Stand(tokenizer, model_info(tokenizer, context_len=400), HttpOptions(served_model_name="test"), scheduler)


async def test_a_model_is_asked_as_qwen3_reranker_is() -> None:
    stand = words_stand(QWEN3, "yes", "no")
    tokenizer = stand.manager.need_tokenizer()
    (yes,), (no,) = (tokenizer.encode_ordinary(word) for word in ("yes", "no"))
    documents = ["blue", "green sea", "<|im_end|>"]
    async with client_of(stand) as client:
        for instruct in (None, "Find colours"):
            more = {} if instruct is None else {"instruct": instruct}
            reply = await client.post("/v1/rerank", json={"query": "sky", "documents": documents, **more})
            scores = {row["index"]: (row["score"], row["meta_info"]["prompt_tokens"]) for row in reply.json()}
            asked = instruct or "Given a web search query, retrieve relevant passages that answer the query"
            for i, document in enumerate(documents):
                if not document.startswith("<"):  # there, its letters
                    at = len(tokenizer.encode(PUBLISHED.format(instruct=asked, query="sky", document=document)))
                    assert scores[i] == (pytest.approx(1 / (1 + math.exp(logprob_of(no, at) - logprob_of(yes, at)))), at)
        long = {"query": "sky", "documents": ["word " * 380]}
        assert (await client.post("/v1/rerank", json=long)).status_code == 400


async def test_models_that_cannot_be_asked() -> None:
    body = {"query": "sky", "documents": ["blue"]}
    for template, words, said in ((None, ("yes",), "chat template"), (QWEN3, (), "several tokens")):
        async with client_of(words_stand(template, *words)) as client:
            reply = await client.post("/v1/rerank", json=body)
            assert reply.status_code == 400 and said in reply.text
