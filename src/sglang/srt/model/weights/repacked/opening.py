"""Which file holds the packed weights of a model; without the native kernels there is none."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sglang.srt.checkpoint.fingerprint import code_digest, code_files, weights_stamp
from sglang.srt.config import ModelFiles, ModelOptions
from sglang.srt.model.kernels.ops import Ops

if TYPE_CHECKING:
    from sglang.srt.model.weights.repacked.packed_store import PackedStore


def open_store(ops: Ops, files: ModelFiles, options: ModelOptions, rank: tuple[int, int] = (0, 1)) -> PackedStore | None:
    """None if nothing is kept. `rank`: which part of how many."""
    packing = getattr(ops, "packing", None)
    if options.weights_cache is None or packing is None or options.load_format == "dummy":
        return None
    from sglang.srt.model.weights.repacked.packed_store import PackedStore, Place

    try:
        stamp = weights_stamp(files)
        key = packed_key(stamp, options, ops.name, rank)
    except OSError:  # whoever reads the weights says what is wrong
        return None
    where = hashlib.blake2b(os.fsencode(files.path.resolve()), digest_size=16).hexdigest()
    about = {"model": files.name[-200:], "kernels": ops.name, "place": where, "weights": stamp}
    place = Place(Path(options.weights_cache.folder), key, about)
    return PackedStore(options.weights_cache, place, packing, getattr(ops, "num_threads", 1))


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
