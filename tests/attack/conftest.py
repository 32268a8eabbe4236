from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.attack.target import ADMIN, KEY, OTHER, Scale, Target
from tests.conftest import ROOT, start_server

SCALES = [
    pytest.param(Scale(seconds=2, times=1), id="short"),
    pytest.param(Scale(seconds=8, times=4), id="long", marks=[pytest.mark.attack, pytest.mark.timeout(600)]),
]
DRAIN_SECONDS = 5 + 15


@pytest.fixture(params=SCALES)
def scale(request: pytest.FixtureRequest) -> Scale:
    found: Scale = request.param
    return found


def attacked(log_folder: pytest.TempPathFactory, *flags: str, model: str) -> Iterator[Target]:
    """A server with keys; when all attacks are over, SIGTERM ends it in time."""
    keys = ["--api-key", f"{KEY},{OTHER}", "--admin-api-key", ADMIN]
    target = Target(start_server(log_folder.mktemp("attacked") / "log", *keys, *flags, model=model))
    try:
        yield target
        began = time.monotonic()
        assert target.server.stop(signal.SIGTERM, DRAIN_SECONDS) == 0
        assert time.monotonic() - began < DRAIN_SECONDS
    finally:
        target.close()


@pytest.fixture(scope="session")
def text_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from attacked(
        tmp_path_factory, "--max-total-tokens", "12000", "--grammar-compile-timeout", "5", model="smollm2-135m-instruct"
    )


@pytest.fixture(scope="session")
def vision_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from attacked(
        tmp_path_factory,
        "--allow-private-media",
        "--media-timeout",
        "5",
        "--max-total-tokens",
        "12000",
        model=str(ROOT / "models" / "toy-vlm"),
    )
