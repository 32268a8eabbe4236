"""POST /v1/embeddings and /encode: shapes, and what is refused. The vectors themselves: tests/model/test_embeddings.py."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import sglang
from sglang.srt.errors import RequestError
from sglang.srt.messages import EmbedReq
from tests.model.tiny import save_model
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.models import train_byte_level


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand(info={"embedding_dim": 8})


async def post(stand: Stand, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    async with client_of(stand) as client:
        return await client.post(path, json=body)


async def test_a_list_of_texts_gives_a_list_of_vectors(stand: Stand) -> None:
    reply = (await post(stand, input=["The quick", "fox"], model="m", user="u")).json()
    assert (reply["object"], reply["model"]) == ("list", "m")
    assert [item["index"] for item in reply["data"]] == [0, 1]
    assert all(item["object"] == "embedding" and len(item["embedding"]) == 8 for item in reply["data"])
    sent = [m for m in stand.scheduler.received if isinstance(m, EmbedReq)]
    assert [m.input_ids.tolist() for m in sent] == [stand.manager.need_tokenizer().encode(t) for t in ("The quick", "fox")]
    count = sum(len(m.input_ids) for m in sent)
    assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert stand.manager.num_in_flight == 0


async def test_inputs_of_every_form(stand: Stand) -> None:
    for value, count in (("a", 1), ([3, 4], 1), (["a", "b"], 2), ([[3], [4, 5]], 2)):
        assert len((await post(stand, input=value)).json()["data"]) == count
    single, several = (await post(stand, "/encode", text="a")).json(), (await post(stand, "/encode", text=["a"])).json()
    assert single["embedding"] == several[0]["embedding"]
    assert single["meta_info"]["prompt_tokens"] == 1
    assert len((await post(stand, "/encode", input_ids=[[3], [4]])).json()) == 2


async def test_base64_holds_the_same_numbers(stand: Stand) -> None:
    plain = (await post(stand, input="a fox")).json()["data"][0]["embedding"]
    packed = (await post(stand, input="a fox", encoding_format="base64")).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == plain


async def test_shorter_vectors_keep_their_length(stand: Stand) -> None:
    whole = np.array((await post(stand, input="a fox")).json()["data"][0]["embedding"])
    short = np.array((await post(stand, input="a fox", dimensions=3)).json()["data"][0]["embedding"])
    assert len(short) == 3
    np.testing.assert_allclose(np.linalg.norm(short), np.linalg.norm(whole), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": None}, "must be a string"),
        ({"input": []}, "must be a string"),
        ({"input": [1, "a"]}, "must be a string"),
        ({"input": ""}, "empty"),
        ({"input": [[]]}, "must be a string"),
        ({"input": [3] * 257}, "context length (256 tokens)"),
        ({"input": "a", "dimensions": 9}, "between 1 and 8"),
        ({"input": "a", "encoding_format": "int8"}, "float or base64"),
        ({"input": "a", "inputs": "b"}, "did you mean 'input'"),
    ],
)
async def test_wrong_requests_are_told_what_is_wrong(stand: Stand, change: dict[str, Any], words: str) -> None:
    response = await post(stand, **change)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_server_does_one_of_the_two(make_stand: MakeStand, stand: Stand) -> None:
    assert "--is-embedding" in (await post(make_stand(), input="a")).json()["error"]["message"]
    response = await post(stand, "/generate", text="a")
    assert response.status_code == 400
    assert "embeds" in response.json()["error"]["message"]
    async with client_of(stand) as client:
        assert (await client.get("/health_generate")).status_code == 200
        assert (await client.get("/get_model_info")).json()["is_generation"] is False


async def test_a_dead_scheduler_ends_texts_with_an_error(stand: Stand) -> None:
    stand.scheduler.stuck = True
    task = asyncio.create_task(post(stand, input="a"))
    while not stand.manager.num_in_flight:
        await asyncio.sleep(0.01)
    stand.manager.scheduler_died("it fell over")
    assert (await task).status_code == 500


def test_the_offline_engine_embeds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tokenizer = train_byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    model = save_model(tmp_path, "llama", vocab_size=tokenizer.get_vocab_size())
    with sglang.Engine(model_path=str(tmp_path), is_embedding=True, max_total_tokens=512, threads=1) as engine:
        found = engine.encode(["The quick brown", "fox"])
        assert found[1]["embedding"] == engine.encode("fox")["embedding"], "vectors are batch-invariant"
        assert engine.encode(input_ids=tokenizer.encode("fox").ids)["embedding"] == found[1]["embedding"]
        ids = tokenizer.encode("The quick brown").ids
        with torch.no_grad():
            row = model.model(torch.tensor([ids])).last_hidden_state[0, -1].double().numpy()
        vector = np.array(found[0]["embedding"])
        assert vector @ row / np.linalg.norm(vector) / np.linalg.norm(row) > 0.999
        assert found[0]["meta_info"]["prompt_tokens"] == len(ids)
        assert asyncio.run(engine.async_encode("fox"))["embedding"] == found[1]["embedding"]
        for wrong in ({}, {"prompt": "a", "input_ids": [1]}, {"prompt": ["a", ""]}):
            with pytest.raises(RequestError):
                engine.encode(**wrong)
    with sglang.Engine(model_path=str(tmp_path), max_total_tokens=512, threads=1) as engine:
        with pytest.raises(RequestError, match="is-embedding"):
            engine.encode("fox")
        session = engine.open_session()
        greedy = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
        first = engine.generate("The quick", greedy, rid="a", session_params={"id": session})
        second = engine.generate(" fox", greedy, session_params={"id": session, "rid": "a"})
        assert second["meta_info"]["prompt_tokens"] == sum(len(tokenizer.encode(t).ids) for t in ("The quick", " fox")) + 4
        assert second["meta_info"]["cached_tokens"] >= first["meta_info"]["prompt_tokens"]
        engine.close_session(session)
        with pytest.raises(RequestError, match="no session"):
            engine.close_session(session)
