"""`spaces_between_special_tokens`: a blank between a special token and what is beside it, where special tokens are shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.messages import TokenOut
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.finish import FinishChecker
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from sglang.srt.vocabulary import Vocabulary
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

TABLE = (b"</s>", b"<b>", b"<c>", b"x", b" y", "é".encode()[:1], "é".encode()[1:], b"<", b"STOP")
VOCABULARY = Vocabulary(TABLE, frozenset({0, 1, 2}), frozenset({0}))
SHOWN = {"skip_special_tokens": False, "spaces_between_special_tokens": True}


def shown(ids: list[int], spaced: bool) -> bytes:
    """Special tokens and the runs of others between them, joined."""
    parts: list[bytes] = []
    was_special = True
    for i in ids:
        is_special = i in VOCABULARY.special_ids
        if parts and not is_special and not was_special:
            parts[-1] += TABLE[i]
        else:
            parts.append(TABLE[i])
        was_special = is_special
    return (b" " if spaced else b"").join(parts)


def run(ids: list[int], params: SamplingParams, cuts: list[int], resume_at: int = 0) -> str:
    """The text that a client gets: the scheduler's half and the server's."""
    checker = FinishChecker(params, 1000, VOCABULARY)
    detokenizer = Detokenizer(VOCABULARY, params.skip_special_tokens, 0, params.spaces_specials)
    text, waiting = "", []
    for at, i in enumerate(ids):
        waiting.append(i)
        if at < resume_at:
            checker.note_sent(i)
            if at + 1 == resume_at:
                checker.go_on(resume_at, 0)
                text += detokenizer.feed(TokenOut("r", waiting))
                waiting = []
            continue
        reason = checker.check(i, at + 1)
        if reason is not None or at in cuts or at + 1 == len(ids):
            text += detokenizer.feed(TokenOut("r", waiting, reason, checker.hold_bytes, checker.trim_bytes))
            waiting = []
        if reason is not None:
            return text
    return text + detokenizer.feed(TokenOut("r", [], checker._check_length(1000)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 7), max_size=12), st.lists(st.integers(0, 12)), st.booleans(), st.integers(0, 6))
def test_blanks_stand_around_special_tokens(ids: list[int], cuts: list[int], spaced: bool, resume_at: int) -> None:
    params = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=spaced)
    assert run(ids, params, cuts, min(resume_at, len(ids))) == shown(ids, spaced).decode(errors="replace")


@pytest.mark.parametrize(
    ("params", "ids", "text"),
    [
        ({}, [3, 1, 3, 0], "x <b> x"),
        ({"no_stop_trim": True}, [3, 1, 3, 0], "x <b> x </s>"),
        ({"stop": ("STOP",)}, [3, 1, 8], "x <b> "),
        ({"stop": (" <b>",)}, [3, 1, 3], "x"),
        ({"stop": ("<c>",)}, [3, 2], "x"),
        ({"stop_token_ids": (4,)}, [1, 3, 4], "<b> x"),
        ({"spaces_between_special_tokens": False}, [3, 1, 3, 0], "x<b>x"),
        ({"spaces_between_special_tokens": None}, [3, 1, 3, 0], "x<b>x"),
        ({"skip_special_tokens": True}, [3, 1, 3, 0], "xx"),
    ],
)
def test_what_stops_an_answer_is_cut_with_its_blank(params: dict[str, Any], ids: list[int], text: str) -> None:
    assert run(ids, SamplingParams(**(SHOWN | params)), []) == text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=10),
    st.lists(st.sampled_from((" <b>", "x <b> ", "<c> x", " <b> <c>", "x")), min_size=1, max_size=2, unique=True),
    st.data(),
)
def test_a_resumed_request_sees_the_same_blanks(ids: list[int], stops: list[str], data: st.DataObject) -> None:
    lived, resumed = (FinishChecker(SamplingParams(**SHOWN, stop=tuple(stops)), 1000, VOCABULARY) for _ in range(2))
    num_sent = data.draw(st.integers(1, len(ids)))
    for n, i in enumerate(ids[:num_sent], 1):
        resumed.note_sent(i)
        if lived.check(i, n) is not None:
            return
    assert resumed.go_on(num_sent, lived.hold_bytes) is None
    for n, i in enumerate(ids[num_sent:], num_sent + 1):
        reason = lived.check(i, n)
        assert resumed.check(i, n) == reason
        assert (resumed.hold_bytes, resumed.trim_bytes) == (lived.hold_bytes, lived.trim_bytes)
        if reason is not None:
            return


@pytest.mark.parametrize(("given_", "text"), [({}, "a<|im_start|>b"), (SHOWN, "a <|im_start|> b")])
async def test_requests_may_ask_for_it(make_stand: MakeStand, given_: dict[str, Any], text: str) -> None:
    stand: Stand = make_stand()
    tokenizer = stand.manager.need_tokenizer()
    ids = [*tokenizer.encode("a", False), *tokenizer.encode("<|im_start|>", False), *tokenizer.encode("b", False)]
    stand.scheduler.next_of = lambda req, i: ids[i]
    how = {"skip_special_tokens": False, **given_}
    async with client_of(stand) as client:
        native = {"text": "x", "sampling_params": {"max_new_tokens": len(ids), **how}}
        assert (await client.post("/generate", json=native)).json()["text"] == text
        body = {"prompt": "x", "max_tokens": len(ids), **how}
        assert (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"] == text
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": len(ids), **how}
        assert (await client.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]["content"] == text


async def test_marks_that_only_the_parsers_see_stay_as_they_are(make_stand: MakeStand) -> None:
    stand = make_stand(reasoning_parser="<|endoftext|>,<|im_start|>")
    async with client_of(stand) as client:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "spaces_between_special_tokens": True}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    (request,) = stand.scheduler.received
    assert not request.sampling.spaces_specials  # type: ignore[union-attr]
