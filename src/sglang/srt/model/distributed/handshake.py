"""How nodes find each other: rank 0 listens, ranks of other machines connect, and both sides prove that they know the same token.

    rank 0   MAGIC, 32 random bytes
    node     MAGIC, 32 random bytes, HMAC of both under the token            nothing else is read before this is right
    rank 0   HMAC of both, of another label                                  or NO
    node     frame: Hello                                                    who it is
    rank 0   frame: Welcome                                                  or why not

The token itself is never sent. What follows is neither encrypted nor signed: nobody between the machines is expected to change it.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import socket
import struct
import threading
import time
from secrets import token_bytes

import msgspec

from sglang.srt.config import NodeOptions
from sglang.srt.errors import ConfigError
from sglang.srt.model.distributed.wire import write_frame
from sglang.version import __version__

MAGIC = b"sglang ranks 1\n"
NONCE = 32
NO = bytes(NONCE)
"""instead of a proof: the token is another one"""
MAX_FRAME = 1 << 16
ANSWER_SECONDS = 10.0
MAX_STRANGERS = 64
"""connections at a time that have not shown the token yet: one more, and the oldest is closed"""
RETRY_SECONDS = 0.3


class Hello(msgspec.Struct):
    """A rank that came, and how its node was started."""

    rank: int
    node: int
    num_nodes: int
    tp_size: int
    version: str = __version__


class Welcome(msgspec.Struct):
    """`refused`: why it cannot take part; empty if it does."""

    refused: str = ""


class Refused(Exception):
    """Node 0 does not take this node: the message says why, and trying again does not help."""


def _proof(token: str, label: bytes, theirs: bytes, ours: bytes) -> bytes:
    return hmac.digest(token.encode(), label + theirs + ours, "sha256")


def _exactly(connection: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """`deadline` (time.monotonic): by which all has to be there; without, each part has the time-out of the connection."""
    data = b""
    while len(data) < size:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other side closed the connection")
        data += part
    return data


def _frame(connection: socket.socket, deadline: float | None = None) -> bytes:
    """As wire.read_frame, and not a byte more is taken from the connection."""
    (size,) = struct.unpack("<Q", _exactly(connection, 8, deadline))
    if size > MAX_FRAME:
        raise ConnectionError(f"a frame of {size} bytes")
    return _exactly(connection, size, deadline)


class NodeListener:
    """Where ranks of other nodes come in. Those who do not know the token are sent away and noted by nobody."""

    def __init__(self, nodes: NodeOptions, tp_size: int) -> None:
        """Raises ConfigError for an address that cannot be listened on."""
        self._nodes, self._tp_size = nodes, tp_size
        self.address = _resolve(nodes.host, nodes.port)
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        try:
            self._listener = socket.create_server((self.address, nodes.port), family=family, backlog=MAX_STRANGERS)
        except OSError as error:
            raise ConfigError(
                f"--dist-init-addr {nodes.host}:{nodes.port} cannot be listened on ({error.strerror}): node 0 needs an address of its own "
                "machine, and a free port"
            ) from error
        self._came: queue.SimpleQueue[tuple[Hello, socket.socket]] = queue.SimpleQueue()
        self._is_closed = False
        self._strangers: dict[socket.socket, None] = {}
        """the oldest first"""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="sglang-nodes", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._admit(connection)
            threading.Thread(target=self._greet, args=(connection,), name="sglang-node", daemon=True).start()

    def _admit(self, connection: socket.socket) -> None:
        """Nobody keeps a node out by taking all places: it needs milliseconds, and whoever waits longer has to go."""
        with self._lock:
            self._strangers[connection] = None
            if len(self._strangers) > MAX_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it

    def _greet(self, connection: socket.socket) -> None:
        hello = None
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            hello = self._prove(connection)
        with self._lock:
            was_admitted = connection in self._strangers
            self._strangers.pop(connection, None)
        if hello is None or self._is_closed or not was_admitted:
            connection.close()
        else:
            self._came.put((hello, connection))

    def _prove(self, connection: socket.socket) -> Hello | None:
        connection.settimeout(ANSWER_SECONDS)
        deadline = time.monotonic() + ANSWER_SECONDS
        ours = token_bytes(NONCE)
        connection.sendall(MAGIC + ours)
        answer = _exactly(connection, len(MAGIC) + 2 * NONCE, deadline)
        theirs, proof = answer[len(MAGIC) : -NONCE], answer[-NONCE:]
        expected = _proof(self._nodes.token, b"node", ours, theirs)
        if not answer.startswith(MAGIC) or not hmac.compare_digest(proof, expected):
            connection.sendall(NO)
            return None
        connection.sendall(_proof(self._nodes.token, b"first", ours, theirs))
        hello = msgspec.msgpack.decode(_frame(connection, deadline), type=Hello)
        connection.settimeout(None)
        return hello

    def wait(self) -> dict[int, tuple[Hello, socket.socket]]:
        """The connections of all ranks of all other nodes. Raises ConfigError for those that do not come in time."""
        found: dict[int, tuple[Hello, socket.socket]] = {}
        per_node = self._tp_size // self._nodes.count
        deadline = time.monotonic() + self._nodes.timeout
        while len(found) < self._tp_size - per_node:
            try:
                hello, connection = self._came.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise ConfigError(self._missing(found, per_node)) from None
            earlier = found.get(hello.rank)
            if earlier is not None and _is_closed(earlier[1]):  # its node was started again
                found.pop(hello.rank)[1].close()
            refused = self._objection(hello, found, per_node)
            with contextlib.suppress(OSError):
                with connection.makefile("wb") as stream:
                    write_frame(stream, msgspec.msgpack.encode(Welcome(refused)))
                if refused:
                    connection.close()
                else:
                    found[hello.rank] = hello, connection
        return found

    def _objection(self, hello: Hello, found: dict[int, tuple[Hello, socket.socket]], per_node: int) -> str:
        if hello.version != __version__:
            return f"node {hello.node} has version {hello.version} of this program, and node 0 {__version__}: install the same"
        for flag, theirs, ours in (
            ("--nnodes", hello.num_nodes, self._nodes.count),
            ("--tp-size", hello.tp_size, self._tp_size),
        ):
            if theirs != ours:
                return f"node {hello.node} was started with {flag} {theirs}, and node 0 with {flag} {ours}: give both the same"
        if not per_node <= hello.rank < self._tp_size:
            return f"rank {hello.rank} is not one of another node"
        if hello.rank in found:
            return f"there is a node {hello.node} already: each needs its own --node-rank"
        return ""

    def _missing(self, found: dict[int, tuple[Hello, socket.socket]], per_node: int) -> str:
        nodes = sorted({rank // per_node for rank in range(per_node, self._tp_size)} - {rank // per_node for rank in found})
        which = ", ".join(map(str, nodes))
        return (
            f"node {which} of {self._nodes.count} did not come to {self._nodes.host}:{self._nodes.port} within "
            f"{self._nodes.timeout:g} s (--dist-timeout): start it with --node-rank {nodes[0] if nodes else 1}, the same "
            "--dist-init-addr and the same token"
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._is_closed = True
        while not self._came.empty():
            self._came.get()[1].close()


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def connect(nodes: NodeOptions, hello: Hello, deadline: float) -> socket.socket:
    """A connection to node 0 that has let this rank in. Tries until `deadline` (time.monotonic). Raises Refused, or ConfigError when
    there is nobody in time."""
    while True:
        try:
            connection = socket.create_connection((nodes.host, nodes.port), timeout=ANSWER_SECONDS)
        except OSError as error:
            last = error
        else:
            try:
                _introduce(connection, nodes, hello, deadline)
                return connection
            except (OSError, msgspec.MsgspecError) as error:
                connection.close()
                last = OSError(str(error))
            except BaseException:
                connection.close()
                raise
        if time.monotonic() + RETRY_SECONDS > deadline:
            raise ConfigError(
                f"there is no node 0 at --dist-init-addr {nodes.host}:{nodes.port} ({last.strerror or last}), after {nodes.timeout:g} s "
                "(--dist-timeout); or it has all its nodes already, one with this --node-rank among them"
            )
        time.sleep(RETRY_SECONDS)


def _introduce(connection: socket.socket, nodes: NodeOptions, hello: Hello, deadline: float) -> None:
    head = _exactly(connection, len(MAGIC) + NONCE)
    if not head.startswith(MAGIC):
        raise Refused(f"what listens at --dist-init-addr {nodes.host}:{nodes.port} is no node 0 of this program")
    theirs, ours = head[len(MAGIC) :], token_bytes(NONCE)
    connection.sendall(MAGIC + ours + _proof(nodes.token, b"node", theirs, ours))
    proof = _exactly(connection, NONCE)
    if proof == NO:
        raise Refused("node 0 has another token: give all nodes the same --dist-token-file")
    if not hmac.compare_digest(proof, _proof(nodes.token, b"first", theirs, ours)):
        raise Refused("what answers there does not know the token of --dist-token-file")
    with connection.makefile("wb") as stream:
        write_frame(stream, msgspec.msgpack.encode(hello))
    connection.settimeout(max(deadline - time.monotonic(), ANSWER_SECONDS))  # it may be loading, or ending
    welcome = msgspec.msgpack.decode(_frame(connection), type=Welcome)
    if welcome.refused:
        raise Refused(welcome.refused)


def _resolve(host: str, port: int) -> str:
    """Raises ConfigError."""
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"--dist-init-addr {host}:{port}: there is no address of this name ({error.strerror})") from error
