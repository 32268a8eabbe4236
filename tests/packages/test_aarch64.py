"""The kernels' wheel for aarch64, cross-built, under qemu-aarch64 on Debian's arm64 Python: the same results for any batch, number of
threads, chunking and layout of memory, on both instruction sets, `neon_dotprod` and `portable`.

Of each test a few cases, spread over all of them, since an emulated core is some twenty times slower. Needs qemu-user and apt (Debian
or Ubuntu). Run with

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

MOST_CASES = 4
"""of one test"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # minutes, on a machine that has nothing else to do
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


def chosen_cases(site: Path) -> list[str]:
    """Ids of cases: of each test the first, the last, and what lies evenly between them."""
    tests = [f"tests/kernels/{test}" for test in TESTS]
    listed = python(site, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests).stdout.splitlines()
    by_test: dict[str, list[str]] = {}
    for case in listed:
        if case.startswith("tests/"):
            by_test.setdefault(case.partition("[")[0], []).append(case)
    assert len(by_test) > len(TESTS), listed[-5:]
    chosen = []
    for cases in by_test.values():
        last, count = len(cases) - 1, min(len(cases), MOST_CASES)
        chosen += [cases[round(i * last / max(count - 1, 1))] for i in range(count)]
    return chosen


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the wheel is for this Python, and Debian's is 3.11")
def test_the_same_bits_for_any_batch(site: Path) -> None:
    script = "import platform, sglang_anywhere_kernels._cpu as kernels; print(platform.machine(), *kernels.usable_isas())"
    assert python(site, "-c", script).stdout.split() == ["aarch64", "neon_dotprod", "portable"]
    cases = chosen_cases(site)
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=1800", "--durations=5", *cases)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
