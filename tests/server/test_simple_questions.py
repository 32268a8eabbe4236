"""The default model's sampling defaults, by simple questions that were written before the defaults were chosen: as many right answers
as with greedy decoding, but one, and few that end at the length limit.

    scripts/test .venv-test/bin -m slow tests/server/test_simple_questions.py
"""

from __future__ import annotations

import httpx
import pytest

from benchmarks.questions import ask, is_right, load, terminal_system
from sglang.srt.checkpoint.resolve import ALIASES
from sglang.srt.config import DEFAULT_MODEL
from tests.conftest import RunningServer

GREEDY = {"temperature": 0}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It is Paris.", True), ("PARIS!", True), ("Parisian", False), ("It is 14.", False), ("2 + 2 = 4", True), ("", False)],
)
def test_an_accepted_word_stands_for_itself(answer: str, right: bool) -> None:
    assert is_right(answer, ["Paris", "4"]) is right


def test_the_system_message_of_the_terminal_is_that_of_the_alias(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert terminal_system(client) == [{"role": "system", "content": ALIASES[DEFAULT_MODEL].system}]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("in_terminal", [True, False])
def test_the_defaults_are_as_good_as_greedy_decoding(server: RunningServer, name: str, in_terminal: bool) -> None:
    with httpx.Client(base_url=server.url, timeout=600, trust_env=False) as client:
        system, questions = terminal_system(client) if in_terminal else [], load(name)
        greedy = [ask(client, system, *each, GREEDY) for each in questions]
        usual = [ask(client, system, *each, {"seed": 11}) for each in questions]
    assert len(questions) == 24
    assert sum(one.right for one in usual) >= sum(one.right for one in greedy) - 1
    assert sum(one.cut for one in usual) <= 2
