"""Hides the values of secret flags from `ps` and from the environment of children."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, MutableMapping

from sglang.srt.flags.environment import variable

HIDDEN = "***"
LONG = 8
"""characters of a key that no other variable has by chance"""


def hide_secrets(secrets: Mapping[str, str | None], environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes the values of these flags out of the environment, and out of the command line that the system shows of this process.
    Until then every user who may list processes could read them there."""
    for name in secrets:
        environ.pop(variable(name), None)
    long = {value for value in secrets.values() if value and len(value) >= LONG}
    for name in [name for name, held in environ.items() if held in long]:  # --api-key "$MY_KEY"
        del environ[name]
    words = hidden_words(sys.orig_argv, secrets)
    if words != sys.orig_argv:
        with contextlib.suppress(ModuleNotFoundError):
            from setproctitle import setproctitle

            setproctitle(" ".join(words))


def hidden_words(words: list[str], secrets: Mapping[str, str | None]) -> list[str]:
    """A command line without the values of these flags, however they are abbreviated there."""
    parts = {part for value in secrets.values() if value for part in (value, *value.split(",")) if part}
    shown: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if word in parts or (word[:1] != "-" and any(part in parts for part in word.split(","))):
            shown.append(HIDDEN)
        elif equals and any(part in parts for part in (value, *value.split(","))):
            shown.append(f"{flag}={HIDDEN}")
        else:
            shown.append(word)
    return shown
