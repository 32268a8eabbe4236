"""Constraints: one that is hostile to a grammar engine costs its sender a 400 and other clients nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.attack.conftest import attacked
from tests.attack.constraints import EBNFS, REGEXES, SCHEMAS, STOP_REGEXES, constrained, routes_of, routes_of_text
from tests.attack.target import Scale, Target

AT_ONCE, MAX_TRIES = 4, 10


def send(target: Target, path: str, body: dict[str, Any]) -> None:
    for _ in range(MAX_TRIES):
        reply = target.post(path, body)
        if reply.status_code != 503:  # on a busy machine others are still being compiled, and clients are told to come again
            break
        time.sleep(int(reply.headers["retry-after"]))
    assert reply.status_code in (200, 400), f"{reply.status_code}: {reply.text[:500]}"
    if reply.status_code == 400:
        assert len(reply.json()["error"]["message"]) > 10


@pytest.fixture(scope="session")
def xgrammar_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    pytest.importorskip("xgrammar")
    flags = ("--max-total-tokens", "12000", "--grammar-compile-timeout", "5", "--grammar-backend", "xgrammar")
    yield from attacked(tmp_path_factory, *flags, model="smollm2-135m-instruct")


@pytest.fixture(params=["llguidance", pytest.param("xgrammar", marks=pytest.mark.attack)])
def target(request: pytest.FixtureRequest) -> Target:
    """A server for each grammar engine."""
    found: Target = request.getfixturevalue("text_target" if request.param == "llguidance" else "xgrammar_target")
    return found


def send_all(target: Target, requests: list[tuple[str, dict[str, Any]]]) -> None:
    with target.watched() as watch, ThreadPoolExecutor(AT_ONCE) as pool:
        for sent in [pool.submit(send, target, path, body) for path, body in requests]:
            sent.result()
    target.check(watch)


def test_schemas_by_every_route(target: Target, scale: Scale) -> None:
    """Every fourth schema by every route, the others by two, so that each route takes many."""
    names = list(SCHEMAS) if scale.times > 1 else [*SCHEMAS][:4]
    taken = [slice(i % 7, None, 7) if i % 4 else slice(None) for i in range(len(names))]
    send_all(target, [request for i, name in enumerate(names) for request in routes_of(SCHEMAS[name])[taken[i]]])


def test_texts_by_every_route(target: Target, scale: Scale) -> None:
    texts = [("ebnf", text) for text in EBNFS.values()] + [("regex", text) for text in REGEXES.values()]
    chosen = texts if scale.times > 1 else texts[::6]
    send_all(target, [request for kind, text in chosen for request in routes_of_text(kind, text)])


def test_others_compile_meanwhile(text_target: Target, scale: Scale) -> None:
    """Two constraints that never end keep nobody else's from compiling."""
    bad = [constrained(json_schema=json.dumps(SCHEMAS[n])) for n in ("common multiples", "patterns of patterns")]
    threads = [threading.Thread(target=text_target.post, args=("/generate", body)) for body in bad * scale.times]
    with text_target.watched() as watch:
        for thread in threads:
            thread.start()
        for i in range(4 * scale.times):
            reply = text_target.post("/generate", constrained(regex=f"(yes|no|maybe){i}"))
            assert reply.status_code == 200, reply.text
        for thread in threads:
            thread.join()
    text_target.check(watch)


def test_stop_expressions_delay_no_other_request(text_target: Target, scale: Scale) -> None:
    body = {"text": "x " * 2000, "sampling_params": {"max_new_tokens": 64, "ignore_eos": True, "stop_regex": STOP_REGEXES}}
    with text_target.watched() as watch:
        attack = threading.Thread(target=text_target.post, args=("/generate", body))
        attack.start()
        for _ in range(3 * scale.times):
            assert text_target.ask() == text_target.answer
        attack.join()
    text_target.check(watch)
