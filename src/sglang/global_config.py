"""Old import path of `sglang.global_config`."""

from __future__ import annotations

from sglang.lang.settings import GlobalConfig, global_config

__all__ = ["GlobalConfig", "global_config"]
