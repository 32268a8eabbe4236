"""Encodes groups of options for another process."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode_config(config: object) -> bytes:
    """A group, or anything made of groups, for another process."""
    return msgspec.msgpack.encode(config, enc_hook=str)


def decode_config(data: bytes, kind: type[T]) -> T:
    """Inverse of `encode_config`."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=lambda field_type, value: field_type(value))
