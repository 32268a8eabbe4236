"""Imported first by the original's notebooks: servers that leave memory for others, and `asyncio.run` inside a running loop if
nest_asyncio is installed."""

from __future__ import annotations

import contextlib
import importlib

from sglang.compat.servers import launch_server_cmd

with contextlib.suppress(ModuleNotFoundError):
    importlib.import_module("nest_asyncio").apply()

__all__ = ["launch_server_cmd"]
