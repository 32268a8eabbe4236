"""The workloads: token ids fixed by a seed, so that every engine computes the same thing.

    W1     one stream: 32 prompt tokens, 128 new
    W2     prefill: 1024 prompt tokens, 1 new
    W3     many: 16 requests at once, 128 prompt tokens and 128 new each       (W3x64: 64 requests)
    W4     shared prefix: 32 requests at once, the same 768 tokens and then 32 of their own, 16 new each
    LONG   4096 prompt tokens, 64 new

End of text is ignored everywhere. Every repetition has its own prompts, so that prefix caches help in W4 alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LOWEST_ID, HIGHEST_ID = 1000, 40000
"""ordinary tokens in the vocabularies measured"""


@dataclass(frozen=True)
class Workload:
    """`prompts` are submitted at once; each gets `num_new` tokens."""

    name: str
    prompts: list[list[int]]
    num_new: int

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_new_tokens(self) -> int:
        return len(self.prompts) * self.num_new


SHAPES = {
    "W1": (1, 0, 32, 128),
    "W2": (1, 0, 1024, 1),
    "W3": (16, 0, 128, 128),
    "W3x64": (64, 0, 128, 128),
    "W4": (32, 768, 32, 16),
    "LONG": (1, 0, 4096, 64),
}
"""name: requests, shared prompt tokens, own prompt tokens, new tokens"""


def make_workload(name: str, repetition: int) -> Workload:
    """The workload's prompts for one repetition; the same in every process."""
    count, num_shared, num_own, num_new = SHAPES[name]
    rng = random.Random(f"{name} {repetition}")

    def ids(n: int) -> list[int]:
        return [rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(n)]

    shared = ids(num_shared)
    return Workload(name, [shared + ids(num_own) for _ in range(count)], num_new)
