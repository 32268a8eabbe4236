"""`python -m sglang.profiler`: see sglang.compat.bench.profiling."""

from __future__ import annotations

import sys

from sglang.compat.bench.profiling import main, run_profile

__all__ = ["main", "run_profile"]

if __name__ == "__main__":
    sys.exit(main())
