"""One identity for each API key, however it is written; and nothing of one client is another's to see, to stop or to use up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from sglang.srt.errors import ApiKeyError, ConfigError, NoSuchResponseError, OverloadError, RequestError
from sglang.srt.messages import AbortReq, EmbedReq, TokenizedReq
from sglang.srt.server.http.keys import KeyRing
from sglang.srt.server.openai.responses.store import ResponseStore
from sglang.srt.server.sessions import SessionParams, Sessions
from sglang.srt.server_args import ServerArgs
from tests.conftest import RunningServer, start_server
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

KEYS = ("ka", "kb", "k c", "schlüssel", "ключ")
ADMIN = "root"
Pairs = list[tuple[bytes, bytes]]


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def bearer(text: bytes) -> tuple[bytes, bytes]:
    return b"authorization", text


# --- one key, many spellings ------------------------------------------------------------------------------------------------

SPELLINGS: list[Pairs] = [
    [bearer(b"Bearer ka")],
    [bearer(b"Bearer  ka")],
    [bearer(b"Bearer      ka   ")],
    [bearer(b"Bearer\tka")],
    [bearer(b"  Bearer ka")],
    [bearer(b"bearer ka")],
    [bearer(b"BEARER ka")],
    [bearer(b"bEaReR \t ka\t")],
    [(b"x-api-key", b"ka")],
    [(b"x-api-key", b"  ka ")],
    [(b"x-api-key", b"ka"), bearer(b"Bearer ka")],
    [bearer(b"Bearer ka"), bearer(b"bearer  ka")],
    [(b"x-api-key", b"ka"), (b"x-api-key", b"ka")],
    [(b"x-api-key", b"ka"), bearer(b"Basic dXNlcjpwYXNz")],  # a proxy's
    [bearer(b"Bearer "), (b"x-api-key", b"ka")],
    [bearer(b"Bearer ka"), (b"x-api-key", b"")],
]
NOBODY: list[Pairs] = [
    [],
    [bearer(b"")],
    [bearer(b"Bearer")],
    [bearer(b"ka")],
    [bearer(b"Basic ka")],
    [bearer(b"Bearer ka x")],
    [bearer(b"Bearer ka,kb")],
    [bearer(b"Bearer Bearer ka")],
    [bearer(b"Bearer ka\x00")],
    [bearer(b"Bearer\xa0ka")],
    [bearer(b"Bearer ????")],
    [bearer(b"Bearer \xff\xfe")],
    [(b"x-api-key", b"Bearer ka")],
    [(b"x-api-key", b"KA")],
]
CONTRADICTIONS: list[Pairs] = [
    [bearer(b"Bearer ka"), (b"x-api-key", b"kb")],
    [bearer(b"Bearer ka"), bearer(b"Bearer kb")],
    [(b"x-api-key", b"kb"), (b"x-api-key", b"ka")],
    [bearer(b"Bearer root"), (b"x-api-key", b"ka")],
    [bearer(b"Bearer ka"), (b"x-api-key", b"wrong")],
    [bearer(b"Bearer wrong"), (b"x-api-key", b"ka")],
]


def test_every_spelling_of_a_key_is_one_client() -> None:
    ring = KeyRing(KEYS, ADMIN)
    found = {ring.identify(headers) for headers in SPELLINGS}
    assert len(found) == 1 and None not in found
    assert {ring.identify(headers) for headers in NOBODY} == {None}
    for headers in CONTRADICTIONS:
        with pytest.raises(ApiKeyError):
            ring.identify(headers)


def test_letters_outside_ascii_are_sent_in_two_ways() -> None:
    ring = KeyRing(KEYS, None)
    spaced, latin, utf = (
        ring.identify([bearer(b"Bearer " + key)]) for key in (b"k c", "schlüssel".encode("latin-1"), "schlüssel".encode())
    )
    assert latin == utf != spaced and None not in (spaced, latin)
    assert ring.identify([bearer(b"Bearer " + "ключ".encode())]) is not None
    # a key whose bytes are those of another's second spelling stays its own
    one, two = "é", "Ã©"
    ring = KeyRing((two, one), None)
    first, second = (ring.identify([bearer(b"Bearer " + key.encode())]) for key in (one, two))
    assert first != second and None not in (first, second)


def test_who_is_told_apart() -> None:
    def of(keys: tuple[str, ...], admin: str | None, given: str) -> tuple[str, bool]:
        ring = KeyRing(keys, admin)
        found = ring.identify([bearer(f"Bearer {given}".encode())]) or ring.stranger
        return found.client, found.is_operator

    assert of((), None, "anything") == ("", True), "without keys all are one client, whatever they send"
    assert of(("ka",), None, "ka") == of(("ka", "ka"), None, "ka") == of(("ka",), "ka", "ka") == ("", True)
    assert of((), "root", "root") == ("", True) and of((), "root", "other") == ("", False)
    (a, a_operates), (b, b_operates), (root, root_operates) = (of(("ka", "kb"), "root", key) for key in ("ka", "kb", "root"))
    assert len({a, b, root, ""}) == 4 and (a_operates, b_operates, root_operates) == (False, False, True)
    assert of(("ka", "kb"), "kb", "kb")[1], "an admin who is a client as well"
    assert not of(("ka", "kb"), None, "ka")[1], "of several clients none is the operator"
    assert "ka" not in a


@pytest.mark.parametrize("flag", ["api_key", "admin_api_key"])
@pytest.mark.parametrize(
    "value", ["", " ", "\t\n", ",", "ka,", ",ka", "ka,,kb", "ka, ,kb", "k\na", "k\x00a", "k\x7f", "k\udcff"]
)
def test_empty_and_impossible_keys_stop_the_start(flag: str, value: str) -> None:
    if flag == "admin_api_key" and value.strip() and value.isprintable():
        assert ServerArgs(admin_api_key=value).resolve().http.admin_api_key == value.strip(), "one key, commas and all"
        return
    with pytest.raises(ConfigError, match=r"--(admin-)?api-key (has|holds) "):
        ServerArgs(**{flag: value}).resolve()


def test_keys_are_read_without_the_space_around_them() -> None:
    http = ServerArgs(api_key=" ka , kb,ka,k c", admin_api_key=" root\n").resolve().http
    assert (http.api_keys, http.admin_api_key) == (("ka", "kb", "k c"), "root")


# --- the endpoint -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(make_stand: MakeStand) -> Iterator[Stand]:
    stand = make_stand(api_keys=KEYS, admin_api_key=ADMIN)
    yield stand
    assert stand.manager.num_in_flight == 0


async def test_spellings_at_the_door(shared: Stand) -> None:
    body = {"input": "The quick", "max_output_tokens": 2}
    async with client_of(shared) as http:
        name = (await http.post("/v1/responses", json=body, headers=SPELLINGS[0])).json()["id"]
        for headers in SPELLINGS:
            assert (await http.get(f"/v1/responses/{name}", headers=headers)).status_code == 200, headers
        for headers in [*NOBODY, *CONTRADICTIONS]:
            reply = await http.get(f"/v1/responses/{name}", headers=headers)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer", headers
            assert reply.json()["error"]["type"] == "authentication_error"
        shape = (await http.post("/v1/messages", json={})).json()
        assert shape["type"] == "error" and shape["error"]["type"] == "authentication_error", "in the shape of the route"
    owners = {m.client[0] for m in shared.scheduler.received if isinstance(m, TokenizedReq)}
    assert len(owners) == 1


async def test_stored_responses_belong_to_their_key_whatever_its_header(shared: Stand) -> None:
    async with client_of(shared) as http:
        body = {"input": "The quick", "max_output_tokens": 2}
        name = (await http.post("/v1/responses", json=body, headers={"x-api-key": "ka"})).json()["id"]
        for other in ({"x-api-key": "kb"}, auth("kb"), auth(ADMIN), {"x-api-key": ADMIN}):
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
                reply = await http.request(method, f"/v1/responses/{name}{path}", headers=other)
                assert reply.status_code == 404 and "deleted" in reply.json()["error"]["message"]
            more = await http.post("/v1/responses", json=body | {"previous_response_id": name}, headers=other)
            assert more.status_code == 400
        follow = await http.post("/v1/responses", json=body | {"previous_response_id": name}, headers=auth("ka"))
        assert follow.status_code == 200


async def test_session_names_are_those_of_one_client(shared: Stand) -> None:
    async with client_of(shared) as http:
        for key in ("ka", "kb", ADMIN):
            reply = await http.post("/open_session", json={"session_id": "main"}, headers={"x-api-key": key})
            assert reply.status_code == 200, "another's session of that name is no business of this client"
            again = await http.post("/open_session", json={"session_id": "main"}, headers=auth(key))
            assert again.status_code == 400
        for key, ids in (("ka", [5, 6]), ("kb", [7])):
            body = {"input_ids": ids, "rid": "turn", "session_params": {"id": "main"}, "sampling_params": {"max_new_tokens": 2}}
            reply = await http.post("/generate", json=body, headers=auth(key))
            assert reply.status_code == 200 and reply.json()["meta_info"]["id"] == "turn"
        more = {"input_ids": [9], "session_params": {"id": "main", "rid": "turn"}, "sampling_params": {"max_new_tokens": 1}}
        assert (await http.post("/generate", json=more, headers=auth("kb"))).status_code == 200
        assert [m for m in shared.scheduler.received if isinstance(m, TokenizedReq)][-1].input_ids[0] == 7
        assert (await http.post("/close_session", json={"session_id": "main"}, headers=auth("kb"))).status_code == 200
        assert (await http.post("/generate", json=more, headers=auth("ka"))).status_code == 200, "the other one is still open"
        assert (await http.post("/generate", json=more, headers=auth("kb"))).status_code == 404


async def waiting(stand: Stand, count: int) -> None:
    """Until so many sequences are in flight."""
    for _ in range(2000):
        if stand.manager.num_in_flight >= count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{stand.manager.num_in_flight} are in flight, and not {count}")


RUNS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "generate": ("/generate", {"text": "a b"}, lambda reply: reply["meta_info"]["id"]),
    "batch": ("/generate", {"text": ["a b", "c d"]}, lambda reply: reply[0]["meta_info"]["id"].removesuffix("_0")),
    "samples": ("/generate", {"text": "a b", "sampling_params": {"n": 2}}, lambda reply: reply[0]["meta_info"]["id"].removesuffix("-0")),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, lambda reply: reply["id"]),
    "completions": ("/v1/completions", {"prompt": "a b"}, lambda reply: reply["id"]),
    "choices": ("/score_choices", {"text": "a", "choices": ["b", "c"]}, lambda reply: reply["meta_info"]["id"]),
}  # fmt: skip


@pytest.mark.parametrize("way", RUNS)
async def test_equal_rids_of_two_keys_are_two_requests(shared: Stand, way: str) -> None:
    path, body, name_of = RUNS[way]
    shared.scheduler.paused = True
    async with client_of(shared) as http:

        def ask(key: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(http.post(path, json=body | {"rid": "same"}, headers=auth(key)))

        tasks = {key: ask(key) for key in ("ka", "kb", ADMIN)}
        sent = 1 if way in ("generate", "chat", "completions") else 2
        await waiting(shared, 3 * sent)
        again = await asyncio.wait_for(ask("ka"), 10)
        assert again.status_code == 400 and "same" in again.json()["error"]["message"], "of one key there is one at a time"
        assert (await http.post("/abort_request", json={"rid": "same"}, headers=auth("kb"))).status_code == 200
        reply = await asyncio.wait_for(tasks["kb"], 10)
        assert "abort" in reply.text or way == "choices"
        await asyncio.sleep(0.02)
        assert not tasks["ka"].done() and not tasks[ADMIN].done(), "the others run on"
        shared.scheduler.paused = False
        for key in ("ka", ADMIN):
            reply = await asyncio.wait_for(tasks[key], 10)
            assert reply.status_code == 200 and "abort" not in reply.text
            if way != "choices":
                assert name_of(reply.json()) == "same", "a client sees the name that it gave"
    wires = [m.rid for m in shared.scheduler.received if isinstance(m, TokenizedReq)]
    assert len(set(wires)) == len(wires)
    groups = [m.group for m in shared.scheduler.received if isinstance(m, TokenizedReq) and m.group]
    assert not groups or len(set(groups)) == 3, "nor are they computed together"


@pytest.mark.parametrize("guess", ["secret", "secret_0", "other/secret", "/secret", "", "*"])
async def test_no_key_aborts_what_is_anothers(shared: Stand, guess: str) -> None:
    shared.scheduler.paused = True
    async with client_of(shared) as http:
        body = {"text": "a", "rid": "secret"}
        task = asyncio.create_task(http.post("/generate", json=body, headers=auth("ka")))
        await waiting(shared, 1)
        (message,) = [m for m in shared.scheduler.received if isinstance(m, TokenizedReq)]
        for rid in (guess, message.rid, f"{message.client[0]}/secret"):
            await http.post("/abort_request", json={"rid": rid}, headers=auth("kb"))
        assert (await http.post("/abort_request", json={"abort_all": True}, headers=auth("kb"))).status_code == 403
        assert not [m for m in shared.scheduler.received if isinstance(m, AbortReq)]
        shared.scheduler.paused = False
        assert (await task).json()["meta_info"]["finish_reason"]["type"] != "abort"


async def test_the_admin_aborts_anybodys(shared: Stand) -> None:
    shared.scheduler.paused = True
    async with client_of(shared) as http:
        tasks = [
            asyncio.create_task(http.post("/generate", json={"text": "a", "rid": "r"}, headers=auth(k))) for k in ("ka", "kb")
        ]
        await waiting(shared, 2)
        await http.post("/abort_request", json={"rid": "r"}, headers={"x-api-key": ADMIN})
        for task in tasks:
            assert (await asyncio.wait_for(task, 10)).json()["meta_info"]["finish_reason"]["type"] == "abort"


async def test_embeddings_have_namespaces_too(make_stand: MakeStand) -> None:
    stand = make_stand(info={"embedding_dim": 8}, api_keys=("ka", "kb"))
    async with client_of(stand) as http:
        for key in ("ka", "kb"):
            reply = await http.post("/encode", json={"text": "a", "rid": "r"}, headers=auth(key))
            assert reply.json()["meta_info"]["id"] == "r"
    sent = [m for m in stand.scheduler.received if isinstance(m, EmbedReq)]
    assert len({m.rid for m in sent}) == len({m.client for m in sent}) == 2


async def test_logs_show_clients_their_own_names(make_stand: MakeStand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sglang.requests")
    stand = make_stand(api_keys=("ka", "kb"), log_requests=True, log_requests_level=3)
    async with client_of(stand) as http:
        for key, text in (("ka", "one"), ("kb", "two")):
            body = {"text": text, "rid": "r", "stream": True, "sampling_params": {"max_new_tokens": 3}}
            await http.post("/generate", json=body, headers=auth(key))
    entries = [json.loads(record.message) for record in caplog.records]
    assert {entry["rid"] for entry in entries} == {"r"}
    assert not any("ka" in record.message or "kb" in record.message for record in caplog.records)


OPERATOR = ("/flush_cache", "/pause_generation", "/continue_generation", "/start_profile", "/stop_profile")


@pytest.mark.parametrize("path", [*OPERATOR, "/flush_cache%0A", "/%66lush_cache", "/pause_generation%0a"])
async def test_what_concerns_all_is_the_operators(make_stand: MakeStand, path: str) -> None:
    """By any spelling of the path that the router takes."""
    for options in ({"api_keys": ("ka", "kb"), "admin_api_key": ADMIN}, {"api_keys": ("ka", "kb")}, {"admin_api_key": ADMIN}):
        async with client_of(make_stand(**options), **auth("ka")) as http:
            assert (await http.post(path)).status_code in (401, 404), (options, path)
            assert (await http.post("/abort_request", json={"abort_all": True})).status_code == 403
    for options in ({"api_keys": ("ka",)}, {}):
        async with client_of(make_stand(**options), **auth("ka")) as http:
            assert (await http.post(path)).status_code != 401, "a client alone is the operator"
            await http.post("/stop_profile")


async def test_asking_for_health_again_is_no_more_work(shared: Stand) -> None:
    """It takes no key, so it must not be a way to fill the queue."""
    shared.scheduler.paused = True
    async with client_of(shared) as http:
        tasks = [asyncio.create_task(http.get("/health_generate")) for _ in range(50)]
        await waiting(shared, 1)
        await asyncio.sleep(0.02)
        assert shared.manager.num_in_flight == 1
        tasks[0].cancel()
        shared.scheduler.paused = False
        assert {(await task).status_code for task in tasks[1:]} == {200}
        assert (await http.get("/health_generate")).status_code == 200
    assert len([m for m in shared.scheduler.received if isinstance(m, TokenizedReq)]) == 2


async def test_priority_is_among_a_keys_own_requests(make_stand: MakeStand) -> None:
    async def sent(key: str, **options: Any) -> tuple[int, int]:
        stand = make_stand(**options)
        async with client_of(stand, **auth(key)) as http:
            body = {"text": "a", "priority": 7, "sampling_params": {"max_new_tokens": 1}}
            assert (await http.post("/generate", json=body)).status_code == 200
        (message,) = [m for m in stand.scheduler.received if isinstance(m, TokenizedReq)]
        return message.priority, message.own_priority

    two: dict[str, Any] = {"api_keys": ("ka", "kb"), "admin_api_key": ADMIN}
    assert await sent("ka", **two) == (0, 7)
    assert (
        await sent(ADMIN, **two) == await sent("ka", **two, allow_priority=True) == await sent("ka", api_keys=("ka",)) == (7, 0)
    )
    assert await sent("none") == (7, 0)


async def test_a_prefix_cache_for_each_key(make_stand: MakeStand) -> None:
    async def salts(**options: Any) -> list[str | None]:
        stand = make_stand(api_keys=("ka", "kb"), **options)
        async with client_of(stand) as http:
            for key, salt in (("ka", None), ("kb", None), ("ka", "x"), ("kb", "x")):
                body = {"text": "a", "sampling_params": {"max_new_tokens": 1}} | ({"cache_salt": salt} if salt else {})
                assert (await http.post("/generate", json=body, headers=auth(key))).status_code == 200
        return [m.cache_salt for m in stand.scheduler.received if isinstance(m, TokenizedReq)]

    assert await salts() == [None, None, "x", "x"]
    assert len(set(await salts(cache_per_key=True))) == 4


async def test_rids_have_a_length(stand: Stand) -> None:
    async with client_of(stand) as http:
        for path, body in (("/generate", {"text": "a"}), ("/v1/completions", {"prompt": "a"})):
            reply = await http.post(path, json=body | {"rid": "r" * 100_000})
            assert reply.status_code == 400 and len(reply.text) < 1000


# --- shares -----------------------------------------------------------------------------------------------------------------


def test_a_key_leaves_sessions_for_others() -> None:
    sessions = Sessions(8, 1000, timeout=100)
    for key, most in (("a", 4), ("b", 2), ("c", 1)):
        for _ in range(most):
            sessions.open(None, None, key)
        with pytest.raises(OverloadError, match="this API key"):
            sessions.open(None, None, key)
    sessions.open(None, None, "d")
    with pytest.raises(OverloadError, match="no room"):
        sessions.open(None, None, "e")
    alone = Sessions(8, 1000, timeout=100)
    for _ in range(8):
        alone.open(None, None, "")
    assert len(alone) == 8, "without keys all of it is for all"


def test_a_key_leaves_tokens_of_sessions_for_others() -> None:
    sessions = Sessions(8, 1000, timeout=100)

    def fill(key: str) -> int:
        sessions.open("s", None, key)
        for turn in range(100):
            try:
                sessions.enter(sessions.place(SessionParams("s"), key), f"r{turn}", [1] * 34).finish()
            except OverloadError as error:
                assert "API key" in str(error)
                return turn
        return 100

    counts = [fill(key) for key in ("a", "b", "c")]
    assert counts[0] >= counts[1] >= counts[2] >= 1, counts
    assert 400 <= counts[0] * 50 <= 500


def test_whoever_stores_without_end_loses_only_its_own() -> None:
    def put(store: ResponseStore, owner: str, name: str, size: int = 10) -> None:
        store.put(owner, [{"content": "x" * size}], {"id": name, "previous_response_id": None, "output": []})

    store = ResponseStore(max_responses=20, max_bytes=100_000)
    for i in range(5):
        put(store, "modest", f"m{i}")
    for i in range(1000):
        put(store, "greedy", f"g{i}")
    for i in range(100):
        put(store, "large", f"l{i}", 30_000)
    assert all(store.get(f"m{i}", "modest") for i in range(5))
    assert len(store) <= 20 and store.num_bytes <= 100_000
    with pytest.raises(NoSuchResponseError):
        store.get("g0", "greedy")
    with pytest.raises(NoSuchResponseError):
        store.get("m0", "greedy")
    put(store, "other", "m0")
    store.delete("m0", "other")
    assert store.get("m0", "modest"), "equal names of two clients are two responses"


def test_sessions_of_two_clients_share_nothing() -> None:
    sessions = Sessions(8, 1000, timeout=100)
    for owner in ("a", "b"):
        sessions.open("s", None, owner)
    sessions.close("s", "a")
    with pytest.raises(RequestError):
        sessions.place(SessionParams("s"), "a")
    assert sessions.place(SessionParams("s"), "b").ids == []


# --- a real server ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two keys, an admin, and a queue of eight."""
    keys = [
        "--api-key",
        "ka, kb,schlüssel",
        "--admin-api-key",
        ADMIN,
        "--max-queued-requests",
        "8",
        "--max-running-requests",
        "1",
    ]
    sizes = ["--context-length", "1024", "--max-total-tokens", "2048", "--max-sessions", "4"]
    server = start_server(tmp_path_factory.mktemp("crowded") / "log", *keys, *sizes)
    yield server
    server.stop()


def post(server: RunningServer, path: str, body: Any, headers: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=120, trust_env=False)


def test_a_key_cannot_fill_the_queue(crowded: RunningServer) -> None:
    long = {"text": "Once", "sampling_params": {"max_new_tokens": 900, "ignore_eos": True}}
    short = {"text": "Once", "sampling_params": {"max_new_tokens": 1}}
    with ThreadPoolExecutor(16) as pool:
        flood = [pool.submit(post, crowded, "/generate", long | {"rid": f"r{i}"}, {"x-api-key": "ka"}) for i in range(12)]
        deadline = time.monotonic() + 60
        while not any(f.done() for f in flood) and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = [f.result() for f in flood if f.done()]
        assert refused and all(reply.status_code == 503 and int(reply.headers["retry-after"]) for reply in refused)
        assert "this API key" in refused[0].json()["error"]["message"]
        other = pool.submit(post, crowded, "/generate", short | {"rid": "r0"}, auth("kb"))
        time.sleep(0.3)
        assert not other.done() or other.result().status_code == 200, "there is a place for another key"
        for i in range(12):  # kb cannot end them
            post(crowded, "/abort_request", {"rid": f"r{i}"}, auth("kb")) if i else None
        running = [f for f in flood if not f.done()]
        assert running
        post(crowded, "/abort_request", {"abort_all": True}, auth(ADMIN))
        assert all(f.result().status_code in (200, 503) for f in flood)
        assert other.result().status_code == 200
    assert post(crowded, "/generate", short, auth("ka")).status_code == 200


def test_the_openai_client_and_the_header_are_one(crowded: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{crowded.url}/v1", api_key="ka", max_retries=0)
    name = client.responses.create(model="default", input="Hi", max_output_tokens=2).id
    raw = httpx.get(f"{crowded.url}/v1/responses/{name}", headers={"x-api-key": "ka"}, trust_env=False)
    assert raw.status_code == 200
    other = openai.OpenAI(base_url=f"{crowded.url}/v1", api_key="kb", max_retries=0)
    for steal in (other.responses.retrieve, other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            steal(name)
    client.responses.delete(name)
    letters = [(b"authorization", b"Bearer " + "schlüssel".encode("latin-1"))]
    assert post(crowded, "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}}, letters).status_code == 200


def test_an_empty_key_does_not_open_the_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    for flag in ("--api-key", "--admin-api-key"):
        with pytest.raises(RuntimeError, match=f"{flag} has an empty key"):
            start_server(tmp_path_factory.mktemp("empty") / "log", flag, "")
