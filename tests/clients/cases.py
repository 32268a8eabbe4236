"""Runs the cases of a client's program: each by itself, with a report of failures at the end."""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Any


def run(*cases: Callable[[], Any]) -> None:
    """Runs functions and coroutine functions. The last line is "all good", or the exit status 1."""
    failed = []
    for case in cases:
        try:
            result = case()
            if inspect.iscoroutine(result):
                asyncio.run(result)
            print("ok", case.__name__, flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(case.__name__)
    if failed:
        print("failed:", ", ".join(failed))
        sys.exit(1)
    print("all good")
