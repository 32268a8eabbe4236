"""On PYTHONPATH, this makes a process one of a CPU installation, which has no torch: importing it, as transformers does where it finds
it, takes seconds of every start."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
