"""Public IP addresses, and the resolution of host names.

The table is that of IANA's registries of special-purpose addresses (RFC 6890 and its successors), with multicast and what was
once reserved. It is our own: what Python's `ipaddress` calls global differs between versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.server.limits.shares import Shares, SharesByName

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NON_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, metadata services too
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
"""global unicast; nothing else of IPv6 is public"""
NON_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
V4_INSIDE = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
"""notations that hide an IPv4 address, and how far above the lowest bit it lies"""

LOOKUPS, LOOKUPS_OF_A_CLIENT = 64, 48
LOOKUPS_OF_A_DOMAIN, OF_A_DOMAIN_AND_CLIENT = 8, 6
"""names that are being resolved at once: a name server that never answers delays only its own domain, and whoever asks for its names
no other client"""
LOOKUP_SECONDS = 20.0


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public internet, whatever notation hides it."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NON_PUBLIC_V4)
    for network, shift in V4_INSIDE:
        if address in network:
            return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
    if address.scope_id is not None or address not in PUBLIC_V6:
        return False
    return not any(address in network for network in NON_PUBLIC_V6)


class Resolver:
    """Looks names up, each on its own thread: the system's resolver cannot be interrupted, and may take half a minute."""

    def __init__(self) -> None:
        self._domains = SharesByName(
            LOOKUPS_OF_A_DOMAIN, OF_A_DOMAIN_AND_CLIENT, "host names of one domain are being looked up"
        )
        self._lookups = Shares(LOOKUPS, LOOKUPS_OF_A_CLIENT, "host names are being looked up")

    async def resolve(self, host: str, port: int, client: str) -> list[IPAddress]:
        """The addresses of a host name, in the resolver's order. Raises RequestError if there are none."""
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        domain = ".".join(host.rstrip(".").split(".")[-2:])
        await self._domains.acquire(domain, client, LOOKUP_SECONDS)
        try:
            await self._lookups.acquire(client, 1, LOOKUP_SECONDS)
        except BaseException:
            self._domains.release(domain, client)
            raise
        try:
            found = await self._look_up(host, port, partial(self._release, domain, client))
        except (OSError, ValueError, OverflowError) as error:
            raise RequestError(f"the host {host!r} of an image URL cannot be resolved") from error
        return [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]

    def _release(self, domain: str, client: str) -> None:
        self._lookups.release(client, 1)
        self._domains.release(domain, client)

    def _look_up(self, host: str, port: int, release: Callable[[], None]) -> asyncio.Future[list[Any]]:
        """`release` is called when the thread has ended, and not when the caller has gone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def settle(result: list[Any], error: Exception | None) -> None:
            release()
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def run() -> None:
            result: list[Any] = []
            error: Exception | None = None
            try:
                result = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, ValueError, OverflowError) as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        try:
            threading.Thread(target=run, name="host-name", daemon=True).start()
        except RuntimeError:  # no more threads
            release()
            raise OverloadError("the server has no room to look up the host of an image URL; try again later") from None
        return future
