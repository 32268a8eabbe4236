"""An engine whose scheduler a benchmark can look at."""

from __future__ import annotations

from typing import Any

import sglang as sgl


class WatchedEngine(sgl.Engine):
    """Remembers its scheduler."""

    def _run(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        super()._run(scheduler)
