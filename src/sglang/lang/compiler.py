"""A path of older releases of the original, where programs were compiled."""

from __future__ import annotations

raise ImportError("sglang.lang.compiler is not there: programs are not compiled; call program.run, run_batch or trace")
