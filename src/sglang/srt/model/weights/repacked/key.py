"""Which file holds the packed weights of a model."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from sglang.srt.checkpoint.fingerprint import code_digest, code_files
from sglang.srt.config import ModelOptions


def packed_key(stamp: str, options: ModelOptions, kernels: str, rank: tuple[int, int]) -> str:
    """Hexadecimal digest of all that decides the bytes of packed weights and their order. The weights count by their files' names,
    sizes, times and headers (`stamp`: fingerprint.weights_stamp): 1 GB is not read again to learn what it is. `rank`: which part of how many. Raises OSError."""
    asked = replace(options, model_path="", files=None, weights_cache=None, download_dir=None, revision=None, random_seed=0)
    facts = {
        "weights": stamp,
        "options": msgspec.to_builtins(asked),
        "kernels": kernels,
        "code": code_digest(code_files()),
        "rank": rank,
    }
    return hashlib.blake2b(msgspec.json.encode(facts, order="deterministic"), digest_size=16).hexdigest()
