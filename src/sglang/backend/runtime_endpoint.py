"""A path of older releases of the original: see sglang.lang.backend.runtime_endpoint."""

from __future__ import annotations

from sglang.lang.backend.runtime_endpoint import Runtime, RuntimeEndpoint

__all__ = ["Runtime", "RuntimeEndpoint"]
