"""Streams of tokens become streams of whole characters that join to the very text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.messages import FinishReason, TokenOut
from sglang.srt.server.tokenization.detokenizer import Detokenizer
from sglang.srt.vocabulary import Vocabulary

EMOJI = "🙂".encode()
TABLE = (
    b"<eos>", b"a", b" b", "é".encode(), EMOJI[:1], EMOJI[1:3], EMOJI[3:], b"\xe2\x82", b"\xff", b"\xc3", b"STO", b"P", b"", b"\n",
)  # fmt: skip
VOCABULARY = Vocabulary(TABLE, frozenset({0}), frozenset({0}))
END = FinishReason("length", length=1)

ids = st.lists(st.integers(0, len(TABLE) + 1), max_size=40)


def split(sequence: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted({c for c in cuts if c < len(sequence)}), len(sequence)]
    return [sequence[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@settings(max_examples=500, deadline=None)
@given(
    ids, st.lists(st.integers(0, 40)), st.lists(st.integers(0, 30), min_size=41, max_size=41), st.integers(0, 20), st.booleans()
)
def test_pieces_join_to_the_whole(sequence: list[int], cuts: list[int], holds: list[int], trim: int, skip: bool) -> None:
    """Held bytes come out later, or are trimmed; a character is never cut."""
    pieces = split(sequence, cuts)
    detokenizer = Detokenizer(VOCABULARY, skip)
    sent: list[str] = []
    released = total = 0
    for part, hold in zip(pieces[:-1], holds, strict=False):
        total += len(VOCABULARY.text_bytes(part, skip))
        hold = min(hold, total - released)
        released = total - hold
        sent.append(detokenizer.feed(TokenOut("r", part, hold_bytes=hold)))
    whole = VOCABULARY.text_bytes(sequence, skip)
    trim = min(trim, len(whole) - released)  # only what was held back is ever trimmed
    sent.append(detokenizer.feed(TokenOut("r", pieces[-1], END, trim_bytes=trim)))
    assert "".join(sent) == whole[: len(whole) - trim].decode(errors="replace")
    once = Detokenizer(VOCABULARY, skip).feed(TokenOut("r", sequence, END, trim_bytes=trim))
    assert once == "".join(sent)


def test_half_a_character_waits() -> None:
    detokenizer = Detokenizer(VOCABULARY, True)
    assert [detokenizer.feed(TokenOut("r", [i])) for i in (1, 4, 5)] == ["a", "", ""]
    assert detokenizer.feed(TokenOut("r", [6])) == "🙂"
    assert detokenizer.feed(TokenOut("r", [9], END)) == "\ufffd"


def test_a_stop_string_is_never_shown() -> None:
    detokenizer = Detokenizer(VOCABULARY, True)
    assert detokenizer.feed(TokenOut("r", [1, 10], hold_bytes=3)) == "a"
    assert detokenizer.feed(TokenOut("r", [11], FinishReason("stop", matched="STOP"), trim_bytes=4)) == ""


def test_special_tokens_show_on_request() -> None:
    for skip, text in ((True, "a"), (False, "a<eos>")):
        assert Detokenizer(VOCABULARY, skip).feed(TokenOut("r", [1, 0], END)) == text


def test_what_is_cut_off_is_no_more_than_there_is() -> None:
    """A stop may begin in what is not shown, such as the end of the prompt."""
    detokenizer = Detokenizer(VOCABULARY, True, drop=2)
    assert detokenizer.feed(TokenOut("r", [10, 11], FinishReason("stop", matched="STOP"), trim_bytes=4)) == ""


def test_ids_outside_the_vocabulary_show_nothing() -> None:
    for outside in (-1, len(TABLE), 10**6):
        assert Detokenizer(VOCABULARY, True).feed(TokenOut("r", [outside])) == ""
        assert Detokenizer(VOCABULARY, True).feed(TokenOut("r", [1, outside, 2])) == "a b"


@given(ids, st.lists(st.integers(0, 40)), st.integers(0, 12))
def test_what_belongs_to_the_prompt_is_not_shown_however_it_is_cut(sequence: list[int], cuts: list[int], drop: int) -> None:
    detokenizer = Detokenizer(VOCABULARY, True, drop)
    shown = "".join(detokenizer.feed(TokenOut("r", part)) for part in split(sequence, cuts))
    shown += detokenizer.feed(TokenOut("r", [], END))
    assert shown == VOCABULARY.text_bytes(sequence)[drop:].decode(errors="replace")
