"""Images and videos over HTTP.

Neither the URL nor the server behind it is trusted. A host name is resolved once, every address is checked, and the connection goes to
the address that was checked; each redirect is treated the same way. Answers are read up to a byte limit, without decompression, at a rate
of at least MIN_RATE, under one deadline. No cookies are kept.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import httpx

from sglang.common.interrupts import wait_for
from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.http.wire_numbers import whole_number
from sglang.srt.server.limits.shares import Shares, SharesByName
from sglang.srt.server.multimodal.addresses import IPAddress, Resolver, is_public
from sglang.srt.server.multimodal.fetched import Allowance, Fetched, shorten
from sglang.srt.server.multimodal.http_get import Answer, BrokenAnswer, get

MAX_REDIRECTS = 5
MAX_URL = 8192
FETCHES, FETCHES_OF_A_CLIENT = 64, 48
FETCHES_FROM_A_HOST, FROM_A_HOST_FOR_A_CLIENT = 16, 12
MIN_RATE = 1024
"""bytes a second, below which an answer is given up after SLOW_SECONDS"""
SLOW_SECONDS = 5.0
USER_AGENT = "sglang-anywhere"
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?|[0-9a-f:.]+", re.ASCII)
_FAILURES = (BrokenAnswer, OSError, ValueError)


@dataclass(frozen=True)
class Target:
    """A URL that may be requested, and what it names: `host` in ASCII."""

    url: httpx.URL
    host: str
    port: int


class Fetcher:
    """One server's way to other hosts."""

    def __init__(self, options: MediaOptions) -> None:
        self._options = options
        self._tls: ssl.SSLContext | None = None
        self._resolver = Resolver()
        self._places = Shares(FETCHES, FETCHES_OF_A_CLIENT, "images and videos are being fetched")
        self._hosts = SharesByName(
            FETCHES_FROM_A_HOST, FROM_A_HOST_FOR_A_CLIENT, "images and videos are being fetched from one host"
        )

    async def fetch(self, source: str, kind: str, allowance: Allowance, client: str) -> Fetched:
        """Raises RequestError, and OverloadError if there is no place for too long."""
        first, patience = self._parse(source, kind), self._options.timeout
        async with self._hosts.place(f"{first.host}:{first.port}", client, patience), self._places.place(client, 1, patience):
            try:
                return await wait_for(self._follow(first, source, kind, allowance, client), self._options.timeout)
            except asyncio.TimeoutError as error:
                raise RequestError(
                    f"fetching the {kind} {shorten(source)!r} took longer than {self._options.timeout:g} s"
                ) from error
            except _FAILURES as error:
                raise RequestError(f"the {kind} {shorten(source)!r} cannot be fetched: the connection failed") from error

    async def _follow(self, target: Target, source: str, kind: str, allowance: Allowance, client: str) -> Fetched:
        """Requests the URL and what it redirects to, each checked anew."""
        for _ in range(MAX_REDIRECTS + 1):
            async with await self._open(target, await self._address(target, kind, client)) as answer:
                if not 300 <= answer.status < 400:
                    return await self._read(answer, f"the {kind} {shorten(source)!r}", allowance)
            target = self._parse(self._join(target, answer.headers.get("location", ""), source, kind), kind)
        raise RequestError(f"the {kind} {shorten(source)!r} redirects more than {MAX_REDIRECTS} times")

    def _join(self, target: Target, location: str, source: str, kind: str) -> str:
        try:
            if not location:
                raise ValueError("no address")
            return str(target.url.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise RequestError(f"the {kind} {shorten(source)!r} redirects to something that is not a URL") from error

    def _parse(self, source: str, kind: str) -> Target:
        if len(source) > MAX_URL:
            raise RequestError(f"a URL of {len(source)} characters is too long: {MAX_URL} are allowed")
        try:
            url = httpx.URL(source)
            host, port = url.raw_host.decode("ascii").lower(), url.port
            _ = url.host, url.netloc, url.raw_path  # names that are no IDNA are found here
        except (httpx.InvalidURL, ValueError) as error:
            raise RequestError(f"{shorten(source)!r} is not a valid URL") from error
        if url.scheme not in ("http", "https") or not host:
            raise RequestError(f"the {kind} URL {shorten(source)!r} must be http or https with a host")
        if url.userinfo:
            raise RequestError(f"{kind} URLs with a user name or password are not fetched")
        if "\\" in source or not _HOST.fullmatch(host) or not (port is None or 0 < port < 65536):
            raise RequestError(f"{shorten(source)!r} is not a valid URL: its host or port cannot be")
        return Target(url, host, port or (443 if url.scheme == "https" else 80))

    async def _address(self, target: Target, kind: str, client: str) -> IPAddress:
        """The one address that may be connected to for this URL. Raises RequestError if policy forbids all."""
        host = target.host.rstrip(".")
        domains = self._options.allowed_domains
        if domains and not any(host == d or host.endswith("." + d) for d in domains):
            raise RequestError(f"{kind}s may only be fetched from {', '.join(domains)}, not from {host!r}")
        for address in await self._resolver.resolve(target.host, target.port, client):
            if self._options.allow_private or is_public(address):
                return address
        raise RequestError(f"{host!r} is a private address, from which {kind}s are not fetched (--allow-private-media)")

    async def _open(self, target: Target, address: IPAddress) -> AbstractAsyncContextManager[Answer]:
        """A GET to `address` under the URL's own name (Host header and TLS certificate)."""
        tls = None
        if target.url.scheme == "https":
            if self._tls is None:  # reading the certificates takes a while
                self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
            tls = self._tls
        headers = {
            "Host": target.url.netloc.decode("ascii"),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        return get(str(address), target.port, target.url.raw_path.decode("ascii"), headers, tls, target.host)

    async def _read(self, answer: Answer, label: str, allowance: Allowance) -> Fetched:
        if answer.status != 200:
            raise RequestError(f"fetching {label} gave status {answer.status}")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(f"{label} came compressed although that was not asked for")
        announced = whole_number(answer.headers.get("content-length", "").encode("latin-1"))
        if announced is not None:
            allowance.check(announced, label)
        data, begun = bytearray(), time.monotonic()
        async for chunk in answer.pieces():
            allowance.take(len(chunk), label)
            data += chunk
            seconds = time.monotonic() - begun
            if seconds > SLOW_SECONDS and len(data) < MIN_RATE * seconds:
                raise RequestError(f"{label} comes too slowly: less than {MIN_RATE} bytes a second")
        if not data:
            raise RequestError(f"{label} is empty")
        return Fetched(data, label, answer.headers.get("content-type"))
