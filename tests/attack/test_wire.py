"""Bytes before, beside and after bodies are counted for every client."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.attack.target import Scale, Target

Attack = Callable[[Target], Iterator[bytes]]


def pipelined(target: Target) -> Iterator[bytes]:
    """Requests without a key, one after the other."""
    return itertools.repeat(b"GET /x HTTP/1.1\r\n\r\n" * 1000)


def pipelined_with_a_key(target: Target) -> Iterator[bytes]:
    return itertools.repeat(target.head("/get_model_info", method="GET") * 100)


def pipelined_bodies(target: Target) -> Iterator[bytes]:
    body = b'{"text": "x"}'
    head = target.head("/tokenize", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return itertools.repeat((head + body) * 100)


def trailers(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Transfer-Encoding: chunked", "Content-Type: application/json")
    return itertools.chain([head + b"0\r\n"], itertools.repeat(b"a:\r\n" * 2000))


def one_long_trailer(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Transfer-Encoding: chunked", "Content-Type: application/json")
    return itertools.chain([head + b"0\r\na: "], itertools.repeat(b"b" * 65536))


def chunk_extensions(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Transfer-Encoding: chunked", "Content-Type: application/json")
    return itertools.chain([head], itertools.repeat((b"1;" + b"e" * 30_000 + b"\r\n \r\n") * 2))


def one_long_chunk_extension(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Transfer-Encoding: chunked", "Content-Type: application/json", key=None)
    return itertools.chain([head + b"1;"], itertools.repeat(b"e" * 65536))


def blank_lines(target: Target) -> Iterator[bytes]:
    return itertools.repeat(b"\r\n" * 10_000)


def one_long_method(target: Target) -> Iterator[bytes]:
    return itertools.repeat(b"POST" * 10_000)


def body_without_a_key(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Content-Length: 60000000", "Content-Type: application/json", key=None)
    return itertools.chain([head], itertools.repeat(b" " * 65536))


def upgrade_and_go_on(target: Target) -> Iterator[bytes]:
    head = target.head("/generate", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    return itertools.chain([head], itertools.repeat(b"\0" * 65536))


ATTACKS: list[Attack] = [
    pipelined,
    pipelined_with_a_key,
    pipelined_bodies,
    trailers,
    one_long_trailer,
    chunk_extensions,
    one_long_chunk_extension,
    blank_lines,
    one_long_method,
    body_without_a_key,
    upgrade_and_go_on,
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_bytes_beside_the_body(text_target: Target, scale: Scale, attack: Attack) -> None:
    with text_target.watched() as watch:
        text_target.flood(attack(text_target), scale.seconds)
    assert watch.peak_mb < text_target.warm_mb + 256, f"{watch.peak_mb:.0f} MB"
    text_target.check(watch)
