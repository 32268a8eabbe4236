"""Paths and names of models as clients write them: a model's server sees the path that the gateway has checked, and finding a model takes
few looks however long the path is."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.cluster.gateway import CHANGING_BY_GET, Effects, Gateway
from sglang.cluster.metrics import GatewayMetrics
from sglang.cluster.model_list import ServedModel
from sglang.cluster.relay import target_of
from sglang.srt.errors import NoSuchModelError

NAMES = ("small", "org/small", "org/small/v2", "a:b")


class Entry:
    def __init__(self, name: str) -> None:
        self.model = ServedModel(name)


class Entries(dict[str, Entry]):
    """Counts the looks."""

    num_looks = 0

    def __contains__(self, name: object) -> bool:
        self.num_looks += 1
        return super().__contains__(name)


class Pool:
    default = NAMES[0]
    wants_key = False

    def __init__(self) -> None:
        self.entries = Entries({name: Entry(name) for name in NAMES})

    def leases(self) -> list[Any]:
        return []


@pytest.fixture()
def pool() -> Pool:
    return Pool()


@pytest.fixture()
def gateway(pool: Pool) -> Gateway:
    return Gateway(pool, GatewayMetrics(), page=False)  # type: ignore[arg-type]


def decoded(target: bytes) -> str:
    return unquote(target.decode("ascii"))


@given(st.text(max_size=30).map(lambda text: "/" + text), st.integers(0, 3))
def test_a_server_decodes_the_path_that_was_checked(path: str, times: int) -> None:
    for _ in range(times):
        path = "/" + quote(path[1:], safe="")
    assert decoded(target_of({"path": path, "query_string": b""}, path)) == path


@pytest.mark.parametrize("path", sorted(CHANGING_BY_GET))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_no_spelling_of_what_changes_passes_for_something_else(path: str, times: int) -> None:
    for i in range(1, len(path)):
        letter = f"%{ord(path[i]):02x}"
        for _ in range(times - 1):
            letter = quote(letter, safe="")
        asked = unquote(f"{path[:i]}{letter}{path[i + 1 :]}")  # as the gateway sees it
        assert asked in Effects() or decoded(target_of({"path": asked, "query_string": b""}, asked)) != path


@pytest.mark.parametrize(
    ("rest", "name", "path"),
    [
        ("small", "small", "/"),
        ("small/", "small", "/"),
        ("small/v1/models", "small", "/v1/models"),
        ("org/small/v1/models", "org/small", "/v1/models"),
        ("org/small/v2", "org/small/v2", "/"),
        ("org/small/v2/" + "x/" * 1000, "org/small/v2", "/" + "x/" * 1000),
        ("a:b//x", "a:b", "//x"),
    ],
)
def test_the_longest_name_is_meant(gateway: Gateway, rest: str, name: str, path: str) -> None:
    assert gateway._split(rest) == (name, path)


@pytest.mark.parametrize("part", ["a/", "/", "small2/", "a:", ":", "small:"])
def test_long_paths_take_few_looks(gateway: Gateway, pool: Pool, part: str) -> None:
    for find in (gateway._split, gateway._known):
        pool.entries.num_looks = 0
        try:
            find(part * 30_000)
        except NoSuchModelError as error:
            assert len(str(error)) < 500
        assert pool.entries.num_looks < 20
