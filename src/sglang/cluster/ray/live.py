"""The routers of this process. In a module of their own: Serve copies a router's class, and what stands beside it, through a pickle."""

from __future__ import annotations

import weakref
from typing import Any

ROUTERS: weakref.WeakSet[Any] = weakref.WeakSet()
