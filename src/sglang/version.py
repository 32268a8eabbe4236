"""A path of the original."""

from __future__ import annotations

from sglang import __version__

__all__ = ["__version__"]
