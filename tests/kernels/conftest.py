from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .extension import use_chosen_build

use_chosen_build()
cpu = pytest.importorskip("sglang.srt.model.kernels.cpu", reason="the C++ kernels are not built", exc_type=ImportError)


@pytest.fixture(scope="session", params=cpu.usable_isas())
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The native kernels of each instruction set this machine has, on two threads."""
    yield cpu.CpuOps(2, request.param)


@pytest.fixture(scope="session")
def more_threads(ops: Any) -> list[Any]:
    """The same kernels on one and on three threads."""
    return [cpu.CpuOps(threads, ops.runtime.isa) for threads in (1, 3)]
