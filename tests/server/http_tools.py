"""HTTP against an application in this process."""

from __future__ import annotations

import httpx

from tests.server.conftest import Stand

JSON = {"Content-Type": "application/json"}


def client_of(stand: Stand, **headers: str) -> httpx.AsyncClient:
    """Bodies are JSON, whether they are well formed or not."""
    transport = httpx.ASGITransport(app=stand.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=JSON | headers, timeout=30)


def events_of(text: str) -> list[str]:
    """The data of each event. The stream must be nothing but events."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]
