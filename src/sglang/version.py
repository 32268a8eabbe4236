"""The version, of both distributions: the build of either reads this line."""

from __future__ import annotations

__version__ = "0.1.0"
