"""The kernels' wheel for aarch64, cross-built, under qemu-aarch64 on Debian's arm64 Python: the same results for any batch, number of
threads, chunking and layout of memory, on both instruction sets, `neon_dotprod` and `portable`.

Needs qemu-user and apt (Debian or Ubuntu). Run with

    .venv-test/bin/python -m pytest -m slow tests/packages/test_aarch64.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

from .conftest import build, clean_environment, newest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-anywhere" / "test-arm64"
PLATFORMS = [f"--platform=manylinux{version}_aarch64" for version in ("_2_28", "_2_17", "2014")]
PACKAGES = ["hypothesis", "httpx", "msgspec", "numpy", "pydantic", "pytest", "pytest-asyncio", "pytest-timeout", "tqdm"]
TESTS = [  # of tests/kernels: invariances first, then values against NumPy; forks of processes with threads are beyond qemu-user
    "test_linear.py::test_rows_do_not_depend_on_the_batch",
    "test_linear.py::test_some_blocks_of_columns",
    "test_linear.py::test_packed_values",
    "test_linear.py::test_gated_linear_is_linear_then_gate",
    "test_attention.py::test_other_requests_do_not_matter",
    "test_attention.py::test_steps_do_not_matter",
    "test_elementwise.py",
    "test_logits.py::test_sample_does_not_depend_on_the_batch",
    "test_logits.py::test_log_sum_exp",
    "test_logits.py::test_argmax",
    "test_logits.py::test_sample_is_the_reference",
    "test_tape.py::test_one_tape_serves_every_batch",
    "test_instruction_sets.py",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which("qemu-aarch64") is None or shutil.which("apt-get") is None, reason="needs qemu-user and apt"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an aarch64 machine would have installed."""
    subprocess.run([Path(__file__).with_name("arm64_sysroot"), CACHE], check=True)
    build("aarch64")
    site = tmp_path_factory.mktemp("arm64") / "site"
    kernels = [newest("sglang_anywhere-*.whl"), newest("sglang_anywhere_kernels-*_aarch64.whl")]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "--only-binary=:all:", *PLATFORMS]
    for extra in (["--python-version", "3.11", "--no-deps", *kernels], ["--python-version", "3.11", *PACKAGES]):
        subprocess.run([*pip, *extra], check=True)
    return site


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["qemu-aarch64", "-cpu", "max", "-L", str(CACHE / "root"), str(CACHE / "root/usr/bin/python3.11"), *arguments]
    environment = clean_environment() | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the wheel is for this Python, and Debian's is 3.11")
def test_the_same_bits_for_any_batch(site: Path) -> None:
    script = "import platform, sglang_anywhere_kernels._cpu as kernels; print(platform.machine(), *kernels.usable_isas())"
    assert python(site, "-c", script).stdout.split() == ["aarch64", "neon_dotprod", "portable"]
    tests = [f"tests/kernels/{test}" for test in TESTS]
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=900", "--durations=5", *tests)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
