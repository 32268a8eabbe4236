"""`python -m sglang.test.send_one`: see sglang.compat.bench.send_one."""

from __future__ import annotations

import sys

from sglang.compat.bench.send_one import BenchArgs, main, send_one_prompt

__all__ = ["BenchArgs", "main", "send_one_prompt"]

if __name__ == "__main__":
    sys.exit(main())
