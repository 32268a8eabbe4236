"""What programs of the documents import from here: `load_image`."""

from __future__ import annotations

from sglang.srt.utils.images import load_image

__all__ = ["load_image"]
