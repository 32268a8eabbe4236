"""The wheels, as a user has them: into an environment that has nothing else, by the commands that are printed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sglang
from sglang.common.server_process import wait_until
from tests.conftest import free_port

from .conftest import DIST, clean_environment, make_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PROGRAM = Path(__file__).with_name("user_program.py")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def python(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the language alone."""
    python = make_environment(tmp_path_factory.mktemp("bare") / "env")
    subprocess.run([python, "-m", "pip", "install", "-q", language], check=True, env=clean_environment(), timeout=900)
    return python


def test_the_language_is_pure_python_and_typed(language: Path) -> None:
    assert language.name == f"sglang_anywhere-{sglang.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(language).namelist()
    assert "sglang/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h", ".pyc")) or name.startswith("tests")]


def test_the_kernels_run_on_old_systems(language: Path) -> None:
    machine = platform.machine()
    wheel = next(DIST.glob(f"sglang_anywhere_kernels-{sglang.__version__}-*manylinux_2_28_{machine}.whl"))
    shown = subprocess.run(
        [DIST.parent / "build/wheels/venv/bin/auditwheel", "show", wheel], capture_output=True, text=True, check=True
    )
    tag = shown.stdout.partition("manylinux_2_")[2].partition("_")[0]
    assert int(tag) <= 28, shown.stdout
    assert "libstdc++" not in shown.stdout


def test_without_the_runtime_the_printed_command_brings_it(python: Path, tmp_path: Path) -> None:
    bin = python.parent
    assert run([str(bin / "sglang"), "--version"], tmp_path).stdout == f"sglang-anywhere {sglang.__version__}\n"
    refused = run([str(bin / "sglang"), "serve"], tmp_path)
    assert refused.returncode == 1 and "is not installed: " in refused.stderr, refused.stderr
    command = refused.stderr.strip().partition("is not installed: ")[2]
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    packages = json.loads(run([str(python), "-m", "pip", "list", "--format", "json"], tmp_path).stdout)
    assert {"torch", "transformers", "nanobind"}.isdisjoint(package["name"] for package in packages)


@pytest.fixture
def url(python: Path, tmp_path: Path) -> Iterator[str]:
    """A server of the installed wheels; the test before brought the runtime."""
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        command = [str(python.parent / "sglang"), "serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stdout=log, stderr=subprocess.STDOUT)
    wait_until(lambda: "ready" in (tmp_path / "log").read_text(), process, 240, "server")
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_it_serves_with_its_kernels(python: Path, url: str, tmp_path: Path) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request, timeout=120))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert "kernels=cpu" in (tmp_path / "log").read_text()
    program = run([str(python), str(PROGRAM), url], tmp_path)
    assert program.returncode == 0 and "Paris" in program.stdout, program.stderr


def test_a_program_is_checked_strictly_against_the_wheel(python: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    checked = run(mypy, tmp_path)
    assert checked.returncode == 0, checked.stdout
    (tmp_path / "program.py").write_text(PROGRAM.read_text() + "\nlookup.run(topic=1, stream=True).no_such_method()\n")
    assert "no_such_method" in run(mypy, tmp_path).stdout
