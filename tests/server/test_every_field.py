"""Long values of every kind in every field of every route: no callback of the event loop is long, and refusals are short and name
what they refuse.

A few of them in the suite; all of them: pytest -m slow tests/server/test_every_field.py
"""

from __future__ import annotations

import gc
import random

import pytest

from tests.server.conftest import MakeStand
from tests.server.long_values import CASES, ROUTES, VALUES, body_of
from tests.server.test_loop_time import EMBEDS, MAX_SECONDS, ROUNDS, post, timed_callbacks

SIZE = 1_000_000
SHARE = 80
"""one in so many is in the suite"""


async def check(make_stand: MakeStand, path: str, body: bytes) -> str | None:
    """What is wrong with how a body was taken; None if nothing is."""
    longest: list[tuple[float, str]] = []
    for _ in range(ROUNDS):
        stand = make_stand(info={"embedding_dim": 8} if path in EMBEDS else {"context_len": 1000})
        stand.scheduler.max_running = 32
        found: list[tuple[float, str]] = []
        with timed_callbacks(found):
            status, size = await post(stand, path, body)
        if status >= 500 and status != 503:
            return f"status {status}"
        if status >= 400 and size > 4000:
            return f"an error of {size} bytes"
        longest.append(max(found))
        if longest[-1][0] < MAX_SECONDS:
            return None
    return f"a callback takes {min(longest)[0]:.3f} s: {min(longest)[1]}"


async def check_all(make_stand: MakeStand, cases: list[tuple[str, str, str]]) -> None:
    wrong = []
    gc.collect()
    gc.freeze()
    try:
        for path, field, name in cases:
            said = await check(make_stand, path, body_of(path, field, VALUES[name](SIZE)))
            if said is not None:
                wrong.append(f"{path} {field}: {name}: {said}")
    finally:
        gc.unfreeze()
    assert not wrong, "\n".join(wrong)


async def test_some_long_values(make_stand: MakeStand) -> None:
    await check_all(make_stand, random.Random(0).sample(CASES, len(CASES) // SHARE))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", ROUTES)
async def test_all_long_values(make_stand: MakeStand, path: str) -> None:
    await check_all(make_stand, [case for case in CASES if case[0] == path])
