"""`python -m sglang.bench_offline_throughput`: see sglang.compat.bench.offline."""

from __future__ import annotations

import sys

from sglang.compat.bench.offline import main, throughput_test

__all__ = ["main", "throughput_test"]

if __name__ == "__main__":
    sys.exit(main())
