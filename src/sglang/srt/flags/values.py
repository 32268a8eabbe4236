"""Values of flags that are more than a word or a number. What is wrong with one is a ConfigError: the server does not start."""

from __future__ import annotations

import re

from sglang.srt.errors import ConfigError

_HOST = re.compile(r"\*|(\*?\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+")


def split_names(text: str | None) -> tuple[str, ...]:
    """What stands between commas."""
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


def parse_hosts(text: str | None) -> tuple[str, ...]:
    """Names of --allowed-hosts. Raises ConfigError for what is no name."""
    names = tuple(name.lower().removesuffix(".") for name in split_names(text))
    for name in names:
        if not _HOST.fullmatch(name):
            raise ConfigError(
                f"--allowed-hosts takes names such as api.example.com, without scheme and port, got {name!r} (addresses need not be named)"
            )
    return names


def parse_origins(text: str | None) -> tuple[str, ...]:
    """Origins of --cors-origins, as browsers write them. Raises ConfigError for others, such as "null", which says nothing of who
    asks."""
    origins = tuple(origin.lower().rstrip("/") for origin in split_names(text))
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--cors-origins takes origins such as https://app.example.com, got {origin!r}")
    return origins
