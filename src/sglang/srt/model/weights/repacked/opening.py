"""Where the packed weights of a model belong; without the native kernels, nowhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.checkpoint.fingerprint import weights_stamp
from sglang.srt.config import ModelFiles, ModelOptions
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.weights.repacked.key import packed_key

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
