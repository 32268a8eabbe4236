"""`python -m sglang.test.run_eval`: see sglang.compat.bench.evals."""

from __future__ import annotations

import sys

from sglang.compat.bench.evals import main, run_eval

__all__ = ["main", "run_eval"]

if __name__ == "__main__":
    sys.exit(main())
