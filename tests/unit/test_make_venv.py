"""scripts/make_venv: an environment with pip, or one sentence. The Python is a stand-in, which notes what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
"-c "*) echo {version} ;;
"-m venv "*) {made} ;;
esac
"""
MADE = 'mkdir -p "$3/bin"; printf "#!/bin/sh\\nexit 0\\n" >"$3/bin/python"; chmod +x "$3/bin/python"'


def tools(folder: Path) -> Path:
    """A folder for PATH that has no Python."""
    found = folder / "tools"
    found.mkdir(exist_ok=True)
    for name in ("chmod", "grep", "mkdir"):
        if not (found / name).exists():
            (found / name).symlink_to(shutil.which(name) or "")
    return found


def make_venv(tmp_path: Path, version: str = "3.11", made: str = MADE, name: str = "python") -> tuple[int, str, list[str]]:
    """(status, what it says on standard error, what the Python was asked for)."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON.format(log=log, version=version, made=made))
    python.chmod(0o755)
    log.write_text("")
    command = ["/bin/sh", str(ROOT / "scripts/make_venv"), str(tmp_path / name), str(tmp_path / "env")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": str(tools(tmp_path))})
    return done.returncode, done.stderr, [line.split()[1] for line in log.read_text().splitlines() if line.startswith("-m")]


def test_one_is_made_once(tmp_path: Path) -> None:
    assert make_venv(tmp_path) == (0, "", ["venv"])
    assert make_venv(tmp_path) == (0, "", [])


def test_one_that_was_interrupted_is_completed_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    broken = tmp_path / "env" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")  # no module pip
    broken.chmod(0o755)
    (tmp_path / "env" / "kept").touch()
    assert make_venv(tmp_path) == (0, "", ["venv"])
    assert (tmp_path / "env" / "kept").exists()


def complete(folder: Path, path: Path | None = None, python: str = "exit 0") -> Path:
    """A stand-in for an environment whose programs name their Python by `path`, its own if there is none."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/pip").write_text(f"#!{path or folder}/bin/python\n")
    (folder / "bin/python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "bin/python").chmod(0o755)
    return folder


def test_one_of_another_folder_or_of_a_python_that_is_gone_is_made_again(tmp_path: Path) -> None:
    complete(tmp_path / "env")
    assert make_venv(tmp_path) == (0, "", [])
    for path, python in ((tmp_path / "before/env", "exit 0"), (None, "exit 1")):
        shutil.rmtree(tmp_path / "env")
        complete(tmp_path / "env", path, python)
        assert make_venv(tmp_path, made=f'[ "$3" = --clear ] && shift; rm -r "$3"; {MADE}') == (0, "", ["venv"])


@pytest.mark.parametrize("environment", [".venv", ".venv-test", ".venv-page", ".venv-cluster"])
def test_make_asks_whether_the_environment_works_here(tmp_path: Path, environment: str) -> None:
    """In a folder with a blank, and characters beyond ASCII."""
    before, after = tmp_path / "é 1", tmp_path / "é 2"
    for folder in ("scripts", "src/sglang"):
        (before / folder).mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "scripts/is_usable", "src/sglang/version.py"):
        shutil.copy(ROOT / name, before / name)
    complete(before / environment)
    (before / environment / "installed").touch()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    question = ["make", "--question", f"{environment}/installed"]
    assert subprocess.run(question, cwd=before, env=environ, timeout=60).returncode == 0
    before.rename(after)
    assert subprocess.run(question, cwd=after, env=environ, timeout=60).returncode == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "nothing"}, "error: there is no "),
        ({"version": "''"}, "/python does not run; install Python 3.10 or newer"),
        ({"version": "2.07"}, "/python is older than Python 3.10; install Python 3.10 or newer"),
        ({"version": "3.09"}, "/python is older than Python 3.10; install Python 3.10 or newer"),
        ({"made": "echo no ensurepip; exit 1"}, "no ensurepip\nerror: "),
    ],
)
def test_one_sentence_says_why_there_is_none(tmp_path: Path, given: dict[str, str], words: str) -> None:
    status, said, _ = make_venv(tmp_path, **given)
    assert status == 1 and words in said
    assert said.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("version", ["3.10", "3.14", "4.00"])
def test_newer_ones_will_do(tmp_path: Path, version: str) -> None:
    assert make_venv(tmp_path, version=version)[0] == 0


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (".venv", "make serve"),
        (".venv-test", "make test"),
        (".venv-page", "make test-page"),
        (".venv-cluster", "make test-cluster"),
    ],
)
def test_another_python_that_runs_is_named_with_the_command(tmp_path: Path, folder: str, command: str) -> None:
    """The newest that runs, not one that a version manager offers and does not have."""
    for name, does in (("python3.13", "exit 127"), ("python3.12", "echo 3.12"), ("python3.11", "echo 3.11")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    script = ["/bin/sh", str(ROOT / "scripts/make_venv"), "python3", folder]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: there is no python3; there is another: {command} PYTHON=python3.12\n",
    )
