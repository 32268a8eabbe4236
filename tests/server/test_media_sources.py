"""Bytes of media: what is fetched, from where, and how much. Real HTTP servers on the loopback interface."""

from __future__ import annotations

import asyncio
import base64
import http.server
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.config import MediaOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.limits.shares import Budget
from sglang.srt.server.multimodal import fetching
from sglang.srt.server.multimodal.addresses import LOOKUPS_OF_A_CLIENT, OF_A_DOMAIN_AND_CLIENT, Resolver, is_public
from sglang.srt.server.multimodal.fetched import Allowance
from sglang.srt.server.multimodal.sources import Sources
from tests.server.test_loop_time import MAX_SECONDS, timed_callbacks

DATA = b"\x89PNG not really, but these are the bytes" * 20


class Handler(http.server.BaseHTTPRequestHandler):
    """Paths say what happens."""

    seen: list[str] = []  # noqa: RUF012
    release = threading.Event()

    def do_GET(self) -> None:
        Handler.seen.append(self.path)
        action = getattr(self, "on_" + self.path.split("/")[1], None)
        if action is None:
            self.send_error(404)
        else:
            action()

    def _reply(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def on_ok(self) -> None:
        self._reply(DATA, Content_Type="image/png", Content_Length=str(len(DATA)))

    def on_host(self) -> None:
        self._reply(self.headers["Host"].encode())

    def on_large(self) -> None:
        self._reply(b"", Content_Length=str(1 << 40))

    def on_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            pass

    def on_slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x")
        self.wfile.flush()
        Handler.release.wait(20)

    def on_gzip(self) -> None:
        self._reply(b"\x1f\x8b", Content_Encoding="gzip")

    def on_redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path[len("/redirect/") :])
        self.end_headers()

    def on_loop(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/loop/x")
        self.end_headers()

    def on_nowhere(self) -> None:
        self.send_response(302)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    Handler.seen.clear()
    Handler.release.clear()
    yield f"http://127.0.0.1:{httpd.server_port}"
    Handler.release.set()
    httpd.shutdown()
    httpd.server_close()


def load(source: str | bytes, kind: str = "image", **options: Any) -> bytes:
    async def run() -> bytes:
        sources = Sources(MediaOptions(**options))
        try:
            limits = MediaOptions(**options)
            allowance = Allowance(limits.max_bytes, Budget(1 << 30, 1 << 30, "bytes"), "client")
            return bytes((await sources.load(source, kind, allowance)).data)
        finally:
            sources.close()

    return asyncio.run(run())


def test_fetches_over_http(server: str) -> None:
    assert load(f"{server}/ok", allow_private=True) == DATA


def test_private_address_is_refused_by_default(server: str) -> None:
    port = server.rsplit(":", 1)[1]
    for url in (f"{server}/ok", f"http://localhost:{port}/ok", f"http://[::ffff:127.0.0.1]:{port}/ok", f"http://0:{port}/ok"):
        with pytest.raises(RequestError, match="private address|cannot be resolved"):
            load(url)
    assert Handler.seen == []


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "169.254.169.254",
        "127.9.9.9",
        "::1",
        "fe80::1",
        "fd00::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "0.0.0.0",
        "224.0.0.1",
        "100.64.0.1",
        "192.0.0.192",
        "192.0.0.9",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::7f00:1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:a9fe:a9fe::",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fe80::1%eth0",
        "2606:4700::1111%1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "192.0.1.1",
        "2606:2800:220:1::1",
        "2a00:1450:4001::1",
        "::ffff:93.184.216.34",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0x7f.1", "[::ffff:7f00:1]", "[fec0::1]"]
)
def test_spellings_of_private_addresses(server: str, host: str) -> None:
    with pytest.raises(RequestError, match="private address|cannot be resolved"):
        load(f"http://{host}:{server.rsplit(':', 1)[1]}/ok")
    assert Handler.seen == []


def test_names_that_are_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold lookups of their own domain alone, until the system gives them up."""
    release, asked = threading.Event(), list[str]()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        if host.endswith(".slow.example"):
            release.wait(20)
        return [(0, 0, 0, "", ("93.184.216.34", port))]

    async def run() -> None:
        resolver = Resolver()
        slow = [asyncio.ensure_future(resolver.resolve(f"h{i}.slow.example", 80, "slow")) for i in range(100)]
        await asyncio.sleep(0.1)
        assert len(asked) == OF_A_DOMAIN_AND_CLIENT
        assert [str(one) for one in await asyncio.wait_for(resolver.resolve("images.example.org", 80, "slow"), 5)] == [
            "93.184.216.34"
        ]
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        again = asyncio.ensure_future(resolver.resolve("h.slow.example", 80, "slow"))
        await asyncio.sleep(0.1)
        assert len(asked) == OF_A_DOMAIN_AND_CLIENT + 1  # the threads still run, though nobody waits
        release.set()
        await asyncio.wait_for(again, 5)

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    asyncio.run(run())


def test_names_that_one_client_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names many hosts whose name servers are silent leaves lookups to others: of all names, and of any domain."""
    release, asked = threading.Event(), list[str]()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        if host.startswith("slow"):
            release.wait(20)
        return [(0, 0, 0, "", ("93.184.216.34", port))]

    async def run() -> None:
        resolver = Resolver()
        slow = [asyncio.ensure_future(resolver.resolve(f"slow{i}.{i % 10}.example", 80, "a")) for i in range(200)]
        for _ in range(200):
            await asyncio.sleep(0.01)
            if len(asked) == LOOKUPS_OF_A_CLIENT:
                break
        assert len(asked) == LOOKUPS_OF_A_CLIENT
        for host in ("images.example.org", "images.3.example"):
            assert len(await asyncio.wait_for(resolver.resolve(host, 80, "b"), 5)) == 1
        release.set()
        await asyncio.gather(*slow)
        assert len(asked) == 202

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    asyncio.run(run())


def test_name_is_resolved_once_and_that_address_is_used(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver whose second answer differs (DNS rebinding) is never asked a second time."""
    answers = [["127.0.0.1"], ["203.0.113.7"]]

    async def resolve(_: Resolver, host: str, port: int, client: str) -> list[Any]:
        assert host == "images.example"
        return [ipaddress.ip_address(a) for a in answers.pop(0)]

    monkeypatch.setattr(Resolver, "resolve", resolve)
    port = server.rsplit(":", 1)[1]
    assert load(f"http://images.example:{port}/host", allow_private=True) == f"images.example:{port}".encode()
    assert len(answers) == 1


def test_redirect_is_followed_and_checked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(f"{server}/redirect/{server}/ok", allow_private=True) == DATA
    port = server.rsplit(":", 1)[1]
    asked = []

    async def resolve(_: Resolver, host: str, port: int, client: str) -> list[Any]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(Resolver, "resolve", resolve)
    monkeypatch.setattr(fetching, "is_public", lambda address: len(asked) == 1)  # the first host passes for public
    Handler.seen.clear()
    with pytest.raises(RequestError, match="private address"):
        load(f"http://outside.example:{port}/redirect/http://inside.example:{port}/ok")
    assert asked == ["outside.example", "inside.example"]
    assert not any(path == "/ok" for path in Handler.seen)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "gopher://x"])
def test_redirect_to_another_scheme(server: str, target: str) -> None:
    with pytest.raises(RequestError, match="http or https"):
        load(f"{server}/redirect/{target}", allow_private=True)


def test_redirect_loop_and_redirect_without_target(server: str) -> None:
    with pytest.raises(RequestError, match="redirects more than"):
        load(f"{server}/loop/", allow_private=True)
    with pytest.raises(RequestError, match="status 302|not a URL"):
        load(f"{server}/nowhere", allow_private=True)


@pytest.mark.parametrize("path", ["large", "endless"])
def test_byte_limit(server: str, path: str) -> None:
    with pytest.raises(RequestError, match="allowed"):
        load(f"{server}/{path}", allow_private=True, max_bytes=100_000)


def test_time_limit(server: str) -> None:
    with pytest.raises(RequestError, match="took longer than 0.3 s"):
        load(f"{server}/slow", allow_private=True, timeout=0.3)


def test_compressed_answer_and_missing_page(server: str) -> None:
    with pytest.raises(RequestError, match="compressed"):
        load(f"{server}/gzip", allow_private=True)
    with pytest.raises(RequestError, match="status 404"):
        load(f"{server}/absent", allow_private=True)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
COSTLY = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "interim answers with headers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"),
    "a long head": (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "a long header": (b"HTTP/1.1 200 OK\r\na: ", b"b"),
    "a long line": (b"HTTP/1.1 200 ", b"OK"),
    "small chunks": (CHUNKED, b"1\r\nx\r\n"),
    "sizes with zeros": (CHUNKED, b"0000000000000001\r\nx\r\n"),
    "an extension": (CHUNKED + b"1;", b"x"),
    "extensions": (CHUNKED, b"8;a=bcdefgh\r\nxxxxxxxx\r\n"),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n"),
}


def raw_answers(begin: bytes, piece: bytes, end: bytes = b"", times: int = 1 << 30) -> tuple[str, list[int]]:
    """A URL that is answered with these bytes, `piece` `times` times, and where the number of bytes that were taken will stand."""
    listener, sent = socket.create_server(("127.0.0.1", 0)), list[int]()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(20)
            connection.recv(1 << 16)
            total = len(begin)
            try:
                connection.sendall(begin)
                for _ in range(times):
                    connection.sendall(piece)
                    total += len(piece)
                connection.sendall(end)
            except OSError:
                pass
            sent.append(total)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x", sent


@pytest.mark.parametrize("name", COSTLY)
def test_answers_that_cost_more_than_their_body(name: str) -> None:
    """They end soon, and no piece of them keeps other requests waiting."""
    begin, piece = COSTLY[name]
    url, sent = raw_answers(begin, piece * (4096 // len(piece)))
    times: list[tuple[float, str]] = []
    with timed_callbacks(times), pytest.raises(RequestError, match="the connection failed"):
        load(url, allow_private=True, timeout=20)
    assert max(times)[0] < MAX_SECONDS, max(times)
    for _ in range(1000):
        if sent:
            break
        time.sleep(0.01)
    assert sent[0] < 16 << 20  # most of it in the system's buffers


@pytest.mark.parametrize(
    "begin, piece, end, body",
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 1000, b"", b"x" * 1_000_000),
        (CHUNKED, b"20\r\n" + b"y" * 32 + b"\r\n", b"0\r\n\r\n", b"y" * 32_000),
        (CHUNKED, b"3E8;a=b\r\n" + b"y" * 1000 + b"\r\n", b"0\r\nEtag: 1\r\n\r\n", b"y" * 1_000_000),
        (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"z" * 1000, b"more", b"z" * 1_000_000),
    ],
)  # fmt: skip
def test_answers_in_their_forms(begin: bytes, piece: bytes, end: bytes, body: bytes) -> None:
    url, _ = raw_answers(begin, piece, end, 1000)
    assert load(url, allow_private=True, timeout=20) == body


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc",
    ],
)
def test_what_follows_an_answer_does_not_change_it(more: bytes) -> None:
    url, _ = raw_answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage" + more, b"", times=0)
    assert load(url, allow_private=True, timeout=20) == b"image"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        CHUNKED + b"9\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x16\x03\x01",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabcd",
    ],
)
def test_answers_that_are_not_whole(answer: bytes) -> None:
    url, _ = raw_answers(answer, b"x", times=0)
    with pytest.raises(RequestError, match="the connection failed"):
        load(url, allow_private=True, timeout=20)


def test_one_client_leaves_places_of_a_host_to_others(server: str) -> None:
    async def run() -> None:
        sources = Sources(MediaOptions(allow_private=True, timeout=20))
        budget = Budget(1 << 30, 1 << 30, "bytes")

        def fetch(path: str, client: str) -> asyncio.Future[Any]:
            return asyncio.ensure_future(sources.load(server + path, "image", Allowance(1 << 20, budget, client), client))

        slow = [fetch("/slow", "a") for _ in range(fetching.FETCHES_FROM_A_HOST)]
        while Handler.seen.count("/slow") < fetching.FROM_A_HOST_FOR_A_CLIENT:
            await asyncio.sleep(0.01)
        assert (await asyncio.wait_for(fetch("/ok", "b"), 10)).data == DATA
        assert Handler.seen.count("/slow") == fetching.FROM_A_HOST_FOR_A_CLIENT
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (await asyncio.wait_for(fetch("/ok", "a"), 10)).data == DATA
        sources.close()

    asyncio.run(run())


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RequestError, match="connection failed"):
        load(f"http://127.0.0.1:{port}/x", allow_private=True)


def test_allowed_domains(server: str) -> None:
    with pytest.raises(RequestError, match="only be fetched from example.org"):
        load(f"{server}/ok", allow_private=True, allowed_domains=("example.org",))
    with pytest.raises(RequestError, match="only be fetched from"):
        load("http://notexample.org/x", allowed_domains=("example.org",))
    assert load(f"{server}/ok", allow_private=True, allowed_domains=("127.0.0.1",)) == DATA


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "https://user:secret@example.org/a.png",
        "http://exa mple/x",
        "ftp://example.org/a.png",
        "http://[::1/x",
        "javascript://x",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(RequestError):
        load(url)


def test_base64_in_its_forms() -> None:
    text = base64.b64encode(DATA).decode()
    assert load(f"data:image/png;base64,{text}") == DATA
    assert load(f"data:image/png;charset=x;BASE64,{text}") == DATA
    assert load(f"DATA:;base64,{text}") == DATA
    assert load(text) == DATA
    assert load(text.rstrip("=")) == DATA
    assert load("\n".join(text[i : i + 76] for i in range(0, len(text), 76))) == DATA
    assert load(base64.urlsafe_b64encode(DATA).decode()) == DATA
    assert load("data:image/svg+xml,%3Csvg/%3E") == b"<svg/>"
    assert load(DATA) == DATA


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data:image/png;base64", "comma"),
        ("data:text/html;base64,AAAA", "is no image"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,AAAAA", "not valid base64"),
        ("", "empty"),
        ("what is this?", "neither a URL nor base64"),
        ("data:image/png;base64," + "A" * 4000, "at most 1000"),
        ("A" * 4000, "at most 1000"),
    ],
)
def test_bad_inline_data(source: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load(source, max_bytes=1000)


def test_files_only_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "media"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(DATA)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "good link.png").symlink_to(root / "deep" / "a.png")
    os.mkfifo(root / "pipe.png")
    options = {"root": str(root)}
    for name in (f"file://{root}/deep/a.png", f"file://{root}/good%20link.png", "deep/a.png", f"{root}/deep/a.png"):
        assert load(name, **options) == DATA
    for name in (
        f"file://{tmp_path}/secret.png",
        f"file://{root}/../secret.png",
        f"file://{root}/%2e%2e/secret.png",
        f"file://{root}/link.png",
        f"file://{root}/pipe.png",
        f"file://{root}/deep",
        f"file://{root}/absent.png",
        f"file://{root}/a%00b",
        "file:///etc/passwd",
    ):
        with pytest.raises(RequestError, match="below the media root"):
            load(name, **options)
    with pytest.raises(RequestError, match="neither"):
        load("../secret.png", **options)
    assert load(base64.b64encode(DATA).decode(), **options) == DATA  # far too long for a file's name
    with pytest.raises(RequestError, match="--media-root"):
        load(f"file://{root}/deep/a.png")
    with pytest.raises(RequestError, match="at most 10 are allowed"):
        load("deep/a.png", max_bytes=10, **options)
