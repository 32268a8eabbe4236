"""Messages to and from a child that tries a constraint."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True):
    """The result of a trial. `num_bytes`: memory of the constraint after it."""

    error: str | None = None
    num_bytes: int = 0

    def encode(self) -> bytes:
        """Inverse of `decode_report`."""
        return msgspec.msgpack.encode(self)


def encode_trial(kind: str, text: str, prefix: str = "") -> bytes:
    """The payload of a job that tries a constraint; its reply is read by `decode_report`."""
    return msgspec.msgpack.encode([kind, text.encode(errors="surrogatepass"), prefix])


def decode_trial(payload: bytes) -> tuple[str, str, str]:
    kind, data, prefix = msgspec.msgpack.decode(payload, type=tuple[str, bytes, str])
    return kind, data.decode(errors="surrogatepass"), prefix


def decode_report(reply: bytes) -> Report:
    return msgspec.msgpack.decode(reply, type=Report)
