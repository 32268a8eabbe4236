"""Detects the machine's devices without importing libraries that take seconds to load."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""of NVIDIA's driver: on Linux, and on Linux inside Windows"""


def cuda_is_here() -> bool:
    """Whether there is an NVIDIA driver and what our CUDA kernels need: torch and Triton."""
    if not any(Path(name).exists() for name in DRIVER_FILES):
        return False
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "triton"))
