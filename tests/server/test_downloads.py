"""sglang pull, list and rm, and models named by their hub, against a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.checkpoint.gguf_choice import choose_gguf, quantization
from sglang.srt.checkpoint.gguf_parts import with_gguf_file
from sglang.srt.checkpoint.resolve import HubName, parse_hub_name
from sglang.srt.errors import ModelError

COMMIT = "a" * 40
BIG = bytes(range(256)) * (96 << 10)
"""the library keeps what has come by 10 MB"""
GGUF_FILES = {
    "README.md": b"read me",
    "m-Q4_K_M.gguf": BIG,
    "m-Q8_0.gguf": b"GGUF8" * 1000,
    "mmproj-m-f16.gguf": b"GGUFm",
    "big/m-BF16-00001-of-00002.gguf": b"GGUF1",
    "big/m-BF16-00002-of-00002.gguf": b"GGUF2",
}
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/m-GGUF": GGUF_FILES,
    "org/one-GGUF": {"config.json": b"{}", "only-IQ2_M.gguf": b"GGUF"},
    "org/folder": {"config.json": b"{}", "model.safetensors": b"weights"},
    "org/empty": {"README.md": b"nothing"},
    "org/gated": {"config.json": b"{}"},
}


@dataclass
class Hub:
    """`cuts`: paths whose next transfer breaks in the middle. `seen`: (method, path, range)."""

    cuts: set[str] = field(default_factory=set)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    port: int = 0


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.seen.append((self.command, path, self.headers.get("Range")))
        if "org/gated" in path and self.headers.get("Authorization") != "Bearer hf_secret":
            return self.reply(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path)
        repo = (tree or info or file)[1] if tree or info or file else ""  # type: ignore[index]
        if repo not in REPOSITORIES:
            return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = REPOSITORIES[repo]
        if tree:
            listed = [{"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in files.items()]
            return self.reply(200, json.dumps(listed).encode())
        if info:
            siblings = [{"rfilename": name} for name in files]
            return self.reply(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        assert file is not None
        if file[2] not in files:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        self.send_file(path, files[file[2]])

    def send_file(self, path: str, data: bytes) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(data)}"', "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and path in self.hub.cuts:
            self.hub.cuts.remove(path)
            self.send_response(200)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.reply(206 if start else 200, data[start:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Shell:
    """Runs the command as a user would, with caches of its own."""

    home: Path
    hub: Hub

    def __call__(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.hub.port}",
            "HF_HOME": str(self.home / "hf"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        base = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "sglang.cli", *args], capture_output=True, text=True, env=base | own | environ, timeout=120
        )


@pytest.fixture
def shell(tmp_path: Path, hub: Hub) -> Shell:
    return Shell(tmp_path, hub)


def pulled(result: subprocess.CompletedProcess[str]) -> Path:
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def test_a_file_of_a_repository_is_pulled_listed_and_removed(shell: Shell, hub: Hub) -> None:
    path = pulled(shell("pull", "hf.co/org/m-GGUF:q8_0"))
    assert path.name == "m-Q8_0.gguf"
    assert path.read_bytes() == GGUF_FILES["m-Q8_0.gguf"]
    assert not any("Q4_K_M" in seen or "mmproj" in seen for _, seen, _ in hub.seen), "nothing else is downloaded"
    split = pulled(shell("pull", "org/m-GGUF:BF16"))
    assert split.with_name("m-BF16-00002-of-00002.gguf").read_bytes() == b"GGUF2"
    names = [line.split()[-1] for line in shell("list").stdout.splitlines()]
    assert names == [
        f"org/m-GGUF/{name}" for name in ("big/m-BF16-00001-of-00002.gguf", "big/m-BF16-00002-of-00002.gguf", "m-Q8_0.gguf")
    ]
    offline = {"HF_HUB_OFFLINE": "1"}
    assert pulled(shell("pull", "org/m-GGUF:Q8_0", **offline)) == path
    missing = shell("pull", "org/m-GGUF:Q4_K_M", **offline)
    assert missing.returncode == 1 and "none of 'Q4_K_M': add one of :BF16, :Q8_0" in missing.stderr
    removed = shell("rm", "org/m-GGUF:BF16")
    assert removed.returncode == 0 and "deleted" in removed.stdout
    assert not split.exists() and path.exists()
    assert shell("rm", "org/m-GGUF").returncode == 0
    assert "nothing is downloaded" in shell("list").stdout
    assert "is not downloaded" in shell("rm", "org/m-GGUF").stderr


def test_a_transfer_that_breaks_is_continued(shell: Shell, hub: Hub) -> None:
    where = "/org/m-GGUF/resolve/main/m-Q4_K_M.gguf"
    hub.cuts = {where, where.replace("main", COMMIT)}
    result = shell("pull", "org/m-GGUF")  # of several, the usual one
    assert pulled(result).read_bytes() == BIG
    ranges = [asked for method, path, asked in hub.seen if method == "GET" and path.endswith("m-Q4_K_M.gguf")]
    assert ranges[0] is None and any(asked not in (None, "bytes=0-") for asked in ranges[1:]), ranges
    assert "resume" in result.stderr and "allow_patterns" not in result.stderr


def test_what_is_named_in_other_ways(shell: Shell) -> None:
    assert pulled(shell("pull", "org/m-GGUF", "--gguf-file", "m-Q8_0.gguf")).name == "m-Q8_0.gguf"
    assert pulled(shell("pull", "https://huggingface.co/org/one-GGUF")).name == "only-IQ2_M.gguf"
    assert (pulled(shell("pull", "org/folder")) / "model.safetensors").read_bytes() == b"weights"
    assert (pulled(shell("pull", "org/gated", HF_TOKEN="hf_secret")) / "config.json").exists()
    for name, said in (
        ("org/empty", "neither a config.json nor a .gguf file"),
        ("org/folder:Q4_K_M", "holds no .gguf file"),
        ("org/m-GGUF:Q3_K", "none of 'Q3_K': add one of :BF16, :Q4_K_M, :Q8_0"),
        ("org/gated", "is gated"),
        ("org/unknown", "no public model org/unknown"),
        ("org/m-GGUF/x.gguf", "cannot get org/m-GGUF"),
    ):
        result = shell("pull", name)
        assert (result.returncode, said in result.stderr) == (1, True), (name, result.stderr)
        assert "Traceback" not in result.stderr
    unreachable = shell("pull", "org/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot reach the hub" in unreachable.stderr


NAMES = [
    "a-Q4_K_M.gguf", "a-UD-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a.Q6_K.gguf", "a_f16.gguf", "mmproj-F16.gguf", "a-IQ1_S.gguf", "a-TQ1_0.gguf",
    "a-MXFP4_MOE.gguf", "x/a-Q8_0-00001-of-00002.gguf", "x/a-Q8_0-00002-of-00002.gguf", "imatrix.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "chosen"),
    [
        (None, "a-Q4_K_M.gguf"), ("q4_k_m", "a-Q4_K_M.gguf"), ("UD-Q4_K_M", "a-UD-Q4_K_M.gguf"), ("Q6_K", "a.Q6_K.gguf"),
        ("F16", "a_f16.gguf"), ("IQ1_S", "a-IQ1_S.gguf"), ("MXFP4_MOE", "a-MXFP4_MOE.gguf"), ("TQ1_0", "a-TQ1_0.gguf"),
    ],
)  # fmt: skip
def test_the_file_that_a_tag_means(tag: str | None, chosen: str) -> None:
    assert choose_gguf("o/n", NAMES, tag) == [chosen]


def test_files_that_are_none_or_several() -> None:
    assert choose_gguf("o/n", NAMES, "Q8_0") == NAMES[9:11]
    assert quantization("x/a-Q8_0-00001-of-00002.gguf") == "Q8_0"
    assert choose_gguf("o/n", ["x.gguf"], None) == ["x.gguf"]
    for names, tag, said in (
        (NAMES, "Q4_K", "none of 'Q4_K': add one of :IQ1_S"),
        (["a-Q8_0.gguf", "a-Q6_K.gguf"], None, "several .gguf files, none of them Q4_K_M: add one of :Q6_K, :Q8_0"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "several files of that kind: pass one of o/n/a-Q8_0.gguf"),
        (NAMES[:10], "Q8_0", "lacks the part x/a-Q8_0-00002-of-00002.gguf"),
        (["mmproj-x.gguf"], None, "no .gguf file of a model"),
    ):
        with pytest.raises(ModelError, match=re.escape(said)):
            choose_gguf("o/n", names, tag)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("o/n", HubName("o/n", None, None, False)),
        ("hf.co/o/n:Q4_K_M", HubName("o/n", None, "Q4_K_M", True)),
        ("https://huggingface.co/o/n/", HubName("o/n", None, None, True)),
        ("o/n/d/x.gguf", HubName("o/n", "d/x.gguf", None, False)),
        ("o/n.gguf", HubName("o/n.gguf", None, None, False)),
        ("o", None),
        ("o/n/x.bin", None),
        ("o/n:", None),
    ],
)
def test_names_of_the_hub(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected


def test_a_file_beside_its_folder() -> None:
    assert with_gguf_file("o/n/", "x.gguf") == "o/n/x.gguf"
    assert with_gguf_file("o/n", None) == "o/n"
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        with_gguf_file("o/n", "x.bin")
