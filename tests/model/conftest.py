"""Op sets under test."""

from __future__ import annotations

import pytest

from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps


def create_ops(name: str) -> Ops:
    if name == "reference":
        return ReferenceOps()
    try:
        from sglang.srt.model.kernels.cpu import CpuOps
    except ImportError as error:
        pytest.skip(f"the C++ kernels are not built: {error}")
    return CpuOps(2)


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return create_ops(request.param)
