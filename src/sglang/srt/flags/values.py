"""Parses structured values of flags. A wrong value raises ConfigError: the server does not start."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import stat
from typing import Any

from sglang.srt.errors import ConfigError

_HOST = re.compile(r"\*|(\*?\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[kmgt]?)(?P<kind>i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
MAX_KEY_FILE = 1 << 20
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+")


logger = logging.getLogger("sglang")


def parse_size(text: str) -> int:
    """Bytes: 67108864, 64MiB or 64M (of 1024), 64MB (of 1000). Raises argparse.ArgumentTypeError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or len(text) > 40:
        raise argparse.ArgumentTypeError(f"a size is expected, such as 67108864, 64MiB or 2G, got {text[:40]!r}")
    base = 1000 if found["kind"].lower() == "b" else 1024
    return (
        int(float(found["number"]) * base ** _POWERS[found["unit"].lower()]) if found["unit"] else int(float(found["number"]))
    )


def show_size(num_bytes: int) -> str:
    """64 MiB; bytes where it is no whole number of a unit."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = 1024 ** _POWERS[unit[0].lower()]
        if num_bytes and num_bytes % size == 0:
            return f"{num_bytes // size} {unit}"
    return f"{num_bytes} bytes"


def split_names(text: str | None) -> tuple[str, ...]:
    """The names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def parse_keys(flag: str, text: str | None) -> tuple[str, ...]:
    """The keys between commas, each once. Raises ConfigError for an empty one, or one that cannot be sent."""
    return tuple(dict.fromkeys(_key(flag, part) for part in text.split(","))) if text is not None else ()


def parse_key(flag: str, text: str | None) -> str | None:
    """One key. Raises ConfigError likewise."""
    return _key(flag, text) if text is not None else None


def _key(flag: str, text: str) -> str:
    """White space around a header's value means nothing, so it means nothing around a key either."""
    key = text.strip()
    if not key:
        raise ConfigError(
            f"{flag} has an empty key, with which the server would be open to everybody. Is a variable not set? Give a key, or leave "
            "the flag out if none is to be asked for"
        )
    if not key.isprintable():
        raise ConfigError(f"{flag} has a key with a line end or another control character inside, which no header can carry")
    return key


def read_keys(flag: str, path: str | None) -> tuple[str, ...]:
    """The keys in a file, one a line; empty lines and those that begin with # are none. Raises ConfigError."""
    if path is None:
        return ()
    lines = [line.strip() for line in read_private(flag, path).splitlines()]
    keys = tuple(dict.fromkeys(_key(f"{flag} {path}", line) for line in lines if line and not line.startswith("#")))
    if not keys:
        raise ConfigError(
            f"{flag} {path} holds no key: one a line is expected. Without one the server would be open to everybody"
        )
    return keys


def read_private(flag: str, path: str) -> str:
    """The text of a file that holds secrets, with a warning if others may read it. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            if note := open_to_all(flag, path, os.fstat(file.fileno()).st_mode):
                logger.warning("%s", note)
            data = file.read(MAX_KEY_FILE + 1)
        if len(data) > MAX_KEY_FILE:
            raise ConfigError(f"{flag} {path} is longer than {show_size(MAX_KEY_FILE)}")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name with a null, or bytes that are no text
        raise ConfigError(f"{flag} {path!r} is not a file with UTF-8 text") from error


def open_to_all(flag: str, path: str, mode: int) -> str | None:
    """A warning about a file with secrets that all users may read; None if only its owner may."""
    is_open = stat.S_ISREG(mode) and mode & stat.S_IROTH
    return f"{flag} {path} may be read by everybody on this machine: chmod o-r {path}" if is_open else None


def parse_hosts(text: str | None) -> tuple[str, ...]:
    """Names of --allowed-hosts. Raises ConfigError for what is no name."""
    names = tuple(name.lower().removesuffix(".") for name in split_names(text))
    for name in names:
        if not _HOST.fullmatch(name):
            raise ConfigError(
                f"--allowed-hosts takes names such as api.example.com, without scheme and port, got {name!r} (addresses need not be named)"
            )
    return names


def parse_root_path(text: str) -> str:
    """A path without a slash at its end; empty for none. Raises ConfigError."""
    path = text.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ConfigError(f"--root-path is a path such as /llm, got {text[:100]!r}")
    return path


def _without_port(origin: str) -> str:
    """Browsers leave out a scheme's own port."""
    for scheme, port in (("http", ":80"), ("https", ":443")):
        if origin.startswith(f"{scheme}://"):
            return origin.removesuffix(port)
    return origin


def parse_origins(text: str | None) -> tuple[str, ...]:
    """Origins of --cors-origins, as browsers write them. Raises ConfigError for others, such as "null", which says nothing of who
    asks."""
    origins = tuple(_without_port(origin.lower().rstrip("/")) for origin in split_names(text))
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--cors-origins takes origins such as https://app.example.com, got {origin!r}")
    return origins


def parse_folder(flag: str, path: str) -> str:
    """An absolute path. Raises ConfigError."""
    if not path or "\0" in path:
        raise ConfigError(f"{flag} needs the name of a folder, got {path!r}")
    return os.path.abspath(os.path.expanduser(path))


def is_text(value: str) -> bool:
    """Whether it can be sent to another process: bytes of a command line that are no UTF-8 arrive as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_object(flag: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} must be a JSON object")
    if not is_text(json.dumps(value, ensure_ascii=False)):
        raise ConfigError(f"{flag} holds half a character (a lone surrogate)")
    return value
