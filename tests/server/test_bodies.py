"""Bodies: what they would become is told from their bytes, and no more is built of them than a route reads."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from sglang.srt.config import HttpOptions
from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.server.fields import Fields
from sglang.srt.server.generate_req import GenerateReq
from sglang.srt.server.http.auth import BodyLimit
from sglang.srt.server.http.bodies import parse_object
from sglang.srt.server.limits import body_room, json_limits, parameter_room
from sglang.srt.server.limits.body_room import BodyRoom
from sglang.srt.server.limits.json_limits import MAX_DEPTH, MAX_ELEMENTS, JsonScan, Pieces, check_json
from sglang.srt.server.native.format import GENERATE_FIELDS
from sglang.srt.server.openai.protocol import CHAT_FIELDS
from sglang.srt.server.request_maker import RequestMaker
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.conftest import MakeStand, Stand, model_info
from tests.server.http_tools import client_of

MB = 1 << 20
HELLO = b'"messages":[{"role":"user","content":"a"}]'
FIELDS = Fields(frozenset({"a", "model"}), frozenset({"ignored"}), frozenset({"refused"}))


# --- counting ---------------------------------------------------------------------------------------------------------------


def pieces_of(text: bytes, size: int = 60_000) -> Pieces:
    """As a body comes."""
    return Pieces(text[at : at + size] for at in range(0, len(text), size))


def a_value(rng: random.Random, depth: int = 0) -> Any:
    match rng.randrange(7 if depth < 6 else 4):
        case 0:
            return rng.choice([0, 12, -5, 1.5, 1e9, True, None])
        case 1 | 2 | 3:
            return rng.choice(["", "a", "\\", '"', '\\"', "a,b:c[{", "é", "🎉", "x" * 50, "\\\\", "]}", "\u0000"])
        case 4:
            return [a_value(rng, depth + 1) for _ in range(rng.randrange(5))]
        case 5:
            return {rng.choice(["a", 'b"', "\\", ","]) + str(i): a_value(rng, depth + 1) for i in range(rng.randrange(5))}
    return [rng.randrange(1000) for _ in range(rng.randrange(9))]


def count(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    return 1 + sum(1 + count(item) for item in value.values()) if isinstance(value, dict) else 1


def num_chars(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(num_chars, value))
    if isinstance(value, dict):
        return sum(len(key) + num_chars(item) for key, item in value.items())
    return len(value) if isinstance(value, str) else 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 16])
def test_counts_are_never_too_low_and_never_far_off(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_limits, "CHUNK", size)
    monkeypatch.setattr(json_limits, "MAX_KEY", 1 << 40)
    rng = random.Random(size)
    for _ in range(200):
        value = [a_value(rng) for _ in range(5)]
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        scan = JsonScan().read(text)
        assert scan.depth == 0
        assert count(value) <= scan.elements + scan.numbers
        assert scan.elements <= 2 * count(value) + 2 * len(text) / size + 1
        assert scan.text >= num_chars(value)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 400, 100_000])
@pytest.mark.parametrize("form", ['{"a":', "[", '[{"a":'])
def test_depth_is_counted_on_the_bytes(form: str, depth: int) -> None:
    with pytest.raises(RequestError, match="deep"):
        check_json(form.encode() * depth)


def test_brackets_in_strings_are_no_depth() -> None:
    text = json.dumps(["[" * 100_000, '\\"[{' * 100_000])
    assert check_json(text.encode()) is not None
    check_json(json.dumps([[[]] for _ in range(10_000)]).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"[]," * 20_000_000 + b"1]}",
        b'{"a":[' + b"{}," * 500_000 + b"1]}",
        b'{"a":{' + b'"b":0,' * 500_000 + b'"b":1}}',
        b'{"a":[' + b'"b",' * 500_000 + b'"b"]}',
        b'{"a":[' + b"1,null," * 500_000 + b"1]}",
        b'{"a":{"b":[' + b"300," * 500_000 + b"1]}}",
        b'{"a":"' + "🎉".encode() + b"b" * (20 * MB) + b'"}',
        b'{"a":"\\ud83c\\udf89' + b"b" * (20 * MB) + b'"}',
        b'{"' + b"b" * (20 * MB) + b'":1}',
        b'{"' + b"b" * (20 * MB) + b'"  \n :1}',
        b'{"a":' + b"1" * MB + b"}",
        b'{"a":0.' + b"1" * MB + b"}",
        b'{"refused":"' + b"b" * MB + b'"}',
        b'{"model":"' + b"b" * MB + b'"}',
        b'{"a":[1,' + b"300," * 450_000 + b'"c"]}',
        b'{"a":[[1,' + b"300," * 450_000 + b'"c"]]}',
        b'{"a":"' + b"b" * MB + b'"',
        b'["' + b"b" * MB + b'"]',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_would_become_too_much_is_refused_unbuilt(body: bytes) -> None:
    text = pieces_of(body)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            parse_object(text, FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MB
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "value",
    [b'"' + b"x" * (30 * MB) + b'"', b'{"b":"' + b"x" * (30 * MB) + b'"}', b"[" + b"300," * 5_000_000 + b"1]"],
    ids=["text", "object", "numbers"],
)
def test_ignored_fields_are_not_built(value: bytes) -> None:
    body = pieces_of(b'{"a":1,"ignored":' + value + b"}")
    tracemalloc.start()
    try:
        assert parse_object(body, FIELDS) == {"a": 1}
        assert tracemalloc.get_traced_memory()[0] < MB
        assert (
            tracemalloc.get_traced_memory()[1] < 26 * MB
        )  # what is left of the body is copied each time its half is given back
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("row", [b"300", b"7", b" 70000"])
@pytest.mark.parametrize("rows", [1, 2000])
def test_lists_of_ids_take_at_most_eight_times_their_bytes(row: bytes, rows: int) -> None:
    one = b"[" + b",".join([row] * (300_000 // rows)) + b"]"
    body = b'{"text":null,"input_ids":' + (one if rows == 1 else b"[" + b",".join([one] * rows) + b"]") + b"}"
    text = pieces_of(body)
    tracemalloc.start()
    try:
        ids = parse_object(text, GENERATE_FIELDS)["input_ids"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(body)
    plain = ids.tolist() if rows == 1 else [row.tolist() for row in ids]
    assert plain == json.loads(one if rows == 1 else b"[" + b",".join([one] * rows) + b"]")


def test_long_bodies_mean_what_short_ones_do() -> None:
    rng = random.Random(3)
    for _ in range(40):
        value = {"a": [a_value(rng) for _ in range(rng.choice([5, 3000]))], "model": "m", "ignored": a_value(rng)}
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        wanted = {"a": value["a"], "model": "m"}
        assert parse_object(pieces_of(text), FIELDS) == wanted
        assert parse_object(pieces_of(b" " * 70_000 + text), FIELDS) == wanted


def test_an_unknown_key_is_named_in_short() -> None:
    began = time.thread_time()
    for name in ("messages_" + "x" * 60_000, "y" * 5_000_000):
        with pytest.raises(RequestError) as caught:
            parse_object(pieces_of(b'{"%b":1,%b}' % (name.encode(), HELLO)), CHAT_FIELDS)
        assert len(str(caught.value)) < 300 and len(caught.value.param or "") <= 100
    assert time.thread_time() - began < 2


# --- room -------------------------------------------------------------------------------------------------------------------


def scope_of(address: str) -> dict[str, Any]:
    return {"type": "http", "client": (address, 1)}


async def test_large_bodies_wait_their_turn_and_who_holds_least_is_next() -> None:
    room = BodyRoom(64 * MB)
    held = [await room.take(scope_of("a"), 64 * MB) for _ in range(2)]
    again = asyncio.create_task(room.take(scope_of("a"), 60 * MB))
    await asyncio.sleep(0)
    other = asyncio.create_task(room.take(scope_of("b"), 60 * MB))
    await asyncio.sleep(0)
    assert not again.done() and not other.done() and room.is_wanted
    held[0].release()
    await asyncio.wait({other}, timeout=5)
    assert other.done() and not again.done()
    held[1].release()
    await asyncio.wait({again}, timeout=5)
    assert again.done() and not room.is_wanted


async def test_who_leaves_while_waiting_takes_nothing() -> None:
    room = BodyRoom(64 * MB)
    held = [await room.take(scope_of("a"), None) for _ in range(2)]
    gone = asyncio.create_task(room.take(scope_of("b"), None))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait({gone})
    for lease in held:
        lease.release()
    assert [await room.take(scope_of("c"), None) for _ in range(2)]


async def test_many_that_wait_cost_a_callback_little() -> None:
    """Of one client, which holds all the room: what is given back lets in as many of them as there is room for."""
    num, room = 4000, BodyRoom(64 * MB)
    held = [await room.take(scope_of("a"), 64 * MB) for _ in range(2)]
    waiting = [asyncio.create_task(room.take(scope_of("a"), body_room.SMALL_BODY)) for _ in range(num)]
    await asyncio.sleep(0)
    gc.collect()
    gc.freeze()  # what the tests have piled up is not this call's to look through
    began = time.thread_time()
    held[0].release()
    spent = time.thread_time() - began
    gc.unfreeze()
    assert spent < 0.05
    await asyncio.wait(waiting[:1000], timeout=30)
    assert sum(task.done() for task in waiting) == 64 * MB // body_room.SMALL_BODY
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_a_slow_sender_loses_its_place_only_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_room, "PATIENCE_SECONDS", 0.0)
    room = BodyRoom(64 * MB)
    slow = await room.take(scope_of("a"), None)
    came = asyncio.Event()

    async def receive() -> Message:
        await came.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    reading = asyncio.create_task(slow.receive(receive, 0))
    await asyncio.sleep(0.05)
    assert not reading.done()
    await room.take(scope_of("b"), None)
    waiting = asyncio.create_task(room.take(scope_of("c"), None))
    with pytest.raises(OverloadError):
        await asyncio.wait_for(reading, 10)
    slow.release()
    await asyncio.wait_for(waiting, 10)


async def test_many_large_bodies_at_once_are_all_answered(stand: Stand) -> None:
    """More than there is room for: none is lost, and all room is given back."""
    body = b'{"text":"a","sampling_params":{"max_new_tokens":1},"no_logs":"%b"}' % (b"x" * (8 * MB))
    room = BodyRoom(8 * MB)
    room._shares._total = room._shares._share = 20 * MB
    app = BodyLimit(stand.app.router, 9 * MB)
    app._room = room

    async def one(number: int) -> int:
        pieces = [body[at : at + MB] for at in range(0, len(body), MB)]
        status = 0

        async def receive() -> Message:
            await asyncio.sleep(0)
            return (
                {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)} if pieces else await asyncio.Future()
            )

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        head = [(b"content-length", b"%d" % len(body))]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/generate",
            "query_string": b"",
            "headers": head,
            "http_version": "1.1",
        }
        more = {"scheme": "http", "server": ("x", 1), "client": (str(number), 2), "root_path": "", "app": stand.app}
        await app(scope | more, receive, send)
        return status

    assert set(await asyncio.gather(*(one(i) for i in range(8)))) == {200}
    assert not room._shares.used and not room._shares._held


# --- what the queue can never take ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": ["a"] * 101}),
        ("/generate", {"text": "a", "sampling_params": {"n": 101}}),
        ("/generate", {"input_ids": [[1]] * 51, "sampling_params": {"n": 2}}),
        ("/v1/completions", {"prompt": ["a"] * 101}),
        ("/v1/completions", {"prompt": "a", "n": 101}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 101}),
        ("/score_choices", {"text": "a", "choices": ["a b"] * 101}),
        ("/score_choices", {"text": "a", "choices": ["a b"] * 51, "unconditional": True}),
        ("/v1/score", {"query": "a", "items": ["b"] * 101, "label_token_ids": [1]}),
    ],
)
async def test_more_than_the_queue_can_ever_take_is_refused_at_once(
    make_stand: MakeStand, path: str, body: dict[str, Any]
) -> None:
    stand = make_stand(max_queued_requests=100)
    async with client_of(stand) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 400 and "100" in reply.json()["error"]["message"], reply.text
    assert stand.scheduler.received == []


async def test_more_texts_than_the_queue_can_ever_take(make_stand: MakeStand) -> None:
    stand = make_stand(max_queued_requests=100, info={"embedding_dim": 8})
    async with client_of(stand) as client:
        for path, body in (
            ("/v1/embeddings", {"input": ["a"] * 101}),
            ("/encode", {"text": ["a"] * 101}),
            ("/v1/rerank", {"query": "a", "documents": ["a"] * 100}),
        ):
            reply = await client.post(path, json=body)
            assert reply.status_code == 400 and "100" in reply.json()["error"]["message"], reply.text
    assert stand.scheduler.received == []


async def test_ids_of_many_texts_take_eight_bytes_each(tokenizer: Tokenizer) -> None:
    maker = RequestMaker(tokenizer, model_info(tokenizer, context_len=4096), HttpOptions(), None, lambda name: 0)
    texts = [f"{i} is a number and so on " * 100 for i in range(300)]
    num_tokens = sum(map(len, tokenizer.encode_batch(texts)))
    tracemalloc.start()
    try:
        made = await maker.make(GenerateReq(text=texts))
        assert tracemalloc.get_traced_memory()[0] < 12 * num_tokens
    finally:
        tracemalloc.stop()
    assert sum(len(req.input_ids) for req in made) == num_tokens


async def test_texts_that_are_too_many_tokens_are_refused_before_the_rest_is_encoded(make_stand: MakeStand) -> None:
    stand = make_stand(max_text_tokens=50_000)
    async with client_of(stand) as client:
        reply = await client.post("/generate", json={"text": ["ab " * 50] * 9000})
    assert reply.status_code == 400 and "more than 50000 tokens together" in reply.json()["error"]["message"]
    assert stand.scheduler.received == []


SHARED = [
    ("/v1/score", {"query": [5] * 100_000, "items": [[6]] * 1000, "label_token_ids": [7]}),
    ("/v1/score", {"query": "word " * 20_000, "items": ["a"] * 1000, "label_token_ids": [7]}),
    ("/v1/score", {"query": "a", "items": ["word " * 20_000] * 20, "label_token_ids": [7], "item_first": True}),
    ("/score_choices", {"input_ids": [5] * 100_000, "choices": ["a"] * 1000}),
    ("/score_choices", {"text": "word " * 20_000, "choices": ["a"] * 1000}),
    ("/score_choices", {"text": "a", "choices": ["word " * 20_000] * 20}),
    ("/score_choices", {"text": "x" * 2_000_000, "choices": ["a"]}),
]


@pytest.mark.parametrize(("path", "body"), SHARED)
async def test_what_sequences_have_in_common_is_measured_before_it_is_copied(
    make_stand: MakeStand, tokenizer: Tokenizer, path: str, body: dict[str, Any]
) -> None:
    stand = make_stand(info=model_info(tokenizer, context_len=4096))
    raw = json.dumps(body).encode()
    async with client_of(stand) as client:
        tracemalloc.start()
        try:
            reply = await client.post(path, content=raw, headers={"Content-Type": "application/json"})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    said = reply.json()["error"]["message"]
    assert reply.status_code == 400 and ("4096" in said or "8000000 in all" in said), reply.text
    assert peak < (64 << 20) + 8 * len(raw)
    assert stand.scheduler.received == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"query": [5] * 1000, "items": [[6]] * 100, "label_token_ids": [7]}),
        ("/v1/score", {"query": "word " * 1000, "items": ["a"] * 100, "label_token_ids": [7]}),
        ("/score_choices", {"input_ids": [5] * 1000, "choices": ["a"] * 100}),
        ("/score_choices", {"text": "word " * 1000, "choices": ["a"] * 100}),
    ],
)
async def test_sequences_that_are_too_many_tokens_together(
    make_stand: MakeStand, tokenizer: Tokenizer, path: str, body: dict[str, Any]
) -> None:
    stand = make_stand(max_text_tokens=50_000, info=model_info(tokenizer, context_len=4096))
    async with client_of(stand) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 400 and "more than 50000 tokens together" in reply.json()["error"]["message"], reply.text
    assert stand.scheduler.received == []


@pytest.mark.parametrize(
    "parameters",
    [
        {"logit_bias": {str(i): 1 for i in range(5000)}},
        {"logit_bias": {str(i): 1 for i in range(5000)}, "n": 128},
        {"stop": [f"{i:02d}" + "s" * 3990 for i in range(64)]},
        {"stop_token_ids": list(range(4096))},
        {"regex": "a" * 250_000},
        {"json_schema": json.dumps({"enum": ["a" * 250_000]})},
    ],
)
async def test_parameters_that_many_sequences_have(make_stand: MakeStand, parameters: dict[str, Any]) -> None:
    stand = make_stand()
    prompts = ["x"] * (300 // parameters.get("n", 1))
    async with client_of(stand) as client:
        reply = await client.post("/generate", json={"text": prompts, "sampling_params": {"max_new_tokens": 1, **parameters}})
    assert reply.status_code == 400 and "sampling parameters take" in reply.json()["error"]["message"], reply.text
    assert stand.scheduler.received == []


async def test_answers_that_repeat_much(make_stand: MakeStand, tokenizer: Tokenizer) -> None:
    stand = make_stand(info=model_info(tokenizer, context_len=4096))
    table = tokenizer.vocabulary.token_bytes
    longest = max(range(len(table)), key=lambda i: len(table[i]))
    assert len(table[longest]) > 20
    async with client_of(stand) as client:
        for path, body in (
            ("/detokenize", {"tokens": [longest] * 500_000}),
            ("/detokenize", {"tokens": [[longest] * 1000] * 500}),
            ("/v1/completions", {"prompt": [[longest] * 4000] * 2, "echo": True, "n": 128, "max_tokens": 1}),
            ("/v1/completions", {"prompt": [" " * 60_000] * 3, "echo": True, "n": 100, "max_tokens": 1, "stream": True}),
        ):
            reply = await client.post(path, json=body)
            assert reply.status_code == 400 and " bytes" in reply.text, reply.text[:500]
    assert stand.scheduler.received == []


async def test_parameters_in_flight_share_room(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many requests may have long parameters, and all of them wait in the scheduler."""
    monkeypatch.setattr(parameter_room, "MAX_PARAMETER_BYTES", 50_000)
    stand = make_stand()
    stand.scheduler.paused = True
    body = {"text": "a", "sampling_params": {"max_new_tokens": 4, "regex": "a" * 10_000}}
    async with client_of(stand) as client:
        tasks = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(40)]
        await until_refused(tasks)
        short = asyncio.create_task(client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 4}}))
        stand.scheduler.paused = False
        statuses = [(await task).status_code for task in tasks]
        assert statuses == [200] * 10 + [503] * 30 and (await short).status_code == 200
        assert (await client.post("/generate", json=body)).status_code == 200, "what ended gave its room back"
    assert stand.manager.num_in_flight == 0


async def until_refused(tasks: list[asyncio.Task[Any]]) -> None:
    for _ in range(6000):
        await asyncio.sleep(0.01)
        if any(task.done() for task in tasks):
            return
    raise AssertionError("nothing was refused")


# --- what is kept and said again --------------------------------------------------------------------------------------------


def held_prompts(stand: Stand) -> int:
    """Characters of the texts that the objects of running requests hold."""
    import gc

    from sglang.srt.server.generate_req import GenerateReq

    reqs = [found for found in gc.get_objects() if isinstance(found, GenerateReq)]
    return sum(len(str(req.text or "")) + len(req.input_ids or ()) + len(req.media or ()) for req in reqs)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "word " * 20, "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}),
        ("/v1/completions", {"prompt": "word " * 20, "max_tokens": 50, "ignore_eos": True}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "word " * 20}], "max_tokens": 50, "ignore_eos": True},
        ),
    ],
)
async def test_prompts_are_not_kept_while_generating(stand: Stand, path: str, body: dict[str, Any]) -> None:
    stand.scheduler.paused = True
    async with client_of(stand) as client:
        reply = asyncio.create_task(client.post(path, json=body))
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if stand.scheduler.running:
                break
        await asyncio.sleep(0)
        assert held_prompts(stand) == 0
        stand.scheduler.paused = False
        assert (await reply).status_code == 200


@pytest.mark.parametrize("name", ["model", "cache_salt", "extra_key", "user"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_names_are_short(stand: Stand, path: str, name: str) -> None:
    for size in (5000, 500_000):
        body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
        async with client_of(stand) as client:
            reply = await client.post(path, json=body | {name: "x" * size})
        assert reply.status_code == 400 and name in reply.json()["error"]["message"]


async def test_what_a_response_says_again_is_bounded(stand: Stand) -> None:
    async with client_of(stand) as client:
        body = {"input": "a", "max_output_tokens": 1, "metadata": {"a": "x" * (5 * MB)}}
        assert (await client.post("/v1/responses", json=body)).status_code == 400
        body["metadata"] = {"a": "b"}
        assert (await client.post("/v1/responses", json=body)).json()["metadata"] == {"a": "b"}


def test_elements_are_bounded_by_what_memory_they_take() -> None:
    """The figure behind MAX_ELEMENTS: no element takes much more than ELEMENT_BYTES."""
    makers: list[Callable[[int], bytes]] = [
        lambda n: b"[" + b",".join([b"[]"] * (n // 2)) + b"]",
        lambda n: b"[" + b",".join([b"{}"] * (n // 2)) + b"]",
        lambda n: b"[" + b",".join([b'{"a":0}'] * (n // 3)) + b"]",
        lambda n: b"[" + b",".join([b'{"a":{}}'] * (n // 4)) + b"]",
        lambda n: b"[" + b",".join([b'"ab"'] * n) + b"]",
        lambda n: b"[" + b",".join([b"1.5e3"] * n) + b"]",
        lambda n: b"{" + b",".join(b'"%06d":""' % i for i in range(n // 2)) + b"}",
    ]
    for make in makers:
        body = b'{"a":' + make(MAX_ELEMENTS // 4) + b"}"
        tracemalloc.start()
        try:
            parse_object(pieces_of(body), FIELDS)
            assert tracemalloc.get_traced_memory()[1] < 18 * MB, body[:40]
        finally:
            tracemalloc.stop()


def test_lists_that_only_begin_with_numbers_are_read_too() -> None:
    for value in (
        [1, *["a,"] * 30_000],
        [[1, *["]", 2] * 30_000]],
        [1, *[[2, 3]] * 30_000],
        [0.5, 1] * 30_000,
        [[1], {"b": 2}] * 9000,
    ):
        assert parse_object(pieces_of(json.dumps({"a": value}).encode()), FIELDS) == {"a": value}


async def test_a_short_body_in_chunks_needs_no_room(stand: Stand) -> None:
    """Its length is not announced; proxies send all bodies so."""
    pieces = [b'{"text":"a",', b'"sampling_params":', b'{"max_new_tokens":1}}']
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)} if pieces else await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    app = BodyLimit(stand.app.router, 9 * MB)
    app._room._shares._total = 0
    scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "headers": [], "http_version": "1.1"}
    more = {"scheme": "http", "server": ("x", 1), "client": ("y", 2), "root_path": "", "app": stand.app}
    await asyncio.wait_for(app(scope | more, receive, send), 30)
    assert status == 200
