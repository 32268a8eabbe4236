"""scripts/make_venv: an environment with pip, or one sentence. The Python is a stand-in, which notes what it is asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
"-c "*) exit {old} ;;
"-m venv "*) {made} ;;
esac
"""
MADE = 'mkdir -p "$3/bin"; printf "#!/bin/sh\\nexit 0\\n" >"$3/bin/python"; chmod +x "$3/bin/python"'


def make_venv(tmp_path: Path, old: int = 0, made: str = MADE, name: str = "python") -> tuple[int, str, list[str]]:
    """(status, what it says on standard error, what the Python was asked for)."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON.format(log=log, old=old, made=made))
    python.chmod(0o755)
    log.write_text("")
    command = ["sh", str(ROOT / "scripts/make_venv"), str(tmp_path / name), str(tmp_path / "env")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "nothing"}, "error: there is no "),
        ({"old": 1}, "is older than Python 3.10; name a newer one: make PYTHON="),
        ({"made": "echo no ensurepip; exit 1"}, "no ensurepip\nerror: "),
    ],
)
def test_one_sentence_says_why_there_is_none(tmp_path: Path, given: dict[str, object], words: str) -> None:
    status, said, _ = make_venv(tmp_path, **given)  # type: ignore[arg-type]
    assert status == 1 and words in said
    assert said.strip().splitlines()[-1].startswith("error: ")
