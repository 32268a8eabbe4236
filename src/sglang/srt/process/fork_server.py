"""The process that forks the children of an `Isolated` (isolation.py).

    python -m sglang.srt.process.fork_server CONTROL_FD MODULE:FUNCTION        started by isolation.py

It has one thread, so forking is safe, and it never touches a payload: only its children do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import msgspec

from sglang.srt.process.isolation import EXIT, FAILURE, FORK, HEADER, JOB, LAST_REPLY, PART, PID, REPLY, Limits

ORPHAN_SECONDS = 10.0
"""how often it looks whether its parent is still there: a forked copy of the parent may hold the control socket open"""

Work = Callable[[bytes], "bytes | Generator[bytes, None, bytes]"]
"""A function from a payload to its reply; or a generator of parts that are sent as they are made, which returns the reply. A
work with a method `get_ready` has it called in a child before each job, and before there is one: what is done there costs the
job no time."""

KEPT_GROWTH = 16 << 20
"""bytes by which a child that goes on may have grown since it was forked"""


class ForkServer:
    """Forks on request, reports how children ended, ends when its parent does."""

    def __init__(self, control: socket.socket, work: Work, limits: Limits) -> None:
        self._control = control
        self._work = work
        self._limits = limits
        self._parent = os.getppid()
        self._children: dict[int, socket.socket] = {}
        self._wake, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker)
        self._events = selectors.DefaultSelector()
        for source in (self._control.fileno(), self._wake):
            self._events.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        while os.getppid() == self._parent:
            ready = {key.fd for key, _ in self._events.select(ORPHAN_SECONDS)}
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._obey():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:  # nobody else may be there to do it
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _obey(self) -> bool:
        """One message. False when the parent has gone."""
        message, fds, _, _ = socket.recv_fds(self._control, 5, 1)
        while message and len(message) < 5:
            message += self._control.recv(5 - len(message))
        if not message:
            return False
        if message[:1] == FORK:
            self._fork(socket.socket(fileno=fds[0]))
        elif (pid := int.from_bytes(message[1:], "little")) in self._children:
            os.kill(pid, signal.SIGKILL)
        return True

    def _fork(self, connection: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            _send(connection, PID, bytes(4))
            _send(connection, FAILURE, f"failed: no process could be started: {error}".encode())
            connection.close()
            return
        if pid:
            self._children[pid] = connection
            return
        try:
            signal.set_wakeup_fd(-1)
            for other in (*self._children.values(), self._control):
                other.close()
            _serve(connection, self._work, self._limits)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._children.pop(pid)
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # its owner has the reply, or does not want it any more
                _send(connection, EXIT, os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
            connection.close()


def _serve(connection: socket.socket, work: Work, limits: Limits) -> NoReturn:
    """A child: waits for a job, does it under limits, and ends with the last one."""
    for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGXCPU, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # an engine that panics writes pages
    _send(connection, PID, os.getpid().to_bytes(4, "little"))
    os.nice(limits.niceness)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    get_ready = getattr(work, "get_ready", lambda: None)
    get_ready()
    mapped, resident = _memory()
    for num_left in reversed(range(limits.jobs)):
        (size,) = JOB.unpack(_receive(connection, JOB.size))
        _limit(limits, mapped + 2 * size)
        reply = _do(connection, work, size, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if num_left == 0 or _memory()[1] > resident + KEPT_GROWTH:
            _send(connection, LAST_REPLY, reply)
            break
        _send(connection, REPLY, reply)
        get_ready()
    os._exit(0)


def _do(connection: socket.socket, work: Work, size: int, limits: Limits) -> bytes:
    """The reply to the job whose payload comes next. Ends the process if there is none."""
    try:
        reply = work(_receive(connection, size))
        return reply if isinstance(reply, bytes) else _send_parts(connection, reply)
    except MemoryError:
        _send(connection, FAILURE, f"needed more than {limits.memory >> 20} MB".encode())
    except BaseException as error:  # noqa: BLE001  the owner hears of it, whatever it is; the process ends anyway
        _send(connection, FAILURE, f"failed: {error}".encode(errors="replace")[:2000])
    os._exit(0)


def _memory() -> tuple[int, int]:
    """Bytes that are mapped, and those that have pages; zeros where the system does not say."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        mapped, resident = file.read().split()[:2]
        return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()
    return 0, 0


def _limit(limits: Limits, before: int) -> None:
    """Sets the limits of one job. `before`: bytes that are mapped whatever it does."""
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    cpu = used + max(int(limits.cpu_seconds + 0.999), 1)
    _set_limit(resource.RLIMIT_CPU, cpu)
    if before:
        _set_limit(resource.RLIMIT_AS, before + limits.memory)


def _set_limit(kind: int, value: int) -> None:
    """The soft one, which holds, and which the next job has anew."""
    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _send_parts(connection: socket.socket, parts: Generator[bytes, None, bytes]) -> bytes:
    """Sends the parts; returns what the generator returns."""
    while True:
        try:
            part = next(parts)
        except StopIteration as end:
            return bytes(end.value)
        _send(connection, PART, part)


def _send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    connection.sendall(HEADER.pack(kind, len(data)))
    connection.sendall(data)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Ends the process when the other end has gone."""
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        os._exit(0)
    return data


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    (size,) = JOB.unpack(_receive(control, JOB.size))
    limits, setup = msgspec.msgpack.decode(_receive(control, size), type=tuple[dict[str, Any], bytes])
    found = Limits(**limits)
    module, name = sys.argv[2].split(":")
    work = getattr(importlib.import_module(module), name)(setup)
    ForkServer(control, work, found).run()


if __name__ == "__main__":
    main()
