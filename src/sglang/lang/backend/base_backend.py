"""A path of the original: see sglang.lang.backend.base."""

from __future__ import annotations

from sglang.lang.backend.base import BaseBackend

__all__ = ["BaseBackend"]
