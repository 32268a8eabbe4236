"""A native server of the tests and a backend on it, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sglang as sgl
from sglang import RuntimeEndpoint

from .native_server import NativeServer


@pytest.fixture()
def native() -> Iterator[NativeServer]:
    with NativeServer() as running:
        yield running


@pytest.fixture()
def backend(native: NativeServer) -> Iterator[RuntimeEndpoint]:
    """The default backend while the test runs."""
    endpoint = RuntimeEndpoint(native.url, timeout=10)
    sgl.set_default_backend(endpoint)
    yield endpoint
    sgl.set_default_backend(None)
    endpoint.shutdown()
