"""`python -m sglang.bench_serving`: see sglang.compat.bench.serving."""

from __future__ import annotations

import sys

from sglang.compat.bench.serving import main, run_benchmark

__all__ = ["main", "run_benchmark"]

if __name__ == "__main__":
    sys.exit(main())
