"""Requests that another scheduler had before: whenever it died, the two of them give the answer of one that lived."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.messages import FinishReason, LogprobOptions, TokenizedReq, TokenOut
from sglang.srt.scheduler.stop_regex import Found, Search, Searches
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from tests.scheduler import test_invariance, test_jump
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.toy import THINK_END, VOCABULARY, Harness, ToyWorker, logprob_options, make_req

PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JUMPING = GrammarOptions()


class Client:
    """The output that one client has received, from any number of schedulers."""

    def __init__(self, req: TokenizedReq) -> None:
        self.outs: list[TokenOut] = []
        params, drop = req.sampling, len(req.healed.encode())
        self._detokenizer = Detokenizer(VOCABULARY, params.skip_special_tokens, drop, params.spaces_specials)
        self.text = ""

    def hear(self, outs: list[TokenOut]) -> None:
        for out in outs:
            self.outs.append(out)
            self.text += self._detokenizer.feed(out)

    @property
    def ids(self) -> list[int]:
        return [i for out in self.outs for i in out.ids]

    def shape(self) -> tuple[object, ...]:
        last = self.outs[-1]
        inputs = [out.input_logprobs for out in self.outs if out.input_logprobs is not None]
        outputs = [p for out in self.outs for p in out.output_logprobs or []]
        return self.ids, self.text, last.finish, last.completion_len, last.prompt_len, inputs, outputs


def harness(grammar: GrammarOptions | None = None) -> Harness:
    return Harness(ToyWorker(max_running=4, num_slots=2048), ScheduleOptions(chunked_prefill_size=64), grammar)


def undisturbed(reqs: list[TokenizedReq], grammar: GrammarOptions | None) -> list[Client]:
    clients = [Client(req) for req in reqs]
    for client, answer in zip(clients, run_with_compiling(harness(grammar), reqs), strict=True):
        client.hear(answer.outs)
    return clients


def with_deaths(reqs: list[TokenizedReq], grammar: GrammarOptions | None, lives: list[int]) -> list[Client]:
    """Every scheduler but the last takes only so many steps."""
    clients = {req.rid: Client(req) for req in reqs}
    left = list(reqs)
    for steps in lives:
        one = harness(grammar)
        one.put(*left)
        while len(one.scheduler._inlet):  # its constraints compile
            one.step()
            time.sleep(0.001)
        for _ in range(steps):
            one.step()
        for rid, answer in one.answers.items():
            clients[rid].hear(answer.outs)
        alive = [req for req in reqs if not clients[req.rid].outs or clients[req.rid].outs[-1].finish is None]
        left = [resumed(req, clients[req.rid]) for req in alive]
    if left:
        for req, answer in zip(left, run_with_compiling(harness(grammar), left), strict=True):
            clients[req.rid].hear(answer.outs)
    return [clients[req.rid] for req in reqs]


def resumed(req: TokenizedReq, client: Client) -> TokenizedReq:
    hold = client.outs[-1].hold_bytes if client.outs else 0
    return msgspec.structs.replace(req, resumed=tuple(client.ids), resumed_hold=hold)


def check(reqs: list[TokenizedReq], grammar: GrammarOptions | None, lives: list[int]) -> None:
    expected = undisturbed(reqs, grammar)
    got = with_deaths(reqs, grammar, lives)
    for one, other in zip(expected, got, strict=True):
        assert other.shape() == one.shape()


LIVES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@PROPERTY
@given(test_invariance.workloads(), LIVES)
def test_free_text(reqs: list[TokenizedReq], lives: list[int]) -> None:
    check([msgspec.structs.replace(req, stream=i % 3 != 0) for i, req in enumerate(reqs)], None, lives)


@PROPERTY
@given(st.lists(test_jump.requests("r"), min_size=1, max_size=5), LIVES, st.booleans())
def test_grammars(reqs: list[TokenizedReq], lives: list[int], jumps: bool) -> None:
    named = [msgspec.structs.replace(req, rid=f"r{i}", stream=True) for i, req in enumerate(reqs)]
    check(named, GrammarOptions(jump_forward=jumps), lives)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13, 30])
@pytest.mark.parametrize(
    "fields",
    [
        {"stop_regex": ("[a-z]{2}[0-9]", "\\n.")},
        {"stop": ("\x05\x06", "the"), "min_new_tokens": 6},
        {"stop": ("the abc", "éa", "é€"), "stop_regex": ("é.é", "[a-z]{3}")},
        {"stop_regex": ("[a-z]",), "min_new_tokens": 9, "ignore_eos": True},
        {"regex": "[ab]{3}x{20}[ab]+", "grammar_after": (THINK_END,), "stop_token_ids": (7,)},
        {"healed": "ab"},
        {"regex": "c{4}[ab]{9}", "healed": "ab"},
        {"logprobs": logprob_options(0, 2, (5,)), "stop": ("END", "é")},
        {"json_schema": '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["the","abc"]}}}'},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_constraints_and_stops(fields: dict[str, object], steps: int) -> None:
    reqs = [
        make_req(f"r{i}", [i + 1, 5, 6], 40, stream=True, temperature=0.7 * (i % 2), seed=i, **dict(fields)) for i in range(3)
    ]
    check(reqs, JUMPING, [steps, 2])


def die_while_searching(patch: pytest.MonkeyPatch, req: TokenizedReq, grammar: GrammarOptions | None, place: int) -> Client:
    """Two schedulers: the search behind the output token `place` of the first does not end before it does."""
    client = Client(req)
    num_searched = 0
    search_now = Searches.now

    def now(self: Searches, *what: Any) -> Found | None:
        nonlocal num_searched
        self._left, num_searched = 60.0, num_searched + 1
        return search_now(self, *what) if num_searched < place else None

    def later(self: Searches, *what: object) -> Search:
        self.num_pending += 1
        return Search(b"")

    with patch.context() as context:
        context.setattr(Searches, "now", now)
        context.setattr(Searches, "later", later)
        one = harness(grammar)
        one.put(req)
        while not one.scheduler._searches.num_pending and one.scheduler._live:
            one.step()
        client.hear(one.answers[req.rid].outs if req.rid in one.answers else [])
    if client.outs and client.outs[-1].finish is not None:
        return client
    (answer,) = run_with_compiling(harness(grammar), [resumed(req, client)])
    client.hear(answer.outs)
    return client


@pytest.mark.parametrize(
    ("jumps", "fields"),
    [
        (False, {"stop_regex": ("x",)}),
        (False, {"stop_regex": ("[ab]b+x", "a.*~", "xx"), "min_new_tokens": 9}),
        (True, {"stop_regex": ("(?s)b.*b", "b"), "min_new_tokens": 5, "no_stop_trim": True}),
        (True, {"stop_regex": ("abx{9}", "[bc]xx[^x]"), "stop": ("xxxxxa", "bbb")}),
        (True, {"stop_regex": ("b$", "x{12}"), "logprobs": logprob_options(0, 1), "max_new_tokens": 17}),
        (True, {"stop_regex": ("~~",)}),
    ],
)
def test_a_scheduler_that_dies_while_it_searches(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], jumps: bool) -> None:
    """At the token that ends the request, and at others."""
    grammar = GrammarOptions(jump_forward=jumps)
    fields = {"regex": "([abc]{2,4}x{9}){2}", "max_new_tokens": 40, **fields}
    req = make_req("a", [3, 5, 6], stream=True, temperature=0.7, seed=4, **fields)
    (whole,) = undisturbed([req], grammar)
    num_ids = len(whole.ids)
    for place in {1, 2, num_ids // 2, num_ids - 1, num_ids}:
        assert die_while_searching(monkeypatch, req, grammar, place).shape() == whole.shape()


def test_the_text_of_a_match_is_held_back_until_its_log_probabilities_are_there() -> None:
    """The grammar forces the end of a stop string at once, and its beginning goes out with its log probability before."""
    fields = {"regex": "[ab]{4}the end", "stop": ("athe", "bthe"), "logprobs": logprob_options(), "max_new_tokens": 40}
    texts = {stream: undisturbed([make_req("a", [1], stream=stream, **fields)], JUMPING)[0].text for stream in (False, True)}
    assert texts[True] == texts[False] and len(texts[True]) == 3


def test_what_was_let_in_once_is_not_refused_by_a_full_queue() -> None:
    one = Harness(ToyWorker(max_running=1), ScheduleOptions(max_queued_requests=1))
    reqs = [make_req(f"r{i}", [i + 1], 4, ignore_eos=True) for i in range(4)]
    one.put(*(msgspec.structs.replace(req, resumed=()) for req in reqs), make_req("new", [9], 4))
    assert set(one.answers) == {"new"}, "the new one is refused at once"
    one.run()
    assert [one.answers[req.rid].finish for req in reqs] == [FinishReason("length", length=4)] * 4


def test_a_resumed_request_that_has_all_its_tokens_ends() -> None:
    req = make_req("a", [1, 2], 3, ignore_eos=True, stream=True, resumed=(4, 5, 6))
    (answer,) = Harness().run(req)
    assert answer.ids == [] and answer.finish == FinishReason("length", length=3) and answer.last.completion_len == 3


def test_ids_outside_the_vocabulary_are_refused() -> None:
    (answer,) = Harness().run(make_req("a", [1], 9, resumed=(4, 10**6)))
    assert answer.finish is not None and answer.finish.status_code == 400


def test_the_log_probabilities_of_the_prompt_are_not_sent_twice() -> None:
    req = make_req("a", [1, 2, 3], 6, ignore_eos=True, stream=True, logprobs=LogprobOptions(0))
    (whole,) = undisturbed([req], None)
    (two,) = with_deaths([req], None, [2])
    assert len([out for out in two.outs if out.input_logprobs is not None]) == 1 and two.shape() == whole.shape()
