"""What the gateway of several models must know of the routes of one."""

from __future__ import annotations

from sglang.cluster.gateway import CHANGING_BY_GET, Effects
from sglang.srt.server.native.not_done import NOT_DONE
from tests.server.conftest import Stand


def test_what_a_get_changes_is_known_to_the_gateway(stand: Stand) -> None:
    both = {route.path for route in stand.app.routes if {"GET", "POST"} <= (getattr(route, "methods", None) or set())}
    lists = ("/v1/messages/batches", "/v1/files", "/v1/batches")
    assert {path for path in both - NOT_DONE.keys() if not path.startswith(lists)} == CHANGING_BY_GET
    assert all(path in Effects() and f"/models/a{path}" in Effects() for path in CHANGING_BY_GET)
    assert "/v1/models" not in Effects()
