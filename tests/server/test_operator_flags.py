"""A server as operators run it: with TLS, keys in files, a path below a proxy, a log for machines; and one behind a unix socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme

from sglang import RuntimeEndpoint
from sglang.lang.errors import BackendConnectionError
from tests.conftest import DEFAULT_MODEL, RunningServer, free_port, package_environ, start_server

FILE_KEY, LINE_KEY, ADMIN_KEY = "key-of-the-file", "key-of-the-line", "key-of-the-operator"
ASK = {"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 4}}


@dataclass
class Secured:
    """A server with TLS. `tls` trusts its authority."""

    server: RunningServer
    folder: Path
    ca: trustme.CA
    tls: ssl.SSLContext

    def client(self, key: str | None = FILE_KEY, path: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url + path, headers=headers, verify=self.tls, timeout=60, trust_env=False)

    @property
    def url(self) -> str:
        return self.server.url.replace("http://127.0.0.1", "https://localhost")


def write_private(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    ca = trustme.CA()
    write_private(folder / "tls.pem", ca.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    write_private(folder / "keys", f"# clients\n{FILE_KEY}\n".encode())
    lines = [f"ssl-certfile: {folder}/tls.pem", f"api-key-file: {folder}/keys", "root_path: /llm/", "log-requests: true"]
    config = write_private(folder / "server.yaml", "\n".join(lines).encode())
    environ = {
        "SGLANG_ADMIN_API_KEY": ADMIN_KEY,
        "SGLANG_LOG_FORMAT": "json",
        "SGLANG_ENABLE_METRICS": "1",
        "SGLANG_NONSENSE": "1",
    }
    server = start_server(folder / "log", "--config", str(config), "--api-key", LINE_KEY, environ=environ)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    found = Secured(server, folder, ca, context)
    yield found
    try:
        with found.client() as resting:  # it is not waited for
            assert resting.get("/health").status_code == 200
            assert server.stop() == 0
        assert not [entry for entry in log_entries(server) if entry["level"] == "error" and "SIGHUP" not in entry["message"]]
    finally:
        server.process.kill()
        server.process.wait()


def until(found: Callable[[], Any]) -> Any:
    """What `found` finds, once it finds something."""
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def log_entries(server: RunningServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


@pytest.mark.parametrize("path", ["", "/llm"])
def test_clients_speak_tls_and_may_name_the_path_of_the_proxy(secured: Secured, path: str) -> None:
    with secured.client(path=path) as client:
        assert client.get("/health").json() == {"status": "ready"}
        assert client.post("/generate", json=ASK).json()["text"].startswith(" Paris")
        error = client.get("/v1/nothing")
        assert error.status_code == 404 and error.json()["error"]["code"] == 404
    with openai.OpenAI(
        base_url=f"{secured.url}{path}/v1", api_key=LINE_KEY, http_client=httpx.Client(verify=secured.tls, trust_env=False)
    ) as talk:
        ask: Any = {"model": "x", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
        assert talk.chat.completions.create(**ask).choices[0].message.content
        assert "".join(chunk.choices[0].delta.content or "" for chunk in talk.chat.completions.create(**ask, stream=True))


def test_the_path_of_the_proxy_opens_nothing(secured: Secured) -> None:
    with secured.client(key=None) as client:
        for path in ("/llm/v1/models", "/llm/llm/v1/models", "/llmv1/models", "/llm//v1/models", "/llm/health/../v1/models"):
            assert client.get(path).status_code in (401, 404), path
        assert client.get("/llm/metrics").status_code == 200
    with secured.client(ADMIN_KEY) as client:
        for path in ("/flush_cache", "/llm/flush_cache", "/llm/llm/flush_cache"):
            reply = client.get(path, headers={"Origin": "https://evil.example"})
            assert reply.status_code in (403, 404), path


def test_without_the_authority_and_without_tls_nobody_gets_in(secured: Secured) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{secured.url}/health", trust_env=False)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{secured.server.url}/health", trust_env=False)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(1000)):
        with socket.create_connection(("127.0.0.1", int(secured.server.url.rpartition(":")[2]))) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(30)
            try:
                while raw.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    with secured.client() as client:
        assert client.get("/health").status_code == 200
    assert not [entry for entry in log_entries(secured.server) if "exception" in entry]


def test_a_client_that_ends_a_connection_with_tls_in_the_middle_of_an_answer(secured: Secured) -> None:
    with secured.client() as client:
        body = ASK | {"stream": True, "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
        with client.stream("POST", "/generate", json=body) as reply:
            next(reply.iter_lines())
        until(lambda: client.get("/get_load").json()[0]["num_reqs"] == 0)


def test_nobody_sees_keys_in_the_list_of_processes(secured: Secured) -> None:
    server = secured.server
    shown = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert b"sglang.launch_server" in shown and b"--api-key ***" in shown
    children = server.children()
    assert server.scheduler() in children
    for pid in children:
        for name in ("cmdline", "environ"):
            told = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [key for key in (FILE_KEY, LINE_KEY, ADMIN_KEY) if key.encode() in told], (pid, name)
    assert LINE_KEY.encode() not in shown
    with secured.client(ADMIN_KEY) as client:
        assert not [key for key in (FILE_KEY, LINE_KEY, ADMIN_KEY) if key in client.get("/get_server_info").text]


def test_the_log_is_objects_without_polls_and_without_secrets(secured: Secured) -> None:
    before = len(log_entries(secured.server))
    with secured.client(key=None) as client:
        for path in ("/health", "/health_generate", "/metrics", "/llm/metrics?x=1"):
            assert client.get(path).status_code == 200
    with secured.client(path="/llm") as client:
        for path in ("/get_load", "/v1/loads"):
            assert client.get(path).status_code == 200
        client.post("/generate", json=ASK | {"rid": 'strange "\n\u2028 \x00 name'})
    with secured.client(key="wrong-key-here") as client:
        assert client.get("/get_load").status_code == 401
    wanted = {"method": "POST", "path": "/generate", "status": 200}
    until(lambda: any(wanted.items() <= entry.items() for entry in log_entries(secured.server)[before:]))
    entries = log_entries(secured.server)[before:]
    calls = [(entry["method"], entry["path"], entry["status"]) for entry in entries if entry["logger"] == "uvicorn.access"]
    assert calls == [("POST", "/generate", 200), ("GET", "/get_load", 401)]
    events = [entry for entry in entries if entry["logger"] == "sglang.requests"]
    assert [entry["event"] for entry in events] == ["received", "finished"]
    assert events[1]["rid"] == 'strange "\n\u2028 \x00 name' and events[1]["completion_tokens"] == 4
    assert all({"time", "level", "logger"} <= entry.keys() for entry in log_entries(secured.server))
    assert any("SGLANG_NONSENSE" in entry.get("message", "") for entry in log_entries(secured.server))
    log = secured.server.log.read_text()
    assert log.isascii() and not [key for key in (FILE_KEY, LINE_KEY, ADMIN_KEY, "wrong-key") if key in log]


def run_command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang.cli", "run", "--raw", "--temperature", "0", "--max-tokens", "4", *words]
    environment = package_environ(**environ)
    return subprocess.run([*command, "The capital of France is"], capture_output=True, text=True, env=environment, timeout=120)


def test_commands_speak_tls_with_a_key_of_the_environment(secured: Secured) -> None:
    authority = secured.folder / "ca.pem"
    secured.ca.cert_pem.write_to_path(str(authority))
    done = run_command("--url", secured.url, "--ca-file", str(authority), SGLANG_API_KEY=FILE_KEY)
    assert done.stdout.startswith(" Paris"), done.stderr
    for words, said in (
        (("--url", secured.url), "; --ca-file FILE names the authority"),
        (("--url", secured.url, "--ca-file", "/no/such/file"), "--ca-file /no/such/file cannot be used: No such file"),
        (("--url", secured.url, "--ca-file", str(authority)), "API key"),
        (("--url", secured.server.url), "cannot reach the server"),
        (("--url", "unix:/no/such/socket"), "cannot reach the server at /no/such/socket"),
    ):
        done = run_command(*words, SGLANG_API_KEY="")
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)


def test_programs_are_told_how_to_trust_a_certificate(secured: Secured) -> None:
    """And take the address that OpenAI's clients are given."""
    authority = str(secured.folder / "ca.pem")
    secured.ca.cert_pem.write_to_path(authority)
    with pytest.raises(BackendConnectionError, match="certificate verify failed") as refused:
        RuntimeEndpoint(secured.url, api_key=FILE_KEY)
    assert "verify= names the file" in str(refused.value) and "tries" not in str(refused.value)
    endpoint = RuntimeEndpoint(f"{secured.url}/v1/", api_key=FILE_KEY, verify=authority)
    assert endpoint.base_url == secured.url and endpoint.model_info["is_generation"]


def test_sighup_reads_keys_and_certificate_again(secured: Secured) -> None:
    def last_word() -> str:
        said = [entry["message"] for entry in log_entries(secured.server) if entry.get("message", "").startswith("SIGHUP")]
        return said[-1] if said else ""

    def hang_up(wanted: str) -> None:
        secured.server.process.send_signal(signal.SIGHUP)
        until(lambda: wanted in last_word())

    def serial() -> int:
        address = ("localhost", int(secured.url.rpartition(":")[2]))
        with socket.create_connection(address) as raw, secured.tls.wrap_socket(raw, server_hostname="localhost") as wrapped:
            told: Any = wrapped.getpeercert()
            return int(told["serialNumber"], 16)

    def status(key: str) -> int:
        with secured.client(key) as client:
            return client.get("/v1/models").status_code

    keys, pem = secured.folder / "keys", secured.folder / "tls.pem"
    before, text, old = serial(), keys.read_bytes(), pem.read_bytes()
    try:
        keys.write_bytes(b"another-key\n")
        pem.write_bytes(secured.ca.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        hang_up("were read again")
        assert (status(FILE_KEY), status("another-key"), status(LINE_KEY)) == (401, 200, 200)
        after = serial()
        assert after != before
        keys.write_bytes(b"")
        hang_up("holds no key")
        keys.write_bytes(b"third-key\n")
        pem.write_bytes(b"nonsense")
        hang_up("holds no PEM block")
        assert (status("another-key"), status("third-key"), serial()) == (200, 401, after)
    finally:
        keys.write_bytes(text)
        pem.write_bytes(old)
    hang_up("were read again")
    assert status(FILE_KEY) == 200


# --- a unix socket ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    folder = tmp_path_factory.mktemp("u")
    path = str(folder / "sock")
    server = start_server(folder / "log", "--uds", path)
    yield server, path
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def over(path: str) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=60)


def test_clients_of_a_socket(behind_socket: tuple[RunningServer, str]) -> None:
    server, path = behind_socket
    assert os.stat(path).st_mode & 0o777 == 0o600
    with over(path) as client, openai.OpenAI(base_url="http://localhost/v1", api_key="x", http_client=over(path)) as talk:
        assert client.post("/generate", json=ASK).json()["text"].startswith(" Paris")
        assert talk.models.list().data[0].id == DEFAULT_MODEL
        ask: Any = {"model": "x", "prompt": "One, two,", "max_tokens": 4, "stream": True}
        assert "".join(chunk.choices[0].text for chunk in talk.completions.create(**ask))
    assert run_command("--url", f"unix:{path}").stdout.startswith(" Paris")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)
    with over(path) as client:
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_a_second_server_and_one_after_a_crash(behind_socket: tuple[RunningServer, str], tmp_path: Path) -> None:
    server, path = behind_socket
    command = [sys.executable, "-m", "sglang.launch_server", "--uds", path, "--port", str(free_port())]
    environment = package_environ()
    second = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert second.returncode == 1 and "another server listens on --uds" in second.stderr and "Traceback" not in second.stderr
    with over(path) as client:
        assert client.get("/health").status_code == 200
    server.process.kill()
    server.process.wait()
    assert os.path.exists(path)
    third = start_server(tmp_path / "log", "--uds", path)
    try:
        with over(path) as client:
            assert client.get("/health").status_code == 200
        assert third.stop() == 0
        assert not os.path.exists(path)
    finally:
        third.process.kill()
        third.process.wait()
