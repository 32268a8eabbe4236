"""`python -m sglang.bench_latency`: see sglang.compat.bench.one_batch."""

from __future__ import annotations

import sys

from sglang.compat.bench.one_batch import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
