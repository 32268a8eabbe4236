"""Reads the bytes of an image or video: from http(s), a data URI, bare base64, or a file below an allowed root.

Clients are not trusted. The size of inline data is checked before decoding. Local files are opened only below `root`, after links are
resolved. fetching.py checks hosts.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import stat
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.fetched import Allowance, Fetched, shorten
from sglang.srt.server.multimodal.fetching import Fetcher

THREADS = 2
"""that decode base64 and read files; what is fetched waits on none"""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_ALPHABET = bytes.maketrans(b"-_", b"+/")
MAX_PATH = 4096
MAX_QUOTED = 1 << 20
"""characters of a data URI that is not base64"""

PIECE_CHARS = 64 << 10
"""of base64 that are decoded at once"""

P = ParamSpec("P")
T = TypeVar("T")


def _file_path(url: str) -> str:
    """The path of file:///path, file://localhost/path or file:/path."""
    rest = url[5:].split("?")[0].split("#")[0]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise RequestError(f"a file URL names a path, not the host {shorten(host)!r}")
        rest = slash + path
    return urllib.parse.unquote(rest)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file: it is base64
        return False


class Sources:
    """Turns what a request names into bytes, within the limits of `options`. One per server; `close` ends its threads."""

    def __init__(self, options: MediaOptions) -> None:
        self._options = options
        self._fetcher = Fetcher(options)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="media-bytes")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run_in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Short work on bytes, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def load(self, source: str | bytes, kind: str, allowance: Allowance, client: str = "") -> Fetched:
        """Raises RequestError with a sentence for everything that can be wrong with `source`, and OverloadError."""
        if isinstance(source, bytes):
            allowance.take(len(source), f"the {kind}")
            return Fetched(_not_empty(source, f"the {kind}"), f"the {kind}")
        source = source.strip()
        scheme = _SCHEME.match(source)
        name = scheme[1].lower() if scheme else ""
        if name in ("http", "https"):
            return await self._fetcher.fetch(source, kind, allowance, client)
        if name == "file":
            return await self._read_file(_file_path(source), kind, allowance)
        if "://" in source[:32]:
            raise RequestError(f"{kind} URLs may be http, https, data or file, not {shorten(name)!r}")
        if name != "data" and await self.run_in_thread(self._names_file, source):
            return await self._read_file(source, kind, allowance)
        allowance.take(len(source) * 3 // 4, f"the {kind}")
        return await self.run_in_thread(_data_uri if name == "data" else self._bare, source, kind)

    # --- files --------------------------------------------------------------------------------------------------------------

    def _names_file(self, source: str) -> bool:
        """Whether a string without a scheme is a path below the root."""
        if self._options.root is None or len(source) >= MAX_PATH or "\0" in source:
            return False
        path = self._below_root(source)
        return path is not None and _is_file(path)

    def _bare(self, source: str, kind: str) -> Fetched:
        """A string without a scheme that names no file: base64."""
        try:
            data = decode_base64(source, f"the {kind}")
        except RequestError as error:
            hint = (
                "local files need --media-root" if self._options.root is None else "there is no such file below the media root"
            )
            raise RequestError(f"{shorten(source)!r} is neither a URL nor base64 data, and {hint}") from error
        return Fetched(_not_empty(data, f"the {kind}"), f"the base64 {kind}")

    def _below_root(self, name: str) -> Path | None:
        """The file that `name` means, links resolved, or None if it is not below the root."""
        assert self._options.root is not None
        root = Path(self._options.root).resolve()
        try:
            path = (root / name).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(root) else None

    async def _read_file(self, name: str, kind: str, allowance: Allowance) -> Fetched:
        label = f"the file {shorten(name)!r}"
        file, size = await self.run_in_thread(self._open, name, kind)
        with file:
            allowance.take(size, label)
            data = await self.run_in_thread(file.read, size)  # a file that grows meanwhile is cut
        return Fetched(_not_empty(data, label), label)

    def _open(self, name: str, kind: str) -> tuple[BinaryIO, int]:
        """The file, and its size. Raises RequestError."""
        if self._options.root is None:
            raise RequestError(f"local files are not served as {kind}s: start the server with --media-root")
        path = self._below_root(name) if "\0" not in name and len(name) < MAX_PATH else None
        refusal = RequestError(f"there is no {kind} file {shorten(name)!r} below the media root")
        if path is None:
            raise refusal
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise refusal from error
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            raise refusal
        return os.fdopen(handle, "rb"), found.st_size


# --- inline data ----------------------------------------------------------------------------------------------------------------


def _not_empty(data: bytes | bytearray, label: str) -> bytes | bytearray:
    if not data:
        raise RequestError(f"{label} is empty")
    return data


def _data_uri(source: str, kind: str) -> Fetched:
    comma = source.find(",", 0, MAX_PATH)
    if comma < 0:
        raise RequestError(f"a data URI needs a comma before its data, as in data:{kind}/png;base64,...")
    label = f"the {kind} in a data URI"
    mime, *parameters = source[5:comma].split(";")
    kinds = (kind, "image") if kind == "video" else (kind,)  # an animated image is a video
    if mime and not f"{mime.lower()}/".startswith((*(f"{name}/" for name in kinds), "application/octet-stream")):
        raise RequestError(f"a data URI of type {shorten(mime)!r} is no {kind}")
    data: bytes | bytearray
    if "base64" in (p.strip().lower() for p in parameters):
        data = decode_base64(source, f"the {kind}'s data URI", comma + 1, is_quoted=True)
    elif (length := len(source) - comma - 1) > MAX_QUOTED:
        raise RequestError(f"{label} has {length} characters that are not base64; so many must be")
    else:
        data = urllib.parse.unquote_to_bytes(source[comma + 1 :])
    return Fetched(_not_empty(data, label), label, mime or None)


def decode_base64(text: str, label: str, start: int = 0, is_quoted: bool = False) -> bytearray:
    """Bytes of either alphabet, with or without padding and white space, from `start` on. `is_quoted`: as part of a URL. Raises
    RequestError."""
    decoded, rest = bytearray(), b""
    try:
        for piece in _unquoted(text, start) if is_quoted else _pieces(text, start):
            rest += piece.encode("ascii").translate(_ALPHABET, b" \t\n\r\f\v")
            padding = rest.find(b"=")
            if padding < 0:
                whole = len(rest) & ~3
                decoded += _decoded(rest[:whole])
                rest = rest[whole:]
            elif len(rest) > padding + 2:
                break  # something follows the padding
        decoded += _decoded(rest + b"=" * (-len(rest) % 4))
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{label} is not valid base64") from error
    return decoded


def _decoded(raw: bytes) -> bytes:
    if not _BASE64.fullmatch(raw):
        raise ValueError("not in the alphabet")
    return binascii.a2b_base64(raw)


def _pieces(text: str, start: int) -> Iterator[str]:
    """Short enough that other threads need not wait long."""
    for at in range(start, len(text), PIECE_CHARS):
        yield text[at : at + PIECE_CHARS]


def _unquoted(text: str, start: int) -> Iterator[str]:
    """Without percent signs. (The library's function makes an object of every one of them.)"""
    rest = ""
    for piece in _pieces(text, start):
        piece = rest + piece
        end = piece.find("%", len(piece) - 2)
        piece, rest = (piece, "") if end < 0 else (piece[:end], piece[end:])
        if "%" in piece:
            for code, character in (("2B", "+"), ("2F", "/"), ("3D", "="), ("0A", ""), ("0D", ""), ("20", "")):
                piece = piece.replace(f"%{code}", character).replace(f"%{code.lower()}", character)
        yield piece
    yield rest
