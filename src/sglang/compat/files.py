"""Data sets and result files of benchmarks."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_RULE = "=" * 40


def read_jsonl(filename: str | os.PathLike[str]) -> Iterator[Any]:
    """The values of a file of JSON lines. Empty lines and those that begin with # are left out. Raises ValueError naming the
    line that is no JSON."""
    with open(filename, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{os.fspath(filename)}, line {number}, is not JSON: {error}") from error
            yield value


def dump_state_text(filename: str | os.PathLike[str], states: Iterable[Any], mode: str = "w") -> None:
    """Writes the text of each program state (or of anything else, as str) under a rule with its number."""
    from sglang.lang.run.state import ProgramState

    with open(filename, mode, encoding="utf-8") as file:
        for i, state in enumerate(states):
            text = state.text() if isinstance(state, ProgramState) else str(state)
            file.write(f"{_RULE} {i} {_RULE}\n{text}\n{_RULE}{_RULE}\n\n")


def download_and_cache_file(url: str, filename: str | None = None) -> str:
    """Fetches a file, with a bar, unless it is there already; returns its path. Without `filename` it lies in the system's
    folder for temporary files. Raises httpx.HTTPError; half a file is never left behind."""
    path = Path(filename) if filename is not None else Path(tempfile.gettempdir()) / _last_part(url)
    if not path.exists():
        print(f"Downloading from {url} to {path}")
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            _fetch(url, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return str(path)


def _last_part(url: str) -> str:
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if not name:
        raise ValueError(f"{url!r} names no file: give a filename")
    return name


def _fetch(url: str, path: Path) -> None:
    import httpx
    from tqdm import tqdm

    with httpx.stream("GET", url, follow_redirects=True, timeout=60.0) as response:
        response.raise_for_status()
        size = int(response.headers.get("content-length") or 0) or None
        with path.open("wb") as file, tqdm(desc=path.name, total=size, unit="B", unit_scale=True, unit_divisor=1024) as bar:
            for chunk in response.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))


def encode_image_base64(image: Any) -> str:
    """The base64 text of an image: a path, the bytes of a file, or an image of PIL (as PNG)."""
    if isinstance(image, (str, os.PathLike)):
        image = Path(image).read_bytes()
    elif not isinstance(image, bytes):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        image = buffer.getvalue()
    return base64.b64encode(image).decode()


def encode_video_base64(video_path: str, num_frames: int = 16) -> str:
    """Frames of a video file, evenly spaced, as `image_data` of /generate: "video:" and base64 (needs OpenCV)."""
    from sglang.lang.media import load_video_data

    return load_video_data(video_path, num_frames)


def get_exception_traceback() -> str:
    """The traceback of the exception that is being handled."""
    return traceback.format_exc()
