"""Files of SQLite in a folder that others may have reached."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang.common.database import BadDatabase, open_database

TABLES = "create table if not exists a(b)"


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_a_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"")
    path.symlink_to(other)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.mkdir,
        link_to_itself,
        link_to_a_file,
        link_to_zeros,
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000),
    ],
)
def test_what_is_no_database_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "it.sqlite3"
    make(path)
    with pytest.raises(BadDatabase, match="cannot be used"):
        open_database(path, TABLES)


def test_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.sqlite3"
    path.write_bytes(b"")
    path.chmod(0o666)
    open_database(path, TABLES).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(BadDatabase, match="another user"):
        open_database(path, TABLES)


def test_a_folder_that_all_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(BadDatabase, match="all users may write"):
        open_database(tmp_path / "it.sqlite3", TABLES)
