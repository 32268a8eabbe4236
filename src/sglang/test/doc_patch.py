"""What notebooks of the original import first: servers that leave room for others, and `asyncio.run` inside a running loop where
nest_asyncio is installed."""

from __future__ import annotations

import contextlib
import importlib

from sglang.compat.servers import launch_server_cmd

with contextlib.suppress(ModuleNotFoundError):
    importlib.import_module("nest_asyncio").apply()

__all__ = ["launch_server_cmd"]
