"""Changes single values of a model's files to impossible ones, and defines the allowed outcomes of loading."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.errors import SglangError

DROP = object()
VALUES: tuple[Any, ...] = (
    DROP, None, True, False, "", "x", "\ud800", "7" * 5000, -1, 0, 1, 2, 3, 7, 33, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 10**400,
    0.5, -0.5, 1e-300, 1e300, float("inf"), float("nan"), [], [0], [-1], [2**40], ["x", 3], [[]] * 3, [1.5, None], {}, {"a": {"b": []}},
    {"type": "x"}, {"content": 5},
)  # fmt: skip

Path_ = tuple[Any, ...]


def places(value: Any, at: Path_ = (), most_items: int = 4) -> Iterator[Path_]:
    """The way to every value inside a JSON value; of long lists and objects to the first and last few."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    if len(items) > 40:
        items = items[:most_items] + items[-most_items:]
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key), most_items)


def changed(value: Any, at: Path_, new: Any) -> Any:
    """A copy of `value` with something else in one place."""
    result = copy.deepcopy(value)
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    if new is DROP:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return result


def mutations(value: Any, also: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(what was done, the result) for each place and each of VALUES, and for absent keys of `also`."""
    for at in [*places(value), *((name,) for name in also if name not in value)]:
        for new in VALUES:
            if new is DROP and (len(at) == 1 and at[0] not in value):
                continue
            name = "dropped" if new is DROP else repr(new)[:30]
            yield f"{'.'.join(map(str, at))} = {name}", changed(value, at, new)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def outcome(load: Callable[[], Any]) -> str | None:
    """None if `load` works or says in one sentence why not; else what it did instead."""
    try:
        load()
    except SglangError as error:
        text = str(error)
        if "\n" in text.strip() or not 10 < len(text) < 1000:
            return f"no sentence: {text[:300]!r}"
        return None
    except BaseException as error:  # noqa: BLE001
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def try_file(path: Path, cases: Iterator[tuple[str, bytes]], load: Callable[[], Any]) -> list[str]:
    """The failures, by content of a file. The file is restored at the end."""
    kept = path.read_bytes() if path.exists() else None
    found = []
    try:
        for name, content in cases:
            path.write_bytes(content)
            if (wrong := outcome(load)) is not None:
                found.append(f"{path.name}: {name}: {wrong}")
    finally:
        path.unlink() if kept is None else path.write_bytes(kept)
    return found


_NUMBERS = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)]
_NUMBERS += [struct.pack("<I", n) for n in (0, 1, 7, 13, 2**31 - 1, 2**32 - 1)]


def damaged(data: bytes, head: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(which, the result) of `count` files like `data` with bytes of their first `head` replaced, left out or put in, or cut off."""
    for seed in range(count):
        rng, changed = random.Random(seed), bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            at, number = rng.randrange(head), rng.choice([*_NUMBERS, bytes([rng.randrange(256)])])
            end = at + rng.choice([0, len(number), len(number), 100])
            changed[at:end] = number if rng.random() < 0.8 else b""
        yield f"damaged {seed}", bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.15 else changed)


# --- GGUF ---------------------------------------------------------------------------------------------------------------------

Typed = tuple[int, Any]
"""(GGUF's number of a type, value); of an array (9, (inner type, values))"""
_PACK = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
TYPED: tuple[Typed | None, ...] = (
    None, (4, 0), (4, 1), (4, 2), (4, 3), (4, 33), (4, 2**31 - 1), (4, 2**32 - 1), (10, 2**63), (10, 2**64 - 1), (5, -1), (11, -(2**63)),
    (6, float("nan")), (6, float("inf")), (6, 0.0), (12, 1e300), (12, -1e-300), (7, 1), (8, ""), (8, "x"), (8, "x" * 5000), (9, (4, [])),
    (9, (4, [1, 2, 3])), (9, (6, [float("nan")])), (9, (8, ["a", "b"])), (9, (8, ["a", "a"])), (9, (9, [(4, [1]), (8, ["x"])])), (9, (7, [1])),
)  # fmt: skip


def _gguf_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _gguf_value(kind: int, value: Any) -> bytes:
    if kind == 8:
        return _gguf_text(value)
    if kind != 9:
        return struct.pack(_PACK[kind], value)
    inner, values = value
    items = (struct.pack("<I", v[0]) + _gguf_array(*v) if inner == 9 else _gguf_value(inner, v) for v in values)
    return struct.pack("<IQ", inner, len(values)) + b"".join(items)


def _gguf_array(inner: int, values: list[Any]) -> bytes:
    return struct.pack("<Q", len(values)) + b"".join(_gguf_value(inner, v) for v in values)


def gguf_bytes(keys: dict[str, Typed], tensors: dict[str, Any]) -> bytes:
    """A GGUF file. Tensors are float32 arrays."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, (kind, value) in keys.items():
        head += _gguf_text(name) + struct.pack("<I", kind) + _gguf_value(kind, value)
    data = b""
    for name, array in tensors.items():
        head += (
            _gguf_text(name)
            + struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
            + struct.pack("<IQ", 0, len(data))
        )
        data += array.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


def tiny_gguf(arch: str = "llama") -> tuple[dict[str, Typed], dict[str, Any]]:
    """Keys and tensors of a model of two layers with a byte-level tokenizer."""
    tokens = [*(chr(c) for c in range(0x21, 0x7F)), "ab", "<s>", "</s>"]
    n, hidden, inner = len(tokens), 32, 48
    keys: dict[str, Typed] = {
        "general.architecture": (8, arch), "general.alignment": (4, 32), "split.count": (2, 0),
        f"{arch}.block_count": (4, 2), f"{arch}.context_length": (4, 64), f"{arch}.embedding_length": (4, hidden),
        f"{arch}.feed_forward_length": (4, inner), f"{arch}.attention.head_count": (4, 2), f"{arch}.attention.head_count_kv": (4, 1),
        f"{arch}.attention.layer_norm_rms_epsilon": (6, 1e-5), f"{arch}.rope.freq_base": (6, 10000.0),
        f"{arch}.rope.dimension_count": (4, 16), f"{arch}.attention.key_length": (4, 16), f"{arch}.attention.value_length": (4, 16),
        f"{arch}.expert_count": (4, 0), f"{arch}.rope.scaling.type": (8, "linear"), f"{arch}.rope.scaling.factor": (6, 2.0),
        f"{arch}.attention.scale": (6, 0.25), f"{arch}.rope.scaling.original_context_length": (4, 32),
        "tokenizer.ggml.model": (8, "gpt2"), "tokenizer.ggml.pre": (8, "default"), "tokenizer.ggml.tokens": (9, (8, tokens)),
        "tokenizer.ggml.token_type": (9, (5, [1] * (n - 2) + [3, 3])), "tokenizer.ggml.merges": (9, (8, ["a b"])),
        "tokenizer.ggml.scores": (9, (6, [0.0] * n)),
        "tokenizer.ggml.bos_token_id": (4, n - 2), "tokenizer.ggml.eos_token_id": (4, n - 1), "tokenizer.ggml.unknown_token_id": (4, 0),
        "tokenizer.ggml.padding_token_id": (4, 0), "tokenizer.ggml.add_bos_token": (7, 1), "tokenizer.ggml.add_eos_token": (7, 0),
        "tokenizer.ggml.add_space_prefix": (7, 0), "tokenizer.chat_template": (8, "{{ messages[0].content }}"),
    }  # fmt: skip
    if arch == "gemma3":
        keys |= {"gemma3.attention.sliding_window": (4, 16), "gemma3.attention.sliding_window_pattern": (4, 2)}
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {"token_embd.weight": rng.standard_normal((n, hidden)), "output_norm.weight": np.ones(hidden)}
    for i in range(2):
        shapes = {"attn_q": (32, hidden), "attn_k": (16, hidden), "attn_v": (16, hidden), "attn_output": (hidden, 32)}
        shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        tensors |= {f"blk.{i}.{name}.weight": rng.standard_normal(shape) * 0.1 for name, shape in shapes.items()}
        tensors |= {f"blk.{i}.{name}.weight": np.ones(hidden) for name in ("attn_norm", "ffn_norm")}
    return keys, tensors


def gguf_mutations(keys: dict[str, Typed], tensors: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Every key dropped or given every other value."""
    for name in keys:
        for new in TYPED:
            rest = {key: value for key, value in keys.items() if key != name}
            yield f"{name} = {str(new)[:40]}", gguf_bytes(rest if new is None else rest | {name: new}, tensors)
