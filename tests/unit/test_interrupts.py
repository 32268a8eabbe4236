"""Ctrl-C is for the first process of a terminal: its children do not hear it, not even before their first line has run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from sglang.common.interrupts import children_without_interrupts

PROGRAM = "import time; print('up', flush=True); time.sleep(60)"


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_children_do_not_hear_ctrl_c() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with children_without_interrupts():
        deaf = start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    hearing = start()
    try:
        os.kill(deaf.pid, signal.SIGINT)  # while it starts
        assert deaf.stdout is not None and deaf.stdout.readline() == "up\n"
        os.kill(deaf.pid, signal.SIGINT)
        os.kill(hearing.pid, signal.SIGINT)
        assert hearing.wait(30) != 0
        assert deaf.poll() is None
        deaf.terminate()
        assert deaf.wait(30) == -signal.SIGTERM
    finally:
        for child in (deaf, hearing):
            child.kill()
            child.wait()
