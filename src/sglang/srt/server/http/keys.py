"""Identifies the client of a request by its API key.

The identity is computed here, once, from the configured key that matched and not from its spelling in the request. Responses, sessions,
request ids, fairness and quotas use this identity and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from sglang.srt.errors import ApiKeyError

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Identity:
    """`client`: a digest of the configured key that matched; empty where all requests are one client's. `is_operator`: whether it may
    do what concerns the requests of others."""

    client: str = ""
    is_operator: bool = True


class KeyRing:
    """The configured keys and their owners. With fewer than two keys, the admin's included, clients are not distinguished."""

    def __init__(self, keys: tuple[str, ...], admin_key: str | None) -> None:
        self.replace(keys, admin_key)

    def replace(self, keys: tuple[str, ...], admin_key: str | None) -> None:
        """These are the keys from now on. Requests that are here go on."""
        every = tuple(dict.fromkeys(keys if admin_key is None else (*keys, admin_key)))
        self.is_needed = bool(keys)
        self.stranger = Identity(is_operator=not every)
        """who brings no key"""
        self.clients = frozenset({"", *(_digest(key) for key in every if len(every) > 1)})
        """all that there can be"""
        self._known: dict[bytes, Identity] = {}
        for encoding in ("utf-8", "latin-1"):  # clients differ in how they send letters outside ASCII
            for key in every:
                client = _digest(key) if len(every) > 1 else ""
                is_operator = key == admin_key if admin_key is not None else len(every) == 1
                with contextlib.suppress(UnicodeEncodeError):
                    self._known.setdefault(key.encode(encoding), Identity(client, is_operator))

    def identify(self, headers: Headers) -> Identity | None:
        """The client whose key a request carries; None for no key, or a wrong one. Raises ApiKeyError for keys that contradict
        each other."""
        found = {self._owner(token) for token in _credentials(headers)} or {None}
        if len(found) > 1:
            raise ApiKeyError("the request carries several API keys that differ: send one")
        return found.pop()

    def key_of(self, client: str) -> bytes | None:
        """A key of a client, for what is done in its name; empty where none is needed, None where it has none any more."""
        for key, identity in self._known.items():
            if identity.client == client:
                return key
        return None if client or self.is_needed else b""

    def _owner(self, token: bytes) -> Identity | None:
        """Every key is compared, in constant time: how long it takes says nothing."""
        matches = [identity for key, identity in self._known.items() if hmac.compare_digest(token, key)]
        return matches[0] if matches else None


def _credentials(headers: Headers) -> Iterable[bytes]:
    """Bearer tokens and Anthropic's header, without the white space around them; empty ones are none."""
    for name, value in headers:
        token = b""
        if name == b"authorization":
            kind, *rest = value.split(None, 1) or [b""]
            token = rest[0].strip() if kind.lower() == b"bearer" and rest else b""
        elif name == b"x-api-key":
            token = value.strip()
        if token:
            yield token


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]
