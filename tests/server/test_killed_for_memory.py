"""A scheduler that the system kills while it loads: the server says what that means."""

from __future__ import annotations

import pytest

from sglang.srt.checkpoint.resolve import with_files
from sglang.srt.errors import ConfigError
from sglang.srt.process import scheduler_child
from sglang.srt.process.scheduler_child import SchedulerProcess, oom_kills
from sglang.srt.server_args import ServerArgs


@pytest.mark.parametrize(
    ("kills", "words"),
    [([3, 3], r"was killed \(SIGKILL\), as the system does"), ([3, 4], "was killed because memory ran out")],
)
async def test_a_killed_scheduler(monkeypatch: pytest.MonkeyPatch, kills: list[int], words: str) -> None:
    counted = iter(kills)
    monkeypatch.setattr(scheduler_child, "oom_kills", lambda: next(counted))
    child = SchedulerProcess(with_files(ServerArgs().resolve()))
    child._process.kill()
    with pytest.raises(ConfigError, match=f"the scheduler process {words}.*while the model was loaded: try a smaller model"):
        await child.ready()
    await child.stop(timeout=1)


def test_the_system_counts() -> None:
    assert oom_kills() >= 0
