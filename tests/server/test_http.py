"""The HTTP endpoint: keys, limits, errors, health, metrics; and nothing sent to it makes it fall over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.messages import SchedulerStats, StateReq
from sglang.srt.server.http import wire as responses
from sglang.srt.server.native import routes as native_api
from sglang.srt.server.native.format import core_of_load, format_load
from sglang.srt.server.request_maker import RequestMaker
from sglang.srt.server.telemetry.metrics import Metrics
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of, events_of

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


async def test_no_keys_no_questions(stand: Stand) -> None:
    async with client_of(stand) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_keys(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("first", "secönd"), admin_api_key="root")
    async with client_of(stand) as client:

        async def ask(path: str, key: str | None, method: str = "POST") -> int:
            headers = {"Authorization": f"Bearer {key}".encode()} if key is not None else {}
            return (await client.request(method, path, json=CHAT, headers=headers)).status_code

        for key in ("first", "secönd", "root"):
            assert await ask("/v1/chat/completions", key) == 200
        for key in (None, "", "firs", "first ", "First", "first2", "\xff"):
            expected = 200 if key == "first " else 401  # white space around a header's value means nothing
            assert await ask("/v1/chat/completions", key) == expected
        assert await ask("/flush_cache", "first") == 401, "others' requests are the operator's business"
        assert await ask("/flush_cache", "root") == 200
        for path in ("/health", "/metrics"):
            assert await ask(path, None, "GET") == 200
        for path in ("/get_server_info", "/openapi.json", "/nothing", "/healthy/../generate"):
            assert await ask(path, None, "GET") in (401, 404)
        assert await ask("/get_server_info", None, "GET") == 401
        basic = await client.post("/generate", json={"text": "a"}, headers={"Authorization": "Basic first"})
        assert basic.status_code == 401
        assert basic.headers["www-authenticate"] == "Bearer"
        assert "error" in basic.json()
        openai = (await client.post("/v1/completions", json={})).json()["error"]
        assert (openai["type"], openai["code"]) == ("authentication_error", 401)


async def test_an_admin_key_alone_guards_admin_paths_only(make_stand: MakeStand) -> None:
    stand = make_stand(admin_api_key="root")
    async with client_of(stand) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.post("/pause_generation")).status_code == 401


async def test_bodies_have_a_limit(make_stand: MakeStand) -> None:
    stand = make_stand(max_body_bytes=1000)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with client_of(stand) as client:
        declared = await client.post("/generate", content=b" " * 1001)
        undeclared = await client.post("/generate", content=pieces())
        lying = await client.post("/v1/completions", content=b"{}", headers={"Content-Length": "-5"})
        fine = await client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}})
    assert (declared.status_code, undeclared.status_code, lying.status_code, fine.status_code) == (413, 413, 413, 200)
    assert "1000 bytes" in declared.json()["error"]["message"]
    assert "1000 bytes" in undeclared.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions", "/score_choices", "/tokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"5", b"\xff\xfe", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"text": 1e999}',
        b'{"a":' * 100_000, b"[" * 100_000, b'{"text": NaN}', b'{"text":"a"} x', b"a=b&c=d", b"{'text': 'a'}",
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)  # fmt: skip
async def test_bodies_that_are_none(stand: Stand, path: str, body: bytes) -> None:
    async with client_of(stand) as client:
        response = await client.post(path, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"]
    assert set(error) == ({"message", "type", "param", "code"} if path.startswith("/v1") else {"message"})


async def test_unknown_paths_and_methods(stand: Stand) -> None:
    async with client_of(stand) as client:
        missing = await client.get("/v1/nothing")
        wrong = await client.get("/v1/chat/completions")
        native = await client.delete("/generate")
        assert (await client.put("/generate", json={"text": "a"})).status_code == 200
    assert (missing.status_code, wrong.status_code, native.status_code) == (404, 405, 405)
    assert missing.json()["error"]["type"] == "invalid_request_error"
    assert wrong.headers["allow"] == "POST"
    assert set(native.json()["error"]) == {"message"}


async def test_a_bug_shows_nothing_to_the_client(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(RequestMaker, "make", explode)
    async with client_of(stand) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert "secret" not in response.text and "Traceback" not in response.text
    assert response.json()["error"]["type"] == "InternalServerError"


async def test_models(stand: Stand) -> None:
    async with client_of(stand) as client:
        models = (await client.get("/v1/models")).json()
        one = await client.get("/v1/models/test-model")
        none = await client.get("/v1/models/some/other")
    assert models["object"] == "list"
    assert models["data"] == [one.json()]
    card = one.json()
    assert (card["id"], card["object"], card["owned_by"], card["max_model_len"]) == ("test-model", "model", "sglang", 256)
    assert none.status_code == 404
    assert none.json()["error"]["code"] == "model_not_found"


async def test_information(stand: Stand) -> None:
    async with client_of(stand) as client:
        model = (await client.get("/get_model_info")).json()
        assert model == (await client.get("/model_info")).json()
        server = (await client.get("/get_server_info")).json()
    assert (model["model_path"], model["tokenizer_path"], model["is_generation"]) == ("test-path", "test-path", True)
    assert server["max_total_num_tokens"] == 4096
    assert server["internal_states"][0]["max_total_tokens"] == 1000
    assert server["incremental_streaming_output"] is False
    assert server["version"]


async def test_load(stand: Stand) -> None:
    """What routers ask: /get_load is a list of one element, /v1/loads an object with one."""
    async with client_of(stand) as client:
        [load] = (await client.get("/get_load")).json()
        loads = (await client.get("/v1/loads")).json()
    assert (load["dp_rank"], load["num_reqs"], load["num_waiting_reqs"], load["num_tokens"]) == (0, 0, 0, 0)
    assert loads["dp_rank_count"] == 1
    [rank] = loads["loads"]
    assert (rank["num_running_reqs"], rank["max_total_num_tokens"], rank["token_usage"]) == (0, 1000, 0)


def test_load_counts_what_waits() -> None:
    stats = SchedulerStats(num_running=3, num_waiting=2, num_grammar_waiting=1, num_used_tokens=250, max_total_tokens=1000)
    core, whole = core_of_load(stats), format_load(stats, 8)
    assert (core["num_reqs"], core["num_waiting_reqs"], core["num_tokens"]) == (6, 3, 250)
    assert (whole["num_running_reqs"], whole["num_waiting_reqs"], whole["token_usage"]) == (3, 3, 0.25)
    assert whole["max_running_requests"] == 8


async def test_control(stand: Stand) -> None:
    async with client_of(stand) as client:
        assert (await client.get("/flush_cache")).status_code == 200
        assert (await client.post("/pause_generation")).json() == {"message": "generation is paused", "status": "ok"}
        body = {"text": "a", "rid": "waits", "sampling_params": {"max_new_tokens": 9}}
        waiting = asyncio.create_task(client.post("/generate", json=body))
        while stand.manager.num_in_flight == 0:
            await asyncio.sleep(0)
        assert (await client.post("/flush_cache")).status_code == 400, "a request runs"
        assert (await client.post("/abort_request", json={"rid": "unknown"})).status_code == 200
        assert (await client.post("/abort_request", json={"rid": "waits"})).status_code == 200
        reply = (await waiting).json()
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"
        assert (await client.post("/continue_generation")).status_code == 200
        assert (await client.post("/abort_request", json={})).status_code == 400


async def test_health_tells_of_a_dead_engine(stand: Stand) -> None:
    async with client_of(stand) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health_generate")).status_code == 200
        stand.manager.scheduler_died("gone")
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/health_generate")).status_code == 503
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503 and response.headers["retry-after"]
    assert response.json()["error"]["message"] == "gone"


def test_gauges_are_what_the_scheduler_reports() -> None:
    metrics = Metrics("m")
    stats = {"num_running": 1, "num_waiting": 2, "num_grammar_waiting": 3, "gen_throughput": 4.5, "cache_hit_rate": 0.25}
    metrics.scheduler(SchedulerStats(**stats, num_used_tokens=30, max_total_tokens=120, num_retractions=7))
    lines = [line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if line.endswith(tuple("0123456789"))]
    values = {name.removesuffix('{model_name="m"}').removeprefix("sglang:"): float(value) for name, value in lines}
    expected = {"num_running_reqs": 1, "num_queue_reqs": 2, "num_grammar_queue_reqs": 3, "num_used_tokens": 30}
    expected |= {"gen_throughput": 4.5, "cache_hit_rate": 0.25, "token_usage": 0.25, "total_retracted_reqs": 7}
    assert expected.items() <= values.items()


async def test_metrics_count(stand: Stand, make_stand: MakeStand) -> None:
    async with client_of(stand) as client:
        for _ in range(2):
            await client.post("/generate", json={"text": "The quick brown", "sampling_params": {"max_new_tokens": 3}})
        await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        page = (await client.get("/metrics")).text
        await client.get("/get_server_info")
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))

    def value(name: str) -> float:
        return float(values[f'sglang:{name}{{model_name="test-model"}}'])

    assert value("num_requests_total") == 3
    assert value("generation_tokens_total") == 8
    assert value("cached_tokens_total") > 0
    assert value("e2e_request_latency_seconds_count") == 3
    assert value("time_to_first_token_seconds_count") == 3
    for name in ("num_running_reqs", "num_queue_reqs", "token_usage", "gen_throughput", "cache_hit_rate", "num_used_tokens"):
        assert f'sglang:{name}{{model_name="test-model"}}' in values
    async with client_of(make_stand(enable_metrics=False)) as client:
        assert (await client.get("/metrics")).status_code == 404


def metric(page: str, name: str) -> float:
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return float(values[f'sglang:{name}{{model_name="test-model"}}'])


async def test_gauges_say_what_is_now(stand: Stand) -> None:
    """Not what was when the scheduler last said something of its own."""
    async with client_of(stand) as client:
        assert metric((await client.get("/metrics")).text, "num_running_reqs") == 0
        stand.scheduler.paused = True
        body = {"text": "The quick brown", "sampling_params": {"max_new_tokens": 3}}
        asked = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(2)]
        while stand.manager.num_in_flight < 2:
            await asyncio.sleep(0)
        assert metric((await client.get("/metrics")).text, "num_running_reqs") == 2
        stand.scheduler.paused = False
        await asyncio.gather(*asked, client.post("/generate", json=body))
        pages = await asyncio.gather(*(client.get("/metrics") for _ in range(9)))
    assert [metric(page.text, "num_running_reqs") for page in pages] == [0] * 9
    assert sum(isinstance(message, StateReq) for message in stand.scheduler.received) < 9, "all share an answer"


async def test_the_metrics_page_does_not_wait_for_a_scheduler_that_is_stuck_or_dead(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_api, "GAUGE_SECONDS", 0.01)
    stand.manager.handle(SchedulerStats(num_running=7))
    stand.scheduler.stuck = True
    async with client_of(stand) as client:
        assert metric((await client.get("/metrics")).text, "num_running_reqs") == 7
        stand.manager.scheduler_lost("crashed")
        assert metric((await client.get("/metrics")).text, "num_running_reqs") == 0


async def test_cors_on_request(make_stand: MakeStand, stand: Stand) -> None:
    headers = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    open_stand = make_stand(cors_origins=("http://page",), api_keys=("k",))
    async with client_of(open_stand) as client:
        response = await client.options("/v1/chat/completions", headers=headers)
        assert response.headers["access-control-allow-origin"] == "http://page"
    async with client_of(stand) as client:
        response = await client.options("/v1/chat/completions", headers=headers)
        assert "access-control-allow-origin" not in response.headers


# --- anything at all --------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


def bodies(base: dict[str, Any], fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A right body, up to three of its fields replaced by likely or wild values, and now and then an unknown one."""
    change = st.sampled_from(sorted(fields)).flatmap(lambda name: st.tuples(st.just(name), fields[name] | json_values))
    unknown = st.dictionaries(st.text(max_size=8), json_values, max_size=1) | st.just({})
    return st.builds(lambda changes, more: {**more, **base, **dict(changes)}, st.lists(change, max_size=3), unknown)


small = st.integers(-2, 12)
numbers = st.floats(-3, 3) | small
ids = st.lists(st.integers(-1, 700), max_size=5)
sampling = bodies(
    {"max_new_tokens": 3},
    {
        "max_new_tokens": small, "min_new_tokens": small, "temperature": numbers, "top_p": numbers, "top_k": small, "n": small,
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3), "seed": st.integers(), "regex": st.text(max_size=5),
        "logit_bias": st.dictionaries(small.map(str), numbers, max_size=2), "stop_token_ids": ids, "min_p": numbers,
    }
)  # fmt: skip
generate_bodies = bodies(
    {"text": "Paris is"},
    {
        "text": st.text(max_size=10) | st.lists(st.text(max_size=4), max_size=3), "input_ids": ids | st.lists(ids, max_size=3),
        "sampling_params": sampling | st.lists(sampling, max_size=3), "stream": st.booleans(), "return_logprob": st.booleans(),
        "logprob_start_len": small, "top_logprobs_num": small, "token_ids_logprob": ids, "rid": st.text(max_size=4),
        "return_text_in_logprobs": st.booleans(), "priority": small, "cache_salt": st.text(max_size=3),
    }
)  # fmt: skip
messages = st.lists(
    bodies(
        {"role": "user", "content": "Hi"},
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]),
            "content": st.text(max_size=10),
            "name": st.text(max_size=3),
        },
    ),
    max_size=3,
)
common: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": small, "temperature": numbers, "top_p": numbers, "n": small, "stream": st.booleans(), "stop": st.text(max_size=3),
    "seed": st.integers(), "logit_bias": st.dictionaries(small.map(str), numbers, max_size=2), "min_tokens": small,
    "response_format": st.sampled_from([{"type": "json_object"}, {"type": "text"}, {"type": "json_schema"}]), "tools": st.just([]),
    "stream_options": st.sampled_from([{"include_usage": True}, {"continuous_usage_stats": True}]), "user": st.text(max_size=3),
}  # fmt: skip
chat_bodies = bodies(
    CHAT,
    {"messages": messages, "logprobs": st.booleans(), "top_logprobs": small, "continue_final_message": st.booleans(), **common},
)
completion_bodies = bodies(
    {"prompt": "Paris is", "max_tokens": 3},
    {"prompt": st.text(max_size=10) | ids | st.lists(ids, max_size=3), "echo": st.booleans(), "logprobs": small, **common},
)
score_bodies = bodies(
    {"text": "Pick ", "choices": ["a", "b c"]},
    {"text": st.text(max_size=10), "choices": st.lists(st.text(max_size=5), max_size=4), "unconditional": st.booleans()},
)

FUZZ = [
    ("/generate", generate_bodies),
    ("/v1/chat/completions", chat_bodies),
    ("/v1/completions", completion_bodies),
    ("/score_choices", score_bodies),
    ("/tokenize", bodies({"text": "a"}, {"text": st.text(max_size=9), "add_special_tokens": st.booleans()})),
    ("/detokenize", bodies({"tokens": [5]}, {"tokens": ids, "skip_special_tokens": st.booleans()})),
    ("/abort_request", bodies({"rid": "x"}, {"rid": st.text(max_size=3), "abort_all": st.booleans()})),
]


@pytest.mark.parametrize(("path", "strategy"), FUZZ, ids=[path for path, _ in FUZZ])
def test_no_body_makes_a_5xx(make_stand: MakeStand, path: str, strategy: st.SearchStrategy[Any]) -> None:
    """And each is answered, with nothing left behind."""
    seen: dict[int, int] = {}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(body: dict[str, Any]) -> None:
        status = asyncio.run(send(body))
        seen[status] = seen.get(status, 0) + 1

    async def send(body: dict[str, Any]) -> int:
        stand = make_stand()
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        async with client_of(stand) as client:
            response: httpx.Response = await asyncio.wait_for(client.post(path, content=content), 20)
        assert response.status_code < 500, response.text
        assert response.status_code == 200 or response.json()["error"]["message"]
        assert stand.manager.num_in_flight == 0
        return response.status_code

    check()
    assert seen.get(200), "some bodies should be right"


async def test_the_log_of_a_stream_has_its_whole_text(make_stand: MakeStand, caplog: pytest.LogCaptureFixture) -> None:
    stand = make_stand(log_requests=True, log_requests_level=3)
    caplog.set_level("INFO", logger="sglang.requests")
    async with client_of(stand) as client:
        body = {"text": "The quick brown fox", "stream": True, "sampling_params": {"max_new_tokens": 6, "ignore_eos": True}}
        response = await client.post("/generate", json=body)
    whole = json.loads(events_of(response.text)[-2])["text"]
    finished = [json.loads(r.message) for r in caplog.records if '"finished"' in r.message]
    assert [entry["text"] for entry in finished] == [whole]


async def test_a_silent_stream_is_kept_open(make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "FIRST_OUTPUT_SECONDS", 0.01)
    monkeypatch.setattr(responses, "KEEP_ALIVE_SECONDS", 0.02)
    stand = make_stand()
    stand.scheduler.paused = True
    async with client_of(stand) as client:
        task = asyncio.create_task(client.post("/generate", json={"text": "a b", "stream": True}))
        while not stand.manager.num_in_flight:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        stand.scheduler.paused = False
        text = (await task).text
    assert text.startswith(": keep-alive\n\n")
    assert text.endswith("data: [DONE]\n\n")
