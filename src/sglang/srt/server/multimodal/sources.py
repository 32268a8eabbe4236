"""Where the bytes of an image or video come from: http(s), a data URI, bare base64, or a file below an allowed root.

What a client names is not trusted. A host name is resolved once, every address is checked, and the connection goes to the
address that was checked; each redirect is treated the same way. Answers are read to a byte limit, never decompressed, and
all of it has one deadline. Local files are opened only below `root`, after links are resolved.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import os
import re
import socket
import stat
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import httpx

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError

MAX_REDIRECTS = 5
MAX_SHOWN = 80
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]*={0,2}")
_USER_AGENT = "sglang-anywhere"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Fetched:
    """Bytes and what they were said to be; `label` names the source in error messages."""

    data: bytes
    label: str
    content_type: str | None = None


def shorten(source: str) -> str:
    """A source as it may be shown in a message."""
    return source if len(source) <= MAX_SHOWN else source[: MAX_SHOWN - 3] + "..."


def _file_path(url: str) -> str:
    """The path of file:///path, file://localhost/path or file:/path."""
    rest = url[5:].split("?")[0].split("#")[0]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise RequestError(f"a file URL names a path, not the host {shorten(host)!r}")
        rest = slash + path
    return urllib.parse.unquote(rest)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file: it is base64
        return False


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public internet, whatever notation hides it (mapped, NAT64, 6to4)."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> list[IPAddress]:
    """The addresses of a host name, in the resolver's order. Raises RequestError if there are none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"the host {host!r} of an image URL cannot be resolved") from error
    return [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]


class Sources:
    """Turns what a request names into bytes, within the limits of `options`. One per server; `close` ends its connections."""

    def __init__(self, options: MediaOptions) -> None:
        self._options = options
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def load(self, source: str | bytes, kind: str = "image") -> Fetched:
        """Raises RequestError with a sentence for everything that can be wrong with `source`."""
        if isinstance(source, bytes):
            return Fetched(self._checked(source, f"the {kind}"), f"the {kind}")
        source = source.strip()
        scheme = _SCHEME.match(source)
        name = scheme[1].lower() if scheme else ""
        if name == "data":
            return self._data_uri(source, kind)
        if name in ("http", "https"):
            return await self._http(source, kind)
        if name == "file":
            return await asyncio.to_thread(self._file, _file_path(source), kind)
        if "://" in source[:32]:
            raise RequestError(f"{kind} URLs may be http, https, data or file, not {name!r}")
        return await asyncio.to_thread(self._bare, source, kind)

    # --- inline data --------------------------------------------------------------------------------------------------------

    def _checked(self, data: bytes, label: str) -> bytes:
        if len(data) > self._options.max_bytes:
            raise RequestError(f"{label} has {len(data)} bytes; at most {self._options.max_bytes} are allowed")
        if not data:
            raise RequestError(f"{label} is empty")
        return data

    def _data_uri(self, source: str, kind: str) -> Fetched:
        head, comma, body = source.partition(",")
        if not comma:
            raise RequestError(f"a data URI needs a comma before its data, as in data:{kind}/png;base64,...")
        mime, *parameters = head[5:].split(";")
        if mime and not mime.lower().startswith((f"{kind}/", "application/octet-stream")):
            raise RequestError(f"a data URI of type {shorten(mime)!r} is no {kind}")
        if "base64" in (p.strip().lower() for p in parameters):
            data = self._base64(urllib.parse.unquote(body), f"the {kind}'s data URI")
        else:
            data = urllib.parse.unquote_to_bytes(body)
        return Fetched(self._checked(data, f"the {kind} in a data URI"), f"the {kind} in a data URI", mime or None)

    def _base64(self, text: str, label: str) -> bytes:
        if len(text) > self._options.max_bytes * 4 // 3 + 1024:
            raise RequestError(f"{label} is too large; at most {self._options.max_bytes} bytes are allowed")
        try:
            raw = b"".join(text.encode("ascii").split())
            if not _BASE64.fullmatch(raw):
                raise ValueError("not in the alphabet")
            raw = raw.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
            return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
        except (ValueError, binascii.Error) as error:
            raise RequestError(f"{label} is not valid base64") from error

    def _bare(self, source: str, kind: str) -> Fetched:
        """A string without a scheme: a path below the root if there is such a file, otherwise base64."""
        if self._options.root is not None and len(source) < 4096 and "\0" not in source:
            path = self._below_root(source)
            if path is not None and _is_file(path):
                return self._file(source, kind)
        try:
            data = self._base64(source, f"the {kind}")
        except RequestError as error:
            if "base64" not in str(error):
                raise
            hint = (
                "local files need --media-root" if self._options.root is None else "there is no such file below the media root"
            )
            raise RequestError(f"{shorten(source)!r} is neither a URL nor base64 data, and {hint}") from error
        return Fetched(self._checked(data, f"the {kind}"), f"the base64 {kind}")

    # --- files --------------------------------------------------------------------------------------------------------------

    def _below_root(self, name: str) -> Path | None:
        """The file that `name` means, links resolved, or None if it is not below the root."""
        assert self._options.root is not None
        root = Path(self._options.root).resolve()
        try:
            path = (root / name).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(root) else None

    def _file(self, name: str, kind: str) -> Fetched:
        if self._options.root is None:
            raise RequestError(f"local files are not served as {kind}s: start the server with --media-root")
        path = self._below_root(name) if "\0" not in name else None
        refusal = RequestError(f"there is no {kind} file {shorten(name)!r} below the media root")
        if path is None:
            raise refusal
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise refusal from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise refusal
        with os.fdopen(handle, "rb") as file:
            data = file.read(self._options.max_bytes + 1)
        return Fetched(self._checked(data, f"the file {shorten(name)!r}"), f"the file {shorten(name)!r}")

    # --- http ---------------------------------------------------------------------------------------------------------------

    async def _http(self, source: str, kind: str) -> Fetched:
        try:
            return await asyncio.wait_for(self._follow(source, kind), self._options.timeout)
        except asyncio.TimeoutError as error:
            raise RequestError(
                f"fetching the {kind} {shorten(source)!r} took longer than {self._options.timeout:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise RequestError(f"the {kind} {shorten(source)!r} cannot be fetched: the connection failed") from error

    async def _follow(self, source: str, kind: str) -> Fetched:
        """Requests the URL and what it redirects to, each checked anew."""
        url = self._parse(source, kind)
        for _ in range(MAX_REDIRECTS + 1):
            address = await self._address(url, kind)
            async with self._open(url, address) as response:
                if not response.is_redirect:
                    return await self._read(response, source, kind)
                try:
                    target = url.join(response.headers["location"])
                except (httpx.InvalidURL, KeyError) as error:
                    raise RequestError(f"the {kind} {shorten(source)!r} redirects to something that is no URL") from error
            url = self._parse(str(target), kind)
        raise RequestError(f"the {kind} {shorten(source)!r} redirects more than {MAX_REDIRECTS} times")

    def _parse(self, source: str, kind: str) -> httpx.URL:
        try:
            url = httpx.URL(source)
        except (httpx.InvalidURL, ValueError) as error:
            raise RequestError(f"{shorten(source)!r} is not a valid URL") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise RequestError(f"the {kind} URL {shorten(source)!r} must be http or https with a host")
        if url.userinfo:
            raise RequestError(f"{kind} URLs with a user name or password are not fetched")
        return url

    async def _address(self, url: httpx.URL, kind: str) -> IPAddress:
        """The one address that may be connected to for this URL. Raises RequestError if policy forbids all."""
        host = url.host.rstrip(".").lower()
        domains = self._options.allowed_domains
        if domains and not any(host == d or host.endswith("." + d) for d in domains):
            raise RequestError(f"{kind}s may only be fetched from {', '.join(domains)}, not from {host!r}")
        for address in await resolve(url.host, url.port or (443 if url.scheme == "https" else 80)):
            if self._options.allow_private or is_public(address):
                return address
        raise RequestError(f"{host!r} is a private address, from which {kind}s are not fetched (--allow-private-media)")

    def _open(self, url: httpx.URL, address: IPAddress) -> _Response:
        """A streamed GET to `address` under the URL's own name (Host header and TLS certificate)."""
        if self._client is None:
            limits = httpx.Limits(max_connections=16, max_keepalive_connections=0)
            self._client = httpx.AsyncClient(
                follow_redirects=False, trust_env=False, timeout=self._options.timeout, limits=limits
            )
        headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": _USER_AGENT}
        request = self._client.build_request("GET", url.copy_with(host=str(address)), headers=headers)
        request.extensions["sni_hostname"] = url.host
        return _Response(self._client, request)

    async def _read(self, response: httpx.Response, source: str, kind: str) -> Fetched:
        label, limit = f"the {kind} {shorten(source)!r}", self._options.max_bytes
        if response.status_code != 200:
            raise RequestError(f"fetching {label} gave status {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(f"{label} came compressed although that was not asked for")
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 19 and int(announced) > limit:
            raise RequestError(f"{label} has {announced} bytes; at most {limit} are allowed")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > limit:
                raise RequestError(f"{label} has more than the {limit} bytes that are allowed")
        return Fetched(self._checked(bytes(data), label), label, response.headers.get("content-type"))


class _Response:
    """`async with` around a streamed response."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        self._client, self._request = client, request

    async def __aenter__(self) -> httpx.Response:
        self._response = await self._client.send(self._request, stream=True)
        return self._response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()
