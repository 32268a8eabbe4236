"""Token healing: the end of the prompt is generated again as part of a longer token, and is not part of the output."""

from __future__ import annotations

import json

import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.messages import TokenOut
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from sglang.srt.server.tokenization.healing import Healer
from tests.scheduler.test_backends import backend_of, both, ends_after
from tests.scheduler.test_grammar import run_with_compiling
from tests.scheduler.toy import THINK_END, VOCABULARY, Answer, Harness, make_req


@pytest.mark.parametrize(
    ("text", "kept", "taken"),
    [(b"x t", b"x ", "t"), (b"x th", b"x ", "th"), (b'{"', b"{", '"'), (b"abc", b"ab", "c"), (b"xq", b"xq", ""), (b"t", b"t", ""), (b"x,", b"x", ",")],
)  # fmt: skip
def test_tokens_that_could_go_on_are_taken_back(text: bytes, kept: bytes, taken: str) -> None:
    ids, healed = Healer(VOCABULARY).heal(list(text))
    if taken and not any(t.startswith(taken.encode()) and len(t) > len(taken) for t in VOCABULARY.token_bytes):
        kept, taken = text, ""
    assert (bytes(ids), healed) == (kept, taken)


def test_special_tokens_and_halves_of_characters_stay() -> None:
    healer = Healer(VOCABULARY)
    assert healer.heal([65, THINK_END]) == ([65, THINK_END], "")
    assert healer.heal([65, 0xC3]) == ([65, 0xC3], "")


def shown(answer: Answer, healed: str) -> str:
    detokenizer = Detokenizer(VOCABULARY, True, len(healed.encode()))
    return "".join(detokenizer.feed(out) for out in answer.outs if isinstance(out, TokenOut))


@pytest.mark.parametrize("stream", [False, True])
def test_the_output_begins_with_what_was_taken_back(stream: bool) -> None:
    for seed in range(6):
        req = make_req("a", [1, 2], 30, stream, temperature=1.0, seed=seed, healed="th", stop=("th",), ignore_eos=True)
        (answer,) = run_with_compiling(Harness(grammar=GrammarOptions()), [req])
        whole = VOCABULARY.text_bytes(answer.ids)
        assert whole.startswith(b"th") and len(answer.ids) > 1
        rest = whole[2 : len(whole) - answer.last.trim_bytes].decode(errors="replace")
        assert shown(answer, "th") == rest and "th" not in rest, "stop strings do not see the prompt's end"


def test_what_follows_is_as_free_where_the_prompts_end_is_forced() -> None:
    """Under a mask there would be no special tokens."""
    reqs = [
        make_req(f"r{i}", [i], 3, temperature=1.0, seed=i, healed="q", ignore_eos=True, skip_special_tokens=False)
        for i in range(120)
    ]
    answers = [run_with_compiling(Harness(grammar=GrammarOptions(jump_forward=jump)), reqs) for jump in (True, False)]
    jumped, stepped = [[answer.ids for answer in each] for each in answers]
    assert jumped == stepped
    assert any(ids[1] in VOCABULARY.special_ids for ids in stepped)


def test_it_goes_together_with_a_constraint() -> None:
    req = make_req("a", [1], 30, healed="ab", regex="c(x|y)")
    (answer,) = run_with_compiling(Harness(grammar=GrammarOptions()), [req])
    assert VOCABULARY.text_bytes(answer.ids)[:3] == b"abc" and shown(answer, "ab") in ("cx", "cy")


@both
@pytest.mark.parametrize(
    ("kind", "text", "rest"),
    [
        ("regex", "[0-9]+", "12"),
        ("json_schema", json.dumps({"type": "object", "properties": {"n": {"type": "null"}}, "required": ["n"]}), '{"n":null}'),
        ("ebnf", 'root ::= "x" item\nitem ::= [ab]', "xb"),
    ],
)
def test_engines_say_the_prefix_first(name: str, kind: str, text: str, rest: str) -> None:
    state = backend_of(name).compile(kind, text, 'a "\\')
    assert ends_after(state.copy(), 'a "\\' + rest) and not ends_after(state, rest)
