"""The address of a running server, http(s)://HOST:PORT or unix:PATH for a unix socket, and the HTTP client for it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

import httpx

from sglang.commands.arguments import CommandError

UNIX = "unix:"
KEY_VARIABLE = "SGLANG_API_KEY"


@dataclass(frozen=True)
class Address:
    """`api_key`: sent with every request; by default that of the environment. `ca_file`: the authority of its certificate (PEM)."""

    url: str
    api_key: str | None = None
    ca_file: str | None = None

    @property
    def base_url(self) -> str:
        """The address as requests name it."""
        if self.url.startswith(UNIX):
            return "http://localhost"
        url = self.url if self.url.startswith(("http://", "https://")) else f"http://{self.url}"
        return url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """Raises CommandError for a key that no header can carry."""
        key = (self.api_key or os.environ.get(KEY_VARIABLE) or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise CommandError("the API key has characters other than printable ASCII")
        return {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def socket_path(self) -> str | None:
        return self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None

    def trusted(self) -> ssl.SSLContext | bool:
        """The certificate authorities to trust. Raises CommandError."""
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise CommandError(
                f"--ca-file {self.ca_file} cannot be used: {getattr(error, 'strerror', None) or error}"
            ) from error

    def transport(self) -> httpx.HTTPTransport:
        return httpx.HTTPTransport(verify=self.trusted(), uds=self.socket_path, trust_env=False)

    def async_transport(self, limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=self.trusted(), uds=self.socket_path, trust_env=False, limits=limits)
