"""Protects against requests that web pages send through a user's browser: only our own pages and --cors-origins are allowed. Three checks,
before a body is read; programs other than browsers pass all of them.

    Host            must be a name of this server: a page can let its own name point to our address (DNS rebinding).
    Origin          is checked for requests that change something. Browsers send it, or Sec-Fetch-Site, and no page can suppress them.
    Content-Type    of a body must be JSON: any page may post forms and plain text to any server without a preflight (CORS).
                    Where files are uploaded (UPLOADS) it is a form, and Origin has to do.

An IP address as Host is always accepted: nobody can let it point elsewhere. The order of Sec-Fetch-Site before Origin is that of
Filippo Valsorda, "Cross-Site Request Forgery" (2025), as in Go's net/http.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Container, Iterable
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from sglang.srt.errors import ForeignPageError, NotJsonError, RequestError, WrongHostError
from sglang.srt.server.http.wire import error_response

ANY = "*"
LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
UPLOADS = frozenset({"/v1/files"})
MAX_RIGHT_HOSTS = 128
MAX_SHOWN = 200
_AUTHORITY = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{0,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#@\s]+)")
_JSON_TYPE = re.compile(rb"application/(?:[a-z0-9!#$&^_.-]+\+)?json")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PAGE_MARKS = frozenset({b"origin", b"referer", b"cookie", b"sec-fetch-site", b"sec-fetch-mode"})
_LOOKED_AT = _PAGE_MARKS | {b"host", b"user-agent", b"content-type", b"content-length", b"transfer-encoding"}


class Authority(NamedTuple):
    """A host as in a URL, in lower case and without a last dot, and its port if there is one."""

    host: str
    port: int | None


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


NOWHERE = Authority("", None)


def parse_authority(text: str) -> Authority | None:
    """None for what is no host."""
    return _parse_short(text.lower()) if len(text) < 300 else None


@functools.lru_cache(maxsize=128)
def _parse_short(text: str) -> Authority | None:
    """Kept, since most requests name the same host."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    host = found["name"].removesuffix(".") if found["address"] is None else found["address"]
    if not host or (port is not None and port > 65535) or (found["address"] and not is_address(host)):
        return None
    return Authority(host, port)


def parse_origin(text: str) -> Origin | None:
    """scheme://host:port, the port only where it is not the scheme's own; None for what is none, such as "null"."""
    found = _ORIGIN.fullmatch(text.lower())
    authority = parse_authority(found["authority"]) if found is not None else None
    if found is None or authority is None:
        return None
    default = _DEFAULT_PORTS.get(found["scheme"])
    return Origin(found["scheme"], authority.host, None if authority.port == default else authority.port)


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Hosts:
    """The names that this server goes by: those of the loopback interface, the machine's, the one it was told to listen on, and
    `allowed`, where ".example.com" stands for all below it."""

    def __init__(self, allowed: Iterable[str], bound: str) -> None:
        machine = socket.gethostname().lower()
        names = {name.lower().removeprefix("*") if name != ANY else ANY for name in allowed}
        self._any = ANY in names
        self._below = (".localhost", *(name for name in names if name.startswith(".")))
        self._names = LOOPBACK_NAMES | names | {machine, machine.partition(".")[0], bound.lower()}

    def __contains__(self, host: str) -> bool:
        return self._any or host in self._names or host.endswith(self._below) or is_address(host)


class BrowserGuard:
    """The three checks. `effects`: paths that change something although they may be asked by GET."""

    def __init__(self, app: ASGIApp, hosts: Hosts, origins: tuple[str, ...], effects: Container[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = {parse_origin(origin) for origin in origins} - {None}
        self._written = frozenset(origins)
        """as they were given: a scheme of a program's own, such as app://., may have a host that is none elsewhere"""
        self._any_origin = ANY in origins
        self._effects = effects
        self._right_hosts: set[bytes] = set()
        """headers that were found right"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_plain(scope):
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_plain(self, scope: Scope) -> bool:
        """Whether a request passes all three checks, seen at a glance: it has no mark of a page, its body is JSON, and its Host has
        been found right before. Most programs send such ones."""
        headers = scope["headers"]
        said = dict(headers)
        return (
            said.get(b"content-type") == b"application/json"
            and said.get(b"host") in self._right_hosts
            and len(said) == len(headers)  # none is there twice
            and scope["method"] not in READING
            and _PAGE_MARKS.isdisjoint(said)
        )

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _LOOKED_AT:
                headers.setdefault(name, []).append(value)
        host = self._check_host(headers, scope["http_version"])
        method, path = scope["method"], scope["path"].rstrip()  # a router overlooks a line end after the path
        if method not in READING or path in self._effects:
            self._check_origin(headers, host, method)
        has_body = b"transfer-encoding" in headers or any(n.strip(b"0") for n in headers.get(b"content-length", ()))
        if has_body and not (path in UPLOADS and method == "POST"):
            self._check_type(headers)

    def _check_host(self, headers: dict[bytes, list[bytes]], version: str) -> Authority:
        values = headers.get(b"host", [])
        if not values and version == "1.0":  # probes of old load balancers; no browser
            return NOWHERE
        host = parse_authority(values[0].decode("latin-1").strip()) if len(values) == 1 else None
        if host is None:
            raise RequestError("the request must have one Host header, with a name or an address")
        if host.host not in self._hosts:
            raise WrongHostError(
                f"{host.host!r} is not a name of this server (Host header); to allow it, start the server with --allowed-hosts {host.host}"
            )
        if len(self._right_hosts) < MAX_RIGHT_HOSTS:
            self._right_hosts.add(values[0])
        return host

    def _check_origin(self, headers: dict[bytes, list[bytes]], host: Authority, method: str) -> None:
        """Raises ForeignPageError for a request that a browser sends on behalf of a page of another origin."""
        sites, origins = headers.get(b"sec-fetch-site", []), headers.get(b"origin", [])
        if self._any_origin or (sites and all(site in (b"same-origin", b"none") for site in sites)):
            return
        if origins:
            is_ours = all(self._is_ours(origin.decode("latin-1").strip(), host, bool(sites)) for origin in origins)
        else:
            is_ours = not sites and (method not in READING or not _is_browser(headers))
        if not is_ours:
            raise ForeignPageError(
                f"a web page from elsewhere may not ask this; its origin can be allowed with --cors-origins {_named(origins)}".rstrip()
                if origins or sites
                else "a browser has to ask this with POST"
            )

    def _is_ours(self, text: str, host: Authority, is_elsewhere: bool) -> bool:
        """`is_elsewhere`: the browser says that the page is not this server's, whatever its name."""
        origin = parse_origin(text)
        if text.lower() in self._written:
            return True
        if origin is None:
            return False
        port = None if host.port == _DEFAULT_PORTS.get(origin.scheme) else host.port
        return origin in self._origins or (not is_elsewhere and (origin.host, origin.port) == (host.host, port))

    @staticmethod
    def _check_type(headers: dict[bytes, list[bytes]]) -> None:
        if headers.get(b"content-type") == [b"application/json"]:
            return
        types = [value.partition(b";")[0].strip().lower() for value in headers.get(b"content-type", [])]
        if types and all(_JSON_TYPE.fullmatch(kind) for kind in types):
            return
        if types == [b"application/x-www-form-urlencoded"] and _is_curl(headers):
            return
        said = f"its type is {types[0][:100].decode('latin-1')!r}" if types else "its type is not said"
        raise NotJsonError(f"a body must be JSON, and {said}: send the header 'Content-Type: application/json' (curl -H)")


def _named(origins: list[bytes]) -> str:
    """The origin that a client sent, where the flag takes it."""
    text = origins[0].decode("latin-1").strip() if origins else ""
    return text if len(text) <= MAX_SHOWN and _ORIGIN.fullmatch(text.lower()) else ""


def _is_browser(headers: dict[bytes, list[bytes]]) -> bool:
    """To a plain http address that is not the loopback one, a browser says nothing of the page that an image stands on. But all
    browsers call themselves Mozilla."""
    return any(agent.startswith(b"Mozilla/") for agent in headers.get(b"user-agent", []))


def _is_curl(headers: dict[bytes, list[bytes]]) -> bool:
    """`curl -d` calls everything a form unless it is told otherwise. No page can pass for it: a browser asks first (CORS) before it
    sends another User-Agent, and adds an Origin."""
    agents = headers.get(b"user-agent", [])
    return len(agents) == 1 and agents[0].startswith(b"curl/") and _PAGE_MARKS.isdisjoint(headers)
