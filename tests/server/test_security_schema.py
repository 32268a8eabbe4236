"""Requests made from our own OpenAPI document, right ones and wrong ones: never a 5xx, never a hang, always an answer that is
JSON. A few hundred in the suite; `pytest -m slow` sends 5,000."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import RunningServer, start_server
from tests.server.fuzzing import spoiled

pytestmark = pytest.mark.attack

SKIPPED = ("/pause_generation", "/continue_generation", "/start_profile", "/stop_profile")
"""they stop everybody else"""
FAST, SLOW = 200, 5000
MAX_ROUNDS = 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Contexts so short that no request takes long."""
    limits = [
        "--context-length",
        "128",
        "--max-total-tokens",
        "4096",
        "--request-timeout",
        "60",
        "--grammar-compile-timeout",
        "2",
    ]
    server = start_server(tmp_path_factory.mktemp("small") / "log", *limits, "--enable-metrics")
    yield server
    server.process.kill()
    server.process.wait()


def operations(url: str) -> list[Any]:
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations() if not found.ok().path.startswith(SKIPPED)]


def check(status: int, text: str, content_type: str, sent: object) -> None:
    """A request of any kind may be refused, and a server may be too busy; it may not break."""
    assert status < 500 or status in (503, 504), (sent, text)
    assert "Traceback" not in text
    if status >= 400 and status not in (404, 405) and "json" in content_type:
        error = json.loads(text).get("error")
        assert isinstance(error, dict) and error["message"], (sent, text)


def try_all(server: RunningServer, count: int) -> Counter[int]:
    """Spreads `count` cases over all operations. Returns how often each status was seen."""
    found = operations(server.url)
    assert {"/generate", "/v1/chat/completions", "/v1/completions"} <= {op.path for op in found}
    seen: Counter[int] = Counter()
    children = server.children()
    for number in range(MAX_ROUNDS):
        if sum(seen.values()) >= count:
            break
        for operation in found:
            attack(server, operation, number, max((count - sum(seen.values())) // len(found), 4), seen)
    assert server.children() == children, "the scheduler did not survive"
    return seen


def attack(server: RunningServer, operation: Any, number: int, count: int, seen: Counter[int]) -> None:
    """At most `count` cases of one operation: few, for one that takes nothing."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)))
    def send(case: Any) -> None:
        reply = case.call(base_url=server.url, timeout=90)
        seen[reply.status_code] += 1
        check(reply.status_code, reply.text, reply.headers.get("content-type", [""])[0], case.body)

    send()


def test_requests_made_from_our_own_document(small: RunningServer) -> None:
    seen = try_all(small, FAST)
    assert seen[200] > 5 and seen[400] > 20, seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_requests_made_from_our_own_document(small: RunningServer) -> None:
    assert sum(try_all(small, SLOW).values()) >= SLOW


# --- bodies that are nearly right -------------------------------------------------------------------------------------------


@given(number=st.integers(0, 2**32))
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_bodies_that_are_nearly_right(small: RunningServer, number: int) -> None:
    path, body = spoiled(number)
    headers = {"content-type": "application/json"}
    reply = httpx.post(small.url + path, content=body, headers=headers, timeout=90, trust_env=False)
    check(reply.status_code, reply.text, reply.headers.get("content-type", ""), body)
