"""Kernels that were compiled for one machine, on another: the plainer set with a warning, NumPy, or a compilation."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.common.install import install_kernels
from sglang.srt.config import DeviceOptions
from sglang.srt.model import device
from sglang.srt.model.kernels import cpu
from tests.conftest import ROOT


def test_a_plainer_set_runs_and_the_log_names_the_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = DeviceOptions(threads=1)
    with caplog.at_level(logging.WARNING, "sglang"):
        device.create_ops(options)
        assert not caplog.records
        monkeypatch.setattr(cpu._cpu, "processor_isas", lambda: ["avx1024", *cpu.usable_isas()])
        assert device.create_ops(options).name == f"cpu {cpu.usable_isas()[0]}"
    assert "without avx1024" in caplog.text and "--editable" in caplog.text and "csrc" in caplog.text


def test_kernels_that_the_processor_cannot_run_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu._cpu, "usable_isas", lambda: [])
    spec = importlib.util.spec_from_file_location("another_cpu", cpu.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match="compiled for another processor: this one has .*portable"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_kernels_that_were_not_compiled_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = importlib.util.spec_from_file_location("another_cpu", cpu.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match="^they were not compiled$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("compiler", ["apt-get install g++", None])
def test_the_warning_names_what_is_missing_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str | None
) -> None:
    monkeypatch.setattr(device, "install_compiler", lambda: compiler)
    monkeypatch.setitem(sys.modules, cpu.__name__, None)
    with caplog.at_level(logging.WARNING, "sglang"):
        assert device.create_ops(DeviceOptions()).name.startswith("reference")
    commands = [line.strip() for line in caplog.messages[0].splitlines() if line.startswith("    ")]
    assert commands == [*([compiler] if compiler else []), install_kernels()]


PYTHON = """#!/bin/sh
case $1 in
-c) PYTHONPATH="{folder}" exec {python} -S "$@" ;;
*) echo "$@"; exit {status} ;;
esac
"""


def ensure_kernels(folder: Path, module: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The script, with a Python that has this module as kernels; `status` is that of its pip."""
    python, package = folder / "env" / "bin" / "python", folder / "sglang_anywhere_kernels"
    python.parent.mkdir(parents=True)
    package.mkdir()
    (package / "_cpu.py").write_text(module)
    python.write_text(PYTHON.format(folder=folder, python=sys.executable, status=status))
    python.chmod(0o755)
    return subprocess.run(
        ["sh", str(ROOT / "scripts/ensure_kernels"), str(python.parents[1])],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "CXX": "sh"},
    )


@pytest.mark.parametrize(
    ("compiled", "has", "compiles"),
    [
        (["avx2"], ["avx2", "portable"], False),
        (["avx2"], ["avx512_vnni", "avx2", "portable"], True),
        ([], ["portable"], True),
        (None, ["portable"], True),
    ],
)
def test_make_serve_compiles_what_is_missing(
    tmp_path: Path, compiled: list[str] | None, has: list[str], compiles: bool
) -> None:
    """None: there are no kernels."""
    module = "raise ImportError" if compiled is None else f"usable_isas = lambda: {compiled}; processor_isas = lambda: {has}"
    done = ensure_kernels(tmp_path, module)
    assert done.returncode == 0 and not done.stderr
    assert ("Compiling the CPU kernels" in done.stdout) is compiles
    assert ("--editable ./csrc --config-settings=cmake.define.KERNELS_SETS=native" in done.stdout) is compiles


@pytest.mark.parametrize(("status", "goes_on"), [(1, True), (2, True), (130, False)])
def test_what_cannot_be_compiled_is_told_and_the_server_starts(tmp_path: Path, status: int, goes_on: bool) -> None:
    """130: Ctrl-C."""
    done = ensure_kernels(tmp_path, "raise ImportError", status)
    assert done.returncode == (0 if goes_on else status)
    assert "wheel.cmake=true" in done.stdout and ("errors are above" in done.stderr) is goes_on
