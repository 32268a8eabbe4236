"""A server that does not answer any more, though it has not ended: it is killed, and what waits for it goes on with another one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from sglang.cluster import child as child_module
from sglang.cluster.child import Child
from sglang.cluster.model_list import ServedModel
from tests.server.test_processes import wait_dead

pytestmark = pytest.mark.cluster


async def test_a_server_that_is_frozen_is_killed(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(child_module, "ANSWER_SECONDS", 2.0)
    child = Child(ServedModel("alpha", {"model_path": str(models["alpha"]), "threads": "1"}), tmp_path, 0, {})
    await child.start(0)
    try:
        await asyncio.sleep(0.5)
        assert not child.has_ended, "one that answers is left alone"
        os.kill(child.pid, signal.SIGSTOP)
        assert "killed" in await asyncio.wait_for(child.wait(), 60)
        wait_dead([child.pid])
    finally:
        await child.stop()
