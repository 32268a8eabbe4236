"""Two distributions from one tree: the language, pure Python, and the kernels; one version, written once."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import sglang
from tests.conftest import ROOT

LANGUAGE, KERNELS = "sglang-anywhere", "sglang-anywhere-kernels"


def built_version(folder: Path) -> str:
    """What the kernels' build takes for the version, in a folder like csrc/."""
    spec = importlib.util.spec_from_file_location("tree_version", folder / "tree_version.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.dynamic_metadata("version"))


def test_both_have_the_version_of_the_tree() -> None:
    assert version(LANGUAGE) == version(KERNELS) == sglang.__version__ == built_version(ROOT / "csrc")


def test_the_runtime_asks_for_kernels_of_its_version() -> None:
    needs = [need for need in requires(LANGUAGE) or () if need.startswith(KERNELS)]
    assert len(needs) == 1
    assert re.match(rf"{KERNELS}=={re.escape(sglang.__version__)}\s*;.*sys_platform != 'win32'.*extra == 'srt'", needs[0])


def test_the_language_needs_nothing_that_is_compiled_here() -> None:
    bare = [need for need in requires(LANGUAGE) or () if "extra ==" not in need]
    assert bare and not any(need.startswith((KERNELS, "numpy", "torch")) for need in bare)


def test_the_version_is_written_once() -> None:
    pattern = re.compile(rf"""['"]{re.escape(sglang.__version__)}['"]""")
    files = [
        ROOT / "pyproject.toml",
        ROOT / "csrc/pyproject.toml",
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "csrc").rglob("*.py"),
    ]
    found = [path.relative_to(ROOT).as_posix() for path in files if pattern.search(path.read_text("utf-8"))]
    assert found == ["src/sglang/version.py"]


def test_an_sdist_of_the_kernels_knows_its_version(tmp_path: Path) -> None:
    shutil.copy(ROOT / "csrc/tree_version.py", tmp_path)
    with pytest.raises(RuntimeError, match="PKG-INFO"):
        built_version(tmp_path)
    (tmp_path / "PKG-INFO").write_text(f"Metadata-Version: 2.2\nName: {KERNELS}\nVersion: 1.2.3\n")
    assert built_version(tmp_path) == "1.2.3"


def test_both_bring_the_same_license() -> None:
    assert (ROOT / "LICENSE").read_text() == (ROOT / "csrc/LICENSE").read_text()


def test_kernels_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang_anywhere_kernels

    import sglang.srt.model.kernels.cpu as cpu

    monkeypatch.setattr(sglang_anywhere_kernels, "__version__", "0.0.1")
    spec = importlib.util.spec_from_file_location("another_cpu", cpu.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=f"{re.escape(sglang.__version__)} needs kernels of its version, not 0.0.1"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("vendor.github-workflows", "workflows/*.yml"), ("vendor.github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml")],
)
def test_workflows_and_issue_templates_follow_their_schemas(schema: str, pattern: str) -> None:
    pytest.importorskip("check_jsonschema")
    files = sorted(map(str, (ROOT / ".github").glob(pattern)))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout


def test_what_the_workflows_run_is_here() -> None:
    text = "".join(path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml"))
    assert "package-dir: csrc" in text and "run: .ci/run" in text
    assert (ROOT / "csrc/pyproject.toml").is_file() and (ROOT / ".ci/run").is_file()
