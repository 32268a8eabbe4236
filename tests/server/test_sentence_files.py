"""Folders of sentence-transformers: what their files say of texts is done, or refused by name. The rows themselves and the modules
behind them: tests/model/test_embeddings.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import sglang
from sglang.srt.checkpoint import hub
from sglang.srt.checkpoint.sentence_files import SentenceFacts, read_sentence_facts
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.messages import EmbedReq
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), ":"]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
PROMPTS = {"query": "query: ", "passage": "passage: "}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def cased_tokenizer() -> Tokenizer:
    """Letters as tokens, and the lengths that published tokenizers are saved with."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=12)
    return tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """all-MiniLM-L6-v2's sizes at one layer: 512 positions, texts of up to 24 tokens."""
    folder = tmp_path_factory.mktemp("minilm")
    cased_tokenizer().save(str(folder / "tokenizer.json"))
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=1
    )
    torch.manual_seed(3)
    model = transformers.BertModel(config).float().eval()
    model.save_pretrained(folder)
    write(folder / "modules.json", MODULES)
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
    write(folder / "config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": "passage"})
    return folder, model


@pytest.fixture(scope="module")
def engine(bert: tuple[Path, Any]) -> Iterator[sglang.Engine]:
    with sglang.Engine(model_path=str(bert[0]), threads=1, allow_auto_truncate=True) as engine:
        yield engine


def expected(model: Any, text: str) -> np.ndarray[Any, Any]:
    """Written out: small letters, at most 24 tokens with both ends, the mean of the rows at length 1."""
    pieces = cased_tokenizer()
    pieces.no_truncation()
    pieces.no_padding()
    ids = pieces.encode(text.lower()).ids
    ids = ids if len(ids) <= 24 else [*ids[:23], ids[-1]]
    with torch.no_grad():
        row = model(torch.tensor([ids])).last_hidden_state[0].double().numpy().mean(axis=0)
    return np.asarray(row / np.linalg.norm(row))


@pytest.mark.parametrize("text", ["Paris", "a", "The Capital of France", "LONG " * 20, "x" * 5000])
@pytest.mark.parametrize("name", [None, "query", "passage", "document"])
def test_texts_are_read_as_the_folder_says(bert: tuple[Path, Any], engine: sglang.Engine, text: str, name: str | None) -> None:
    prompt = PROMPTS.get(name or "passage", "")  # "document" is there in every folder, and empty
    vector = np.array(engine.encode(text, prompt_name=name)["embedding"])
    np.testing.assert_allclose(vector, expected(bert[1], prompt + text), atol=1e-5)


def test_prompts_are_for_texts(engine: sglang.Engine) -> None:
    with pytest.raises(RequestError, match=r"no prompt 'other'.*document, passage, query"):
        engine.encode("a", prompt_name="other")
    with pytest.raises(RequestError, match="prompt_name is for texts"):
        engine.encode(input_ids=[4, 5], prompt_name="query")
    ids = [2, 4, 5, 3]
    assert engine.encode(input_ids=ids)["meta_info"]["prompt_tokens"] == len(ids), "ids are read as they are"


def test_longer_texts_are_refused_where_none_are_cut(bert: tuple[Path, Any]) -> None:
    limit = "maximum context length is 24 tokens"
    with sglang.Engine(model_path=str(bert[0]), threads=1) as engine, pytest.raises(RequestError, match=limit):
        engine.encode("LONG " * 20)


def linked(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length must be a count"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case must be true or false"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'transformer_task' is 'fill-mask'"),
        ("sentence_bert_config.json", {"query_length": 32}, "'query_length' is 32"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"a": 1}}}, "'processing_kwargs'"),
        ("sentence_bert_config.json", {"whitening": True}, "'whitening' is True"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be texts by name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name is 'x'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, file: str, value: dict[str, Any], words: str) -> None:
    write(tmp_path / "modules.json", MODULES)
    write(tmp_path / file, value)
    with pytest.raises(ModelError, match=words):
        read_sentence_facts(tmp_path)


def test_prompts_that_are_not_pooled_are_refused(bert: tuple[Path, Any], tmp_path: Path) -> None:
    linked(bert[0], tmp_path)
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ModelError, match="include_prompt is false beside prompts"):
        sglang.Engine(model_path=str(tmp_path), threads=1)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"1_Pooling/config.json is missing"):
        sglang.Engine(model_path=str(tmp_path), threads=1)


def test_a_cross_encoder_may_say_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "modules.json", MODULES)
    write(tmp_path / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    write(tmp_path / "config.json", {"architectures": ["BertForSequenceClassification"]})
    assert read_sentence_facts(tmp_path) == SentenceFacts(prompts={"query": "", "document": ""})
    write(tmp_path / "config.json", {"architectures": ["BertModel"]})
    with pytest.raises(ModelError, match="model_type is 'CrossEncoder'"):
        read_sentence_facts(tmp_path)


def test_lengths_and_names_of_other_versions(tmp_path: Path) -> None:
    assert read_sentence_facts(tmp_path) == SentenceFacts(), "a folder of another kind"
    write(tmp_path / "modules.json", MODULES)
    for said, found in ((512, 512), (10**30, None), (1e30, None), (None, None)):
        write(tmp_path / "tokenizer_config.json", {"model_max_length": said})
        assert read_sentence_facts(tmp_path).max_len == found
    write(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 128, "do_lower_case": False})
    facts = read_sentence_facts(tmp_path)
    assert (facts.max_len, facts.lowers, facts.default) == (128, False, "")
    assert [facts.first_of(*names) for names in (("query",), ("passage", "document"), ("no",))] == ["", "", ""]


def test_the_modules_of_a_hub_folder_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, a folder that pools by its first token would be pooled by the mean."""
    import huggingface_hub

    write(tmp_path / "modules.json", MODULES)
    asked: list[Any] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert hub.fetch_repository("a/b", None, None, False) == tmp_path
    assert asked[0] == hub.PATTERNS
    assert "1_Pooling/config.json" in asked[1] and "2_Normalize/model.safetensors" in asked[1]
    (tmp_path / "modules.json").unlink()
    hub.fetch_repository("a/b", None, None, False)
    assert len(asked) == 3


async def test_prompts_over_http(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = make_stand(info={"embedding_dim": 8})
    tokenizer = stand.manager.need_tokenizer()
    facts = SentenceFacts(prompts={"query": "ask: ", "passage": "tell: "}, default="tell: ")
    monkeypatch.setattr(tokenizer, "sentences", facts)
    async with client_of(stand) as client:

        async def texts_of(path: str, **body: Any) -> list[str]:
            stand.scheduler.received.clear()
            response = await client.post(path, json=body)
            assert response.status_code == 200, response.text
            return [tokenizer.decode(m.input_ids) for m in stand.scheduler.received if isinstance(m, EmbedReq)]

        assert await texts_of("/v1/embeddings", input=["a", "b"]) == ["tell: a", "tell: b"]
        assert await texts_of("/v1/embeddings", input="a", prompt_name="query") == ["ask: a"]
        assert await texts_of("/encode", text="a", prompt_name="query") == ["ask: a"]
        assert await texts_of("/v1/rerank", query="a", documents=["b", "c"]) == ["ask: a", "tell: b", "tell: c"]
        assert (await client.post("/v1/embeddings", json={"input": "a", "prompt_name": "no"})).status_code == 400
