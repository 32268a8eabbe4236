"""The version of the kernels for their build: the language's, or what an sdist says that was made from the same tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = ((HERE / "../src/sglang/version.py", r'__version__ = "(.+)"'), (HERE / "PKG-INFO", r"Version: (.+)"))


def dynamic_metadata(field: str, settings: Mapping[str, Any] | None = None, project: Mapping[str, Any] | None = None) -> str:
    for path, pattern in SOURCES:
        if path.exists():
            found = re.search(f"^{pattern}$", path.read_text(encoding="utf-8"), re.MULTILINE)
            if found is not None:
                return found[1]
    raise RuntimeError("there is neither ../src/sglang/version.py nor PKG-INFO: build from a checkout or an sdist")
