"""What a web page can do here through somebody's browser: nothing, on any route, whatever its name points to. The tables below go over
all routes of the application, so a new one is covered when it comes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.flags.values import parse_origins
from sglang.srt.messages import AbortReq, FlushCacheReq, PauseReq, ProfileReq, TokenizedReq
from sglang.srt.server.http.browsers import UPLOADS, Hosts, parse_authority, parse_origin
from sglang.srt.server.page.files import PageFiles
from sglang.srt.server_args import ServerArgs
from tests.conftest import RunningServer, start_server
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

READS_ONLY = {
    *("/health", "/health_generate", "/metrics", "/get_model_info", "/model_info", "/get_server_info", "/server_info"),
    *("/get_load", "/v1/loads"),
    *("/tokenizer_info", "/v1/models", "/v1/models/x", "/v1/responses/x", "/v1/responses/x/input_items"),
    *("/v1/files", "/v1/files/x", "/v1/files/x/content", "/v1/batches", "/v1/batches/x"),
    *("/", "/docs", "/openapi.json", *PageFiles().paths),
}
"""GETs that change nothing, which a browser may always send; a new one is to be entered here"""
BODY = {"text": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "rid": "x"}
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:8080"},  # a page of another server on this machine
    {"Origin": "http://localhost.evil.example:30000"},
    {"Origin": "https://good.example.evil.example"},
    {"Origin": "http://localhost:30000@evil.example"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Origin": ""},
    {"Origin": "http://localhost http://evil.example"},
    {"Origin": "chrome-extension://abcdefgh"},
    {"Sec-Fetch-Site": "cross-site"},  # an image or a link: no Origin
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "something new"},
]


def operations(stand: Stand) -> list[tuple[str, str]]:
    """Every method and path of the application; parameters are x."""
    found: set[tuple[str, str]] = set()
    for route in stand.app.routes:
        path = re.sub(r"\{(response|model:path|file)\}|(?<=/v1/batches/)\{batch\}", "x", getattr(route, "path", ""))
        found |= {(method, path) for method in getattr(route, "methods", None) or ()}
    assert len(found) > 60
    return sorted(found)


def changing(stand: Stand) -> list[tuple[str, str]]:
    return [(m, p) for m, p in operations(stand) if not (m in ("GET", "HEAD") and p in READS_ONLY)]


def changed(stand: Stand) -> list[Any]:
    """What has reached the scheduler."""
    kinds = (TokenizedReq, AbortReq, FlushCacheReq, PauseReq, ProfileReq)
    return [message for message in stand.scheduler.received if isinstance(message, kinds)]


async def test_no_route_that_changes_something_listens_to_foreign_pages(stand: Stand) -> None:
    assert {("GET", "/flush_cache"), ("HEAD", "/flush_cache"), ("GET", "/open_session")} <= set(changing(stand))
    async with client_of(stand) as client:
        for method, path in changing(stand):
            for headers in FOREIGN:
                reply = await client.request(method, path, json=BODY, headers=headers)
                assert reply.status_code == 403, (method, path, headers, reply.text)
                if method != "HEAD":
                    error = reply.json()["error"]
                    assert "page" in error["message"]
                    assert ("code" in error) == (path.startswith("/v1") and not path.startswith("/v1/messages")), path
    assert not changed(stand) and len(stand.manager.sessions) == 0


async def test_no_route_takes_a_form(stand: Stand) -> None:
    """Nor anything else that a page may post without asking first."""
    simple = [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/jsonp",
        "application/x-json-stream",
        "text/json",
        "json",
        "",
    ]
    async with client_of(stand) as client:
        for method, path in operations(stand):
            if method in ("GET", "HEAD") or path in UPLOADS:
                continue
            for kind in simple:
                reply = await client.request(method, path, content=json.dumps(BODY), headers={"Content-Type": kind})
                assert reply.status_code == 415, (method, path, kind, reply.text)
                assert "Content-Type: application/json" in reply.json()["error"]["message"]
            del client.headers["Content-Type"]  # a Blob without a type
            assert (await client.request(method, path, content=json.dumps(BODY))).status_code == 415
            client.headers["Content-Type"] = "application/json"
    assert not changed(stand)


async def test_no_route_is_found_under_a_foreign_name(stand: Stand) -> None:
    names = ["evil.example", "evil.example:30000", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost", "x"]
    wrong = [
        "",
        " ",
        "local host",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "localhost:70000",
        "a@localhost",
        "[::1",
        "::1",
    ]
    wrong += ["[::1]x", "[localhost]", "[::g]", "localhost/x", "localhost,evil.example", "http://localhost", "*", "a" * 300]
    wrong.remove("localhost:")  # an empty port is the usual one
    async with client_of(stand) as client:
        for method, path in operations(stand):
            for host in names:
                reply = await client.request(method, path, headers={"Host": host})
                assert reply.status_code == 403, (method, path, host)
                if method != "HEAD":
                    assert "--allowed-hosts" in reply.json()["error"]["message"]
        for host in wrong:
            reply = await client.post("/generate", json=BODY, headers={"Host": host})
            assert reply.status_code == 400, (host, reply.text)
        twice = [("Host", "localhost"), ("Host", "localhost"), ("Content-Type", "application/json")]
        assert (await client.post("/generate", json=BODY, headers=twice)).status_code == 400
    assert not changed(stand)


OURS = [
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "a.localhost:30000",
    "127.0.0.1:30000",
    "127.8.9.10",
    "192.168.1.7",
    "8.8.8.8:80",
]
OURS += ["[::1]:30000", "[fe80::1]", "[::ffff:127.0.0.1]", "localhost:", f"{socket.gethostname()}:30000"]


@pytest.mark.parametrize("host", OURS)
async def test_our_own_names_and_all_addresses_are_right(stand: Stand, host: str) -> None:
    async with client_of(stand, Host=host) as client:
        assert (await client.get("/v1/models")).status_code == 200
        own = await client.post("/flush_cache", headers={"Origin": f"http://{host}"})
        assert own.status_code == 200, "a page of this server"


async def test_names_that_the_operator_allows(make_stand: MakeStand) -> None:
    async def status(stand: Stand, host: str) -> int:
        async with client_of(stand, Host=host) as client:
            return (await client.get("/health")).status_code

    stand = make_stand(allowed_hosts=("api.example.com", ".internal.example", "*.lan"), host="bound.example")
    for host in ("api.example.com:8443", "API.example.com.", "a.b.internal.example", "box.lan", "bound.example:1", "localhost"):
        assert await status(stand, host) == 200, host
    for host in (
        "example.com",
        "xapi.example.com",
        "internal.example",
        "xinternal.example",
        "lan",
        "api.example.com.evil.example",
    ):
        assert await status(stand, host) == 403, host
    assert await status(make_stand(allowed_hosts=("*",)), "anything.example") == 200


async def test_who_is_no_page_or_an_allowed_one_is_served(make_stand: MakeStand) -> None:
    stand = make_stand(cors_origins=("https://good.example", "http://localhost:3000", "vscode-webview://abc"))
    mozilla = {"User-Agent": "Mozilla/5.0 (X11; Linux) Firefox/140"}
    fine: list[dict[str, str]] = [
        {},
        {"User-Agent": "curl/8"},
        {"Origin": "https://good.example"},
        {"Origin": "https://good.example:443", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": "vscode-webview://abc"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:80"},
        {"Origin": "https://ui.example", "Sec-Fetch-Site": "same-origin"},  # a proxy wrote another Host
        {"Sec-Fetch-Site": "none", **mozilla},  # typed by the user
    ]
    async with client_of(stand) as client:
        for headers in fine:
            for method in ("GET", "POST"):
                assert (await client.request(method, "/flush_cache", headers=headers)).status_code == 200, headers
        # an image on a page, to an address for which the browser says nothing of the page
        assert (await client.get("/flush_cache", headers=mozilla)).status_code == 403
        assert (await client.head("/flush_cache", headers=mozilla)).status_code == 403
        assert (await client.get("/flush_cache%0A", headers=mozilla)).status_code == 403
        assert (await client.get("/v1/models", headers={"Origin": "http://evil.example"})).status_code == 200


async def test_cors_answers_for_allowed_origins_only(make_stand: MakeStand) -> None:
    stand = make_stand(cors_origins=("https://good.example",), api_keys=("ka",))
    async with client_of(stand) as client:
        for origin, allowed in (
            ("https://good.example", "https://good.example"),
            ("https://evil.example", None),
            ("null", None),
        ):
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            }
            reply = await client.options("/v1/chat/completions", headers=asked)
            assert reply.headers.get("access-control-allow-origin") == allowed
        refusal = await client.post("/v1/completions", json={}, headers={"Origin": "https://good.example"})
        assert refusal.status_code == 401 and refusal.headers["access-control-allow-origin"] == "https://good.example"
        for method, path in operations(stand):
            if method != "OPTIONS":
                reply = await client.options(path, headers={"Content-Type": ""})
                assert reply.status_code == 405, (path, reply.status_code)
    assert not changed(stand)
    everybody = make_stand(cors_origins=("*",))
    async with client_of(everybody) as client:
        for origin in ("null", "http://evil.example"):
            assert (await client.post("/flush_cache", headers={"Origin": origin})).status_code == 200


OTHER_PROGRAMS = (
    *("app://obsidian.md", "app://.", "app://-", "vscode-webview://1a2b3c-4d", "tauri://localhost", "capacitor://localhost"),
    *("chrome-extension://abcdefghijklmnop", "moz-extension://0f3e-1", "http://localhost:3000", "https://ui.example"),
)


@pytest.mark.parametrize("origin", OTHER_PROGRAMS)
async def test_origins_of_programs_are_allowed_by_name_or_all_together(make_stand: MakeStand, origin: str) -> None:
    """A preflight and the request that follows it; without the flag a refusal that tells how to allow it."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    given = {"https://ui.example": "https://ui.example:443/"}.get(origin, origin)
    for flag in (f"https://other.example,{given}", "*", None):
        stand = make_stand(cors_origins=parse_origins(flag))
        async with client_of(stand) as client:
            before = await client.options("/v1/chat/completions", headers={"Origin": origin, "Content-Type": "", **asked})
            reply = await client.post("/flush_cache", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
        if flag is None:
            assert before.status_code == 405 and reply.status_code == 403
            assert f"can be allowed with --cors-origins {origin}" in reply.text
            continue
        assert (before.status_code, reply.status_code) == (200, 200)
        for each in (before, reply):
            assert each.headers["access-control-allow-origin"] in (origin, "*")
        assert "POST" in before.headers["access-control-allow-methods"]
        assert before.headers["access-control-allow-headers"] in ("authorization,content-type", "*")


@pytest.mark.parametrize("origin", ["null", "<script>", "http://a b", "x" * 300 + "://y", "file:///x"])
async def test_origins_that_no_flag_takes_are_not_told(make_stand: MakeStand, origin: str) -> None:
    async with client_of(make_stand()) as client:
        reply = await client.post("/flush_cache", headers={"Origin": origin})
    assert reply.status_code == 403 and "with --cors-origins" in reply.text and origin not in reply.text


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8 ", "application/vnd.api+json"],
)  # fmt: skip
async def test_json_by_all_its_names(stand: Stand, kind: str) -> None:
    async with client_of(stand) as client:
        body = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 1}})
        assert (await client.post("/generate", content=body, headers={"Content-Type": kind})).status_code == 200


async def test_curls_own_default_is_taken_from_curl_alone(stand: Stand) -> None:
    """The documents have `curl -d` without a header. A page can neither be curl nor hide that it is a page."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "curl/8.5.0"}
    async with client_of(stand, **form) as client:
        body = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 1}})
        assert (await client.post("/generate", content=body)).status_code == 200
        for page in ("Origin", "Referer", "Cookie", "Sec-Fetch-Site", "Sec-Fetch-Mode"):
            value = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}.get(page, "x")
            assert (await client.post("/generate", content=body, headers={page: value})).status_code == 415, page
        for kind in (
            "text/plain",
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded; charset=utf-8, text/plain",
        ):
            expected = 200 if kind.startswith("application/x-www-form-urlencoded;") else 415
            assert (await client.post("/generate", content=body, headers={"Content-Type": kind})).status_code == expected


def test_hosts_and_origins_are_read_as_browsers_write_them() -> None:
    assert parse_authority("Example.COM.:80") == ("example.com", 80)
    assert parse_authority("[::1]") == ("::1", None)
    assert parse_origin("HTTPS://Example.com:443") == ("https", "example.com", None)
    assert parse_origin("http://example.com:443") == ("http", "example.com", 443)
    for text in ("null", "", "http://", "//localhost", "http://a/b", "http://a@b", "javascript:x", "http://[::1", "http://a b"):
        assert parse_origin(text) is None, text
    assert "x.evil.example" not in Hosts((), "0.0.0.0")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("allowed_hosts", "https://api.example.com"),
        ("allowed_hosts", "api.example.com:443"),
        ("allowed_hosts", "a b"),
        ("allowed_hosts", "bücher.example"),
        ("allowed_hosts", "api.*.example"),
        ("cors_origins", "good.example"),
        ("cors_origins", "null"),
        ("cors_origins", "https://good.example/path"),
    ],
)
def test_names_and_origins_that_would_never_match_are_refused_at_start(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=flag.replace("_", "-")):
        ServerArgs(**{flag: value}).resolve()


# --- a real server ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("small") / "log"
    server = start_server(log, "--context-length", "256", "--max-total-tokens", "1024", "--max-body-bytes", "100000")
    yield server
    server.stop()


def wire(server: RunningServer, head: bytes, body: bytes = b"") -> bytes:
    """The answer to these bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head + b"connection: close\r\n\r\n" + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


POST = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
ASK = b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}'


@pytest.mark.parametrize(
    ("length", "statuses"),
    [
        (b"0" * 5000 + b"%d" % len(ASK), (200, 400)),
        (b"9" * 5001, (400, 413)),
        (b"1" + b"0" * 5000, (400, 413)),
        (b"0" * 5001, (400,)),
        (b"99999999999999999999", (400, 413)),
        (b"18446744073709551616", (400, 413)),
        (b"100001", (413,)),
        (b"-1", (400,)),
        (b"+%d" % len(ASK), (400,)),
        (b" %d " % len(ASK), (200, 400)),
        (b"5 5", (400,)),
        (b"0x10", (400,)),
        (b"1e3", (400,)),
        (b"1_0", (400,)),
        (b"\xb2", (400,)),
        (b"5, 5", (400,)),
        (b"", (400,)),
    ],
    ids=lambda value: value[:12].decode("latin-1") + f" ({len(value)})" if isinstance(value, bytes) else "",
)
def test_lengths_of_any_kind(small: RunningServer, length: bytes, statuses: tuple[int, ...]) -> None:
    answer = wire(small, POST + b"content-length: " + length + b"\r\n", ASK)
    assert int(answer.split()[1]) in statuses, answer[:300]
    assert b"Traceback" not in small.log.read_bytes()


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"x-request-timeout: " + value, 400) for value in (b"nan", b"inf", b"-inf", b"1e999", b"-1", b"0", b"", b"\xff", b"1s", b"1,2")]
    + [(b"x-request-timeout: 1e-400", 400), (b"x-request-timeout: 50", 200), (b"traceparent: " + b"\xff\x00"[:1] * 5000, 200)]
    + [(b"traceparent: 00-zz-yy-xx", 200), (b"x-\xe9: \xe9", 400), (b"user-agent: \xff\xfe\xe2\x28\xa1", 200), (b"cookie: \x80", 200)],
)  # fmt: skip
def test_headers_with_garbage(small: RunningServer, line: bytes, status: int) -> None:
    answer = wire(small, POST + line + b"\r\ncontent-length: %d\r\n" % len(ASK), ASK)
    assert answer.startswith(b"HTTP/1.1 %d" % status), answer[:300]
    assert b"Traceback" not in small.log.read_bytes()


def test_hosts_on_the_wire(small: RunningServer) -> None:
    def status(*lines: bytes, version: bytes = b"1.1") -> int:
        return int(
            wire(small, b"GET /v1/models HTTP/" + version + b"\r\n" + b"".join(b"%b\r\n" % line for line in lines)).split()[1]
        )

    assert status(b"host: localhost") == status(b"Host:localhost") == status(b"host: 10.1.2.3:99") == 200
    assert status() == status(b"host: localhost", b"host: localhost") == status(b"host:") == status(b"host: \xff") == 400
    assert status(b"host: evil.example") == status(b"host: evil.example", b"x-forwarded-host: localhost") == 403
    assert status(version=b"1.0") == 200, "a probe without a name"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documents_curl(small: RunningServer) -> None:
    def ask(*flags: str) -> str:
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{small.url}/generate", "-d", ASK.decode(), *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert ask() == ask("-H", "Content-Type: application/json") == "200"
    assert ask("-H", "Origin: http://evil.example") == "403"
    assert ask("-A", "Mozilla/5.0") == ask("-H", "Content-Type: text/plain") == "415"


def test_a_form_of_another_site(small: RunningServer) -> None:
    """As a browser sends it."""
    page = {
        "Origin": "http://evil.example",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "User-Agent": "Mozilla/5.0",
    }
    for path in ("/generate", "/v1/chat/completions", "/flush_cache", "/abort_request", "/open_session", "/pause_generation"):
        reply = httpx.post(small.url + path, data={'{"abort_all": true, "x": "': '"}'}, headers=page, trust_env=False)
        assert reply.status_code == 403
    image = {**page, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    del image["Origin"]
    assert httpx.get(f"{small.url}/flush_cache", headers=image, trust_env=False).status_code == 403
    assert httpx.post(
        f"{small.url}/generate", content=ASK, headers={"Content-Type": "application/json"}, trust_env=False
    ).is_success


async def test_a_host_that_was_right_before_excuses_nothing_else(stand: Stand) -> None:
    right = [("Host", "localhost"), ("Content-Type", "application/json")]
    async with client_of(stand) as client:

        async def status(*headers: tuple[str, str], method: str = "POST") -> int:
            reply = await client.request(method, "/flush_cache", content=b"{}", headers=list(headers))
            return reply.status_code

        assert await status(*right) == await status(*right) == 200
        assert await status(*right, ("Origin", "http://evil.example")) == 403
        assert await status(*right, ("Sec-Fetch-Site", "cross-site")) == 403
        assert await status(*right, ("Host", "evil.example")) == 400
        assert await status(*right, ("Content-Type", "text/plain")) == 415
        assert await status(("Host", "localhost"), ("Content-Type", "text/plain")) == 415
        assert await status(("Host", "evil.example"), right[1]) == 403
        assert await status(*right, ("User-Agent", "Mozilla/5.0"), method="GET") == 403
        assert await status(*right) == 200
