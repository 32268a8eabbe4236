"""A process that has an engine, or a server of its own, forks: the child ends at once and leaves the parent what is the parent's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, package_environ

FORK = """
import os, sys, time

def fork_and_wait(work):
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(7)
    while time.monotonic() - began < 9:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            print("child", os.waitstatus_to_exitcode(status), flush=True)  # or the next child has it in its buffer too
            return
        time.sleep(0.05)
    print("the child hangs")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""
ENGINE = """
from sglang.srt.engine import Engine
from sglang.srt.errors import EngineDeadError

engine = Engine(model_path=MODEL, kernels="reference", max_total_tokens=512)
asked = dict(prompt="a", sampling_params=dict(max_new_tokens=2, temperature=0))
before = engine.generate(**asked)["text"]

def child():
    try:
        engine.generate(**asked)
    except EngineDeadError as error:
        print("refused:", error, flush=True)
    engine.shutdown()

fork_and_wait(child)
fork_and_wait(lambda: None)
print("same", engine.generate(**asked)["text"] == before)
engine.shutdown()
"""
RUNTIME = """
import sglang

runtime = sglang.Runtime(model_path=MODEL)
fork_and_wait(lambda: None)
fork_and_wait(runtime.shutdown)
import httpx
print("same", httpx.get(runtime.url + "/health", trust_env=False).status_code == 200)
runtime.shutdown()
"""


def run(script: str) -> str:
    environment = package_environ()
    code = f"MODEL = {str(ROOT / 'models' / 'toy-vlm')!r}\n{FORK}{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_of_a_process_with_an_engine_ends_at_once() -> None:
    said = run(ENGINE)
    assert said.count("child 7") == 2 and "same True" in said
    assert "refused: the engine belongs to the process that this one was forked from" in said


@pytest.mark.timeout(300)
def test_a_child_leaves_the_server_of_its_parent_alone(tmp_path: Path) -> None:
    said = run(RUNTIME)
    assert said.count("child 7") == 2 and "same True" in said
