"""The log's look: `[2025-07-28 04:59:51] message`, for our lines and the HTTP server's alike."""

from __future__ import annotations

import logging
import sys

FORMAT = "[%(asctime)s] %(message)s"
HTTP_FORMAT = "[%(asctime)s] %(levelname)s:     %(message)s"
ACCESS_FORMAT = '[%(asctime)s] INFO:     %(client_addr)s - "%(request_line)s" %(status_code)s'
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"


def configure_logging(level: str, http_level: str | None = None) -> None:
    """Sets up the loggers "sglang" and "uvicorn" on standard error; other libraries stay at warnings."""
    _set_up("sglang", level, logging.Formatter(FORMAT, DATE_FORMAT))
    _set_up("uvicorn", http_level or level, logging.Formatter(HTTP_FORMAT, DATE_FORMAT))


def configure_access_log(level: str) -> None:
    """One line a request, with the status in words. Apart from the rest because it imports uvicorn."""
    from uvicorn.logging import AccessFormatter

    _set_up("uvicorn.access", level, AccessFormatter(ACCESS_FORMAT, DATE_FORMAT, use_colors=False))


def _set_up(name: str, level: str, formatter: logging.Formatter) -> None:
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
