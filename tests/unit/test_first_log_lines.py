"""Lines that must not be in a first user's log."""

from __future__ import annotations

import logging

from sglang.srt.process import logs
from sglang.srt.server_args import ServerArgs


def test_waiting_for_the_model_is_not_logged() -> None:
    def is_logged(method: str, path: str, status: int) -> bool:
        record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "", ("me", method, path, "1.1", status), None)
        return logs._is_worth_a_line(record)

    assert not any(is_logged("GET", path, 503) for path in ("/v1/models", "/get_model_info", "/health", "/metrics"))
    assert is_logged("GET", "/v1/models", 200) and is_logged("POST", "/generate", 503) and is_logged("GET", "/metrics", 500)
    assert not is_logged("GET", "/health", 200)


def test_the_log_names_the_flags_that_were_given() -> None:
    assert ServerArgs().given() == f"ServerArgs(model_path={ServerArgs().model_path!r})"
    shown = ServerArgs(port=8000, api_key="secret", model_path="m").given()
    assert shown.startswith("ServerArgs(model_path='m', ") and "port=8000" in shown and "secret" not in shown
