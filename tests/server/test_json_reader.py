"""Long bodies read piece by piece: what comes out is what a decoder makes of the whole, whatever the pieces are."""

from __future__ import annotations

import json
import random
import tracemalloc
from array import array
from typing import Any

import msgspec
import pytest

from sglang.srt.errors import RequestError
from sglang.srt.server.fields import pack_rows
from sglang.srt.server.limits import json_limits, json_reader
from sglang.srt.server.limits.json_limits import CHUNK
from sglang.srt.server.limits.json_reader import JsonReader
from sglang.srt.server.multimodal.sources import decode_base64
from tests.server.test_bodies import a_value, pieces_of

MB = 1 << 20
LONG = ["x" * 100, '😀é\\"' * 50, "\0\\" * 60, "\n😀" * 40, "a" * 90 + "\\", "\ud7ff\ufffd" * 50]


IDS = frozenset({"ids"})


def read(text: bytes) -> dict[str, Any]:
    return JsonReader(pieces_of(text, json_reader.CHUNK), lambda name: name != "ignored", lambda name: None, IDS).read()


def whole(text: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return {name: item for name, item in value.items() if name != "ignored"} if isinstance(value, dict) else None


def outcome(text: bytes) -> dict[str, Any] | None:
    try:
        return read(text)
    except (RequestError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_utf8(text: bytes) -> bool:
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False


def a_body(rng: random.Random) -> bytes:
    value = {"a": [a_value(rng) for _ in range(rng.choice([1, 5, 30]))], "ignored": a_value(rng), 'é"': a_value(rng)}
    value["s"] = rng.choice(LONG)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    return rng.choice(["", "\n" * 99]).encode() + text.encode() + rng.choice([b"", b" " * 99])


@pytest.mark.parametrize("size", [12, 33, 300])
def test_pieces_are_what_the_whole_is(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (json_reader, json_limits):
        monkeypatch.setattr(module, "CHUNK", size)
    rng = random.Random(size)
    for _ in range(30):
        text = a_body(rng)
        wanted = whole(text)
        assert wanted is not None
        assert read(text) == wanted
        for _ in range(8):  # one byte more, less, or another one
            at, what = rng.randrange(len(text)), rng.choice([b"", *(bytes([c]) for c in b'{}[],:"\\ 1az')])
            broken = text[:at] + what + text[at + rng.randrange(2) :]
            if is_utf8(broken):  # else it may pass where it is ignored
                assert outcome(broken) == whole(broken), broken


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":[1,2,3],"b":0,"a":[4,5,{"c":1,"c":2}],"b":{"d":[1],"d":2}}',
        b'{"":[{"":[[[]]],"x":{}}],"a":{"":{"":1}}}',
        b'{"a":[[1,2],[3],4.5,["b"],[]],"b":[7,8,9,"c"]}',
        b"{}   ",
    ],
)
def test_keys_that_come_twice_and_empty_ones(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    for size in (8, 12, 17):
        monkeypatch.setattr(json_reader, "CHUNK", size)
        assert read(text) == msgspec.json.decode(text)


@pytest.mark.parametrize(
    "what", [b'["a"]', b"1", b'"' + b"a" * 99 + b'"', b"", b"  ", b"{} {}", b"{},", b'{"a":1}x', b"{" * 99]
)
def test_what_is_no_object_is_refused(monkeypatch: pytest.MonkeyPatch, what: bytes) -> None:
    monkeypatch.setattr(json_reader, "CHUNK", 12)
    if what.strip():
        with pytest.raises((RequestError, msgspec.DecodeError)):
            read(what)
    else:
        with pytest.raises(RequestError, match="too early"):
            read(what)


BIG = {
    "ids": b'{"ids":[' + b"1," * (2 * MB) + b"1]}",
    "rows": b'{"ids":[' + b"[1,2,3]," * (MB // 16) + b"[1]]}",
    "ascii": b'{"a":{"b":["' + b"A" * (4 * MB) + b'"]}}',
    "emoji": b'{"a":"' + "😀".encode() * MB + b'"}',
    "escapes": b'{"a":"' + b"\\ud83d\\ude00" * (MB // 4) + b'"}',
    "backslashes": b'{"a":"' + b"\\\\" * (2 * MB) + b'"}',
    "texts": b'{"a":[' + (b'"' + b"x" * 40 + b'",') * 9_000 + b"1]}",
    "ignored": b'{"ignored":[' + b"[1,2,3]," * (MB // 16) + b'[1]],"a":1}',
    "ignored text": b'{"ignored":"' + b"x" * (4 * MB) + b'","a":1}',
    "spaces": b'{"a":' + b" " * (4 * MB) + b"1" + b" " * (4 * MB) + b"}" + b" " * (4 * MB),
}


@pytest.mark.parametrize("name", list(BIG))
def test_no_call_of_native_code_takes_a_long_text(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each holds the interpreter's lock as long as its text needs, and nobody else is served."""
    lengths: list[int] = []

    def noting(decode: Any) -> Any:
        def noted(text: bytes) -> Any:
            lengths.append(len(text))
            return decode(text)

        return noted

    for module, decoder in ((json_reader, "_decode"), (json_reader, "_validate"), (json_reader, "_decode_string")):
        monkeypatch.setattr(module, decoder, noting(getattr(module, decoder)))
    values = read(BIG[name])
    assert {key: unpacked(value) for key, value in values.items()} == whole(BIG[name])
    assert max(lengths) < 3 * CHUNK


def unpacked(value: Any) -> Any:
    if isinstance(value, array):
        return value.tolist()
    return [unpacked(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["ids", "rows of ids"])
def test_token_ids_are_packed_and_leave_nothing_to_collect(name: str) -> None:
    """As objects they would be looked through, all of them, whenever garbage is collected, and every thread waits for that."""
    text = {"ids": b'{"ids":[' + b"1,70000," * MB + b"2]}", "rows of ids": b'{"ids":[' + b"[1,70000]," * (MB // 16) + b"[2]]}"}[
        name
    ]
    value = read(text)["ids"]
    rows = [value] if name == "ids" else value
    assert {type(row) for row in rows} == {array} and sum(map(len, rows)) == text.count(b",") + 1
    assert value[-1] == (2 if name == "ids" else array("i", [2]))


@pytest.mark.parametrize("wrong", [b'"a"', b"1.5", b"true", b"null", b"[1]", b"{}", b"4294967296", b"-99999999999999999999"])
@pytest.mark.parametrize("place", ["list", "row"])
def test_what_is_no_id_among_very_many_is_an_error(place: str, wrong: bytes) -> None:
    many = b"1," * MB + wrong + b",1" * MB
    with pytest.raises(RequestError, match="ids|vocabulary"):
        pack_rows(read(b'{"ids":[' + (many if place == "list" else b"[1],[" + many + b"]") + b"]}")["ids"], "ids")


def test_numbers_that_are_no_ids_are_not_as_many_as_they_like() -> None:
    for text in (
        b'{"a":[' + b"1," * 3 * MB + b"1]}",
        b'{"ids":{"a":[' + b"1," * 3 * MB + b"1]}}",
        b'{"ids":[[[' + b"1," * 3 * MB + b"1]]]}",
    ):
        with pytest.raises(RequestError, match="values and keys|must be a list"):
            pack_rows(read(text).get("ids"), "ids")


def test_a_long_string_takes_its_own_size_beside_the_body() -> None:
    body = pieces_of(BIG["ascii"])
    tracemalloc.start()
    try:
        values = JsonReader(body, lambda name: True, lambda name: None).read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(values["a"]["b"][0]) == 4 * MB and not body
    assert peak < 3 * len(BIG["ascii"])


def test_base64_in_pieces_is_what_it_is_as_a_whole() -> None:
    import base64

    rng = random.Random(1)
    for size in (0, 1, 2, 3, 49_151, 49_152, 49_153, 200_000, 200_001):
        data = rng.randbytes(size)
        text = base64.b64encode(data).decode()
        spaced = "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + " " * 70_000
        quoted = "data:," + spaced.replace("+", "%2b").replace("/", "%2F").replace("=", "%3D").replace("\n", "%0A")
        assert decode_base64(text, "it") == decode_base64(text.rstrip("="), "it") == decode_base64(spaced, "it") == data
        assert decode_base64(quoted, "it", 6, is_quoted=True) == data
    for wrong in (
        "A" * 100_000 + "=A",
        "A=" * 50_000,
        "AAAA=AAA" + "A" * 70_000,
        "A" * 70_001 + "===",
        "é" + "A" * 70_000,
        "A%",
    ):
        with pytest.raises(RequestError, match="base64"):
            decode_base64(wrong, "it", is_quoted=True)
