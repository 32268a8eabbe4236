"""Archives: the records of one fingerprint in one file, to be shipped with an image.

    MAGIC | length of the head | head, JSON | record 0 | record 1 | ... | digest of all before

A record is an entry and a payload, as in segments. Nothing in an archive is believed: sizes are bounded before anything is read, names of
files are made here, and each record is checked (its entry's and payload's CRC, and that its key follows from its parent's and its ids)
before it is kept. An archive that ends too early or that was changed leaves nothing behind of what was wrong. What cannot be checked is
whether keys and values are those that the model computes: whoever makes an archive is trusted with that. Records whose keys do not follow
from ids alone, those of images and what comes after them (names.py), are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sglang.srt.checkpoint.cache_folder import folder_bytes, open_private, read_about, size_limit
from sglang.srt.errors import ConfigError
from sglang.srt.scheduler.cache.disk.records import (
    KEY_BYTES,
    VERSION,
    Entry,
    RecordFormat,
    chain_keys,
    payload_crc,
    read_form,
    state_keys,
)
from sglang.srt.scheduler.cache.disk.segments import PayloadReader, Segment
from sglang.srt.scheduler.cache.disk.store import MAX_RECORDS, DiskRoom, RecordStore

MAGIC = b"SGLang prefixes\n"
HEAD_BYTES, MOST_PAYLOAD_BYTES, MOST_RUN = 64 << 10, 1 << 30, 4096
DIGEST_BYTES = 32
ABOUT = ("model", "kernels", "layout")
MOST_TEXT = 1000


@dataclass(frozen=True)
class Head:
    """The beginning of an archive."""

    form: RecordFormat
    num_records: int
    about: dict[str, str]

    @property
    def num_bytes(self) -> int:
        """Of all records."""
        return self.num_records * (self.form.entry_bytes + self.form.payload_bytes)


@dataclass(frozen=True)
class Imported:
    """What became of an archive's records."""

    head: Head
    num_new: int
    num_known: int


# --- export -----------------------------------------------------------------------------------------------------------------------


def fingerprint_folders(folder: Path, name: str | None) -> list[Path]:
    """Those of a cache that hold records, of the model or the beginning of a fingerprint called `name`."""
    found = sorted({path.parent for path in folder.glob("*/*.idx")})
    if name is None:
        return found
    return [path for path in found if path.name.startswith(name) or read_about(path).get("model") == name]


def export_records(source: Path, target: Path) -> Head:
    """Writes the whole records of one fingerprint's folder to a new file, for its owner alone. A server may go on writing there. Raises
    ConfigError where there is nothing, OSError."""
    segments = list(_segments(source))
    records = {entry.key: (segment, at, entry) for segment, entries in segments for at, entry in entries}
    if not records:
        raise ConfigError(f"{source} holds no records")
    form = segments[0][0].form
    about = {name: str(value)[:MOST_TEXT] for name, value in read_about(source).items() if name in ABOUT}
    scratch = target.with_name(target.name + ".new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            num = _write_records(file, form, about, list(records.values()))
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return Head(form, num, about)


def _segments(source: Path) -> Iterator[tuple[Segment, list[tuple[int, Entry]]]]:
    for path in sorted(source.glob("*.idx")):
        form = read_form(path) if path.stem.isdecimal() else None
        if form is None or form.fingerprint.hex()[:32] != source.name:
            continue
        segment = Segment(source, int(path.stem), form)
        try:
            entries = [(at, entry) for at, entry in segment.new_entries() if entry is not None]
        except (OSError, ValueError):  # the server has deleted it meanwhile
            continue
        if entries:
            yield segment, entries


def _write_records(file: IO[bytes], form: RecordFormat, about: dict[str, str], records: list[Any]) -> int:
    """Those that are as they were written. The number stands in the head, which is written last."""
    num, payload, reader = 0, np.empty(form.payload_bytes, np.uint8), PayloadReader()
    left_out: set[bytes] = set()
    start = len(MAGIC) + 4 + HEAD_BYTES
    file.seek(start)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for segment, at, entry in records:
        if entry.parent in left_out or not _follows_from_ids(entry, form):
            left_out.add(entry.key)
            continue
        try:
            is_whole = reader.read(segment, at, payload) and payload_crc(entry.key, payload) == entry.crc
        except OSError:
            is_whole = False
        if is_whole:
            for data in (form.encode(entry), payload.tobytes()):
                digest.update(data)
                file.write(data)
            num += 1
    reader.close()
    head = {
        "version": VERSION,
        "fingerprint": form.fingerprint.hex(),
        "run": form.run,
        "payload_bytes": form.payload_bytes,
        "records": num,
        "about": about,
    }
    text = json.dumps(head).encode().ljust(HEAD_BYTES)
    digest.update(text)
    file.write(digest.digest())
    file.seek(0)
    file.write(MAGIC + HEAD_BYTES.to_bytes(4, "little") + text)
    return num


# --- import -----------------------------------------------------------------------------------------------------------------------


def read_head(file: IO[bytes], name: str) -> tuple[Head, bytes]:
    """The head, and its bytes. Raises ConfigError for a file that is no archive, or of sizes that none has."""
    if file.read(len(MAGIC)) != MAGIC or int.from_bytes(file.read(4), "little") != HEAD_BYTES:
        raise ConfigError(f"{name} is not an archive of sglang cache export")
    text = file.read(HEAD_BYTES)
    try:
        head = json.loads(text)
        version, records, about = head["version"], head["records"], head["about"]
        form = RecordFormat(bytes.fromhex(head["fingerprint"]), head["run"], head["payload_bytes"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"the head of {name} is damaged") from error
    if version != VERSION:
        raise ConfigError(f"{name} has version {str(version)[:20]} of the format; this program reads {VERSION}")
    sizes = ((form.run, MOST_RUN), (form.payload_bytes, MOST_PAYLOAD_BYTES), (records, MAX_RECORDS))
    if len(form.fingerprint) != KEY_BYTES or not all(type(n) is int and 0 < n <= most for n, most in sizes):
        raise ConfigError(f"the head of {name} has sizes that no archive has")
    known = {key: about[key][:MOST_TEXT] for key in ABOUT if isinstance(about, dict) and isinstance(about.get(key), str)}
    return Head(form, records, known), text


def import_records(source: Path, folder: Path, room: DiskRoom) -> Imported:
    """Adds an archive's records to a cache. Raises ConfigError, before anything is written where it can be told, and OSError."""
    with source.open("rb") as file:
        head, text = read_head(file, str(source))
        wanted = len(MAGIC) + 4 + HEAD_BYTES + head.num_bytes + DIGEST_BYTES
        size = os.fstat(file.fileno()).st_size
        if size != wanted:
            raise ConfigError(f"{source} has {size} bytes, and its head speaks of {wanted}: it is cut off, or damaged")
        _check_digest(file, head, text, str(source))
        open_private(folder)
        _check_room(folder, head, room)
        store = RecordStore(folder, head.form, room, dict(head.about))
        try:
            if not store.writes:
                raise ConfigError(f"a server writes to {folder}, or the disk does not take more: stop it, or free some room")
            file.seek(len(MAGIC) + 4 + HEAD_BYTES)
            num_new = sum(_keep(store, entry, payload, str(folder)) for entry, payload in _records(file, head, str(source)))
        finally:
            store.close()
    return Imported(head, num_new, head.num_records - num_new)


def _check_digest(file: IO[bytes], head: Head, text: bytes, name: str) -> None:
    """Reads all of it once."""
    digest, left = hashlib.blake2b(digest_size=DIGEST_BYTES), head.num_bytes
    while left:
        data = file.read(min(left, 1 << 20))
        if not data:
            break
        left -= len(data)
        digest.update(data)
    digest.update(text)
    if left or file.read(DIGEST_BYTES) != digest.digest():
        raise ConfigError(f"{name} is damaged: its checksum is wrong")


def _check_room(folder: Path, head: Head, room: DiskRoom) -> None:
    """Nothing that is there makes way for an archive."""
    free = min(size_limit(folder, room.limit) - folder_bytes(folder), shutil.disk_usage(folder).free - room.least_free)
    if head.num_bytes > free:
        raise ConfigError(
            f"{head.num_bytes / 1e6:.1f} MB do not fit into {folder}: {max(free, 0) / 1e6:.1f} MB are free of its size "
            "(--cache-disk) and of the disk"
        )


def _records(file: IO[bytes], head: Head, name: str) -> Iterator[tuple[Entry, bytes]]:
    form = head.form
    for i in range(head.num_records):
        entry = form.decode(file.read(form.entry_bytes))
        payload = file.read(form.payload_bytes)
        if entry is None or payload_crc(entry.key, np.frombuffer(payload, np.uint8)) != entry.crc:
            raise ConfigError(f"record {i} of {name} is damaged")
        if not _follows_from_ids(entry, form):
            raise ConfigError(f"record {i} of {name} has a key that is not that of its tokens")
        yield entry, payload


def _follows_from_ids(entry: Entry, form: RecordFormat) -> bool:
    """Whether a record has the key of its parent and its tokens."""
    if entry.is_state:
        return state_keys(entry.parent, entry.ids, 1) == [entry.key]
    return chain_keys(entry.parent, np.frombuffer(entry.ids, "<i4").astype(np.int32), form.run) == [entry.key]


def _keep(store: RecordStore, entry: Entry, payload: bytes, folder: str) -> bool:
    if store.has(entry.key):
        return False
    if not store.append(entry, np.frombuffer(payload, np.uint8)):
        raise ConfigError(f"nothing more can be written to {folder}; what was imported before stays")
    return True
