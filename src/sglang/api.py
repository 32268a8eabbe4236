"""Old import path of the functions of the language: `sglang.lang.api`."""

from __future__ import annotations

from sglang.lang.api import *  # noqa: F403
from sglang.lang.api import __all__ as __all__
