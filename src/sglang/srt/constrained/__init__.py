"""A path of the original: see sglang.compat.json_regex."""

from __future__ import annotations

from sglang.compat.json_regex import build_regex_from_object

__all__ = ["build_regex_from_object"]
