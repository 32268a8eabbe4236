"""Values that outputs copy from prompts: found by what stood around them, in the prompt's own tokens, and never trusted for long
when they are wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.scheduler.speculation.proposers.quotes import BEGUN, MAX_LEAD, MAX_TRAIL, MAX_VALUE, Quotes, Quoting, Source
from tests.scheduler.toy import VOCABULARY

ABC = VOCABULARY.token_bytes.index(b"abc")
OPEN, CLOSE = VOCABULARY.token_bytes.index(b'":'), VOCABULARY.token_bytes.index(b'",')
KEY = list(b'{"name')


def encode(text: str) -> list[int]:
    return list(text.encode())


def quoting(quotes: Quotes, prompt: str | list[int]) -> Quoting:
    return Quoting(quotes, encode(prompt) if isinstance(prompt, str) else prompt, VOCABULARY, encode)


def prompt(name: str) -> str:
    return f"Describe a person like {name}, please."


def say(quotes: Quotes, name: str, value: str | None = None) -> None:
    """A request whose output has the name as its value, or another."""
    drawn = [OPEN, ord('"'), *encode(value or name), CLOSE]
    quoting(quotes, prompt(name)).note(KEY + drawn, len(drawn))


def test_what_was_copied_twice_is_expected_in_the_next_prompt() -> None:
    quotes = Quotes()
    assert not quoting(quotes, prompt("Bo")).begin(KEY).ids
    say(quotes, "Alice")
    assert quoting(quotes, prompt("Bo")).begin(KEY).trust == 0.0, "once is no rule"
    say(quotes, "Bo")
    quote = quoting(quotes, prompt("Chen")).begin(KEY)
    assert 0.5 < quote.trust < 0.8
    assert quote.ids == [OPEN, ord('"'), *encode("Chen"), CLOSE], "with the quotation marks, which were drawn as well"


def test_tokens_around_a_value_that_are_drawn_are_part_of_it() -> None:
    quotes = Quotes()
    for name in ("Alice", "Bo", "Chen"):
        drawn = encode(f": {name},")
        quoting(quotes, prompt(name) + "x").note(KEY + drawn, len(drawn))
    quote = quoting(quotes, prompt("Dana") + "x").begin(KEY)
    assert bytes(quote.ids) == b": Dana,"
    for i, byte in enumerate(b": Dana,"):
        assert quote.ids[0] == byte and (quote.next_trust < 1.0) == (i == 1), "the value's first token is what may be wrong"
        quote = quote.after(byte)
    assert not quote.ids and not quoting(quotes, prompt("Dana") + "x").begin(KEY).after(ord("?")).ids


def test_an_output_in_the_middle_of_a_value_goes_on_with_it() -> None:
    quotes = Quotes()
    for name in ("Alice", "Bo"):
        quoting(quotes, prompt(name)).note(KEY + encode(name), len(name))
    found = quoting(quotes, prompt("Chen"))
    assert bytes(found.go_on(KEY + encode("Ch"), 2).ids) == b"en"
    assert not found.go_on(KEY + encode("Cl"), 2).ids
    assert bytes(found.go_on(KEY, 0).ids) == b"Chen"
    assert found.go_on(KEY, 0).trust < BEGUN <= found.go_on(KEY + encode("Ch"), 2).trust, "who begins to copy goes on"


def test_values_are_expected_as_the_model_spells_them() -> None:
    quotes = Quotes()
    for name in ("Alice", "Bo", "Chen"):
        say(quotes, name)
    trusted = quoting(quotes, prompt("Dabc")).begin(KEY)
    assert trusted.ids == [OPEN, ord('"'), *encode("Dabc"), CLOSE]
    spelled = [OPEN, ord('"'), ord("D"), ABC, CLOSE]
    quoting(quotes, prompt("Dabc")).note(KEY + spelled, len(spelled))
    again = quoting(quotes, prompt("Dabc")).begin(KEY)
    assert again.ids == spelled and again.trust > trusted.trust, "the same text is no miss"
    assert quoting(quotes, prompt("Eabc")).begin(KEY).ids == [OPEN, ord('"'), *encode("Eabc"), CLOSE]


def test_the_prompts_own_tokens_are_expected_and_of_cut_ones_the_rest() -> None:
    quotes = Quotes()
    for value in ("xxabc", "yabc"):
        ids = [*encode("of "), *encode(value[:-3]), ABC, *encode("; ")]
        quoting(quotes, [1, *ids]).note(KEY + [*encode(value[:-3]), ABC], len(value) - 2)
    record = quotes.get(KEY)
    assert record is not None and record.source.after == b";"
    whole = quoting(quotes, [1, *encode("of "), ABC, ABC, *encode(";")]).begin(KEY)
    assert whole.ids == [ABC, ABC]
    the = VOCABULARY.token_bytes.index(b" a")  # the value begins inside it
    assert quoting(quotes, [1, *encode("of"), the, *encode("b;")]).begin(KEY).ids == encode("ab")


def test_a_rule_that_is_wrong_is_given_up_for_another() -> None:
    quotes = Quotes()
    for name in ("Alice", "Bo", "Chen", "Dana"):
        say(quotes, name)
    trusted = quoting(quotes, prompt("Eve")).begin(KEY).trust
    say(quotes, "Eve", "nobody")
    less = quoting(quotes, prompt("Fay")).begin(KEY).trust
    assert less < trusted
    for _ in range(12):
        say(quotes, "Eve", "nobody")
    assert quoting(quotes, prompt("Fay")).begin(KEY).trust == 0.0


def test_nothing_is_expected_of_a_prompt_without_the_words_around() -> None:
    quotes = Quotes()
    for name in ("Alice", "Bo", "Chen"):
        say(quotes, name)
    for other in ("", "a person like ", "Something else altogether, please.", "a person like " + "x" * 200 + ","):
        assert not quoting(quotes, other).begin(KEY).ids


TEXT = st.text(alphabet='ab ,:"', max_size=40)


@given(st.lists(st.tuples(TEXT, st.text(alphabet='ab ,:"', min_size=1, max_size=8)), max_size=8), TEXT)
def test_what_is_expected_is_text_of_the_prompt(seen: list[tuple[str, str]], last: str) -> None:
    quotes = Quotes()
    for text, value in seen:
        ids = encode(value)
        quoting(quotes, text).note(KEY + ids, len(ids))
        record = quotes.get(KEY)
        assert record is None or 0 <= record.trust < 1
    quote = quoting(quotes, last).begin(KEY)
    assert len(quote.ids) <= MAX_VALUE + MAX_LEAD + MAX_TRAIL
    if quote.ids:
        record = quotes.get(KEY)
        assert record is not None
        source: Source = record.source
        value = bytes(quote.ids)[len(source.lead) : len(quote.ids) - len(source.trail)]
        assert source.before + value + source.after in last.encode()
