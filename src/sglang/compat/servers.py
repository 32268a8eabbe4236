"""Starts servers for unit tests and documents."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from sglang.common.server_process import descendants, kill, wait_for_answer
from sglang.utils import is_in_ci
from sglang.utils import launch_server_cmd as launch

DEFAULT_MODEL_NAME_FOR_TEST = "smollm2-135m-instruct"
DEFAULT_SMALL_MODEL_NAME_FOR_TEST = DEFAULT_MODEL_NAME_FOR_TEST
DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH = 600
DEFAULT_URL_FOR_TEST = "http://127.0.0.1:21000"

T = TypeVar("T")

_SMALL = "--max-running-requests 128 --max-total-tokens 20480"
"""servers of documents share a machine"""


class CustomTestCase(unittest.TestCase):
    """A test case that tells its name, and tries a test that failed again SGLANG_TEST_MAX_RETRY times (default: once where
    SGLANG_IS_IN_CI is set, else never)."""

    def setUp(self) -> None:
        print(f"[Test Method] {self._testMethodName}", flush=True)

    def _callTestMethod(self, method: Any) -> None:
        tries = 1 + int(os.environ.get("SGLANG_TEST_MAX_RETRY", "1" if is_in_ci() else "0"))
        for left in reversed(range(tries)):
            try:
                method()
                return
            except unittest.SkipTest:
                raise
            except Exception as error:
                if not left:
                    raise
                print(f"[Test Method] {self._testMethodName} failed and is tried again: {error!r}", flush=True)


def popen_launch_server(
    model: str,
    base_url: str,
    timeout: float,
    api_key: str | None = None,
    other_args: Sequence[Any] = (),
    env: Mapping[str, str] | None = None,
    return_stdout_stderr: tuple[IO[str], IO[str]] | None = None,
    device: str = "auto",
) -> subprocess.Popen[str]:
    """Starts a server at `base_url` and returns its process once it has answered. `return_stdout_stderr`: files to which its
    output is copied. Raises TimeoutError after `timeout` seconds, RuntimeError when the process has ended."""
    address = urlsplit(base_url)
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--device", device]
    command += ["--host", address.hostname or "127.0.0.1", "--port", str(address.port or 80), *map(str, other_args or ())]
    if api_key:
        command += ["--api-key", api_key]
    pipe = subprocess.PIPE if return_stdout_stderr else None
    process = subprocess.Popen(command, env=None if env is None else dict(env), stdout=pipe, stderr=pipe, text=True)
    if return_stdout_stderr:
        _copy(process.stdout, return_stdout_stderr[0], sys.stdout)
        _copy(process.stderr, return_stdout_stderr[1], sys.stderr)
    try:
        headers = {"Authorization": f"Bearer {api_key}"}
        wait_for_answer(f"{base_url}/health_generate", process, timeout, headers=headers)
    except BaseException:
        kill_process_tree(process.pid)
        raise
    return process


def _copy(source: IO[str] | None, *targets: Any) -> None:
    def run() -> None:
        for line in source or ():
            for target in targets:
                target.write(line)
                target.flush()

    threading.Thread(target=run, daemon=True).start()


def kill_process_tree(
    parent_pid: int | None = None, include_parent: bool = True, skip_pid: int | None = None, wait_timeout: float = 5.0
) -> None:
    """Kills the processes below `parent_pid` and, if `include_parent`, that one too. None: those below this process."""
    root = os.getpid() if parent_pid is None else parent_pid
    for pid, started in descendants(root):
        if pid != skip_pid:
            kill(pid, started)
    if include_parent and parent_pid is not None and root != skip_pid:
        try:
            os.kill(root, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        _reap(root, wait_timeout)


def _reap(pid: int, timeout: float) -> None:
    """Waits until a child is gone, so that its port is free."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
        except ChildProcessError:
            return
        time.sleep(0.01)


def kill_child_process(pid: int | None = None, include_self: bool = False, skip_pid: int | None = None) -> None:
    """The name that `kill_process_tree` has in older releases. Without `include_self` it kills what `pid` has started."""
    kill_process_tree(pid, include_self, skip_pid)


def execute_shell_command(command: str) -> subprocess.Popen[str]:
    """Starts a command, without a shell; its lines may end with a backslash. Standard error goes where standard output does."""
    return subprocess.Popen(shlex.split(command.replace("\\\n", " ")), text=True, stderr=subprocess.STDOUT)


def run_with_timeout(
    func: Callable[..., T], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, timeout: float | None = None
) -> T:
    """Returns what the function returns, raises what it raises. Raises TimeoutError after `timeout` seconds; the function's
    thread goes on."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(func(*args, **(kwargs or {})))
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            done.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if not done.done():
        raise TimeoutError(f"{getattr(func, '__name__', func)} has not ended after {timeout} seconds")
    return done.result()


def launch_server_cmd(command: str, host: str = "0.0.0.0", port: int | None = None) -> tuple[subprocess.Popen[bytes], int]:
    """sglang.utils.launch_server_cmd of a server that leaves room for others on the machine."""
    return launch(f"{command} {_SMALL}", host, port)


def get_device(device_id: int | None = None) -> str:
    """Where models run here: cpu, or cuda (with `device_id` cuda:N)."""
    if not is_cuda():
        return "cpu"
    return "cuda" if device_id is None else f"cuda:{device_id}"


def is_cuda() -> bool:
    """Whether models run on a CUDA device here."""
    from sglang.common.devices import cuda_is_here

    return cuda_is_here()


def is_hip() -> bool:
    """Whether models run on a device of AMD here: they never do. So it is with those of other makers."""
    return False


is_npu = is_xpu = is_hpu = is_musa = is_mps = is_hip


def write_github_step_summary(content: str) -> None:
    """Adds to the summary that a job of GitHub Actions shows, where there is one."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(content)
