"""What another server needs to give the same answer from the middle on: the names that an answer bears, and its outputs so far.

    gateway --X-Sglang-Journal: NAME CREATED 0--> server A     ": out ..." before the events that an output made; A dies
            --X-Sglang-Journal: NAME CREATED n--> server B     n bytes before the body: the outputs that came from A
                                                               B makes the same events of them, which the gateway drops, and goes on

Names and seeds come from NAME, so that both servers choose the same ones. Nobody but our gateway is listened to (http/auth.py). The
gateway's part is sglang/cluster/relay.py.
"""

from __future__ import annotations

import binascii
import random
import re

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.messages import TokenOut
from sglang.srt.sampling_params import SEED_BITS

HEADER = b"x-sglang-journal"
OUTPUT = b": out "
"""begins the comment that holds an output"""
BESIDE = b": beside\n"
"""begins a block that is not part of the answer: it keeps the connection alive, and comes at any time"""
LOST = b": lost\n\n"
"""this server cannot go on, and another one may"""

_FORM = re.compile(rb"([0-9a-f]{32}) ([0-9]{1,12}) ([0-9]{1,10})")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(TokenOut).decode


class Journal:
    """Of one request. `created`: when the gateway got it, in seconds. `received_bytes`: of the outputs that stand before its body."""

    def __init__(self, name: str, created: int, received_bytes: int) -> None:
        self.created = created
        self.received_bytes = received_bytes
        self._received: list[TokenOut] = []
        self._names, self._seeds = random.Random(f"names {name}"), random.Random(f"seeds {name}")

    def name(self) -> str:
        """32 hexadecimal digits that no other request gets: the next of its names."""
        return f"{self._names.getrandbits(128):032x}"

    def seed(self) -> int:
        return self._seeds.getrandbits(SEED_BITS)

    def read(self, lines: bytes) -> None:
        """Takes the outputs that another server has sent. Raises RequestError."""
        try:
            self._received = [_decode(binascii.a2b_base64(line)) for line in lines.split(b"\n")]
        except (ValueError, msgspec.MsgspecError) as error:
            raise RequestError("these are no outputs of a server of this version") from error

    def take_received(self) -> list[TokenOut]:
        """Those of the call, whose `rid` is the number of the sequence."""
        received, self._received = self._received, []
        return received


def open_journal(header: bytes) -> Journal | None:
    """None for a header that is none of ours."""
    found = _FORM.fullmatch(header)
    return Journal(found[1].decode(), int(found[2]), int(found[3])) if found is not None else None


def output_line(out: TokenOut) -> bytes:
    """The comment of an event stream that holds an output."""
    return OUTPUT + binascii.b2a_base64(_encode(out), newline=False) + b"\n\n"
