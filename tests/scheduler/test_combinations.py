"""Everything that rarely meets, in one run: drafts, tokens forced at once, searches elsewhere, late masks, steps that run ahead, retraction,
turns, schedulers that die, aborts, pauses. Every answer is the one that the request gets alone, one token at a time.

What depends on time is decided by the example instead: `Weather` says which searches leave the loop and when they are done, which masks
are late and for how long, and which constraints compile for some steps more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.forward_batch import SampleSpec, VocabMasks
from sglang.srt.messages import AbortReq, FlushCacheReq, PauseReq, ShutdownReq, TokenizedReq
from sglang.srt.scheduler import scheduler as scheduler_module
from sglang.srt.scheduler.admission import waiting
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler, Job, Key
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.grammar.masks import MaskFiller
from sglang.srt.scheduler.speculation.grammar_walk import GrammarWalk
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits
from sglang.srt.scheduler.speculation.proposers import radix_tree
from sglang.srt.scheduler.speculation.proposers.grammar_statistics import GrammarProposer
from sglang.srt.scheduler.speculation.proposers.repeated_text import PromptLookup, TableProposer
from sglang.srt.scheduler.stop_regex import STOP_REGEX, Found, Search, Searches, Span, compile_stop_regex, search_all
from tests.scheduler import toy
from tests.scheduler.test_resumed import Client, resumed
from tests.scheduler.toy import EOS, THINK_END, VOCABULARY, AheadWorker, Harness, ToyWorker, logprob_options, make_req

LIKELY = [ord("a"), ord("b"), ord("x"), 261, 270, ord("1"), EOS, THINK_END]
"""what the model mostly says: with so few, expressions and strings are found and drafts come out"""
GRAMMARS: list[dict[str, object]] = [
    {"regex": "[ab]{3}x{20}[ab]+"},
    {"regex": "([ab]{2}, END){3}x*"},
    {"regex": "(the end of (all|some), or not){2}", "stop": ("some", "f a")},
    {"regex": "(?s:.*)"},
    {"json_schema": '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["the","abc"]}},"required":["a","b"]}'},
    {"json_schema": '{"type":"array","uniqueItems":true,"items":{"type":"integer"},"minItems":3}'},
    {"ebnf": 'root ::= "a" | "ab" root | "xx" root'},
]
REGEXES = ["[ab]x", "x{3}", "b.a", "(?s)a.*1", "[^x]{4}", "1", "the end", "END$", "(?s)..{20}"]


def few(history: np.ndarray[tuple[int], np.dtype[np.int64]], spec: SampleSpec, allowed: list[int]) -> int:
    """Says the same after the same two tokens; under a grammar the first of its likes that is allowed."""
    if len(spec.output_ids) < spec.params.min_new_tokens:
        allowed = [i for i in allowed if i not in spec.eos_ids] or allowed
    allowed_ones = set(allowed)
    return next((i for i in likes(history.tolist(), spec) if i in allowed_ones), allowed[len(history) % len(allowed)])


def likes(ids: Sequence[int], spec: SampleSpec) -> list[int]:
    """Tokens that may come after `ids`, the likeliest first."""
    salt = 0 if spec.params.is_greedy else spec.seed * 1000 + len(spec.output_ids)
    likely = list(LIKELY)
    random.Random(hash((salt, *ids[-2:]))).shuffle(likely)
    return likely


class Weather:
    """Timing and proposers' confidence, made deterministic."""

    def __init__(self, seed: int, is_calm: bool = False) -> None:
        self.rng = random.Random(seed)
        self.is_calm = is_calm
        self.searches: list[tuple[Search, tuple[Sequence[Any], str, Span]]] = []
        self.busy: dict[GrammarState, int] = {}

    def chance(self, share: float) -> bool:
        return not self.is_calm and self.rng.random() < share

    def blow(self) -> None:
        """A step has passed."""
        self.busy = {state: left - 1 for state, left in self.busy.items() if left > 1}
        still = []
        for search, what in self.searches:
            if self.chance(0.5):
                still.append((search, what))
                continue
            search.found, search.done = search_all(*what, 60.0), True
        self.searches = still

    def draft(self, context: Any, limits: DraftLimits) -> Draft | None:
        """What will come, mostly."""
        spec = context.spec
        ids, out, drafted = list(spec.prompt_ids), list(spec.output_ids), []
        for _ in range(min(limits.max_ids, limits.max_samples, self.rng.randrange(9))):
            after = SampleSpec(spec.params, spec.seed, ids, out, spec.eos_ids)
            token = self.rng.choice(LIKELY) if self.chance(0.1) else likes([*ids, *out], after)[0]
            if token in context.stop_ids:
                break
            drafted.append(token)
            out = [*out, token]
        return Draft(drafted, list(range(1, len(drafted) + 1)), [], "test") if drafted else None

    def walk(self, context: Any, limits: DraftLimits) -> Draft | None:
        """The same along a grammar."""
        spec, walk = context.spec, GrammarWalk(context, limits)
        out = list(spec.output_ids)
        for _ in range(self.rng.randrange(9)):
            if not walk.has_room:
                break
            after = SampleSpec(spec.params, spec.seed, spec.prompt_ids, out, spec.eos_ids)
            choices = likes([*spec.prompt_ids, *out], after)
            added = next((added for token in choices if (added := walk.add(token))), [])
            if not added:
                break
            out = out + added
        return walk.draft("test")


class ChangingMasks(MaskFiller):
    """Masks are late when the weather says so."""

    weather: Weather

    def is_busy(self, state: GrammarState | None) -> bool:
        return state in self.weather.busy

    def must_wait(self, state: GrammarState | None) -> bool:
        return self.is_busy(state) or (self.is_suspect(state) and bool(self.weather.busy))

    def finish(self, patience: float) -> tuple[VocabMasks, list[int]]:
        assert self._task is not None
        owners = self._task.owners
        masks, late = super().finish(60.0)
        assert not late
        late_ones = [i for i in range(len(owners)) if self.weather.chance(0.08)]
        for i in late_ones:
            self._suspects.add(owners[i])
            self.weather.busy[owners[i]] = self.weather.rng.randrange(3)
        kept = [i for i in range(len(owners)) if i not in late_ones]
        rows = masks.rows.tolist()
        return VocabMasks(masks.rows[kept], masks.bits[kept]), [rows[i] for i in late_ones]


BACKEND = create_backend(VOCABULARY, GrammarOptions())
_compiled: dict[Key, Job] = {}


def compiled(key: Key) -> Job:
    """Once for all examples."""
    if key not in _compiled:
        job = _compiled[key] = Job(key)
        assert BACKEND is not None
        job.end(compile_stop_regex(key[1]) if key[0] == STOP_REGEX else BACKEND.compile(*key), None)
    return _compiled[key]


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Everything whose time `Weather` may decide."""
    monkeypatch.setattr(toy, "sample_toy", few)
    monkeypatch.setattr(waiting, "WAIT_STEPS", 4)
    monkeypatch.setattr(scheduler_module, "MaskFiller", ChangingMasks)
    monkeypatch.setattr(scheduler_module, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(scheduler_module, "create_backend", lambda vocabulary, options: BACKEND)
    monkeypatch.setattr(GrammarCompiler, "submit", lambda self, key, client=(): compiled(key))
    monkeypatch.setattr(GrammarCompiler, "leave", lambda self, job: None)
    yield monkeypatch


def let_in(patch: pytest.MonkeyPatch, weather: Weather, may_search_elsewhere: float) -> None:
    """Puts `weather` in force."""

    def now(self: Searches, *what: Any) -> Found | None:
        return None if weather.chance(may_search_elsewhere) else search_all(*what, 60.0)

    def later(self: Searches, *what: Any) -> Search:
        self.num_pending += 1
        search = Search(b"")
        weather.searches.append((search, what))
        return search

    patch.setattr(Searches, "now", now)
    patch.setattr(Searches, "later", later)
    patch.setattr(ChangingMasks, "weather", weather, raising=False)
    patch.setattr(GrammarCompiler, "poll", lambda self, job: not weather.chance(0.3))

    def either(context: DraftContext, limits: DraftLimits) -> Draft | None:
        return weather.draft(context, limits) if context.grammar is None else weather.walk(context, limits)

    for proposer, propose in ((PromptLookup, weather.draft), (GrammarProposer, weather.walk), (TableProposer, either)):
        patch.setattr(proposer, "is_confident", lambda self, context, num_running: weather.chance(0.6))
        patch.setattr(proposer, "propose", lambda self, context, limits, propose=propose: propose(context, limits))
        patch.setattr(proposer, "forced_share", 0.0)
    patch.setattr(radix_tree, "GROWTH", 8 if weather.chance(0.5) else 0)


@st.composite
def requests(draw: st.DrawFn, i: int) -> TokenizedReq:
    fields: dict[str, Any] = dict(draw(st.sampled_from([{}, {}, *GRAMMARS])))
    if fields and draw(st.booleans()):
        fields["grammar_after"] = (THINK_END, 3)
    elif draw(st.integers(0, 5)) == 0:
        fields["healed"] = draw(st.sampled_from(["ab", "x"])) if "regex" not in fields else "a"
        if fields.get("regex") not in (None, "[ab]{3}x{20}[ab]+", "(?s:.*)") or "json_schema" in fields or "ebnf" in fields:
            del fields["healed"]
    if draw(st.booleans()):
        fields["stop"] = draw(st.sampled_from([("ab", "the"), ("axb",), ("END", "xx1"), ("</think>",), ("bbbb",)]))
    if draw(st.booleans()):
        fields["stop_regex"] = tuple(draw(st.lists(st.sampled_from(REGEXES), min_size=1, max_size=3, unique=True)))
    stem = draw(st.sampled_from([0, 1]))
    prompt = [(stem * 31 + k) % 250 for k in range(draw(st.integers(1, 60)))]
    return make_req(
        f"r{i}",
        prompt,
        draw(st.integers(0, 40)),
        stream=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 0.8])),
        seed=draw(st.integers(0, 3)),
        ignore_eos=draw(st.booleans()),
        min_new_tokens=draw(st.sampled_from([0, 0, 5])),
        stop_token_ids=draw(st.sampled_from([(), (), (270,)])),
        no_stop_trim=draw(st.booleans()),
        skip_special_tokens=draw(st.booleans()),
        spaces_between_special_tokens=draw(st.booleans()),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.0, 0.1])),
        logprobs=draw(st.sampled_from([None, None, logprob_options(0, 2, (5,)), logprob_options(-1, 1)])),
        origins=draw(st.booleans()),
        cache_salt=draw(st.sampled_from([None, None, "x"])),
        client=draw(st.sampled_from([(), ("a", ""), ("a", "u"), ("b", "")])),
        priority=draw(st.sampled_from([0, 0, 1])),
        own_priority=draw(st.sampled_from([0, 0, 1])),
        group=draw(st.sampled_from([None, None, "g"])),
        **fields,
    )


@st.composite
def schedules(draw: st.DrawFn) -> tuple[dict[str, int], ScheduleOptions, bool]:
    worker = {
        "num_slots": draw(st.sampled_from([128, 256, 1024])),
        "run": draw(st.sampled_from([1, 16])),
        "max_running": draw(st.sampled_from([2, 4, 16])),
        "context_len": draw(st.sampled_from([112, 512])),
        "max_batch_tokens": draw(st.sampled_from([16, 40, 300])),
    }
    options = ScheduleOptions(
        schedule_policy=draw(st.sampled_from(["lpm", "fcfs", "dfs-weight", "random"])),
        schedule_conservativeness=draw(st.sampled_from([0.1, 1.0])),
        chunked_prefill_size=draw(st.sampled_from([-1, 5, 16])),
        page_size=draw(st.sampled_from([1, 1, 4, 16])),
        disable_radix_cache=draw(st.booleans()),
        test_retract_every=draw(st.sampled_from([0, 0, 0, 1, 7])),
    )
    return worker, options, draw(st.booleans())


def alone(req: TokenizedReq, context_len: int) -> Client:
    """Its answer when nothing else goes on."""
    client = Client(req)
    one = Harness(ToyWorker(context_len=context_len), ScheduleOptions(speculation=False), GrammarOptions(jump_forward=False))
    one.run(req)
    close(one)
    client.hear(one.answers[req.rid].outs)
    return client


def close(harness: Harness) -> None:
    """Ends its threads."""
    harness.put(ShutdownReq())
    harness.scheduler.run()


class Run:
    """Schedulers, one after the other, and those who ask."""

    def __init__(
        self, reqs: list[TokenizedReq], schedule: tuple[dict[str, int], ScheduleOptions, bool], weather: Weather
    ) -> None:
        self.weather, self.rng = weather, weather.rng
        self.schedule = schedule
        self.clients = {req.rid: Client(req) for req in reqs}
        self.reqs = {req.rid: req for req in reqs}
        self.coming = list(reqs)
        self.aborted: set[str] = set()
        self.harness = self._new()

    def _new(self) -> Harness:
        worker, options, ahead = self.schedule
        return Harness((AheadWorker if ahead else ToyWorker)(**worker), options, GrammarOptions())

    def _hear(self) -> None:
        for rid, answer in self.harness.answers.items():
            self.clients[rid].hear(answer.outs)
        self.harness.answers.clear()

    def _die(self) -> None:
        alive = list(self.harness.scheduler._live)
        self._hear()
        close(self.harness)
        self.harness = self._new()
        self.harness.put(*(resumed(self.reqs[rid], self.clients[rid]) for rid in alive))

    def _something(self) -> None:
        what = self.rng.random()
        if self.coming and what < 0.5:
            self.harness.put(self.coming.pop())
        elif what < 0.52:
            victim = self.rng.choice(list(self.reqs))
            self.aborted.add(victim)
            self.harness.put(AbortReq(victim))
        elif what < 0.54:
            self.harness.put(PauseReq(1, True))
            self.harness.step()
            self.harness.put(PauseReq(2, False), FlushCacheReq(3))
        elif what < 0.57:
            self._die()

    def go(self) -> None:
        for _ in range(6000):
            self._something()
            self.harness.step()
            self.weather.blow()
            if not self.coming and not self.harness.scheduler._live:
                break
        self._hear()
        assert not self.harness.scheduler._live, "the requests do not end"
        scheduler = self.harness.scheduler
        assert scheduler._searches.num_pending == 0 and scheduler.memory.tree.num_locked == 0
        assert scheduler.memory.flush()

    def check(self, req: TokenizedReq) -> None:
        client, context_len = self.clients[req.rid], self.schedule[0]["context_len"]
        want = alone(req, context_len)
        if not client.outs:
            assert req.rid in self.aborted, "it was aborted before it came"
            return
        finish = client.outs[-1].finish
        assert finish is not None
        origins = b"".join(out.origins for out in client.outs)
        assert len(origins) == (len(client.ids) if req.origins else 0)
        if finish.type == "abort" and req.rid in self.aborted or "KV pool" in str(finish.message):
            assert client.ids == want.ids[: len(client.ids)]
        else:
            assert client.shape() == want.shape()


@settings(
    max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)  # to make a failing example smaller takes minutes
@given(
    reqs=st.integers(1, 7).flatmap(lambda n: st.tuples(*(requests(i) for i in range(n)))),
    schedule=schedules(),
    seed=st.integers(0, 10**6),
    elsewhere=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_whatever_meets(
    changing: pytest.MonkeyPatch,
    reqs: tuple[TokenizedReq, ...],
    schedule: tuple[dict[str, int], ScheduleOptions, bool],
    seed: int,
    elsewhere: float,
) -> None:
    weather = Weather(seed)
    let_in(changing, weather, elsewhere)
    run = Run(list(reqs), schedule, weather)
    run.go()
    calm = Weather(0, is_calm=True)
    let_in(changing, calm, 0.0)
    for req in reqs:
        run.check(req)
