"""Runs native code on untrusted input in child processes, which may crash, hang or fill their memory.

    this process                      fork server (fork_server.py)            children
    Isolated.submit  --socket end-->  builds what all jobs share, forks  -->  one job each, under limits
                     <------------------- the reply, then how the child ended -----------------------'

The fork server is started once and imports what jobs need. Every job runs in a child forked ahead of time, under limits of memory,
processor time and wall time. A child ends after one job, or after `Limits.jobs` of them: a child whose job succeeded, and whose memory
has hardly grown, starts the next job sooner than a new child would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import msgspec

from sglang.common.interrupts import children_without_interrupts

HEADER = struct.Struct("<cI")
"""of a frame: its kind (PID, PART, REPLY, LAST_REPLY, FAILURE or EXIT) and the length of what follows"""
PID, PART, REPLY, LAST_REPLY, FAILURE, EXIT = b"P", b"D", b"R", b"L", b"F", b"X"
JOB = struct.Struct("<Q")
"""before a job's payload: its length"""
FORK, KILL = b"F", b"K"
GRACE_SECONDS = 2.0
"""beyond a job's time, after which its child is taken for lost"""
START_SECONDS = 60.0
LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class Limits:
    """Limits of a child. `memory`: bytes beyond what the fork server has; `cpu_seconds` and `seconds`: of one job; `niceness`:
    0 to 19, how far it stands back for others; `reply`: bytes it may send; `jobs`: how many it may do, one after the other."""

    memory: int
    cpu_seconds: float
    seconds: float
    niceness: int = 0
    reply: int = 1 << 30
    jobs: int = 1


class IsolationError(Exception):
    """A job has no result. The message says why, as the end of a sentence: "took more than 10 s"."""


class Cancelled(IsolationError):
    """The job was cancelled by its owner."""


@dataclass(frozen=True)
class Patience:
    """Seconds without a reply after which the caller is asked whether the job goes on."""

    seconds: float
    goes_on: Callable[[], bool]


@dataclass
class Child:
    """A process that waits for a job. `pid`: None until it has said so."""

    connection: socket.socket
    generation: int
    """of the fork server, whose children end with it"""
    pid: int | None = None


class Job:
    """One payload that a child has for itself. `result` may be called on any thread, once; `cancel` at any time."""

    def __init__(self, owner: Isolated, child: Child) -> None:
        self._owner = owner
        self._child = child
        self._connection = child.connection
        self._lock = threading.Lock()
        self._ended = False
        self._cancelled = False
        self._may_go_on = False
        self._stepped_back = False

    @property
    def pid(self) -> int | None:
        """The child's process id, once it is known."""
        return self._child.pid

    def result(
        self,
        *payload: bytes | bytearray,
        parts: bytearray | None = None,
        patience: Patience | None = None,
        on_part: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Sends the payload and waits for the reply. What the child sends in parts before it (fork_server.Work) is added to
        `parts`, or given to `on_part` while the child goes on. Raises IsolationError, Cancelled when `patience` had an end, and what
        `on_part` raises, which ends the child."""
        parts = bytearray() if parts is None else parts
        try:
            return self._exchange(payload, on_part or partial(self._add, parts), patience)
        except TimeoutError:
            raise IsolationError(self._owner.too_slow) from None
        except OSError as error:
            raise (Cancelled("was cancelled") if self._cancelled else IsolationError(f"failed: {error}")) from error
        finally:
            self._end()

    def cancel(self) -> None:
        """Kills the child."""
        with self._lock:
            self._cancelled = True
            if self._ended:
                return
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._kill()

    def step_back(self) -> None:
        """Gives the child the lowest priority: it takes long, and others are to go first. It ends with this job."""
        self._stepped_back = True
        if self.pid is not None:
            with contextlib.suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, self.pid, LOWEST_PRIORITY)

    def _add(self, parts: bytearray, part: bytes) -> None:
        if len(parts) + len(part) > self._owner.limits.reply:
            raise IsolationError("produced too much output")
        parts += part

    def _exchange(
        self, payload: Sequence[bytes | bytearray], on_part: Callable[[bytes], None], patience: Patience | None
    ) -> bytes:
        if self._child.pid is None:
            _, data = self._read(time.monotonic() + START_SECONDS)
            self._child.pid = int.from_bytes(data, "little")
        deadline = time.monotonic() + self._owner.limits.seconds + GRACE_SECONDS
        if self._cancelled:
            raise Cancelled("was cancelled")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: the exit status follows
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            self._connection.sendall(JOB.pack(sum(map(len, payload))))
            for part in payload:
                self._connection.sendall(part)
        kind, data = self._read_patiently(deadline, patience)
        while kind == PART:
            on_part(data)
            kind, data = self._read_patiently(deadline, patience)
        self._may_go_on = kind == REPLY
        if kind in (REPLY, LAST_REPLY):
            return data
        if kind == FAILURE:
            raise IsolationError(data.decode(errors="replace"))
        raise IsolationError(self._owner.meaning(int.from_bytes(data, "little", signed=True)))

    def _read_patiently(self, deadline: float, patience: Patience | None) -> tuple[bytes, bytes]:
        if patience is not None and self._is_late(patience.seconds) and not patience.goes_on():
            raise Cancelled("was given up")
        return self._read(deadline)

    def _is_late(self, seconds: float) -> bool:
        """Waits for the beginning of a reply."""
        self._connection.settimeout(seconds)
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        return False

    def _read(self, deadline: float) -> tuple[bytes, bytes]:
        head = self._read_exactly(HEADER.size, deadline)
        kind, size = HEADER.unpack(head)
        if size > self._owner.limits.reply:
            raise IsolationError("produced too much output")
        return kind, self._read_exactly(size, deadline)

    def _read_exactly(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            count = self._connection.recv_into(view[at:])
            if count == 0:  # how it ended can be told only between two frames
                is_late = time.monotonic() > deadline - GRACE_SECONDS - 0.1
                reason = self._owner.too_slow if is_late else "crashed"
                raise Cancelled("was cancelled") if self._cancelled else IsolationError(reason)
            at += count
        return bytes(data)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            goes_on = self._may_go_on and not (self._cancelled or self._stepped_back)
        if not (goes_on and self._owner.take_back(self._child)):
            self._connection.close()
            self._kill()  # usually it has ended already, which the fork server knows
        self._owner.refill()

    def _kill(self) -> None:
        if self.pid is not None:
            self._owner.kill(self.pid)


class Isolated:
    """Owner of a fork server and of the children that wait for jobs. Thread-safe. `entry` names a function "module:name" that is
    called once in the fork server with `setup` and returns the function that turns a payload into a reply. A `setup` that is large
    is given as a function, and not kept."""

    def __init__(self, entry: str, setup: bytes | Callable[[], bytes], limits: Limits, num_spare: int = 1) -> None:
        self.limits = limits
        self._entry = entry
        self._setup = setup
        self._num_spare = num_spare
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._generation = 0
        self._spare: deque[Child] = deque()
        self._closed = False

    @property
    def too_slow(self) -> str:
        return f"took more than {self.limits.seconds:g} s"

    def start(self) -> None:
        """Starts the fork server if it does not run; does not wait for it. Raises IsolationError."""
        with self._lock:
            if self._closed:
                raise IsolationError("failed: the server is shutting down")
            if self._process is None or self._process.poll() is not None:
                self._launch()
            self.refill()

    def submit(self) -> Job:
        """A child for one job. Raises IsolationError."""
        with self._lock:
            self.start()
            try:
                child = self._spare.popleft() if self._spare else self._fork()
            except OSError:  # the fork server has died since
                self._launch()
                child = self._fork()
        return Job(self, child)

    def run(self, payload: bytes) -> bytes:
        """`submit` and wait. Raises IsolationError."""
        return self.submit().result(payload)

    def refill(self) -> None:
        """Has children forked for the next jobs."""
        with self._lock, contextlib.suppress(OSError):
            while self._control is not None and len(self._spare) < self._num_spare:
                self._spare.append(self._fork())

    def take_back(self, child: Child) -> bool:
        """Keeps a child that has done its job for the next one; False if it is not needed."""
        with self._lock:
            if child.generation != self._generation or self._control is None or len(self._spare) > self._num_spare:
                return False
            self._spare.appendleft(child)
            return True

    def kill(self, pid: int) -> None:
        """Ends one child. Only the fork server, which is its parent, knows whether the number is still its own."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.sendall(KILL + pid.to_bytes(4, "little"))

    def rest(self) -> None:
        """Ends the fork server and all children, until there is a job again."""
        with self._lock:
            process, self._process = self._process, None
            self._drop()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
            process.wait()

    def close(self) -> None:
        """Ends the fork server and all children."""
        with self._lock:
            self._closed = True
        self.rest()

    def meaning(self, status: int) -> str:
        """Explains a child's exit status (negative: a signal) in terms of its job."""
        if status == -signal.SIGALRM:
            return self.too_slow
        if status == -signal.SIGXCPU:
            return f"took more than {self.limits.cpu_seconds:g} s of processor time"
        if status == -signal.SIGABRT:
            return f"crashed, or needed more than {self.limits.memory >> 20} MB"
        return "crashed"

    def _launch(self) -> None:
        self._drop()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        command = [sys.executable, "-m", "sglang.srt.process.fork_server", str(theirs.fileno()), self._entry]
        quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            with children_without_interrupts():
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=quiet)
            given = self._setup if isinstance(self._setup, bytes) else self._setup()
            setup = msgspec.msgpack.encode([asdict(self.limits), given])
            self._control.sendall(JOB.pack(len(setup)) + setup)
        except OSError as error:
            raise IsolationError(f"failed: no process could be started: {error}") from error
        finally:
            theirs.close()

    def _fork(self) -> Child:
        assert self._control is not None
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [FORK + bytes(4)], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Child(ours, self._generation)

    def _drop(self) -> None:
        """Forgets a fork server; it ends when it sees its control socket closed, and so do children without a job."""
        self._generation += 1
        while self._spare:
            self._spare.pop().connection.close()
        if self._control is not None:
            self._control.close()
            self._control = None
