"""The tutorial's code cells, verbatim, against a server that the cells themselves start."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
MODEL_OF_THE_DOCUMENT = "Qwen/Qwen2.5-7B-Instruct"
MODEL = "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not here ({SEEDS})"),
    pytest.mark.timeout(600),
]


def load_cells() -> dict[int, str]:
    spec = importlib.util.spec_from_file_location("tutorial_cells", SEEDS / "tutorial_cells.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cells: dict[int, str] = module.cells()
    return cells


@dataclass
class Cell:
    """What one cell printed and the names as it left them."""

    out: str
    err: str
    names: dict[str, Any]


@pytest.fixture(scope="module")
def cells() -> Iterator[dict[int, Cell]]:
    """Cells 1 to 13, run in order in one namespace."""
    code = load_cells()
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    done: dict[int, Cell] = {}
    try:
        for number in range(1, 14):
            text = code[number].replace(MODEL_OF_THE_DOCUMENT, MODEL)
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                exec(compile(text, f"<cell {number}>", "exec", dont_inherit=True), names)
            done[number] = Cell(out.getvalue(), err.getvalue(), dict(names))
        yield done
    finally:
        process = names.get("server_process")
        if isinstance(process, subprocess.Popen) and process.poll() is None:
            names["terminate_process"](process)
        names["set_default_backend"](None) if "set_default_backend" in names else None


def test_the_server_starts_and_says_where(cells: dict[int, Cell]) -> None:
    port = cells[1].names["port"]
    assert cells[1].out == f"Server started on http://localhost:{port}\n"
    assert cells[2].out == ""


def test_a_question_is_answered(cells: dict[int, Cell]) -> None:
    state = cells[4].names["state"]
    assert cells[4].out == state["answer"] + "\n"
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant"]
    assert 1 <= state.get_meta_info("answer")["completion_tokens"] <= 512


def test_a_dialog_has_two_answers(cells: dict[int, Cell]) -> None:
    state = cells[5].names["state"]
    assert cells[5].out == f"{state['first_answer']}\n{state['second_answer']}\n"
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    # The second turn finds the first prompt in the cache. The answer is sampled: its text may have other tokens when
    # it is read again, and its first may merge with the prompt's last.
    meta = state.get_meta_info("second_answer")
    assert meta["cached_tokens"] >= state.get_meta_info("first_answer")["prompt_tokens"] - 1
    assert state.ret_value is state


def test_the_tool_is_one_of_the_choices(cells: dict[int, Cell]) -> None:
    # the cell prints state["expression"], which exists only when the calculator was chosen
    state = cells[6].names["state"]
    assert state["tool"] in ("calculator", "search engine")
    assert f"I need to use a {state['tool']}. " in state.text()
    assert cells[6].out.startswith(state["tool"] + "\n")
    scores = state.get_meta_info("tool")["normalized_prompt_logprobs"]
    assert len(scores) == 2 and scores.index(max(scores)) == ["calculator", "search engine"].index(state["tool"])


def test_forks_are_summarized(cells: dict[int, Cell]) -> None:
    state = cells[7].names["state"]
    assert cells[7].out == state["summary"] + "\n"
    text = state.text()
    assert text.index("Tip 1:") < text.index("Tip 2:") < text.rindex("To summarize")


def test_the_address_matches_its_regex(cells: dict[int, Cell]) -> None:
    answer = cells[8].names["state"]["answer"]
    assert re.fullmatch(r"((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)", answer)


def test_the_character_has_its_keys(cells: dict[int, Cell]) -> None:
    text = cells[9].names["state"]["json_output"]
    assert re.fullmatch(cells[9].names["character_regex"], text)
    # the expression allows line ends in strings and "12." as a length, which JSON does not: quote the length
    character = json.loads(re.sub(r'"length": ([0-9.]+)', r'"length": "\1"', text), strict=False)
    assert list(character) == ["name", "house", "blood status", "occupation", "wand", "alive", "patronus", "bogart"]
    assert list(character["wand"]) == ["wood", "core", "length"]


def test_the_batch_is_in_order_with_a_progress_bar(cells: dict[int, Cell]) -> None:
    states = cells[10].names["states"]
    assert cells[10].out == "".join(f"Answer {i + 1}: {state['answer']}\n" for i, state in enumerate(states))
    for state, country in zip(states, ("United Kingdom", "France", "Japan"), strict=True):
        assert country in state.messages()[1]["content"]
        assert "\n" not in state["answer"]
    assert "3/3" in cells[10].err and "100%" in cells[10].err


def test_the_stream_joins_to_the_text(cells: dict[int, Cell]) -> None:
    state = cells[11].names["state"]
    assert cells[11].out == state.text()
    first, rest = cells[11].out.split("What is the capital of France?", 1)
    assert first.startswith("<|im_start|>system\n") and state["answer"] in rest


def test_the_complex_prompt_is_answered(cells: dict[int, Cell]) -> None:
    state = cells[12].names["state"]
    assert cells[12].out == state["answer"] + "\n"
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant"]
    assert state.messages()[2]["content"] == "Answer: " + state["answer"]


def test_the_server_is_gone(cells: dict[int, Cell]) -> None:
    assert cells[13].names["server_process"].poll() is not None
