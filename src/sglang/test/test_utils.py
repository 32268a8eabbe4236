"""What the documents' notebooks ask about where they run."""

from __future__ import annotations

import os


def is_in_ci() -> bool:
    """Whether SGLANG_IS_IN_CI is set to a true value."""
    return os.environ.get("SGLANG_IS_IN_CI", "").lower() in ("1", "true", "yes", "on")
