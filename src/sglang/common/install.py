"""Builds the command that installs a missing extra. It can be pasted, and suits the way in which this package was installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LANGUAGE, KERNELS = "sglang-anywhere", "sglang-anywhere-kernels"
CHECKOUT = Path(__file__).parents[3]
PACKAGE_MANAGERS = {
    "apt-get": ("apt-get update && apt-get install --yes", "g++", "python{version}-dev"),
    "dnf": ("dnf install --assumeyes", "gcc-c++", "python3-devel"),
    "yum": ("yum install --assumeyes", "gcc-c++", "python3-devel"),
    "zypper": ("zypper --non-interactive install", "gcc-c++", "python3-devel"),
    "pacman": ("pacman --sync --noconfirm", "gcc", "python"),
    "apk": ("apk add", "g++ musl-dev", "python3-dev"),
}
"""package manager -> its command, what brings a C++ compiler, what brings the headers of the system's Python"""
COMPILERS = ("c++", "g++", "clang++")
RELEASED = False
"""whether the index of packages has them: until then users of wheels in a folder must name the folder"""


class MissingPackage(ModuleNotFoundError):
    """The sentence says how to install it."""


def install_extras(*extras: str) -> str:
    """The command that adds extras of this package (`srt`, `vision`, ...)."""
    return _pip(_sources(",".join(extras), kernels="srt" in extras and not _has("sglang_anywhere_kernels")))


def install_packages(*packages: str) -> str:
    """The command that adds packages of others."""
    return _pip(list(packages))


def install_kernels() -> str:
    """The command that compiles the kernels of this checkout, or installs those that go with this package."""
    record = _record()
    folder = _folder(record)
    if folder is not None:
        compiled = "--config-settings=wheel.cmake=true"  # or an error; without it a failure is passed over
        return _pip(["--force-reinstall", "--no-deps", compiled, *_tree(folder / "csrc", _is_editable(record))])
    return install_extras("srt")


def install_compiler() -> str | None:
    """The command that brings what compiling the kernels lacks on this system, a C++ compiler or the headers of Python; words where
    none is known; None if nothing is missing."""
    import sysconfig

    compiler = not any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS)))
    headers = not Path(sysconfig.get_path("include"), "Python.h").exists()
    if not compiler and not headers:
        return None
    if sys.platform == "darwin":
        return "xcode-select --install"
    root = "" if os.geteuid() == 0 else "sudo "
    for program, (command, brings_compiler, brings_headers) in PACKAGE_MANAGERS.items():
        if shutil.which(program):
            packages = [brings_compiler] * compiler + [brings_headers.format(version=_python_version())] * headers
            return " && ".join(root + part for part in f"{command} {' '.join(packages)}".split(" && "))
    return "install " + " and ".join(["g++ or clang++"] * compiler + ["the headers of Python (Python.h)"] * headers)


def _python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of what an extra brings. Raises MissingPackage where a module is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        reason = unsupported_system() if extra == "srt" else None
        raise MissingPackage(reason or f"{error.name} is not installed: {install_extras(extra)}", name=error.name) from error


def unsupported_system() -> str | None:
    """Why no model can run here, a sentence; None where one can."""
    if os.name != "nt":
        return None
    return (
        "models do not run on Windows itself: install WSL2 (wsl --install) and run the server there; programs here can use it "
        "through RuntimeEndpoint"
    )


def _record() -> dict[str, Any]:
    """The installer's record of where this package came from (PEP 610); empty if it came from an index or is not installed."""
    from importlib.metadata import (  # here, since all programs pay for the import of this module
        PackageNotFoundError,
        distribution,
    )

    try:
        text = distribution(LANGUAGE).read_text("direct_url.json")
    except PackageNotFoundError:
        return {"url": CHECKOUT.as_uri(), "dir_info": {"editable": True}} if (CHECKOUT / "csrc").is_dir() else {}
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _path(record: dict[str, Any]) -> Path | None:
    """The local file or folder that it came from, if that is still there."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(record.get("url", ""))
    path = Path(url2pathname(parts.path))
    return path if parts.scheme == "file" and path.exists() else None


def _folder(record: dict[str, Any]) -> Path | None:
    return _path(record) if "dir_info" in record else None


def _is_editable(record: dict[str, Any]) -> bool:
    return bool(record.get("dir_info", {}).get("editable"))


def _tree(path: Path, editable: bool, extras: str = "") -> list[str]:
    return [*(["--editable"] if editable else []), f"{path}{extras}"]


def _sources(extras: str, kernels: bool) -> list[str]:
    """pip's arguments."""
    record = _record()
    path, url, editable = _path(record), record.get("url", ""), _is_editable(record)
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}"
        csrc = [f"{KERNELS} @ {url}#subdirectory=csrc"] if kernels else []
        return [*csrc, f"{LANGUAGE}[{extras}] @ {url}"]
    if path is not None and path.is_dir():
        csrc = _tree(path / "csrc", editable) if kernels else []
        return [*csrc, *_tree(path, editable, f"[{extras}]")]
    if path is not None:  # a wheel, with that of the kernels beside it
        return ["--find-links", str(path.parent), f"{path}[{extras}]"]
    if url.startswith("http"):
        return [f"{LANGUAGE}[{extras}] @ {url}"]
    return [*([] if RELEASED else ["--find-links", "FOLDER_OF_THE_WHEELS"]), f"{LANGUAGE}[{extras}]"]


def _pip(arguments: list[str]) -> str:
    """Into this environment; into a new one beside the system's Python, which is not to be changed."""
    import sysconfig

    python = sys.executable
    if sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        new = str(Path(".venv", "Scripts" if os.name == "nt" else "bin", "python"))
        return f"{_quoted([python, '-m', 'venv', '.venv'])} && {_quoted([new, '-m', 'pip', 'install', *arguments])}"
    if _has("pip") or not shutil.which("uv"):
        return _quoted([python, "-m", "pip", "install", *arguments])
    return _quoted(["uv", "pip", "install", "--python", python, *arguments])


def _quoted(words: list[str]) -> str:
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
