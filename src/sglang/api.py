"""Old import path of the functions of the language: `sglang.lang.api`."""

from __future__ import annotations

from typing import Any

from sglang.lang import api
from sglang.lang.api import *  # noqa: F403
from sglang.lang.api import __all__ as __all__


def __getattr__(name: str) -> Any:
    return getattr(api, name)
