"""Reads the small files of a model folder. They are untrusted: only regular files of a bounded size are read, and errors show a wrong
value in shortened form."""

from __future__ import annotations

import json
import reprlib
import stat
from pathlib import Path
from typing import Any

from sglang.srt.errors import ModelError

MAX_CONFIG_BYTES = 16 << 20
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""the files of a LoRA adapter, as PEFT names them"""
"""the largest published config.json has 2 MB"""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 60
_shown.maxlevel = 3


def shown(value: Any) -> str:
    """A value as error messages show it: whole if it is short, else its beginning."""
    return _shown.repr(value)


def check_regular(path: Path) -> int:
    """The size of a file in bytes. Raises ModelError if it is not a regular file: opening a pipe would block for ever."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file")
    return status.st_size


def read_text(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """The text of a file. Raises ModelError naming the file; FileNotFoundError if there is none."""
    size = check_regular(path)
    if size > max_bytes:
        raise ModelError(f"{path} has {size} bytes; at most {max_bytes} are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not valid UTF-8: download it again") from error


def read_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file; FileNotFoundError if there is none."""
    text = read_text(path, max_bytes)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): download it again") from error
    if "\\ud" in text.lower():
        check_whole(path, value)
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object, and holds {shown(value)}")
    return value


def check_whole(path: Path, value: Any) -> None:
    """JSON can spell a lone surrogate (half a character), which is not valid text."""
    for name, member in value.items() if isinstance(value, dict) else [("", value)]:
        try:
            json.dumps({name: member}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ModelError(f"{path}: {shown(name)} holds half a character (a lone surrogate)") from error
