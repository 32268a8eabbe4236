"""Which build of the kernels is tested: the installed one, or the file that scripts/sanitize names."""

from __future__ import annotations

import importlib.util
import os
import sys

NAME = "sglang_anywhere_kernels._cpu"


def use_chosen_build() -> None:
    """To be called before anything imports the kernels."""
    path = os.environ.get("SGLANG_TEST_CPU_EXTENSION")
    if not path or NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
