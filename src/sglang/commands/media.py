"""Images for requests: a URL is sent as it is, a local file as a data URI."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

from sglang.commands.arguments import CommandError

MAX_BYTES = 32 << 20


def media_part(source: str) -> dict[str, Any]:
    """The content part for an image. Raises CommandError for a file that is not one."""
    if source.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": source}}
    path = Path(source).expanduser()
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise CommandError(f"{source} does not look like an image (.png, .jpg, .webp, .gif)")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CommandError(f"{source} is larger than {MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {source}: {error.strerror or error}") from error
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}
