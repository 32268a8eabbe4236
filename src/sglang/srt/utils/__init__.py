"""What the documents import from here."""

from __future__ import annotations

from sglang.srt.utils.images import load_image

__all__ = ["load_image"]
