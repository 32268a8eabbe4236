"""A real server of models with recurrent layers: chats, several samples, aborted and constrained requests find states of earlier ones, and
answers are the same bits as from a cache that is empty."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sglang.srt.scheduler.cache.disk.records import read_form
from sglang.srt.scheduler.cache.disk.segments import Segment
from tests.conftest import RunningServer, start_server
from tests.model.dense_families import save_family
from tests.server.models import CHATML, train_byte_level
from tests.server.test_prefix_disk import kill

pytest.importorskip("torch")
SIZES = {"vocab_size": 600, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}


def save(folder: Path, family: str) -> None:
    save_family(folder, family, **SIZES)
    train_byte_level(600).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}))


@pytest.fixture(scope="module", params=["lfm2", "qwen3_5", "falcon_h1"])
def recurrent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp(request.param)
    save(folder, request.param)
    server = start_server(folder / "log", "--random-seed", "1", "--max-total-tokens", "4096", model=str(folder))
    yield server
    server.process.terminate()
    server.process.wait(30)


def post(url: str, path: str, **body: Any) -> dict[str, Any]:
    reply = httpx.post(url + path, json=body, timeout=300, trust_env=False)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def flush(url: str) -> None:
    """May have to wait for a moment: the last request has just ended."""
    while httpx.post(f"{url}/flush_cache", timeout=60, trust_env=False).status_code != 200:
        pass


def chat(url: str, messages: list[dict[str, str]], **more: Any) -> tuple[str, int, int]:
    """The answer, and how many tokens of the prompt were found and there."""
    answer = post(url, "/v1/chat/completions", messages=messages, max_tokens=12, temperature=0, **more)
    usage = answer["usage"]
    found = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return answer["choices"][0]["message"]["content"] or "", found, usage["prompt_tokens"]


def test_a_chat_computes_one_turn_at_most(recurrent: RunningServer) -> None:
    messages = [{"role": "system", "content": "You are a calculator. " * 8}]
    before, previous, answers = 0, 0, []
    for turn in range(5):
        messages.append({"role": "user", "content": f"What is {turn} and {turn + 1}? Say it in many words, please."})
        answer, found, length = chat(recurrent.url, messages)
        assert found >= before, "the turns before the last are not computed again"
        before, previous = previous, length
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer})
    flush(recurrent.url)
    for turn in reversed(range(5)):
        assert chat(recurrent.url, messages[: 2 * turn + 2])[0] == answers[turn], "from an empty cache, or another one"


def test_many_requests_at_once_answer_as_alone(recurrent: RunningServer) -> None:
    """Long prompts in chunks beside short ones, some aborted by their clients, some under grammars."""
    url = recurrent.url
    shared = "Paris is the capital city of France; " * 12
    bodies: list[dict[str, Any]] = [
        {"text": shared[: 40 * i] + f" {i}", "sampling_params": {"temperature": 0, "max_new_tokens": 5 + i, **extra}}
        for i in range(1, 9)
        for extra in ({}, {"regex": "[a-c]{4}(x|yz){1,9}"}, {"json_schema": '{"type":"array","items":{"type":"integer"}}'})
    ]
    alone = []
    for body in bodies:
        alone.append(post(url, "/generate", **body)["text"])
        if len(alone) % 7 == 0:
            flush(url)
    together: dict[int, str] = {}

    def ask(i: int) -> None:
        together[i] = post(url, "/generate", **bodies[i])["text"]

    def leave() -> None:
        with httpx.stream("POST", f"{url}/generate", json=bodies[-3] | {"stream": True}, timeout=60, trust_env=False) as reply:
            next(reply.iter_bytes())

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    threads += [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert [together[i] for i in range(len(bodies))] == alone


def test_samples_and_what_is_not_supported(recurrent: RunningServer, tmp_path: Path) -> None:
    prompt = "The quick brown fox jumps over the lazy dog, again. " * 6
    answer = post(recurrent.url, "/generate", text=prompt, sampling_params={"n": 3, "temperature": 0.9, "max_new_tokens": 6})
    found = [each["meta_info"]["cached_tokens"] for each in answer]  # type: ignore[call-overload]
    assert sorted(found)[1:] == [answer[0]["meta_info"]["prompt_tokens"] - 1] * 2  # type: ignore[call-overload, index]
    info = httpx.get(f"{recurrent.url}/get_server_info", timeout=60, trust_env=False).json()
    assert info["model"]["state_slots"] >= 4 and info["model"]["state_bytes"] > 0


# --- on disk --------------------------------------------------------------------------------------------------------------------

PROMPT = random.Random(11).choices(range(300, 600), k=150)


def ask(url: str, ids: list[int]) -> tuple[list[Any], int]:
    """Tokens with log probabilities, and how much was cached."""
    sampling = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    meta = post(url, "/generate", input_ids=ids, sampling_params=sampling, return_logprob=True, logprob_start_len=-1)[
        "meta_info"
    ]
    return meta["output_token_logprobs"], meta["cached_tokens"]


def wait_for_state(folder: Path, state_bytes: int) -> None:
    """Until all records of a state, and of the keys and values before it, are there."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for path in folder.glob("*/*.idx"):
            form = read_form(path)
            if form is not None:
                entries = [entry for _, entry in Segment(path.parent, int(path.stem), form).new_entries() if entry is not None]
                if sum(entry.is_state for entry in entries) > -(-state_bytes // form.payload_bytes):
                    return
        time.sleep(0.05)
    raise AssertionError("no state is written")


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5"])
def test_cold_warm_and_killed_are_the_same_bits(tmp_path: Path, family: str) -> None:
    save(tmp_path, family)
    folder = tmp_path / "cache"
    flags = ("--random-seed", "1", "--max-total-tokens", "1024", "--cache-dir", str(folder))
    first = start_server(tmp_path / "first", *flags, model=str(tmp_path))
    cold, warm = ask(first.url, PROMPT), ask(first.url, PROMPT)
    info = httpx.get(f"{first.url}/get_server_info", timeout=60, trust_env=False).json()
    wait_for_state(folder, info["model"]["state_bytes"])
    kill(first)
    second = start_server(tmp_path / "second", *flags, model=str(tmp_path))
    restarted, further = ask(second.url, PROMPT), ask(second.url, [*PROMPT, 7, 8, 9])
    flush(second.url)
    assert ask(second.url, [*PROMPT, 7, 8, 9])[0] == further[0]
    assert second.stop() == 0
    assert [cold[1], warm[1], restarted[1]] == [0, 149, 149] and further[1] >= 149
    assert cold[0] == warm[0] == restarted[0]
