"""PIL images as PNG files, for the language, which sends them, and for the runtime, which takes them from programs."""

from __future__ import annotations

import io
from typing import Any

ORIENTATION = 0x0112
"""EXIF's tag"""
_KEPT = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""modes of PIL images that a PNG file keeps"""
_ALIKE = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "I": "I;16"}
"""modes that another one of them keeps: transparency, 16 bits; the rest is RGB"""


def encode_png(image: Any) -> bytes:
    """The file, with the image's 16 bits and its transparency, turned as its EXIF says. Raises TypeError for floating-point
    samples."""
    if image.mode == "F":
        raise TypeError("an image of floating-point samples has no standard range: convert it to 8 or 16 bits")
    kept = image.convert("I") if image.mode.startswith("I;16") else image
    if kept.mode not in _KEPT:
        kept = kept.convert(_ALIKE.get(kept.mode, "RGB"))
    found = image.getexif()
    turned = type(found)()
    if ORIENTATION in found:
        turned[ORIENTATION] = found[ORIENTATION]
    buffer = io.BytesIO()
    kept.save(buffer, format="PNG", exif=turned)
    return buffer.getvalue()
