"""The end of a chunked body is found, however its bytes are cut."""

from __future__ import annotations

import random

import pytest

from sglang.srt.server.http.chunked_body import ChunkedBody

BODIES = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n00\r\nx: y\r\nz:\r\n\r\n",
    b"A\r\n0\r\n\r\n\r\n0\r\n\r\n0\r\n\r\n",
    b"3" + b";e" * 500 + b"\r\n\n\r\n\r\n0\r\n" + b"t: " + b"v" * 500 + b"\r\n\r\n",
    b"".join(b"1\r\nx\r\n" for _ in range(300)) + b"0\r\n\r\n",
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_found(body: bytes, seed: int) -> None:
    rng, rest, measured = random.Random(seed), b"GET / HTTP/1.1\r\n\r\n0\r\n\r\n", 0
    data, scanner = body + rest, ChunkedBody()
    while measured < len(body):
        piece = data[measured : measured + rng.choice([1, 2, 7, 100, 10_000])]
        size = scanner.measure(piece)
        assert 0 < size <= len(piece)
        measured += size
    assert measured == len(body)


@pytest.mark.parametrize("line", [b"zz\r\n", b"-5\r\n", b"\r\n", b"5" * 100 + b"\r\n", b";\r\n", b"\xff\xff\n"])
def test_what_is_no_chunk_is_left_to_the_parser(line: bytes) -> None:
    scanner = ChunkedBody()
    assert scanner.measure(line * 10) == len(line) * 10
