"""A model over several machines, here several addresses of this one: the same bits as on one machine, and an end with a reason for all when
something is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sglang.srt.config import DeviceOptions, ModelOptions, NodeOptions
from sglang.srt.errors import ConfigError, EngineDeadError
from sglang.srt.model.distributed import handshake
from sglang.srt.model.distributed.handshake import MAGIC, NONCE, Hello, NodeListener, Refused, connect
from sglang.srt.model.distributed.leader import ParallelWorker, create_parallel_worker
from sglang.srt.server_args import ServerArgs
from tests.conftest import RunningServer, free_port, start_server
from tests.model.test_tensor_parallel import MEMORY, PROMPTS, ranks, tokens_and_scores
from tests.model.tiny import save_model

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(300)

TOKEN = "of these tests, long enough"
FIRST = "127.0.0.2"
"""the address of node 0: connections to it come from 127.0.0.1"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "llama")
    return path


class Node:
    """Another node: the command that a user starts there."""

    def __init__(self, model: Path, port: int, log: Path, *flags: str, token: str = TOKEN, rank: int = 1) -> None:
        self.log = log
        secret = log.with_suffix(".token")
        secret.write_text(token + "\n")
        secret.chmod(0o600)
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--threads", "1"]
        command += ["--dist-init-addr", f"{FIRST}:{port}", "--dist-token-file", str(secret), "--node-rank", str(rank)]
        usual = {"--nnodes": "2", "--tp-size": "2", "--dist-timeout": "60"}
        usual |= dict(zip(flags[::2], flags[1::2], strict=True))
        with log.open("wb") as out:
            words = [*command, *(word for pair in usual.items() for word in pair)]
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)

    def wait(self) -> tuple[int, str]:
        """Its exit status and all that it said."""
        return self.process.wait(120), self.log.read_text()

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]


@pytest.fixture
def nodes(folder: Path, tmp_path: Path) -> Iterator[Any]:
    """Makes nodes, and ends those that are left."""
    made: list[Node] = []

    def make(port: int, *flags: str, model: Path = folder, **more: Any) -> Node:
        made.append(Node(model, port, tmp_path / f"node{len(made)}", *flags, **more))
        return made[-1]

    yield make
    for node in made:
        node.process.kill()
        node.process.wait()


def options(port: int, count: int = 2, timeout: float = 60.0) -> NodeOptions:
    return NodeOptions(count, 0, FIRST, port, TOKEN, timeout)


def first(folder: Path, port: int, size: int = 2, count: int = 2, **more: Any) -> ParallelWorker:
    """The worker of node 0."""
    device = DeviceOptions(tp_size=size, num_nodes=count, threads=1)
    return create_parallel_worker(ModelOptions(str(folder)), device, MEMORY, nodes=options(port, count), **more)


def test_two_nodes_compute_the_bits_of_two_ranks_on_one(folder: Path, nodes: Any) -> None:
    with ranks(folder) as worker:
        expected, scores = tokens_and_scores(worker)
    port = free_port()
    node = nodes(port)
    worker = first(folder, port)
    try:
        outputs, ours = tokens_and_scores(worker)
        listening = _listening([os.getpid(), *node.children()])
    finally:
        worker.close()
    assert outputs == expected
    np.testing.assert_array_equal(ours.logprobs, scores.logprobs)
    assert listening and all(address.startswith("127.") for address in listening), "only addresses of the nodes"
    code, said = node.wait()
    assert code == 0 and "Node 0 has ended" in said


def _listening(pids: list[int]) -> list[str]:
    import psutil

    return [c.laddr.ip for pid in pids for c in psutil.Process(pid).net_connections("tcp") if c.status == "LISTEN"]


@pytest.mark.slow
def test_four_ranks_on_two_nodes(folder: Path, nodes: Any) -> None:
    """Children and connections beside each other."""
    with ranks(folder, DeviceOptions(tp_size=4, threads=1)) as worker:
        expected, scores = tokens_and_scores(worker)
    port = free_port()
    nodes(port, "--tp-size", "4")
    worker = first(folder, port, size=4)
    try:
        outputs, ours = tokens_and_scores(worker)
    finally:
        worker.close()
    assert outputs == expected
    np.testing.assert_array_equal(ours.logprobs, scores.logprobs)


@pytest.mark.slow
def test_a_node_that_ends_fails_the_next_step(folder: Path, nodes: Any) -> None:
    port, died = free_port(), threading.Event()
    node = nodes(port)
    worker = first(folder, port, on_death=lambda _: died.set())
    try:
        tokens_and_scores(worker)
        node.process.send_signal(signal.SIGINT)
        assert node.wait()[0] == 130
        assert died.wait(60)
        with pytest.raises(EngineDeadError, match=r"rank 1 \(node 1 at 127.0.0.1\) of the model is gone"):
            tokens_and_scores(worker)
    finally:
        worker.close()


@pytest.mark.slow
def test_a_rank_that_is_killed_comes_back_to_the_next_first_node(folder: Path, nodes: Any) -> None:
    port, died = free_port(), threading.Event()
    node = nodes(port)
    worker = first(folder, port, on_death=lambda _: died.set())
    expected, _ = tokens_and_scores(worker)
    os.kill(node.children()[0], signal.SIGKILL)
    assert died.wait(60)
    worker.close()
    worker = first(folder, port)
    try:
        assert tokens_and_scores(worker)[0] == expected
    finally:
        worker.close()
    assert node.wait()[0] == 0 and "lost each other" in node.log.read_text()


@pytest.mark.slow
def test_another_token(folder: Path, nodes: Any) -> None:
    port = free_port()
    listener = NodeListener(options(port), 2)
    try:
        code, said = nodes(port, token="of somebody else altogether").wait()
        assert code == 1 and "node 0 has another token: give all nodes the same --dist-token-file" in said
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(1, 1, 2, 4), "node 1 was started with --tp-size 4, and node 0 with --tp-size 2"),
        (Hello(1, 1, 4, 2), "node 1 was started with --nnodes 4, and node 0 with --nnodes 2"),
        (Hello(0, 0, 2, 2), "rank 0 is not one of another node"),
        (Hello(2, 2, 2, 2), "rank 2 is not one of another node"),
        (Hello(1, 1, 2, 2, "0.0.1"), "node 1 has version 0.0.1 of this program"),
    ],
)
def test_a_node_that_was_started_otherwise(hello: Hello, reason: str) -> None:
    listener = NodeListener(nodes := options(free_port(), timeout=5.0), 2)
    threading.Thread(target=lambda: pytest.raises(ConfigError, listener.wait), daemon=True).start()
    with pytest.raises(Refused, match=reason):
        connect(nodes, hello, time.monotonic() + 30)
    listener.close()


def test_a_node_that_never_comes(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"node 1, 2 of 3 did not come to 127.0.0.2:\d+ within 0.5 s \(--dist-timeout\)"):
        NodeListener(options(free_port(), count=3, timeout=0.5), 3).wait()


@pytest.mark.slow
def test_a_first_node_that_never_comes(nodes: Any) -> None:
    port = free_port()
    code, said = nodes(port, "--dist-timeout", "1").wait()
    assert code == 1 and f"there is no node 0 at --dist-init-addr {FIRST}:{port} (Connection refused), after 1 s" in said


@pytest.mark.slow
def test_other_files_of_the_model(folder: Path, nodes: Any, tmp_path: Path) -> None:
    """The same shapes, and other numbers: nothing else would notice."""
    other = tmp_path / "other"
    save_model(other, "llama", seed=1)
    port = free_port()
    node = nodes(port, model=other)
    with pytest.raises(ConfigError, match="has other files of the model than this machine"):
        first(folder, port)
    code, said = node.wait()
    assert code == 1 and "node 0: rank 1 (node 1 at 127.0.0.1) has other files of the model" in said


@pytest.mark.slow
def test_a_node_without_the_model(folder: Path, nodes: Any, tmp_path: Path) -> None:
    port = free_port()
    node = nodes(port, model=tmp_path / "nothing.gguf")
    with pytest.raises(ConfigError, match=r"rank 1 \(node 1 at 127.0.0.1\): .*nothing.gguf"):
        first(folder, port)
    code, said = node.wait()
    assert code == 1 and "nothing.gguf" in said


def test_a_first_node_without_the_model(folder: Path, nodes: Any, tmp_path: Path) -> None:
    """Found before anybody is waited for."""
    with pytest.raises(ConfigError, match="nothing.gguf"):
        first(tmp_path / "nothing.gguf", free_port())


def test_strangers_are_sent_away_and_hold_up_nobody(folder: Path) -> None:
    nodes = options(free_port())
    listener = NodeListener(nodes, 2)
    strangers = [socket.create_connection((FIRST, nodes.port)) for _ in range(8)]  # say nothing
    for words in (b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(200), MAGIC + bytes(2 * NONCE)):
        loud = socket.create_connection((FIRST, nodes.port))
        loud.sendall(words)
        strangers.append(loud)
    found: dict[int, Any] = {}
    waiting = threading.Thread(target=lambda: found.update(listener.wait()))
    waiting.start()
    connect(nodes, Hello(1, 1, 2, 2), time.monotonic() + 30)
    waiting.join(30)
    assert list(found) == [1]
    loud.settimeout(30)
    said = b""
    while data := loud.recv(1000):
        said += data
    assert said[:15] == MAGIC and said[15 + NONCE :] == bytes(NONCE), "nothing but a no"
    listener.close()
    for stranger in strangers:
        stranger.close()


def test_strangers_who_take_all_places_keep_no_node_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_STRANGERS", 4)
    monkeypatch.setattr(handshake, "ANSWER_SECONDS", 60.0)
    nodes = options(free_port())
    listener = NodeListener(nodes, 2)
    strangers = [socket.create_connection((FIRST, nodes.port)) for _ in range(12)]
    for stranger in strangers[8:]:
        stranger.recv(1, socket.MSG_PEEK)  # it has its place
    found: dict[int, Any] = {}
    waiting = threading.Thread(target=lambda: found.update(listener.wait()))
    waiting.start()
    connect(nodes, Hello(1, 1, 2, 2), time.monotonic() + 20)
    waiting.join(30)
    assert list(found) == [1]
    listener.close()
    for stranger in strangers:
        stranger.close()


def test_one_who_sends_byte_by_byte_has_no_more_time() -> None:
    here, there = socket.socketpair()
    there.sendall(bytes(50))
    has_ended = threading.Event()

    def drip() -> None:
        while not has_ended.wait(0.02):
            there.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    with here, there:
        with pytest.raises(OSError, match="timed out"):
            handshake._exactly(here, 100_000, time.monotonic() + 0.3)
        has_ended.set()
        dripping.join()


def test_what_listens_there_is_something_else() -> None:
    with socket.create_server((FIRST, 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 10), daemon=True).start()
        with pytest.raises(Refused, match="is no node 0 of this program"):
            connect(options(port), Hello(1, 1, 2, 2), time.monotonic() + 30)


def test_one_that_does_not_know_the_token_cannot_pose_as_the_first_node() -> None:
    def pose(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(MAGIC + bytes(NONCE))
        connection.recv(1000)
        connection.sendall(b"x" * NONCE)

    with socket.create_server((FIRST, 0)) as listener:
        threading.Thread(target=pose, args=(listener,), daemon=True).start()
        with pytest.raises(Refused, match="does not know the token"):
            connect(options(listener.getsockname()[1]), Hello(1, 1, 2, 2), time.monotonic() + 30)


def test_the_same_node_twice() -> None:
    nodes = options(free_port(), count=3)
    listener = NodeListener(nodes, 3)
    threading.Thread(target=lambda: pytest.raises(ConfigError, listener.wait), daemon=True).start()
    held = connect(nodes, Hello(1, 1, 3, 3), time.monotonic() + 30)
    with pytest.raises(Refused, match="there is a node 1 already"):
        connect(nodes, Hello(1, 1, 3, 3), time.monotonic() + 30)
    held.close()
    connect(nodes, Hello(1, 1, 3, 3), time.monotonic() + 30)  # it was started again
    listener.close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match="--dist-init-addr 192.0.2.1:5000 cannot be listened on"):
        NodeListener(replace(options(5000), host="192.0.2.1"), 2)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"node_rank": 1}, "--node-rank 1: nodes are numbered from 0, and there are 1"),
        ({"nnodes": 2}, "--nnodes 2 does not divide --tp-size 1"),
        ({"nnodes": 2, "tp_size": 3}, "--nnodes 2 does not divide --tp-size 3"),
        ({"nnodes": 2, "tp_size": 2}, "--nnodes needs --dist-init-addr HOST:PORT"),
        ({"nnodes": 2, "tp_size": 2, "dist_init_addr": "10.0.0.1"}, "is HOST:PORT of node 0, such as 10.0.0.1:5000"),
        ({"nnodes": 2, "tp_size": 2, "dist_init_addr": "10.0.0.1:99999"}, "is HOST:PORT of node 0"),
        ({"nnodes": 2, "tp_size": 2, "dist_init_addr": "0.0.0.0:5000"}, "name the address of node 0"),
        ({"nnodes": 2, "tp_size": 2, "dist_init_addr": "[::1]:5000"}, "--nnodes needs --dist-token-file: .*secrets.token_hex"),
        ({"nnodes": 2, "tp_size": 2, "replicas": 2}, "--replicas does not go together with --nnodes"),
        ({"nnodes": 2, "tp_size": 2, "enable_lora": True}, "takes no adapters yet"),
        ({"nnodes": 2, "tp_size": 2, "ray": "auto", "node_rank": 1}, "Ray starts the other nodes"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ServerArgs(**flags).resolve()


def test_a_secret_that_can_be_guessed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short\n")
    flags = {"nnodes": 2, "tp_size": 2, "dist_init_addr": "10.0.0.1:5000", "dist_token_file": str(tmp_path / "token")}
    with pytest.raises(ConfigError, match="has fewer than 16 characters"):
        ServerArgs(**flags).resolve()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "scheduler"])
def test_a_server_on_two_nodes_lives_through_deaths(folder: Path, nodes: Any, tmp_path: Path, victim: str) -> None:
    """Run by: .venv-test/bin/python -m pytest -m slow tests/model/test_nodes.py"""
    server, node = _serve(folder, nodes, tmp_path)
    try:
        expected = _ask(server)
        os.kill(node.children()[0] if victim == "rank" else server.scheduler(), signal.SIGKILL)
        assert _ask(server) == expected, "the request waits, and is answered"
        assert server.stop(signal.SIGINT) in (0, 130)
        assert node.wait()[0] == 0
    finally:
        server.process.kill()


@pytest.mark.slow
def test_a_node_that_does_not_come_back_ends_the_server(folder: Path, nodes: Any, tmp_path: Path) -> None:
    server, node = _serve(folder, nodes, tmp_path, "--dist-timeout", "3")
    try:
        _ask(server)
        node.process.send_signal(signal.SIGINT)
        assert node.wait()[0] == 130
        assert server.process.wait(60) == 1
        said = server.log.read_text()
        assert "node 1 of 2 did not come" in said and "Giving up" in said
    finally:
        server.process.kill()


def _serve(folder: Path, nodes: Any, tmp_path: Path, *flags: str) -> tuple[RunningServer, Node]:
    port = free_port()
    node = nodes(port)
    secret = str(node.log.with_suffix(".token"))
    usual = ["--skip-tokenizer-init", "--grammar-backend", "none", "--threads", "1", "--tp-size", "2", "--nnodes", "2"]
    where = ["--node-rank", "0", "--dist-init-addr", f"{FIRST}:{port}", "--dist-token-file", secret]
    return start_server(tmp_path / "log", *usual, *where, *flags, model=str(folder)), node


def _ask(server: RunningServer) -> list[int]:
    body = {"input_ids": PROMPTS[0], "sampling_params": {"temperature": 0, "max_new_tokens": 8}}
    ids: list[int] = httpx.post(f"{server.url}/generate", json=body, timeout=120, trust_env=False).json()["output_ids"]
    return ids
