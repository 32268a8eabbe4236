"""Answers that are large or that nobody reads: nothing is lost, what waits is bounded, an event costs what is new in it, and no turn
of the event loop takes long."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sglang.srt.messages import BatchTokenOut, FinishReason, Logprobs, TokenizedReq, TokenOut
from sglang.srt.process.heap import keep_loaded_objects
from sglang.srt.process.relay import LoopShare
from sglang.srt.server.calls import Call
from sglang.srt.server.generate_req import GenerateOut, GenerateReq, UnreadOuts
from sglang.srt.server.http import json_pieces as json_pieces_module
from sglang.srt.server.http.json_pieces import (
    PIECE_BYTES,
    Encoded,
    JsonArray,
    Late,
    LateArray,
    encode_json,
    encoded_within,
    json_pieces,
)
from sglang.srt.server.native.format import Reply
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of, events_of

CALLBACK_SECONDS = 0.05


def logprobs_of(num: int, top_num: int, seed: int = 0, num_asked: int = 0, vocab: int = 200) -> Logprobs:
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> bytes:
        return (-rng.random(shape, np.float32)).tobytes()

    def ids(*shape: int) -> bytes:
        return rng.integers(0, vocab, shape, np.int32).tobytes()

    return Logprobs(ids(num), floats(num), ids(num, top_num), floats(num, top_num), ids(num_asked), floats(num, num_asked))


# --- what waits ---------------------------------------------------------------------------------------------------------------


def out_of(index: int, number: int, finish: FinishReason | None = None) -> GenerateOut:
    output = logprobs_of(1, 2, number)
    first = logprobs_of(3, 2, index) if number == 0 else None
    return GenerateOut(index, f"r{index}", f"<{number}>", [number], finish, 3, 0, number + 1, first, output)


@pytest.mark.parametrize("seed", range(10))
def test_what_waits_is_joined_and_nothing_is_lost(seed: int) -> None:
    rng, unread = random.Random(seed), UnreadOuts()
    counts, read = [0, 0, 0], [list[GenerateOut](), [], []]

    def take() -> None:
        out = unread.pop()
        read[out.index].append(out)

    for _ in range(400):
        if rng.random() < 0.7:
            index = rng.randrange(3)
            unread.put(out_of(index, counts[index]))
            counts[index] += 1
        elif unread:
            take()
        assert len(unread) <= UnreadOuts.NUM_LARGE_APART + 3
    while unread:
        take()
    for outs, count in zip(read, counts, strict=True):
        assert "".join(out.text for out in outs) == "".join(f"<{i}>" for i in range(count))
        assert [i for out in outs for i in out.ids] == list(range(count))
        positions = [p for out in outs for p in out.output_logprobs or ()]
        assert positions == [p for i in range(count) for p in logprobs_of(1, 2, i)]
        assert [out.input_logprobs is not None for out in outs].count(True) == 1
        assert [out.completion_len for out in outs][-1] == count


def test_few_outputs_stay_apart() -> None:
    unread = UnreadOuts()
    for i in range(UnreadOuts.NUM_LARGE_APART):
        unread.put(out_of(0, i))
    assert [unread.pop().ids for _ in range(len(unread))] == [[i] for i in range(UnreadOuts.NUM_LARGE_APART)]


async def test_a_call_that_nobody_reads_holds_one_output_a_sequence(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnreadOuts, "NUM_APART", 5)
    call = await stand.manager.start(GenerateReq(input_ids=[[5], [6]], stream=True))
    while call.open:
        await asyncio.sleep(0)
    assert len(call._unread) == 5 + 2
    outs = [out async for out in call]
    assert [sum(len(o.ids) for o in outs if o.index == i) for i in range(2)] == [128, 128]


async def test_a_cancelled_call_gives_nothing_more(stand: Stand) -> None:
    call = await stand.manager.start(GenerateReq(input_ids=[5], stream=True))
    await call.ready(1)
    call.cancel()
    assert [out async for out in call] == []


async def test_a_consumer_that_always_finds_something_lets_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopShare, "SECONDS", 0.0)
    call = Call(lambda *_: None, "x", 0.0)
    for i in range(5):
        call.put(out_of(i, 0))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert len([out async for out in call]) == 5 and turns >= 4
    task.cancel()


# --- packed ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_num", "num_asked"), [(0, 0), (3, 0), (0, 2), (5, 4)])
def test_log_probabilities_are_the_same_in_parts(top_num: int, num_asked: int) -> None:
    whole = logprobs_of(50, top_num, 1, num_asked)
    positions = list(whole)
    assert len(positions) == len(whole) == 50 and whole.num_values == 50 * (1 + top_num + num_asked)
    assert {(len(p.top), len(p.ids)) for p in positions} == {(top_num, num_asked)}
    for size in (1, 7, 40, 100, 10_000):
        parts = list(whole.parts(size))
        assert [p for part in parts for p in part] == positions
        assert all(part.num_values <= size or len(part) == 1 for part in parts)
        assert Logprobs.join(parts) == whole


# --- JSON in pieces -----------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    {}, [], {"a": {}}, {"a": [], "b": [{}]}, "x", None, [1, 2.5, None, "é"], list(range(10_000)), [{"a": [1] * 1000}] * 300,
    {"a": "x" * 100_000, "b": {"c": [[1, [2, None]]] * 5000}}, [float("nan"), float("inf")], [None] * 1000, {"é\"": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_pieces_are_the_same_json(value: Any) -> None:
    pieces = list(json_pieces(value, b"<", b">"))
    assert b"".join(pieces) == b"<" + encode_json(value) + b">"
    assert all(pieces)


def test_arrays_that_grow() -> None:
    stored, late, items = JsonArray(), LateArray(), []
    for i in range(300):
        new = [[i, None, "x" * 100]] * (i % 5)
        stored.extend(new)
        late.extend(iter(new))
        items += new
        assert b"".join(json_pieces({"a": stored.copy()})) == encode_json({"a": items})
    pieces = list(json_pieces(late))
    assert b"".join(pieces) == encode_json(items) and len(pieces) > 1
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    assert b"".join(json_pieces([{"v": Late(lambda: [1])}, {"v": Encoded([b"[", b"2]"])}])) == b'[{"v":[1]},{"v":[2]}]'


def test_long_strings_are_written_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'é"\\\n😀\x01' * 20_000
    value = {"a": text, "b": [{"c": [text]}, {"d": text[:9]}]}
    lengths: list[int] = []

    def noted(value: Any) -> bytes:
        lengths.append(len(encode_json(value)))
        return encode_json(value)

    whole = encode_json(value)
    monkeypatch.setattr(json_pieces_module, "encode_json", noted)
    assert b"".join(json_pieces(value["a"])) == encode_json(text)
    assert max(lengths) < 8 * PIECE_BYTES
    assert encoded_within(value, len(whole)) == whole
    lengths.clear()
    assert encoded_within(value, len(whole) - 1) is None
    assert encoded_within({"a": text * 100}, 1000) is None and sum(lengths) < 2 * len(whole)


# --- events -------------------------------------------------------------------------------------------------------------------


async def test_a_position_is_rendered_once_however_often_it_is_shown(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = 0
    real = Reply._entries

    def entries(self: Reply, pairs: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return real(self, pairs)

    monkeypatch.setattr(Reply, "_entries", entries)
    body = {"input_ids": [5, 6, 7], "stream": True, "return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0}
    async with client_of(stand) as client:
        reply = await client.post("/generate", json=body | {"sampling_params": {"max_new_tokens": 100, "ignore_eos": True}})
        events = [json.loads(event) for event in events_of(reply.text)[:-1]]
        whole = await client.post("/generate", json=body | {"stream": False, "sampling_params": {"max_new_tokens": 100}})
    assert rendered == 2 * 103
    last, meta = events[-1]["meta_info"], whole.json()["meta_info"]
    for name in ("input_token_logprobs", "input_top_logprobs", "output_token_logprobs", "output_top_logprobs"):
        assert last[name] == meta[name] and len(last[name]) in (3, 100)
        shown = [event["meta_info"][name] for event in events]
        assert all(later[: len(earlier)] == earlier for earlier, later in zip(shown, shown[1:], strict=False))


# --- turns of the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slowest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], float]]:
    """The longest turn so far, in seconds of this thread's CPU."""
    longest = [0.0]
    real = asyncio.events.Handle._run

    def run(self: asyncio.Handle) -> None:
        began = time.thread_time()
        real(self)
        longest[0] = max(longest[0], time.thread_time() - began)

    keep_loaded_objects()  # as the server does
    monkeypatch.setattr(asyncio.events.Handle, "_run", run)
    yield lambda: longest[0]
    gc.unfreeze()


LARGE = {"context_len": 40_000, "max_total_tokens": 100_000}
HELLO = [{"role": "user", "content": "a"}]
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "native": ("/generate", {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 100}, 1, 100, 0),
    "native, prompt": (
        "/generate", {"input_ids": [5] * 5000, "return_logprob": True, "top_logprobs_num": 100, "logprob_start_len": 0,
                      "sampling_params": {"max_new_tokens": 0}}, 1, 100, 0,
    ),
    "native, ids": ("/generate", {"input_ids": [5], "return_logprob": True, "token_ids_logprob": [7] * 1000}, 1, 0, 1000),
    "native, texts": (
        "/generate", {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 100, "return_text_in_logprobs": True}, 1, 100,
        0,
    ),
    "native, samples": (
        "/generate", {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 100, "sampling_params": {"n": 8}}, 8, 100, 0,
    ),
    "chat": ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 20}, 1, 20, 0),
    "chat, samples": ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 20, "n": 8}, 8, 20, 0),
    "completions": ("/v1/completions", {"prompt": [5], "logprobs": 20}, 1, 20, 0),
    "completions, samples": ("/v1/completions", {"prompt": [5], "logprobs": 20, "n": 8}, 8, 20, 0),
}  # fmt: skip


async def play(stand: Stand, num_positions: int, top_num: int, num_asked: int, cuts: int) -> None:
    """Answers every sequence that has come with so many positions, in so many outputs that all come at once."""
    while not stand.scheduler.received:
        await asyncio.sleep(0.001)
    for request in stand.scheduler.received:
        assert isinstance(request, TokenizedReq)
        prompt = len(request.input_ids)
        scored = logprobs_of(prompt, top_num, num_asked=num_asked) if prompt > 1 and request.logprobs else None
        count = num_positions // cuts if request.sampling.max_new_tokens else 0
        for i in range(cuts):
            out = TokenOut(
                rid=request.rid,
                ids=[5] * count,
                finish=FinishReason("length", length=count * cuts) if i == cuts - 1 else None,
                prompt_len=prompt,
                completion_len=count * (i + 1),
                input_logprobs=scored if not i else None,
                output_logprobs=logprobs_of(count, top_num, i, num_asked),
            )
            stand.manager.handle(BatchTokenOut([out]))
            await asyncio.sleep(0)


@pytest.mark.attack
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_no_turn_takes_long(make_stand: MakeStand, slowest: Callable[[], float], name: str, stream: bool) -> None:
    path, body, num_sequences, top_num, num_asked = CASES[name]
    stand = make_stand(info=LARGE)
    stand.scheduler.stuck = True
    num_positions = min((1 << 19) // (1 + top_num + num_asked) // num_sequences, 30_000)
    if path == "/generate":
        sampling = {"max_new_tokens": num_positions, "ignore_eos": True} | body.get("sampling_params", {})
        body = body | {"sampling_params": sampling}
    else:
        body = body | {"max_tokens": num_positions, "ignore_eos": True}
    parts: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        """The client of httpx joins all that comes; that is not what is measured."""

        async def note(message: Any) -> None:
            parts.append(len(message.get("body", b"")))
            await send(message | ({"body": b""} if parts[-1] > 1000 and message.get("more_body") else {}))

        await real(scope, receive, note)

    real: Any = stand.app
    stand.app = application  # type: ignore[assignment]
    async with client_of(stand) as client:
        asking = asyncio.create_task(client.post(path, json=body | {"stream": stream}))
        await play(stand, num_positions, top_num, num_asked, 4 if stream else 1)
        assert (await asking).status_code == 200
    assert sum(parts) > 5 << 20, "that was not large"
    assert max(parts) < 1 << 20, "each piece is made when there is room for it"
    assert slowest() < CALLBACK_SECONDS


async def test_many_sequences_take_no_long_turn(make_stand: MakeStand, slowest: Callable[[], float]) -> None:
    """What is kept for each sequence is found without looking through the others."""
    stand = make_stand(info=LARGE)
    body = {"input_ids": [[5]] * 4000, "stream": True, "sampling_params": {"max_new_tokens": 1}}
    async with client_of(stand) as client:
        began = time.thread_time()
        reply = await client.post("/generate", json=body)
    assert len(events_of(reply.text)) == 4001
    assert time.thread_time() - began < 20


# --- how many there may be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"input_ids": [5], "return_logprob": True, "top_logprobs_num": 50, "sampling_params": {"max_new_tokens": 100}}),
        ("/generate", {"input_ids": [5] * 200, "return_logprob": True, "top_logprobs_num": 50, "logprob_start_len": 0}),
        ("/generate", {"input_ids": [5] * 200, "return_logprob": True, "token_ids_logprob": [1] * 50, "logprob_start_len": 0}),
        ("/generate", {"input_ids": [[5]] * 60, "return_logprob": True, "sampling_params": {"max_new_tokens": 100}}),
        ("/generate", {"input_ids": [5], "return_logprob": True, "sampling_params": {"max_new_tokens": 100, "n": 60}}),
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 20, "max_tokens": 100, "n": 3}),
        ("/v1/completions", {"prompt": [5] * 240, "logprobs": 20, "echo": True, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [[5]] * 100, "logprobs": 1, "max_tokens": 50}),
        ("/v1/score", {"query": [5], "items": [[6]] * 100, "label_token_ids": [1] * 100}),
        ("/score_choices", {"input_ids": [5], "choices": ["a b c d e f g h"] * 1000}),
    ],
)  # fmt: skip
async def test_too_many_log_probabilities_are_refused(make_stand: MakeStand, path: str, body: dict[str, Any]) -> None:
    stand = make_stand(max_logprob_values=5000)
    async with client_of(stand) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 400, reply.text[:300]
    assert "5000" in reply.json()["error"]["message"] and "logprobs" in reply.json()["error"]["message"]
    assert stand.scheduler.received == [] and stand.manager.num_in_flight == 0


async def test_a_default_length_is_reduced_to_the_limit(make_stand: MakeStand) -> None:
    stand = make_stand(max_logprob_values=1000)
    async with client_of(stand) as client:
        body = {"messages": HELLO, "logprobs": True, "top_logprobs": 9, "n": 4, "ignore_eos": True}
        reply = await client.post("/v1/chat/completions", json=body)
        assert [choice["finish_reason"] for choice in reply.json()["choices"]] == ["length"] * 4
        assert [len(choice["logprobs"]["content"]) for choice in reply.json()["choices"]] == [25] * 4
        reply = await client.post("/generate", json={"input_ids": [5] * 10, "return_logprob": True, "logprob_start_len": 0})
        assert reply.json()["meta_info"]["completion_tokens"] == 128
