"""A path of older releases of the original: see sglang.lang.backend.base_backend."""

from __future__ import annotations

from sglang.lang.backend.base_backend import BaseBackend

__all__ = ["BaseBackend"]
