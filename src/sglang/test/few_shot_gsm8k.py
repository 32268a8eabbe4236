"""`python -m sglang.test.few_shot_gsm8k`: see sglang.compat.bench.few_shot."""

from __future__ import annotations

import sys

from sglang.compat.bench.few_shot import main, run_eval

__all__ = ["main", "run_eval"]

if __name__ == "__main__":
    sys.exit(main())
