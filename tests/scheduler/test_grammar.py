"""Constraints: what is generated under them is valid, what cannot be compiled is refused with a reason, nobody waits."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.errors import ConfigError, GrammarError, RequestError
from sglang.srt.messages import AbortReq, FinishReason
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler, Job
from sglang.srt.scheduler.grammar.engines.base import GrammarState, UInt32Array
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.grammar.regex.syntax import to_engine_regex
from sglang.srt.scheduler.grammar.schema.closing import close_objects
from sglang.srt.scheduler.grammar.trial import try_grammar
from sglang.srt.scheduler.stop_regex import STOP_REGEX
from sglang.srt.vocabulary import Vocabulary
from tests.scheduler.toy import EOS, MODEL_VOCAB, THINK_END, VOCABULARY, Answer, Harness, ToyWorker, make_req

OPTIONS = GrammarOptions()
BACKEND = LLGuidanceBackend(VOCABULARY, OPTIONS)
CHARACTER = r"""\{
    "name": "[\w\d\s]{1,16}",
    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",
    "alive": "(Alive|Deceased)",
    "wand": \{
        "wood": "[\w\d\s]{1,16}",
        "length": [0-9]{1,2}\.[0-9]{0,2}
    \}
\}"""
IP = r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", "\u00e9"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}


def allowed_by(state: GrammarState) -> set[int]:
    bits = np.zeros((MODEL_VOCAB + 31) // 32, dtype=np.uint32)
    state.fill_mask(bits)
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())


def accepts(pattern: str, text: str) -> bool:
    """Whether the engine takes all of `text` as complete."""
    state = BACKEND.compile("regex", pattern)
    return all(state.accept(byte) for byte in text.encode()) and EOS in allowed_by(state)


# --- regular expressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("abc", ["abc"], ["ab", "abcd", "xabc"]),
        ("^abc$", ["abc"], ["abcabc"]),
        (r"\Aabc\Z", ["abc"], []),
        (r"\d+", ["12"], ["\u0663", "a"]),
        (r"\w", ["a", "_"], ["\u00e9", "-"]),
        (r"\W", ["-"], ["\u00e9", "a"]),
        (r"[^\W\d_]+", ["ab"], ["1", "_"]),
        (r"[^\d]", ["a"], ["1", "\u0663"]),
        (r"\S+", ["ab"], ["a b", "\x1c"]),
        (r"[\s\d]+", ["1 2"], ["a"]),
        (".", ["a", "\u00e9"], ["\n"]),
        ("(?s).", ["\n"], []),
        ('{"a": [0-9]{1,2}}', ['{"a": 12}'], ['{"a": }']),
        ("a{,2}b", ["b", "aab"], ["aaab"]),
        ("a{x}", ["a{x}"], []),
        ("[[]", ["["], ["]"]),
        ("[]a]", ["]", "a"], []),
        ("[a&&b]+", ["a&b"], []),
        ("[+--]", [",", "-"], ["."]),
        (r"[\]\-]", ["]", "-"], []),
        ("(?i)ab", ["AB", "aB"], []),
        ("a+?b*", ["aab"], []),
        ("(?P<x>a)b(?:c)", ["abc"], []),
        ("a(?#no word)b", ["ab"], []),
        ("(?x) a b # c\n [ ]", ["ab "], ["ab"]),
        ("(?i)(?x) a\\s[^\\S]", ["A  "], ["A"]),
        ("(?x:a b # c\n)[ ] d#(?x:[# ])", ["ab  d# ", "ab  d##"], ["ab d# "]),
        ("(?x)(?-x: a)\u00a0b\u2028", [" a\u00a0b\u2028"], ["ab", " ab"]),
        (r"(?a)\d(?a:a)(?-i:b)", ["1ab"], ["1aB"]),
        (r"\0\01\012\1013\08", ["\0\x01\nA3\x008"], ["\x0001\x0012"]),
        (r"[\0\1\12\101]+", ["\0\x01\nA"], ["1", "2"]),
        (r"\x41\u00e9\t", ["A\u00e9\t"], []),
        ("(^a|b)c", ["ac", "bc"], []),
        ("a|", ["a", ""], []),
        ("[[:alpha:]]", ["b"], ["1"]),
    ],
)
def test_a_regex_is_a_full_match_with_pythons_meaning(pattern: str, yes: list[str], no: list[str]) -> None:
    for text in yes:
        assert accepts(pattern, text), text
        if "[[:" not in pattern:
            assert re.fullmatch(pattern, text), "the test itself"
    for text in no:
        assert not accepts(pattern, text), text


def test_a_regex_may_name_unicode_properties() -> None:
    """As patterns of JSON Schema do; Python's have none."""
    assert accepts(r"\p{Lu}[\p{Ll}\d]{2}\P{L}", "\u00c9\u00e91-")
    assert not accepts(r"\p{Lu}", "a") and accepts(r"\p{Script=Greek}+", "\u03b1\u03b2") and not accepts(r"\P{L}", "a")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)b", "look-ahead"),
        ("ab\\", "single backslash"),
        ("[ab\\", "single backslash"),
        (r"[\400]", "octal"),
        ("a(?i)b", "flags"),
        ("(a|(?x)b)", "flags"),
        ("(?)a", "flags"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back reference"),
        ("(?P<x>a)(?P=x)", "back reference"),
        (r"\bword", "word boundary"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("(a)?(?(1)b|c)", "conditional"),
        (r"\N{DIGIT ONE}", "by name"),
        ("[", "unclosed"),
        ("a{3,1}", "repetition"),
        ("*a", "repetition"),
        ("a^b", "regex"),
        ("(" * 5000, "regex"),
        ("a)", "regex"),
    ],
)
def test_what_no_engine_can_do_is_refused_by_name(pattern: str, words: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(words)):
        BACKEND.compile("regex", pattern)


_PIECES = st.sampled_from(
    [r"\d", r"\w", r"\s", r"\W", r"\D", r"\S", ".", "[a-c]", "[^a-c]", r"[^\w]", r"[^\s]", r"[\d_]", "a", "\u00e9", r"\.", "{", " ", "the"]
)  # fmt: skip
_REGEXES = st.recursive(
    _PIECES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["{0,2}", "?", "{2}", "{,3}", "{1,2}?"])).map(lambda p: f"(?:{p[0]}){p[1]}"),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_REGEXES, st.integers(0, 2**32))
def test_random_walks_through_random_regexes_match_them(pattern: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = BACKEND.compile("regex", pattern)
    out: list[int] = []
    while not state.is_finished:
        allowed = sorted(allowed_by(state))
        assert allowed, "a dead end"
        token = int(rng.choice(allowed))
        if token == EOS:
            break
        assert token < VOCABULARY.size and token not in VOCABULARY.special_ids
        assert state.accept(token)
        out.append(token)
        if len(out) > 60:
            return
    assert re.fullmatch(pattern, VOCABULARY.text_bytes(out).decode())


# --- other constraints --------------------------------------------------------------------------------------------------------


def generate(kind: str, text: str, seed: int, **more: object) -> Answer:
    harness = Harness(grammar=OPTIONS, check=False)
    req = make_req(f"{kind}{seed}", [1, 2, 3], 400, temperature=1.0, seed=seed, **{kind: text}, **more)
    return run_with_compiling(harness, [req])[0]


def run_with_compiling(harness: Harness, reqs: Sequence[object]) -> list[Answer]:
    """As Harness.run, giving the side threads time."""
    harness.put(*reqs)  # type: ignore[arg-type]
    deadline = time.monotonic() + 60
    while harness.scheduler._live and time.monotonic() < deadline:
        if not harness.step():
            time.sleep(0.001)
    assert not harness.scheduler._live, "the requests do not end"
    assert harness.scheduler.check_integrity() == []
    return [harness.answers[req.rid] for req in reqs]  # type: ignore[attr-defined]


@pytest.mark.parametrize("pattern", [CHARACTER, IP, r"(the|\u00e9\u00e9) [0-9]{3}", r"Yes|No"])
def test_the_tutorials_expressions(pattern: str) -> None:
    for seed in range(4):
        answer = generate("regex", pattern, seed, stop=("never",))
        assert answer.finish is not None and answer.finish.type == "stop"
        assert re.fullmatch(pattern, answer.text().decode()), answer.text()


def test_json_follows_its_schema_without_white_space() -> None:
    for seed in range(6):
        answer = generate("json_schema", json.dumps(SCHEMA), seed, constrained_json_whitespace_pattern="")
        text = answer.text().decode()
        value = json.loads(text)
        assert list(value) == ["name", "age", "tags", "ok"] and 0 <= value["age"] <= 150 and len(value["name"]) <= 8
        assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False) or "\\" in text


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"properties": {"a": {}}}, True),
        ({"type": "array", "items": {"properties": {"a": {}}}}, True),
        ({"$defs": {"x": {"properties": {"a": {}}}}, "anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}, True),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
        ({"properties": {"a": {}}, "minProperties": 2}, False),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, True),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, True),
        ({"allOf": [{"properties": {"a": {}}}, {"additionalProperties": {}}]}, False),
        ({"allOf": [{"properties": {"a": {}}}, {"required": ["b"]}]}, False),
        ({"type": "object"}, False),
        ({"enum": [{"properties": {"a": 1}}]}, False),
        ({"properties": {"properties": {"enum": [1]}}, "patternProperties": {"x": {}}}, False),
    ],
)
def test_objects_have_the_listed_properties_where_that_is_safe(schema: dict[str, object], closed: bool) -> None:
    before = json.dumps(schema)
    assert ('"additionalProperties": false' in json.dumps(close_objects(schema))) == closed
    assert json.dumps(schema) == before, "the schema given is left alone"


def test_models_cannot_invent_properties() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "required": ["a"]}
    for seed in range(8):
        answer = generate("json_schema", json.dumps(schema), seed)
        assert answer.finish is not None and answer.finish.type == "stop"
        assert set(json.loads(answer.text())) <= {"a", "b"}


def test_any_json_value() -> None:
    for seed in range(4):
        answer = generate("json_schema", "$$ANY$$", seed)
        if answer.finish is not None and answer.finish.type == "stop":
            json.loads(answer.text())
    assert generate("json_schema", "true", 1).finish is not None


def test_the_white_space_of_json_is_an_option() -> None:
    backend = LLGuidanceBackend(VOCABULARY, GrammarOptions(whitespace_pattern=r"[ ]{0,2}"))
    schema = '{"type":"object","properties":{"a":{"type":"null"}},"required":["a"],"additionalProperties":false}'
    spaced, usual = backend.compile("json_schema", schema), BACKEND.compile("json_schema", schema)
    assert all(spaced.accept(b) for b in b'{ "a" : null  }')
    assert not all(usual.accept(b) for b in b'{ "a" : null  ')


@pytest.mark.parametrize("text", ['root ::= "a" (", " "b"){1,3}', 'start: "a" (", " "b")~1..3', 'start: "a" (", " /b/){1,3}'])
def test_ebnf(text: str) -> None:
    answer = generate("ebnf", text, 1)
    if answer.finish is not None and answer.finish.type == "abort":
        assert "~" in text and answer.finish.status_code == 400
    else:
        assert re.fullmatch("a(, b){1,3}", answer.text().decode())


def test_structural_tags_let_text_be_free_and_calls_be_valid() -> None:
    tag = {
        "structures": [{"begin": "<f=x>", "schema": {"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"], "additionalProperties": False}, "end": "</f>"}],
        "triggers": ["<f="],
    }  # fmt: skip
    state = BACKEND.compile("structural_tag", json.dumps(tag))
    assert all(state.accept(b) for b in b"say <f=x>")
    assert allowed_by(state) & set(range(256)) == {ord("{")}
    assert all(state.accept(b) for b in b'{"n":12}</f> and on')
    assert EOS in allowed_by(state)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "EOF|Expecting|delimiter"),
        ("json_schema", "3", "JSON object"),
        ("json_schema", "false", "JSON object"),
        ("json_schema", '{"type":"foo"}', "Invalid type: foo"),
        ("json_schema", '{"not":{"pattern":"a"}}', "not"),
        ("json_schema", '{"type":"array","uniqueItems":true,"x-guidance":{"lenient":true}}', "uniqueItems"),
        ("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000, "nested deeper"),
        ("json_schema", '{"$ref":"http://example.com/a"}', "example.com"),
        ("ebnf", "root ::= foo", "foo"),
        ("ebnf", "", "root"),
        ("ebnf", "((((", "Expected name at line 1"),
        ("structural_tag", "[]", "structures"),
        ("structural_tag", '{"structures":[{"begin":"x"}],"triggers":["y"]}', "no trigger"),
        ("structural_tag", '{"structures":[{"begin":3}],"triggers":["y"]}', "begin"),
    ],
)
def test_bad_grammars_say_what_is_wrong(kind: str, text: str, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        BACKEND.compile(kind, text)


# --- in the scheduler ---------------------------------------------------------------------------------------------------------


def test_constrained_and_free_requests_share_steps() -> None:
    worker = ToyWorker(max_running=16)
    harness = Harness(worker, ScheduleOptions(test_retract_every=5), grammar=OPTIONS)
    patterns = [rf"x{{{n}}}[0-9a-f]{{4}}(the|ab)+" for n in range(1, 8)]
    reqs = [make_req(f"c{i}", [i], 60, True, 1.0, seed=i, regex=p) for i, p in enumerate(patterns)]
    reqs += [make_req(f"f{i}", [i, i], 30, ignore_eos=True) for i in range(5)]
    for pattern in patterns:
        wait_for(harness.scheduler._compiler, harness.scheduler._compiler.submit(("regex", pattern)))
    answers = run_with_compiling(harness, reqs)
    for pattern, answer in zip(patterns, answers, strict=False):
        finish = answer.finish
        assert finish is not None
        if finish.type == "stop":
            assert re.fullmatch(pattern, answer.text().decode())
    assert any(b.num_reqs > 8 for b in worker.batches)
    assert sum(a.last.num_retractions for a in answers) > 0
    alone = run_with_compiling(Harness(grammar=OPTIONS), [reqs[2]])
    assert alone[0].ids == answers[2].ids, "the place in the grammar survives retraction"


def test_a_grammar_that_ends_ends_the_request() -> None:
    answer = generate("regex", "abc", 1)
    assert answer.text() == b"abc" and answer.finish == FinishReason("stop", matched=answer.ids[-1])
    cut = run_with_compiling(Harness(grammar=OPTIONS), [make_req("a", [1], 2, regex="x{5}")])[0]
    assert cut.finish == FinishReason("length", length=2)


def test_the_end_of_text_waits_for_a_complete_output() -> None:
    for seed in range(5):
        answer = generate("regex", "(ab)+", seed, ignore_eos=False)
        assert re.fullmatch("(ab)+", answer.text().decode()) or answer.finish == FinishReason("length", length=400)


def test_a_minimum_holds_under_a_grammar_as_long_as_it_can() -> None:
    for seed in range(5):
        answer = generate("regex", "x*", seed, min_new_tokens=12)
        assert len(answer.ids) >= 12
        assert generate("regex", "x{1,3}", seed, min_new_tokens=12).text().startswith(b"x")


def test_thinking_is_free_and_the_answer_constrained() -> None:
    harness = Harness(grammar=OPTIONS, check=False)
    found = 0
    for seed in range(15):
        req = make_req(
            f"t{seed}", [seed], 900, seed=seed, temperature=1.0, regex="(yes|no)", grammar_after=(THINK_END,), ignore_eos=True
        )
        (answer,) = run_with_compiling(harness, [req])
        if THINK_END in answer.ids:
            at = answer.ids.index(THINK_END)
            after = VOCABULARY.text_bytes(answer.ids[at + 1 :])
            if answer.finish is not None and answer.finish.type == "stop":
                found += 1
                assert after in (b"yes", b"no")
    assert found > 1


def test_bad_grammars_end_their_request_only() -> None:
    harness = Harness(grammar=OPTIONS)
    reqs = [
        make_req("bad", [1], regex="["),
        make_req("good", [1], 20, regex="[ab]{3}"),
        make_req("stop", [1], stop_regex=("(",)),
    ]
    bad, good, stop = run_with_compiling(harness, reqs)
    assert bad.finish is not None and bad.finish.status_code == 400 and "unclosed" in str(bad.finish.message)
    assert len(good.text()) == 3
    assert stop.finish is not None and stop.finish.status_code == 400


def test_stop_expressions_in_the_scheduler() -> None:
    (answer,) = run_with_compiling(Harness(), [make_req("a", [1], 200, True, stop_regex=(r"[a-m]",), ignore_eos=True)])
    assert answer.finish == FinishReason("stop", matched="[a-m]")
    assert not re.search("[a-m]", answer.text().decode(errors="replace"))


def test_without_a_backend_constraints_are_refused() -> None:
    (answer,) = run_with_compiling(Harness(), [make_req("a", [1], regex="a")])
    assert answer.finish is not None and "without a grammar backend" in str(answer.finish.message)
    harness = Harness(vocabulary=None)
    (answer,) = harness.run(make_req("s", [1], stop=("a",)))
    assert answer.finish is not None and "without one" in str(answer.finish.message)
    assert create_backend(None, OPTIONS) is None
    if importlib.util.find_spec("xgrammar") is None:
        with pytest.raises(ConfigError, match="xgrammar"):
            create_backend(VOCABULARY, GrammarOptions(backend="xgrammar"))


# --- compiling ----------------------------------------------------------------------------------------------------------------


class SlowBackend:
    """Compiles when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.compiled: list[str] = []

    def prepare(self) -> None:
        return None

    def compile(self, kind: str, text: str) -> GrammarState:
        self.compiled.append(text)
        if "slow" in text:
            self.go.wait(30)
        if "panic" in text:
            raise KeyboardInterrupt("as an engine's panic does, past Exception")
        return BACKEND.compile(kind, text)

    def fill_masks(self, states: Sequence[GrammarState], out: UInt32Array) -> None:
        BACKEND.fill_masks(states, out)


def wait_for(compiler: GrammarCompiler, job: Job) -> None:
    deadline = time.monotonic() + 30
    while not compiler.poll(job) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert job.done


def test_a_text_is_compiled_once_and_remembered() -> None:
    backend = SlowBackend()
    compiler = GrammarCompiler(backend, GrammarOptions(cache_entries=2))
    slow = compiler.submit(("regex", "slow"))
    assert compiler.submit(("regex", "slow")) is slow and not compiler.poll(slow)
    quick = compiler.submit(("regex", "quick"))
    wait_for(compiler, quick)
    assert quick.value is not None and not compiler.poll(slow), "others pass a slow one"
    backend.go.set()
    wait_for(compiler, slow)
    assert backend.compiled == ["slow", "quick"]
    wait_for(compiler, compiler.submit(("regex", "third")))
    assert compiler.submit(("regex", "quick")) is quick, "the one used last is kept"
    wait_for(compiler, compiler.submit(("regex", "slow")))
    assert backend.compiled == ["slow", "quick", "third", "slow"] and len(compiler._cache) == 2
    compiler.close()


def test_limits_of_time_and_size() -> None:
    backend = SlowBackend()
    compiler = GrammarCompiler(backend, GrammarOptions(compile_timeout=0.01, max_bytes=100))
    job = compiler.submit(("regex", "slow"))
    wait_for(compiler, job)
    assert job.error is not None and "not compiled within 0.01 s" in str(job.error)
    backend.go.set()
    big = compiler.submit(("regex", "a" * 101))
    assert big.done and "101 bytes" in str(big.error)
    compiler.close()


def test_a_queue_of_slow_grammars_is_an_overload() -> None:
    backend = SlowBackend()
    compiler = GrammarCompiler(backend, GrammarOptions(compile_timeout=0.01))
    jobs = [compiler.submit(("regex", f"slow{i}")) for i in range(3)]
    wait_for(compiler, jobs[2])
    assert "too many" in str(jobs[2].error) and jobs[2].key not in compiler._cache
    backend.go.set()
    compiler.close()


def test_a_panic_of_the_engine_is_an_answer() -> None:
    compiler = GrammarCompiler(SlowBackend(), OPTIONS)
    job = compiler.submit(("regex", "panic"))
    wait_for(compiler, job)
    assert isinstance(job.error, RequestError) and "failed" in str(job.error)
    after = compiler.submit(("regex", "a"))
    wait_for(compiler, after)
    assert after.value is not None, "the thread lives on"
    regexes = compiler.submit((STOP_REGEX, "a+"))
    wait_for(compiler, regexes)
    assert regexes.value.pattern == "a+"
    compiler.close()


def test_aborting_while_the_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SlowBackend()
    monkeypatch.setattr("sglang.srt.scheduler.scheduler.create_backend", lambda vocabulary, options: backend)
    harness = Harness(grammar=OPTIONS)
    harness.put(make_req("a", [1], 5, regex="slow"), make_req("b", [1], 5, ignore_eos=True))
    for _ in range(10):
        harness.step()
    assert harness.answers["b"].finish is not None and len(harness.scheduler._inlet) == 1
    harness.put(AbortReq("a"))
    assert harness.answers["a"].finish is not None and harness.answers["a"].finish.type == "abort"
    backend.go.set()
    for _ in range(10):
        harness.step()
    assert not harness.scheduler._live and harness.scheduler.check_integrity() == []


# --- the engine's tokenizer ---------------------------------------------------------------------------------------------------


def test_masks_fit_the_model_whatever_the_tokenizers_size() -> None:
    state = BACKEND.compile("regex", "[ab]")
    for words in (8, 9, 10, 20):
        bits = np.full(words, 0xFFFFFFFF, dtype=np.uint32)
        state.fill_mask(bits)
        assert np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist() == [97, 98]


def test_states_are_independent_and_can_go_back() -> None:
    state = BACKEND.compile("regex", "ab[cd]")
    other = state.copy()
    assert state.accept(97) and state.accept(98)
    assert allowed_by(state) == {99, 100}
    assert state.rollback(1) and 98 in allowed_by(state)
    assert other.accept(97) and not state.is_finished
    assert state.forced_tokens() and VOCABULARY.text_bytes(state.forced_tokens()).startswith(b"b")
    assert not other.accept(122) and other.error is not None and not other.is_finished


def test_the_json_of_a_tokenizer_is_used_when_it_agrees() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"ab": 256, "abc": 257, "</s>": 258}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    plain = {c: i for i, c in enumerate(alphabet)}
    byte_of = {plain[c]: b for b, c in zip(range(256), byte_alphabet(), strict=True)}
    table = [bytes([byte_of[i]]) for i in range(256)] + [b"ab", b"abc", b"</s>"]
    good = Vocabulary(tuple(table), frozenset({258}), frozenset({258}), None, tokenizer.to_str())
    swapped = Vocabulary((*table[:256], b"abc", b"ab", b"</s>"), frozenset({258}), frozenset({258}), None, tokenizer.to_str())
    broken = Vocabulary(tuple(table), frozenset({258}), frozenset({258}), None, "{}")
    for vocabulary, forced in [(good, [257]), (swapped, [256]), (broken, [257])]:
        state = LLGuidanceBackend(vocabulary, OPTIONS).compile("regex", "abc")
        assert state.forced_tokens() == forced


def byte_alphabet() -> list[str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def test_a_model_without_an_end_cannot_be_constrained() -> None:
    backend = LLGuidanceBackend(Vocabulary((b"a",), frozenset(), frozenset()), OPTIONS)
    with pytest.raises(GrammarError, match="no end-of-text"):
        backend.compile("regex", "a")


def test_rewriting_keeps_what_needs_no_change() -> None:
    for pattern in (r"a+b*?[c-e]{2,3}(x|y)\.\(\n", "\u00e9\u4e00", r"\\d"):
        assert to_engine_regex(pattern) == pattern


# --- limits -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "x{1,100000}"),
        ("regex", "(x+x+)+y"),
        ("regex", "((a{1,100}){1,100}){1,100}"),
        ("regex", r"(\w+\s?){1,5000}"),
        ("regex", "(.{0,50}(cat|dog)){10}"),
        ("regex", "(?:a?){500}a{500}"),
        ("json_schema", json.dumps({"type": "integer", "multipleOf": 7919, "minimum": 123456789, "maximum": 9876543210123})),
        ("json_schema", json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}})),
        ("json_schema", json.dumps({"allOf": [{"anyOf": [{"const": i} for i in range(j, j + 9)]} for j in range(9)]})),
        ("json_schema", json.dumps({"const": "x" * 200_000})),
        ("json_schema", json.dumps({"$defs": {"t": {"anyOf": [{"items": {"$ref": "#/$defs/t"}}, {"$ref": "#/$defs/t"}]}}, "$ref": "#/$defs/t"})),
        ("ebnf", 'root ::= a\na ::= a a a | "x" | ""'),
        ("ebnf", "root ::= " + "r? " * 3000 + '\nr ::= "x"'),
    ],
)  # fmt: skip
def test_what_would_explode_ends_or_is_refused(kind: str, text: str) -> None:
    """The bound is on processor time of the thread, far above what is seen, far below what would stall anybody for long."""
    began = time.thread_time()
    try:
        list(try_grammar(BACKEND, kind, text))
    except GrammarError as error:
        assert str(error).startswith(kind) and len(str(error)) < 1200
    assert time.thread_time() - began < 20


def test_long_forced_stretches_do_not_jump() -> None:
    state = BACKEND.compile("regex", "[ab]x{1500}")
    assert state.accept(97) and state.forced_tokens() == []
    assert allowed_by(state) == {ord("x")}, "they are sampled, from masks that leave one token"
