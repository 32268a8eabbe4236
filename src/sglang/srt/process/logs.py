"""The format of the log, for our lines and the HTTP server's: `[2025-07-28 04:59:51] message`, or one JSON object per line.

    {"time": "2025-07-28T04:59:51.123Z", "level": "info", "logger": "sglang", "message": "The server is fired up ..."}
    {"time": ..., "level": "info", "logger": "uvicorn.access", "method": "POST", "path": "/generate", "status": 200, "client": ...}

Successful calls that machines repeat every few seconds (health checks, scrapes, routers) are logged only at level debug.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

FORMAT = "[%(asctime)s] %(message)s"
HTTP_FORMAT = "[%(asctime)s] %(levelname)s:     %(message)s"
ACCESS_FORMAT = '[%(asctime)s] INFO:     %(client_addr)s - "%(request_line)s" %(status_code)s'
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
FIELDS = "fields"
"""attribute of a log record: what it says as names and values (`extra={"fields": {...}}`)"""
POLLED = frozenset({"/health", "/health_generate", "/metrics", "/get_load", "/v1/loads"})


def configure_logging(level: str, http_level: str | None = None, log_format: str = "text") -> None:
    """Sets up the loggers "sglang" and "uvicorn" on standard error; other libraries stay at warnings."""
    if log_format == "json":
        ours = http = JsonFormatter()
        _set_up("", "warning", ours)
        logging.captureWarnings(True)
        sys.excepthook = _log_crash
    else:
        ours, http = logging.Formatter(FORMAT, DATE_FORMAT), logging.Formatter(HTTP_FORMAT, DATE_FORMAT)  # type: ignore[assignment]
    _set_up("sglang", level, ours)
    _set_up("uvicorn", http_level or level, http)


def configure_access_log(level: str, log_format: str = "text") -> None:
    """One line a request, with the status in words. Apart from the rest because it imports uvicorn."""
    from uvicorn.logging import AccessFormatter

    text = AccessFormatter(ACCESS_FORMAT, DATE_FORMAT, use_colors=False)
    _set_up("uvicorn.access", level, JsonAccessFormatter() if log_format == "json" else text)
    logging.getLogger("uvicorn.access").filters[:] = [] if level == "debug" else [_is_worth_a_line]


def _set_up(name: str, level: str, formatter: logging.Formatter) -> None:
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    _, method, path, _, status = _access(record)
    if method == "GET" and status == 503:  # somebody waits for the model
        return False
    return status != 200 or method != "GET" or path.partition("?")[0] not in POLLED


def _access(record: logging.LogRecord) -> tuple[str, str, str, str, int]:
    """Client, method, path with the query, version, status: what uvicorn gives to its access log."""
    client, method, path, version, status = record.args  # type: ignore[misc]
    return str(client), str(method), str(path), str(version), int(status)  # type: ignore[arg-type]


class JsonFormatter(logging.Formatter):
    """One object a line, in ASCII, whatever clients put into their fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self.said(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry, default=str)

    def said(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = getattr(record, FIELDS, None)
        return fields if isinstance(fields, dict) else {"message": record.getMessage()}


class JsonAccessFormatter(JsonFormatter):
    def said(self, record: logging.LogRecord) -> dict[str, Any]:
        client, method, path, _, status = _access(record)
        return {"method": method, "path": path, "status": status, "client": client}


def _log_crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logging.getLogger("sglang").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
