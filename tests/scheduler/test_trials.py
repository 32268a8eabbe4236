"""Constraints that are out to do harm meet a child process first: it may crash, hang or fill its memory, and the scheduler does not."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError, OverloadError
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler, Job
from sglang.srt.scheduler.grammar.lanes import NUM_SLOW, FairQueue, Lanes
from sglang.srt.scheduler.grammar.trial import EVERY, NUM_TOKENS, Trials, Walk, try_grammar
from sglang.srt.scheduler.stop_regex import STOP_REGEX
from sglang.srt.scheduler.trial_messages import Report, decode_report, encode_trial
from tests.scheduler.test_backends import backend_of, both
from tests.scheduler.toy import VOCABULARY, trials_of

EXPLODES = json.dumps({"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.*"} for i in range(20)]})
HOURS = json.dumps({"title": "893", "allOf": [{"type": "string", "pattern": f"(.*{chr(65 + i)}){{2}}.*"} for i in range(18)]})
SLOW = [HOURS, EXPLODES]


def compiler_of(name: str, **options: Any) -> GrammarCompiler:
    given = GrammarOptions(backend=name, **options)  # type: ignore[arg-type]
    return GrammarCompiler(backend_of(name), given, trials_of(VOCABULARY, given))


def wait(compiler: GrammarCompiler, job: Job, seconds: float = 120) -> Job:
    deadline = time.monotonic() + seconds
    while not compiler.poll(job):
        assert time.monotonic() < deadline, job.key[1][:200]
        time.sleep(0.001)
    return job


def compile_one(compiler: GrammarCompiler, kind: str, text: str, prefix: str = "") -> Job:
    return wait(compiler, compiler.submit((kind, text, prefix) if prefix else (kind, text)))


# --- what a child does for a constraint ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("prefix", ["", "ab"])
def test_what_passes_is_compiled_and_its_bytes_are_known(name: str, prefix: str) -> None:
    compiler = compiler_of(name)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    kinds = [("json_schema", json.dumps(schema)), ("regex", "[a-z]{3,9}"), ("ebnf", 'root ::= "x" | "y" root')]
    tag = {"structures": [{"begin": "<f", "schema": schema, "end": ">"}], "triggers": ["<f"]}
    for kind, text in [*kinds, *([] if prefix else [("structural_tag", json.dumps(tag))])]:
        job = compile_one(compiler, kind, text, prefix)
        assert job.error is None and job.value is not None, (kind, job.error)
        assert 1000 < job.num_bytes < 32 << 20


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_child_that_dies_costs_its_request_only(number: int) -> None:
    compiler = compiler_of("llguidance")
    job = compiler.submit(("json_schema", HOURS.replace("893", f"8{int(number):02}")))
    deadline = time.monotonic() + 60
    while job.child is None or job.child.pid is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(job.child.pid, number)
    assert isinstance(wait(compiler, job).error, GrammarError) and "crashed" in str(job.error)
    assert compile_one(compiler, "regex", f"after{number}").error is None


@pytest.mark.parametrize("text", SLOW)
def test_what_takes_too_long_ends_and_leaves_nothing_behind(text: str) -> None:
    options = GrammarOptions(compile_timeout=1.5)
    trials = Trials(VOCABULARY, options)
    compiler = GrammarCompiler(backend_of("llguidance"), options, trials)
    try:
        jobs = [compiler.submit(("json_schema", text + " " * i), ("bad",)) for i in range(6)]
        for i in range(3):
            assert wait(compiler, compiler.submit(("regex", f"other{i}"), ("good",)), 30).error is None, (
                "others are not kept waiting"
            )
        for job in jobs:
            assert isinstance(wait(compiler, job).error, (GrammarError, OverloadError))
        assert "took more than 1.5 s" in str(jobs[0].error)
        again = compiler.submit(("json_schema", text))
        assert again is jobs[0], "it is remembered, and not tried again"
    finally:
        compiler.close()


def test_memory_of_a_child_is_limited() -> None:
    trials = trials_of(VOCABULARY, GrammarOptions())
    began = time.monotonic()
    report = decode_report(trials.submit(STOP_REGEX).result(encode_trial(STOP_REGEX, "(((a{1000}){1000}){1000})")))
    assert report.error is not None and "stop_regex" in report.error and time.monotonic() - began < 60


def test_nobody_waits_for_it_any_more() -> None:
    compiler = compiler_of("llguidance")
    job = compiler.submit(("json_schema", HOURS + "  "))
    deadline = time.monotonic() + 60
    while job.child is None or job.child.pid is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child = job.child
    compiler.leave(job)
    assert job.done and compiler.submit(("json_schema", HOURS + "  ")) is not job
    while os.path.exists(f"/proc/{child.pid}"):
        assert time.monotonic() < deadline, "the child is stopped"
        time.sleep(0.005)


@both
def test_a_walk_takes_what_is_allowed_and_what_is_not(name: str) -> None:
    backend = backend_of(name)
    backend.prepare()
    for kind, text in [("regex", "(ab|cd){40,80}"), ("regex", "a"), ("json_schema", "$$ANY$$"), ("regex", "(?s:.*)")]:
        Walk(backend, backend.compile(kind, text).copy(), kind).run()


@both
@pytest.mark.parametrize("text", ["root ::= root", 'root ::= a "x"\na ::= a "y"'])
def test_what_no_text_satisfies_is_refused(name: str, text: str) -> None:
    """Its mask would allow no token, and there would be nothing to sample."""
    assert isinstance(compile_one(compiler_of(name), "ebnf", text).error, GrammarError)


def test_children_end_with_a_flush_whoever_started_them() -> None:
    """A search for stop expressions, or a text that was on its way at the last flush: their processes hold as much as an engine's tables."""
    trials = Trials(VOCABULARY, GrammarOptions())
    compiler = GrammarCompiler(backend_of("llguidance"), GrammarOptions(), trials)
    try:
        compiler.flush()
        assert trials.idle_seconds == 0
        trials.submit(STOP_REGEX).result(encode_trial(STOP_REGEX, "a+b"))
        server = trials._regexes._process
        assert server is not None and trials.idle_seconds > 0
        compiler.flush()
        server.wait(60)
        assert trials.idle_seconds == 0
    finally:
        compiler.close()


# --- what is kept ---------------------------------------------------------------------------------------------------------------


def test_the_cache_is_bounded_by_bytes() -> None:
    small = compile_one(compiler_of("llguidance"), "regex", "[a-z]{1,30}").num_bytes
    compiler = compiler_of("llguidance", cache_bytes=8 * small)
    for i in range(20):
        assert compile_one(compiler, "regex", f"[a-z]{{1,{10 + i}}}").error is None
    assert sum(job.num_bytes for job in compiler._cache.values()) <= 8 * small and 2 <= len(compiler._cache) < 20


def test_what_requests_use_counts_and_what_is_too_large_is_refused() -> None:
    small = compile_one(compiler_of("llguidance"), "regex", "[a-z]{1,30}").num_bytes
    compiler = compiler_of("llguidance", cache_bytes=4 * small)
    used = [compile_one(compiler, "regex", f"[a-z]{{1,{20 + i}}}") for i in range(12)]
    assert any(isinstance(job.error, OverloadError) for job in used) and used[0].value is not None
    alone = compile_one(compiler_of("llguidance", cache_bytes=small // 2), "regex", "[a-z]{1,30}")
    assert isinstance(alone.error, GrammarError) and "holds" in str(alone.error)
    used.clear()
    assert compile_one(compiler, "regex", "[a-z]{1,77}").error is None


def test_long_texts_count_even_when_they_are_refused() -> None:
    compiler = compiler_of("llguidance", cache_bytes=1 << 17)
    for i in range(12):
        assert compile_one(compiler, "regex", f"({i}" + "a" * 30_000).error is not None
    assert sum(len(key[1]) for key in compiler._cache) <= 1 << 17


def test_a_flush_forgets() -> None:
    compiler = compiler_of("llguidance")
    job = compile_one(compiler, "regex", "flushed")
    compiler.flush()
    assert compile_one(compiler, "regex", "flushed") is not job


# --- what it costs: docs/structured.md has the time, which `python -m benchmarks.structured trials` measures --------------------------


@both
def test_a_new_grammar_is_compiled_twice_and_a_kept_one_never(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = GrammarOptions(backend=name)  # type: ignore[arg-type]
    backend, trials = backend_of(name), trials_of(VOCABULARY, options)
    compiler = GrammarCompiler(backend, options, trials)
    here: list[Any] = []
    children: list[str] = []
    compile_, submit = backend.compile, trials.submit
    monkeypatch.setattr(backend, "compile", lambda *key: here.append(key) or compile_(*key))
    monkeypatch.setattr(trials, "submit", lambda kind: children.append(kind) or submit(kind))
    for text in ("once[ab]{2}", "once[ab]{3}"):
        job = compile_one(compiler, "regex", text)
        assert job.error is None
        for _ in range(20):
            assert compiler.submit(("regex", text)) is job and compiler.poll(job)
    assert here == [("regex", "once[ab]{2}"), ("regex", "once[ab]{3}")] and children == ["regex"] * 2


class Counted:
    """An engine or a state of one, whose methods are counted in `seen`."""

    def __init__(self, inner: Any, seen: Counter[str]) -> None:
        self._inner, self._seen = inner, seen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            self._seen[name] += 1
            result = found(*args)
            return Counted(result, self._seen) if name in ("compile", "copy") else result

        return call


@both
@pytest.mark.parametrize("kind, text", [("regex", "(ab|cd){40,80}"), ("json_schema", "$$ANY$$"), ("regex", "(?s:.*)")])
def test_a_child_compiles_once_and_takes_a_bounded_number_of_steps(name: str, kind: str, text: str) -> None:
    """Few of them with a mask, which is most of a step's work."""
    seen: Counter[str] = Counter()
    for _ in try_grammar(Counted(backend_of(name), seen), kind, text):  # type: ignore[arg-type]
        pass
    assert seen["compile"] == 1
    assert seen["fill_mask"] <= 4 * NUM_TOKENS // EVERY
    assert seen["accept"] + seen["accept_all"] + seen["forced_tokens"] <= 4 * NUM_TOKENS


# --- whose turn it is -----------------------------------------------------------------------------------------------------------


def test_the_client_for_whom_least_was_done_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(5):
        queue.put(("bad", str(i)), f"bad{i}")
    assert queue.pop() == "bad0"
    queue.charge(("bad", "0"), 3.0)
    queue.put(("good", ""), "good")
    assert queue.pop() == "good", "whatever users a key invents"
    queue.charge(("good", ""), 0.01)
    queue.put(("good", ""), "more")
    assert queue.pop() == "more" and len(queue) == 4
    queue.charge(("late", ""), 0.0)
    queue.put(("late", ""), "late")
    assert queue.pop() == "late"


def test_slow_ones_have_a_lane_of_their_own() -> None:
    lanes: Lanes[str] = Lanes()
    for i in range(NUM_SLOW + 1):
        lanes.put((), f"slow{i}")
    turns = []
    for _ in range(NUM_SLOW):
        turn = lanes.take()
        assert turn is not None and turn.goes_on()
        turns.append(turn)
    last = lanes.take()
    assert last is not None and not last.goes_on(), "no place: it begins again later"
    last.end()
    lanes.put((), "quick")
    quick = lanes.take()
    assert quick is not None and quick.item == "quick"
    quick.end()
    turns[0].end()
    again = lanes.take()
    assert again is not None and again.item == last.item and again.is_slow and again.goes_on()
    again.end()
    turns[1].end()
    lanes.close()
    assert lanes.take() is None


# --- hostile schemas, through the real engines ------------------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 0.5, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), -1e19, 1e19, 1e308, -1e308, 1e-308, 10**400, 999999937]
HOSTILE_NUMBERS = st.sampled_from(NUMBERS)
PATTERNS = st.sampled_from([".*a.*", "(a|b){1,50}", "^x{1000}$", "[", "(?=a)", r"\d+", "(.{1,9}){1,9}", "a{99999}", "\\p{L}*"])
REFS = st.sampled_from(
    ["#", "#/x", "#/x/0", "#/x/y", "#/properties/a", "#/a%62", "#/~0~1", "#a", "http://a/b", "#/$defs/d", ""]
)


def schemas() -> st.SearchStrategy[Any]:
    leaf = st.one_of(
        st.dictionaries(
            st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const"]),
            HOSTILE_NUMBERS,
        ).map(lambda node: {"type": "integer", **node}),
        st.fixed_dictionaries({"type": st.just("string"), "pattern": PATTERNS}),
        st.fixed_dictionaries({"type": st.just("array"), "minItems": HOSTILE_NUMBERS, "maxItems": HOSTILE_NUMBERS}),
        st.fixed_dictionaries({"type": st.just("string"), "minLength": HOSTILE_NUMBERS, "maxLength": HOSTILE_NUMBERS}),
        st.fixed_dictionaries({"$ref": REFS}),
        st.booleans(),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from(["x", "ab", "~/", "$defs"]), inner, min_size=1).map(lambda d: {"$ref": "#/x", **d}),
            st.lists(inner, min_size=1, max_size=4).map(lambda parts: {"allOf": parts}),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts, "x": parts}),
            st.dictionaries(st.sampled_from("ab"), inner).map(lambda d: {"type": "object", "properties": d}),
            inner.map(lambda node: {"type": "array", "items": node, "x": {"y": node}}),
        ),
        max_leaves=8,
    )


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def hasty(request: pytest.FixtureRequest) -> Iterator[GrammarCompiler]:
    if request.param == "xgrammar":
        pytest.importorskip("xgrammar")
    options = GrammarOptions(backend=request.param, compile_timeout=1.0)
    compiler = GrammarCompiler(backend_of(request.param), options, Trials(VOCABULARY, options))
    yield compiler
    compiler.close()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=schemas(), route=st.sampled_from(["json_schema", "structural_tag", "keywords", "ebnf"]))
def test_hostile_schemas_are_followed_or_refused(hasty: GrammarCompiler, schema: Any, route: str) -> None:
    """Whatever the route. That this process is there to say so is the test."""
    structure = {"begin": "<f", "schema": schema, "end": ">"}
    if route == "keywords":
        structure |= {"schema": {"properties": {"a": schema}}, "keywords": True}
    tag = json.dumps({"structures": [structure], "triggers": ["<f"]})
    text = {"json_schema": json.dumps(schema), "ebnf": "start: %json " + json.dumps(schema)}.get(route, tag)
    job = compile_one(hasty, route if route in ("json_schema", "ebnf") else "structural_tag", text)
    if job.error is not None:
        assert isinstance(job.error, GrammarError) and len(str(job.error)) < 1500 and "engine failed" not in str(job.error)
    else:
        assert job.value.copy().error is None


class Along:
    """Stands for the trials and their child: the first report, and the last."""

    def __init__(self, last: Report) -> None:
        self.last = last
        self.seen: list[str] = []

    def submit(self, kind: str) -> Along:
        return self

    def result(self, payload: bytes, patience: Any, on_part: Callable[[bytes], None]) -> bytes:
        on_part(Report(num_bytes=1000).encode())
        self.seen.append("compiled" if "compile" in self.seen else "not compiled")
        return self.last.encode()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [None, "regex: too complex"])
def test_it_is_compiled_while_the_child_steps_through_it(error: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And given to requests only when the child has come to the end."""
    along = Along(Report(error=error, num_bytes=5000))
    backend = backend_of("llguidance")
    monkeypatch.setattr(backend, "compile", lambda *key: along.seen.append("compile") or "compiled")
    options = GrammarOptions(cache_bytes=8000)
    compiler = GrammarCompiler(backend, options, along)  # type: ignore[arg-type]
    job = wait(compiler, compiler.submit(("regex", "a")))
    assert along.seen == ["compile", "compiled"]
    assert (job.value, str(job.error or "")) == ((None, error) if error else ("compiled", ""))
    assert job.num_bytes == len("regexa") + (0 if error else 5000)
    along.last = Report(num_bytes=9000)
    larger = wait(compiler, compiler.submit(("regex", "b")))
    assert larger.value is None and "it holds" in str(larger.error) and larger.num_bytes == len("regexb")
    compiler.close()
