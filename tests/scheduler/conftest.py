from __future__ import annotations

import pytest

from sglang.srt.scheduler import batch


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask is late: steps can be counted."""
    monkeypatch.setattr(batch, "LATE_SECONDS", 30.0)
