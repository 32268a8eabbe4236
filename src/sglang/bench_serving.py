"""`python -m sglang.bench_serving`: see sglang.compat.bench.serving."""

from __future__ import annotations

import sys

from sglang.compat.bench.serving import main, run_benchmark
from sglang.compat.tokenizers import get_tokenizer

__all__ = ["get_tokenizer", "main", "run_benchmark"]

if __name__ == "__main__":
    sys.exit(main())
