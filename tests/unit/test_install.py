"""Commands that install what is missing: they fit how the package was installed, and are worded in one place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from sglang.common import install
from tests.conftest import ROOT

SAYS_INSTALL = re.compile(r"pip install|pip3 install|install sglang-anywhere")


class Installed:
    """What an installer left."""

    def __init__(self, record: dict[str, Any] | None) -> None:
        self._record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._record is None else json.dumps(self._record)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A virtual environment with pip and without the kernels."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "kernels" in name else found(name, *rest))
    monkeypatch.setattr(sys, "executable", "/home/me/my env/bin/python")
    monkeypatch.setattr(sys, "prefix", "/home/me/my env")
    return monkeypatch


def installed_from(patch: pytest.MonkeyPatch, record: dict[str, Any] | None) -> None:
    patch.setattr(importlib.metadata, "distribution", lambda name: Installed(record))


def words(command: str) -> list[str]:
    python, *rest = shlex.split(command)
    assert python == "/home/me/my env/bin/python" and rest[:3] == ["-m", "pip", "install"]
    return rest[3:]


def test_in_a_checkout(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    (tree / "csrc").mkdir(parents=True)
    installed_from(environment, {"url": tree.as_uri(), "dir_info": {"editable": True}})
    assert words(install.install_extras("srt", "vision")) == [
        "--editable",
        f"{tree}/csrc",
        "--editable",
        f"{tree}[srt,vision]",
    ]
    assert words(install.install_extras("otel")) == ["--editable", f"{tree}[otel]"]
    installed_from(environment, {"url": tree.as_uri(), "dir_info": {}})
    assert words(install.install_extras("srt")) == [f"{tree}/csrc", f"{tree}[srt]"]
    compiled = "--config-settings=wheel.cmake=true"
    assert words(install.install_kernels()) == ["--force-reinstall", "--no-deps", compiled, f"{tree}/csrc"]


def test_not_installed_but_run_from_a_checkout(environment: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    environment.setattr(importlib.metadata, "distribution", missing)
    assert words(install.install_extras("otel")) == ["--editable", f"{ROOT}[otel]"]


def test_from_a_wheel(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "sglang_anywhere-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed_from(environment, {"url": wheel.as_uri(), "archive_info": {}})
    assert words(install.install_extras("srt")) == ["--find-links", str(tmp_path), f"{wheel}[srt]"]
    wheel.unlink()
    assert words(install.install_extras("srt"))[:2] == ["--find-links", "FOLDER_OF_THE_WHEELS"]


def test_from_a_repository_and_from_an_address(environment: pytest.MonkeyPatch) -> None:
    repository = {"url": "https://example.com/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    installed_from(environment, repository)
    assert words(install.install_extras("srt")) == [
        "sglang-anywhere-kernels @ git+https://example.com/x.git@abc#subdirectory=csrc",
        "sglang-anywhere[srt] @ git+https://example.com/x.git@abc",
    ]
    installed_from(environment, {"url": "https://example.com/x.whl", "archive_info": {}})
    assert words(install.install_extras("otel")) == ["sglang-anywhere[otel] @ https://example.com/x.whl"]


def test_until_a_release_the_index_is_not_named(environment: pytest.MonkeyPatch) -> None:
    installed_from(environment, None)
    assert words(install.install_extras("srt")) == ["--find-links", "FOLDER_OF_THE_WHEELS", "sglang-anywhere[srt]"]
    environment.setattr(install, "RELEASED", True)
    assert words(install.install_extras("srt")) == ["sglang-anywhere[srt]"]


def test_an_environment_that_uv_made_has_no_pip(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    environment.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert install.install_packages("tiktoken") == "uv pip install --python '/home/me/my env/bin/python' tiktoken"


def test_the_systems_python_is_left_alone(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    environment.setattr(sys, "prefix", sys.base_prefix)
    environment.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    make, add = install.install_packages("tiktoken").split(" && ")
    assert shlex.split(make) == ["/home/me/my env/bin/python", "-m", "venv", ".venv"]
    assert shlex.split(add) == [".venv/bin/python", "-m", "pip", "install", "tiktoken"]


def test_errors_name_the_install_command() -> None:
    sentence = r"no_such_module is not installed: .* install .*\[openai\]"
    with pytest.raises(install.MissingPackage, match=sentence) as caught, install.needs_extra("openai"):
        __import__("no_such_module")
    assert caught.value.name == "no_such_module"


def test_texts_are_worded_in_one_place() -> None:
    sources = [path for path in (ROOT / "src").rglob("*.py") if path != Path(install.__file__)]
    assert [str(path) for path in sources if SAYS_INSTALL.search(path.read_text("utf-8"))] == []


def test_no_text_installs_from_an_index_before_there_is_a_release() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*"), ROOT / "csrc/README.md"]
    assert install.RELEASED is False
    wrong = re.compile(r"install[^\n`|]*[\s'\"]sglang-anywhere\b(?!-kernels)")
    assert [
        path.name for path in pages if path.suffix in (".md", ".py", ".ipynb") and wrong.search(path.read_text("utf-8"))
    ] == []


PROBE = """
import importlib, os, pkgutil, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "uvloop", "readline", "sglang_anywhere_kernels"):
    sys.modules[name] = None  # what Windows does not have
import sglang, sglang.lang
for module in pkgutil.walk_packages(sglang.lang.__path__, "sglang.lang."):
    if not module.name.endswith((".backend.engine", ".compiler")):  # what needs the runtime; what says that it is not there
        importlib.import_module(module.name)
import sglang.common.install as install
class Windows:
    name = "nt"
    def __getattr__(self, name):
        return getattr(os, name)
install.os = Windows()
from sglang.commands.serve import serve
sys.exit(serve(["--port", "1"]))
"""


def test_on_windows_the_language_loads_and_the_server_names_wsl() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"}
    )
    assert done.returncode == 1 and "WSL2" in done.stderr and "Traceback" not in done.stderr, done.stderr


VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.mark.parametrize(
    ("found", "user", "headers", "command"),
    [
        ({"apt-get"}, 0, True, "apt-get update && apt-get install --yes g++"),
        ({"apt-get"}, 1000, True, "sudo apt-get update && sudo apt-get install --yes g++"),
        ({"apt-get"}, 0, False, f"apt-get update && apt-get install --yes g++ python{VERSION}-dev"),
        ({"apt-get", "g++"}, 0, False, f"apt-get update && apt-get install --yes python{VERSION}-dev"),
        ({"dnf", "c++"}, 1000, False, "sudo dnf install --assumeyes python3-devel"),
        ({"apk"}, 0, True, "apk add g++ musl-dev"),
        (set(), 0, True, "install g++ or clang++"),
        ({"clang++"}, 0, False, "install the headers of Python (Python.h)"),
        ({"apt-get", "clang++"}, 0, True, None),
        ({"my-c++"}, 0, True, None),
    ],
)
def test_what_compiling_lacks_is_installed_by_the_systems_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: set[str], user: int, headers: bool, command: str | None
) -> None:
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", "my-c++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in found else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert install.install_compiler() == command
