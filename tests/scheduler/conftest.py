from __future__ import annotations

from collections.abc import Iterator

import pytest

from sglang.srt.scheduler import batch
from tests.scheduler.toy import open_harnesses


@pytest.fixture(autouse=True)
def closed_schedulers() -> Iterator[None]:
    """The schedulers of a test end with it: thousands of idle threads make all that follows many times as slow."""
    yield
    while open_harnesses:
        open_harnesses.pop().scheduler.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask is late: steps can be counted."""
    monkeypatch.setattr(batch, "LATE_SECONDS", 30.0)
