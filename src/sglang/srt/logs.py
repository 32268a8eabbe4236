"""The log's look: `[2025-07-28 04:59:51] message`, for our lines and the HTTP server's alike."""

from __future__ import annotations

import logging
import sys

FORMAT = "[%(asctime)s] %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
HTTP_FORMAT = "[%(asctime)s] %(levelname)s:     %(message)s"


def configure_logging(level: str, http_level: str | None = None) -> None:
    """Sets up the loggers "sglang" and "uvicorn" on standard error; other libraries stay at warnings."""
    for name, threshold, text in (
        ("sglang", level, FORMAT),
        ("uvicorn", http_level or level, HTTP_FORMAT),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(threshold.upper())
        logger.propagate = False
        for old in list(logger.handlers):
            logger.removeHandler(old)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text, DATE_FORMAT))
        logger.addHandler(handler)
