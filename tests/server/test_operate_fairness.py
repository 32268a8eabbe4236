"""Fairness when requests exceed the room: clients share, priorities go first, inventing users gains nothing."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import AbortReq, TokenizedReq
from sglang.srt.server.http.request_scope import RequestScope
from tests.conftest import ROOT, start_server
from tests.scheduler.toy import Harness, ToyWorker, make_req
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of

Client = tuple[str, ...]


def request(rid: str, client: Client, num_new: int = 8, num_ids: int = 8, **more: object) -> TokenizedReq:
    ids = [zlib.crc32(f"{rid} {i}".encode()) % 200 for i in range(num_ids)]
    return make_req(rid, ids, num_new, ignore_eos=True, client=client, **more)


def order_of_service(*reqs: TokenizedReq, at_once: int = 1) -> list[str]:
    """The requests by the time of their first step, with room for `at_once`."""
    harness = Harness(ToyWorker(max_running=at_once), ScheduleOptions(schedule_policy="fcfs", disable_radix_cache=True))
    harness.run(*reqs)
    firsts: dict[str, int] = {}
    prompts = {tuple(r.input_ids): r.rid for r in reqs}
    for i, batch in enumerate(harness.worker.batches):
        for sample in batch.samples:
            firsts.setdefault(prompts[tuple(sample.prompt_ids)], i)
    return sorted(firsts, key=lambda rid: (firsts[rid], rid))


def share_of_first(count: int, order: list[str]) -> Counter[str]:
    return Counter(rid.split("/")[0] for rid in order[:count])


def test_a_flood_of_one_client_does_not_hold_up_another() -> None:
    flood = [request(f"a/{i}", ("", "a")) for i in range(30)]
    order = order_of_service(*flood, *(request(f"b/{i}", ("", "b")) for i in range(5)))
    assert share_of_first(10, order)["b"] == 5, order


def test_shares_are_of_tokens_and_not_of_requests() -> None:
    large = [request(f"a/{i}", ("", "a"), num_new=40, num_ids=40) for i in range(10)]
    small = [request(f"b/{i}", ("", "b"), num_new=10, num_ids=10) for i in range(40)]
    order = order_of_service(*large, *small)
    assert share_of_first(20, order) == {"a": 4, "b": 16}, order


def test_a_key_gains_nothing_by_inventing_users() -> None:
    many = [request(f"a/{i}", ("a", f"user {i}")) for i in range(20)]
    one = [request(f"b/{i}", ("b", "")) for i in range(20)]
    order = order_of_service(*many, *one)
    assert share_of_first(20, order) == {"a": 10, "b": 10}, order


def test_anonymous_requests_are_one_client() -> None:
    order = order_of_service(*(request(f"a/{i}", ()) for i in range(20)), *(request(f"b/{i}", ("k", "")) for i in range(20)))
    assert share_of_first(20, order) == {"a": 10, "b": 10}, order


def test_who_was_away_has_no_savings() -> None:
    harness = Harness(ToyWorker(max_running=1), ScheduleOptions(schedule_policy="fcfs"))
    for i in range(10):
        harness.run(request(f"a/early {i}", ("", "a")), request(f"c/{i}", ("", "c")))
    harness.put(*(request(f"{name}/{i}", ("", name)) for name in "ab" for i in range(8)))
    while harness.step():
        pass
    ended = [rid for rid in harness.answers if "early" not in rid and rid[0] in "ab"]
    firsts = sorted(ended, key=lambda rid: list(harness.answers).index(rid))
    assert abs(share_of_first(8, firsts)["a"] - share_of_first(8, firsts)["b"]) <= 2, firsts


def test_priority_goes_before_fairness() -> None:
    low = [request(f"b/{i}", ("", "b")) for i in range(4)]
    high = [request(f"a/{i}", ("", "a"), priority=1) for i in range(4)]
    assert order_of_service(*low, *high)[:4] == [f"a/{i}" for i in range(4)]


def test_a_keys_own_priority_goes_before_its_users_and_before_no_other_key() -> None:
    plain = [request(f"b/{i}", ("b", "")) for i in range(8)]
    low = [request(f"a low/{i}", ("a", "x")) for i in range(4)]
    high = [request(f"a high/{i}", ("a", "y"), own_priority=10**6) for i in range(4)]
    order = order_of_service(*low, *plain, *high)
    assert [rid for rid in order if rid[0] == "a"] == [r.rid for r in high + low]
    assert share_of_first(8, order)["b"] == 4, order
    alone = order_of_service(*low, *high)
    assert alone == [r.rid for r in high + low], "nor does it need another client"


def refused(*reqs: TokenizedReq, limit: int) -> Counter[str]:
    """How many of each key's requests a queue of `limit` does not take."""
    harness = Harness(ToyWorker(max_running=1), ScheduleOptions(max_queued_requests=limit))
    answers = harness.run(*reqs)
    ends = [(r, a.finish) for r, a in zip(reqs, answers, strict=True) if a.finish is not None]
    assert len(ends) == len(reqs), "everybody gets an answer"
    return Counter(r.client[0] if r.client else "" for r, finish in ends if finish.status_code == 503)


def test_a_key_leaves_places_in_the_queue_for_others() -> None:
    first = [request(f"a/{i}", ("a", f"user {i}")) for i in range(40)]
    second = [request(f"b/{i}", ("b", "")) for i in range(40)]
    assert refused(*first, *second, request("c", ("c", "")), limit=20) == {"a": 30, "b": 35}
    assert refused(*first, limit=1) == {"a": 39}
    for limit in range(1, 12):
        assert 40 - refused(*first, limit=limit)["a"] == RequestScope(0.0, "a").share_of(limit)
    nobody = [request(f"n/{i}", ("", f"user {i}")) for i in range(40)]
    assert refused(*nobody, limit=20) == {"": 20}, "without keys the whole queue is everybody's"
    assert refused(*(request(f"n/{i}", ()) for i in range(40)), limit=20) == {"": 20}


def test_places_are_free_again_however_a_request_leaves() -> None:
    """Compiling, waiting, running; ended, refused and aborted."""
    options = ScheduleOptions(max_queued_requests=12)
    harness = Harness(ToyWorker(max_running=2), options, GrammarOptions(backend="llguidance"))
    scheduler = harness.scheduler
    for turn in range(4):
        names = [f"{turn}/{i}" for i in range(6)]
        for name in names:
            regex = {"1": rf"[ab]{{{turn + 2}}}c", "2": "(" + "a" * turn, "3": rf"[xy]{{{turn + 2}}}c"}.get(name[-1])
            harness.put(make_req(name, [turn, 1], 12, client=("a", ""), regex=regex))
        assert scheduler._inlet.num_of("a") + scheduler._waiting.num_of("a") == 6
        assert scheduler._inlet.num_of("a") == len(scheduler._inlet) > 0
        harness.put(AbortReq(names[1]), AbortReq(names[4]))
        deadline = time.monotonic() + 60
        while scheduler._live and time.monotonic() < deadline:
            harness.step()
        assert not scheduler._live
        assert scheduler._inlet.num_of("a") == scheduler._waiting.num_of("a") == 0
        assert all(harness.answers[name].finish is not None for name in names)


def test_one_client_alone_keeps_the_order_of_its_requests() -> None:
    reqs = [request(f"a/{i:02}", ("", "a")) for i in range(12)]
    assert order_of_service(*reqs) == [r.rid for r in reqs]


def test_many_clients_that_come_and_go_leave_few_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.scheduler.admission.waiting.MAX_CLIENTS", 40)
    harness = Harness(ToyWorker(max_running=8), ScheduleOptions(schedule_policy="fcfs"), check=False)
    for start in range(0, 200, 50):
        harness.run(*(request(f"{start + i}", (f"k{start + i}", "")) for i in range(50)))
    shares = harness.scheduler._waiting._shares
    assert len(shares._tags) <= 42 and len(shares._levels) <= 42 and shares.num_waiting == 0 and not shares._waiting


async def test_requests_name_their_key_and_user(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("one", "two"))
    async with client_of(stand) as client:
        for key, user in (("one", "ann"), ("one", "bob"), ("two", "ann"), ("two", None)):
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "user": user}
            reply = await client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            assert reply.status_code == 200
    clients = [m.client for m in stand.scheduler.received if isinstance(m, TokenizedReq)]
    (one, ann), (same, bob), (two, other_ann), (also_two, nobody) = clients
    assert one == same != two == also_two and (ann, bob, other_ann, nobody) == ("ann", "bob", "ann", "")
    assert not any("one" in part or "two" in part for client in clients for part in client), "keys are not passed on"


@pytest.mark.parametrize(
    ("address", "path"),
    [("192.0.2.7", ("", "192.0.2.7")), ("2001:db8::1", ("", "2001:db8::1")), ("127.0.0.1", ("",)), ("::1", ("",)), ("", ("",))],
)
async def test_without_keys_addresses_share_and_then_their_users(
    make_stand: MakeStand, address: str, path: tuple[str, ...]
) -> None:
    stand = make_stand()
    transport = httpx.ASGITransport(stand.app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for user in ("ann", None):
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "user": user}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    named, unnamed = [m.client for m in stand.scheduler.received if isinstance(m, TokenizedReq)]
    assert named == (*path, "ann") and unnamed == ((*path, "") if path != ("",) else ())


def test_one_address_with_many_users_is_served_as_one() -> None:
    flood = [request(f"a/{i}", ("", "192.0.2.1", f"user{i}")) for i in range(30)]
    order = order_of_service(*flood, *(request(f"b/{i}", ("", "192.0.2.2", "")) for i in range(5)))
    assert max(order.index(f"b/{i}") for i in range(5)) < 15


def test_a_key_that_holds_all_places_gives_one_to_another(tmp_path: Path) -> None:
    """On a real server: each client is answered while others' long requests run, and no answer changes."""
    flags = ["--api-key", "a,b", "--max-running-requests", "2", "--max-total-tokens", "16384"]
    server = start_server(tmp_path / "log", *flags, model=str(ROOT / "models" / "toy-vlm"))
    begun, enough = threading.Semaphore(0), threading.Event()

    def ask(key: str, text: str, num_new: int) -> str:
        sampling = {"temperature": 0, "max_new_tokens": num_new, "ignore_eos": True}
        body, found = {"text": text, "sampling_params": sampling, "stream": True}, ""
        with httpx.stream(
            "POST", f"{server.url}/generate", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120
        ) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    found = json.loads(line[6:])["text"]
                    begun.release()
                if enough.is_set() and num_new > 1000:
                    break
        return found

    try:
        with ThreadPoolExecutor(8) as pool:
            flood = [pool.submit(ask, "a", f"number {i}", 4000) for i in range(6)]
            assert all(begun.acquire(timeout=60) for _ in range(4))
            late = ask("b", "and now", 20)
            assert not any(one.done() for one in flood), "it waited until the others had ended"
            enough.set()
            texts = [one.result() for one in flood]
        assert late == ask("b", "and now", 20)
        longest = max(range(6), key=lambda i: len(texts[i]))
        assert texts[longest].startswith(ask("a", f"number {longest}", 20))
    finally:
        enough.set()
        server.stop()
