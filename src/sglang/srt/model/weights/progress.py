"""Progress of loading: a bar on a terminal, else a line in the log now and then. Loads that take a second show nothing."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("sglang")

SILENT_SECONDS = 1.0
LINE_SECONDS = 10.0
"""between lines of the log"""
GB = 1e9


class LoadProgress:
    """Counts bytes of a checkpoint as they are read, `total` in all."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._read = 0
        self._began = self._told = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr is not None and sys.stderr.isatty():
            look: dict[str, Any] = {"unit": "B", "unit_scale": True, "desc": "Loading weights", "leave": False}
            self._bar = tqdm(total=total, file=sys.stderr, delay=SILENT_SECONDS, **look)

    def add(self, num_bytes: int) -> None:
        """A tensor has been read. The bar ends with the last one."""
        self._read += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
            if self._read >= self._total:
                self._bar.close()
        elif self._read < self._total and time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            logger.info(
                "Load weight: %.1f of %.1f GB (%.0f%%), %.0f s",
                *(self._read / GB, self._total / GB, 100 * self._read / self._total, self._told - self._began),
            )
