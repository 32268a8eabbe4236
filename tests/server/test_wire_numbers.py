"""Numbers in headers are digits; and what clients are told when there is no room."""

from __future__ import annotations

import pytest

from sglang.srt.errors import OverloadError
from sglang.srt.server.http.chunked_body import ChunkedBody
from sglang.srt.server.http.wire import error_response
from sglang.srt.server.http.wire_numbers import decimal_number, hexadecimal_number, whole_number
from tests.server.conftest import Stand
from tests.server.http_tools import client_of

NO_NUMBERS = ["1_0", "+5", "-1", "0x10", " 5", "5 ", "", "inf", "nan", "1e", "١٢", "²", "1,5", "_1", "1_", "--1", "e5", "."]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_only_python_takes_for_a_number(text: str) -> None:
    assert whole_number(text.encode()) is None
    assert decimal_number(text.encode()) is None
    assert hexadecimal_number(text.encode()) == {"e5": 0xE5, "1e": 0x1E}.get(text)


def test_numbers() -> None:
    assert [whole_number(text) for text in (b"0", b"007", b"1" * 19, b"0" * 9000 + b"5")] == [0, 7, int("1" * 19), 5]
    assert whole_number(b"1" * 20) is None
    assert [decimal_number(text) for text in (b"1.5", b"2", b".5", b"3.", b"1e2", b"1E-1")] == [1.5, 2, 0.5, 3, 100, 0.1]
    assert hexadecimal_number(b"fF") == 255


@pytest.mark.parametrize(
    ("value", "status"), [("1_0", 400), ("+5", 400), ("1e9_9", 400), ("inf", 400), ("0", 400), ("5", 200), ("2.5", 200)]
)
async def test_the_time_that_a_client_gives(stand: Stand, value: str, status: int) -> None:
    async with client_of(stand) as client:
        body = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
        assert (await client.post("/generate", json=body, headers={"X-Request-Timeout": value})).status_code == status


@pytest.mark.parametrize("key", ["1_0", " 1", "+1", "1.0", "١", "x", ""])
async def test_ids_of_a_bias_are_digits(stand: Stand, key: str) -> None:
    async with client_of(stand) as client:
        body = {"messages": [{"role": "user", "content": "a"}], "logit_bias": {key: 1}, "max_tokens": 1}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400


def test_sizes_of_chunks_are_digits() -> None:
    for line, size in ((b"10\r\n", 16), (b"1_0\r\n", 0), (b"+10\r\n", 0), (b"0x10\r\n", 0), (b"10 ;a=b\r\n", 16)):
        chunked = ChunkedBody()
        chunked.measure(line)
        assert chunked._left == (size + 2 if size else 0)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/generate"])
def test_refusals_under_load_have_a_retry_after(path: str) -> None:
    response = error_response(OverloadError("the queue is full"), path)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def test_errors_that_cause_each_other_are_told_once() -> None:
    """Of a chain with a ring in it every error loses its frames, and the answer comes."""
    errors = [OverloadError("first"), OverloadError("second"), ValueError("third")]
    for error in errors:
        try:
            raise error
        except Exception:  # noqa: BLE001  it has frames now
            pass
    errors[0].__cause__, errors[1].__cause__, errors[1].__context__ = errors[1], errors[0], errors[2]
    assert error_response(errors[0], "/generate").status_code == 503
    assert [error.__traceback__ for error in errors] == [None] * 3
