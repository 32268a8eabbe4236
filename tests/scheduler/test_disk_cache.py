"""The prefix cache on disk: what one scheduler knew, another finds, and nobody gets what is not theirs, damaged, or in the way.

The toy model is the oracle (toy.py): a record in the wrong slots, of another prefix or changed by a byte changes what it answers.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.checkpoint import cache_folder as folder_module
from sglang.srt.config import ScheduleOptions
from sglang.srt.errors import ConfigError
from sglang.srt.forward_batch import Int32Array
from sglang.srt.messages import AbortReq, FlushCacheReq
from sglang.srt.scheduler.cache.disk import segments
from sglang.srt.scheduler.cache.disk import store as store_module
from sglang.srt.scheduler.cache.disk.records import chain_keys, root_key
from sglang.srt.scheduler.cache.disk.store import DiskRoom, RecordStore
from sglang.srt.scheduler.cache.disk.transfers import Load
from sglang.srt.scheduler.cache.radix_cache import MARK
from tests.scheduler.disk_server import (
    ROOM,
    Server,
    ask,
    fill,
    hurried,
    ids,
    leave,
    make_form,
    run_and_restart,
    stored_files,
)

from .toy import Harness, ToyRuns, ToyWorker, expected_output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- what comes back ----------------------------------------------------------------------------------------------------------


def test_a_restart_finds_what_was_in_memory(folder: Path) -> None:
    prompt = ids(200)
    fill(folder, prompt)
    server = Server(folder)
    assert server.cached(ask(prompt)) == 192
    assert server.stats.cached_tokens == {"memory": 0, "disk": 192}
    assert server.cached(ask(prompt)) == 199  # from the tree
    assert server.stats.cached_tokens == {"memory": 199, "disk": 192}
    server.stop()


def test_a_killed_server_leaves_what_was_asked_for_twice(folder: Path) -> None:
    once, twice = ids(200, 1), ids(200, 2)
    server = Server(folder)
    server.ask(ask(once))
    assert server.cached(ask(twice)) == 0
    assert server.cached(ask(twice)) == 199
    server.kill()
    after = Server(folder)
    assert after.cached(ask(twice)) == 192
    assert after.cached(ask(once)) == 0


def test_what_is_evicted_comes_back_from_disk(folder: Path) -> None:
    server = Server(folder, ToyWorker(num_slots=512))
    prompts = [ids(200, seed) for seed in range(6)]  # more than the pool holds
    for prompt in prompts:
        server.ask(ask(prompt))
    assert server.cached(ask(prompts[0])) >= 160
    assert server.stats.cached_tokens["disk"] >= 160
    server.kill()


def test_another_folder_of_the_same_records_serves_as_well(folder: Path, tmp_path: Path) -> None:
    prompt = ids(100)
    fill(folder, prompt)
    moved = shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(folder)
    assert Server(moved).cached(ask(prompt)) == 96


def test_branches_inside_a_run_are_kept(folder: Path) -> None:
    """A prefix that ends inside a run goes on in another run: the record of the second prompt is in two pieces."""
    stem = ids(37)
    one, two = stem + ids(100, 1), stem + ids(100, 2)
    server = Server(folder)
    server.ask(ask(one))
    server.ask(ask(two))
    server.stop()
    after = Server(folder)
    assert after.cached(ask(two)) == 128
    assert after.cached(ask(one)) == 128  # its first two records and five tokens were there already
    after.kill()


def test_the_tree_and_the_disk_each_give_a_part(folder: Path) -> None:
    prompt = ids(160)
    fill(folder, prompt)
    server = Server(folder)
    assert server.cached(ask(prompt[:50])) == 48
    assert server.cached(ask(prompt)) == 144
    assert server.stats.cached_tokens == {"memory": 50, "disk": 48 + 94}
    server.kill()


def test_requests_for_the_same_records_share_a_load(folder: Path) -> None:
    prompt = ids(200)
    fill(folder, prompt)
    server = Server(folder)
    answers = server.ask(*(ask(prompt + ids(20, seed)) for seed in range(5)))
    assert [answer.last.cached_len for answer in answers] == [192] * 5 or all(a.last.cached_len >= 192 for a in answers)
    assert server.tier.num_read == 12
    server.kill()


def test_log_probabilities_are_computed_and_not_read(folder: Path) -> None:
    from .toy import logprob_options

    prompt = ids(100)
    fill(folder, prompt)
    server, plain = Server(folder), Harness()
    req = ask(prompt, logprobs=logprob_options(0, 2))
    assert server.ask(req)[0].input_logprobs == plain.run(req)[0].input_logprobs
    assert server.tier.num_read == 0
    server.kill()


def test_pages_larger_than_a_record(folder: Path) -> None:
    prompt = ids(200)
    options = ScheduleOptions(page_size=24)
    fill(folder, prompt, options=options)
    server = Server(folder, options=options)
    server.ask(ask(prompt[:60]))
    assert server.cached(ask(prompt)) == 192 // 24 * 24
    server.kill()


# --- what must not come back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["fingerprint", "salt", "tenant"])
def test_what_is_another_s_is_never_read(folder: Path, change: str) -> None:
    prompt = ids(100)
    server = Server(folder)
    server.ask(ask(prompt, cache_salt="a"))
    server.stop()
    other = Server(folder, fingerprint="other" if change == "fingerprint" else "same", is_shared=change == "tenant")
    assert other.cached(ask(prompt, cache_salt="b" if change == "salt" else "a")) == 0
    assert other.tier.num_read == 0
    other.kill()
    assert Server(folder).cached(ask(prompt, cache_salt="a")) == 96


def test_namespaces_have_different_keys() -> None:
    salts = [None, "", "\0", "\1", "a", "a\0", "\ud800"]
    roots = {root_key(b"f" * 32, shared, salt) for salt in salts for shared in (False, True)}
    assert len(roots | {root_key(b"g" * 32, False, None)}) == 2 * len(salts) + 1


@pytest.mark.parametrize("own", [-60, MARK + 3], ids=["image", "adapter"])
def test_ids_of_which_nothing_is_known_end_what_is_kept(folder: Path, own: int) -> None:
    """The tree's ids of images and activated adapters are one process's own (test_disk_names.py has those that are known)."""
    server = Server(folder)
    leave(server, np.array([*ids(40), own, *ids(80, 1)], np.int32), None)
    server.stop()
    assert len(Server(folder).tier.store) == 2


# --- damage -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".idx", ".kv"])
def test_a_flipped_byte_is_a_miss_and_never_an_answer(folder: Path, tmp_path: Path, suffix: str) -> None:
    prompt, rng = ids(100), random.Random(5)
    fill(folder, prompt)
    path = next(path for path in stored_files(folder) if path.suffix == suffix)
    data = path.read_bytes()
    for i, at in enumerate([0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(12))]):
        copy = shutil.copytree(folder, tmp_path / str(i))
        (copy / path.relative_to(folder)).write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        server = Server(copy)
        cached = server.cached(ask(prompt))
        assert (server.tier.store.num_damaged, cached < 96) == (1, True)
        assert cached % 16 == 0
        server.kill()


def test_a_record_that_was_damaged_is_written_again(folder: Path) -> None:
    prompt = ids(100)
    fill(folder, prompt)
    payloads = next(path for path in stored_files(folder) if path.suffix == ".kv")
    data = payloads.read_bytes()
    payloads.write_bytes(b"\xff" + data[1:])
    server = Server(folder)
    assert server.cached(ask(prompt)) == 0
    server.stop()
    assert Server(folder).cached(ask(prompt)) == 96


def test_a_file_may_end_at_any_byte(folder: Path, tmp_path: Path) -> None:
    """Whatever was written last, the next server reads what is whole, and goes on writing behind it."""
    prompt = ids(60)
    fill(folder, prompt)
    index, payloads = stored_files(folder)
    sizes = {path: path.stat().st_size for path in (index, payloads)}
    rng = random.Random(3)
    for path in (index, payloads):
        for cut in [0, sizes[path] - 1, *(rng.randrange(sizes[path]) for _ in range(8))]:
            copy = shutil.copytree(folder, tmp_path / f"{path.suffix}{cut}{rng.random()}")
            os.truncate(copy / path.relative_to(folder), cut)
            server = Server(copy)
            assert server.cached(ask(prompt)) <= 48
            server.stop()
            after = Server(copy)
            assert after.cached(ask(prompt)) == 48
            assert after.tier.store.num_damaged == 0
            after.kill()


# --- disks that fail ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    handler = Handler()
    logging.getLogger("sglang").addHandler(handler)
    yield found
    logging.getLogger("sglang").removeHandler(handler)


def test_a_full_disk_is_served_without(folder: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    prompt = ids(200)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments.os, "pwrite", full)
    server = Server(folder)
    for _ in range(3):
        server.ask(ask(prompt))
    assert len(warnings) == 1 and "No space left" in warnings[0] and str(folder) in warnings[0]
    monkeypatch.undo()
    server.stop()
    assert Server(folder).cached(ask(prompt)) in (0, 192)


def test_the_free_bytes_of_others_are_not_taken(folder: Path, warnings: list[str]) -> None:
    server = Server(folder, room=DiskRoom(1 << 20, least_free=1 << 60))
    server.ask(ask(ids(200)))
    server.ask(ask(ids(200)))
    server.stop()
    assert len(server.tier.store) == 0 and len(warnings) == 1 and "full" in warnings[0]


def test_a_folder_that_goes_is_served_without(folder: Path, warnings: list[str]) -> None:
    prompt = ids(200)
    fill(folder, prompt)
    server = Server(folder)
    shutil.rmtree(folder)
    assert server.cached(ask(prompt)) == 0
    assert server.cached(ask(prompt)) == 199
    server.stop()
    assert len(warnings) == 1


def test_a_read_only_disk_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    prompt = ids(200)
    fill(folder, prompt)
    real = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(folder_module.os, "open", read_only)
    server = Server(folder)
    assert server.cached(ask(prompt)) == 192
    server.ask(ask(prompt))
    server.stop()
    assert len(warnings) == 1 and "Read-only" in warnings[0]


def test_a_disk_that_hangs_holds_up_nobody(folder: Path) -> None:
    """The request computes, the memory is free again, and the next ones do not wait for the disk at all."""
    prompt = ids(200)
    fill(folder, prompt)
    server, goes_on = Server(folder), threading.Event()
    read = server.tier.store.read

    def hang(*args: Any) -> bool:
        goes_on.wait(600)
        return read(*args)

    server.tier.store.read = hang  # type: ignore[method-assign]
    server.tier.pace.patience = lambda num_tokens: 0.0  # type: ignore[method-assign]
    assert server.cached(ask(prompt)) == 0
    assert server.cached(ask(prompt)) == 199
    goes_on.set()
    server.kill()
    server.check()


# --- several servers, and limits ----------------------------------------------------------------------------------------------


def test_a_second_server_reads_what_the_first_writes(folder: Path, warnings: list[str]) -> None:
    first, second = Server(folder), Server(folder)
    assert len(warnings) == 1 and "another server writes" in warnings[0]
    prompt = ids(200)
    first.ask(ask(prompt))
    first.ask(ask(prompt))
    second.tier.store._scanned_at -= 3600
    assert second.cached(ask(ids(20))) == 0
    while len(second.tier.store) < 12:
        time.sleep(0.001)
    second.ask(ask(ids(200, 4)))
    second.ask(ask(ids(200, 4)))
    assert second.tier.store.num_written == 0
    first.kill()
    third = Server(folder)
    assert third.tier.store.writes
    third.kill()


def test_the_least_recently_used_segment_goes(folder: Path) -> None:
    runs = ToyRuns(ToyWorker())
    room = DiskRoom(40_000, least_free=0)
    server = Server(folder, ToyWorker(num_slots=4096), room=room)
    for seed in range(30):
        server.ask(ask(ids(200, seed)))
        server.ask(ask(ids(200, seed)))
        assert folder_module.folder_bytes(folder) <= room.limit  # type: ignore[operator]
    server.kill()
    after = Server(folder, room=room)
    assert 0 < len(after.tier.store) < 40_000 // runs.run_bytes
    assert after.cached(ask(ids(200, 29))) == 192
    assert after.cached(ask(ids(200, 0))) == 0


def test_folders_of_others_models_make_room(folder: Path) -> None:
    room = DiskRoom(40_000, least_free=0)
    for name in ("a", "b", "c", "d"):
        fill(folder, *(ids(400, seed) for seed in range(4)), fingerprint=name, room=room)
        assert folder_module.folder_bytes(folder) <= 40_000
    assert Server(folder, fingerprint="d", room=room).cached(ask(ids(400, 3))) >= 16


def test_a_limit_that_holds_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--cache-disk 100 is too small: records of this model need at least"):
        Server(folder, room=DiskRoom(100))


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_open_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"):
        Server(folder)


def test_what_is_written_is_its_owner_s(folder: Path) -> None:
    old = os.umask(0)
    try:
        fill(folder, ids(100))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}


# --- anything, in any order ---------------------------------------------------------------------------------------------------


def test_a_request_needs_the_memory_of_a_load(folder: Path) -> None:
    """Whoever runs gets it at once; the load's request computes."""
    prompt = ids(300)
    fill(folder, prompt)
    worker = ToyWorker(num_slots=512)
    server, goes_on = Server(folder, worker), threading.Event()
    read = server.tier.store.read

    def slow(*args: Any) -> bool:
        goes_on.wait(600)
        return read(*args)

    server.tier.store.read = slow  # type: ignore[method-assign]
    loading, running = ask(prompt), ask(ids(300, 7), max_new_tokens=40)
    server.harness.put(loading)
    server.harness.step()
    server.harness.put(running)
    while running.rid not in server.harness.answers:
        server.harness.step()
    goes_on.set()
    server.ask()
    for req in (loading, running):
        assert server.harness.answers[req.rid].ids == expected_output(req).ids
    server.kill()


def test_aborts_and_flushes_while_records_are_read(folder: Path) -> None:
    prompt = ids(300)
    fill(folder, prompt)
    server = Server(folder)
    req = ask(prompt)
    server.harness.put(req)
    server.harness.put(AbortReq(req.rid))
    server.harness.put(FlushCacheReq(7))
    assert server.harness.replies[-1].ok
    server.ask()
    assert server.cached(ask(prompt)) == 288
    server.stop()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), slots=st.sampled_from([512, 768, 1024]), page=st.sampled_from([1, 1, 16, 24]))
def test_slots_add_up_whatever_happens(folder: Path, seed: int, slots: int, page: int) -> None:
    """Schedulers of a small pool over one folder: prompts with common stems, aborts, evictions, retractions, restarts and kills."""
    shutil.rmtree(folder, ignore_errors=True)

    def open_server(rng: random.Random) -> Server:
        worker = ToyWorker(num_slots=slots, max_running=6)
        return Server(folder, worker, hurried(page, rng), room=DiskRoom(60_000, least_free=0))

    run_and_restart(open_server, random.Random(seed))


def test_keys_depend_on_all_that_went_before() -> None:
    root = bytes(32)
    prefix: Int32Array = np.arange(64, dtype=np.int32)
    keys = chain_keys(root, prefix, 16)
    assert len(keys) == 4 and keys == chain_keys(root, prefix, 16, keys[:2])
    for at in range(64):
        changed = prefix.copy()
        changed[at] += 1
        other = chain_keys(root, changed, 16)
        assert [a == b for a, b in zip(keys, other, strict=True)] == [i < at // 16 for i in range(4)]


def test_a_cancelled_load_writes_nothing(folder: Path) -> None:
    prompt = ids(100)
    fill(folder, prompt)
    worker = ToyWorker()
    runs = ToyRuns(worker)
    store = RecordStore(folder, make_form(runs), ROOM, {})
    path = np.array(prompt, np.int32)
    keys = chain_keys(root_key(store.form.fingerprint, False, None), path, 16)
    load = Load(store.find(keys, path, 0), list(range(0, 96, 16)))
    load.cancel()
    load.run(store, runs)
    assert load.num_read == 0 and (worker.tokens == -1).all()
    store.close()


# --- what others may put there -------------------------------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _folder(path: Path) -> None:
    path.mkdir()


def _noise(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


@pytest.mark.parametrize("suffix", [".idx", ".kv"])
@pytest.mark.parametrize("put", [_pipe, _link, _folder, _noise])
@pytest.mark.timeout(60)
def test_no_file_that_lies_there_holds_up_or_changes_anything(folder: Path, put: Any, suffix: str) -> None:
    """In place of a file, and under a name of its own. What a link leads to stays as it is."""
    prompt = ids(100)
    fill(folder, prompt)
    (whole,) = [path for path in stored_files(folder) if path.suffix == suffix]
    before = Path("/etc/passwd").read_bytes()
    put(whole.with_name(f"7{suffix}"))
    assert Server(folder).cached(ask(prompt)) == 96
    whole.unlink()
    put(whole)
    server = Server(folder)
    assert server.cached(ask(prompt)) == 0
    server.stop()
    assert Path("/etc/passwd").read_bytes() == before
    after = Server(folder)
    assert after.cached(ask(prompt)) in (0, 96)
    after.stop()


@pytest.mark.timeout(60)
def test_a_lock_and_a_description_that_are_pipes(folder: Path) -> None:
    fill(folder, ids(100))
    (own,) = folder.iterdir()
    for name in ("lock", "about.json"):
        (own / name).unlink()
        os.mkfifo(own / name)
    assert folder_module.read_about(own) == {}
    assert Server(folder).cached(ask(ids(100))) == 96


def test_an_index_of_more_records_than_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file with holes claims them: no more are read than memory is planned for."""
    fill(folder, ids(200))
    monkeypatch.setattr(store_module, "MAX_RECORDS", 10)
    server = Server(folder)
    assert len(server.tier.store) <= 10
    server.ask(ask(ids(200)))
    server.stop()
