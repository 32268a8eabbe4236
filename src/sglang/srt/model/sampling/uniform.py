"""The random numbers of sampling: a counter-based generator, so that a sample depends on (seed, position) and on nothing else:
not on the batch, not on what was sampled before, not on the device.

    u(seed, counter) = top 24 bits of mix(mix(seed) + (counter + 1) * GAMMA) / 2^24

mix is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). 24 bits are
what a float32 in [0, 1) holds exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


def _mix(z: UInt64) -> UInt64:
    z = (z ^ (z >> np.uint64(30))) * _MUL_1
    z = (z ^ (z >> np.uint64(27))) * _MUL_2
    z ^= z >> np.uint64(31)
    return z


def stream_keys(seeds: list[int]) -> UInt64:
    """One key per seed (any integer, taken modulo 2^64), for `uniforms`."""
    return _mix(np.array([seed % 2**64 for seed in seeds], np.uint64))


def uniforms(keys: UInt64, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1), one per (key, counter)."""
    bits = _mix(keys + (counters + 1).astype(np.uint64) * _GAMMA)
    values: npt.NDArray[np.float32] = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return values
