"""Downloaded models: those with a short name, and repositories of the hub in huggingface_hub's cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.gguf_choice import choose_gguf
from sglang.srt.checkpoint.resolve import ALIASES, default_cache_dir, parse_hub_name
from sglang.srt.errors import ModelError


@dataclass(frozen=True)
class Download:
    """`name` is a model argument."""

    name: str
    num_bytes: int
    path: Path


def list_downloads(download_dir: str | None = None) -> list[Download]:
    """Short names first; of a repository of .gguf files, each of them."""
    found = [download for name in ALIASES if (download := _alias(name, download_dir)) is not None]
    for repo in _repositories(download_dir):
        files = {file.file_name: file for revision in repo.revisions for file in revision.files}
        paths = {str(_inside(file)): file for revision in repo.revisions for file in revision.files}
        if any(name.endswith(".safetensors") for name in files):
            found.append(Download(repo.repo_id, repo.size_on_disk, repo.repo_path))
            continue
        ggufs = sorted(name for name in paths if name.endswith(".gguf"))
        found += [Download(f"{repo.repo_id}/{name}", paths[name].size_on_disk, paths[name].file_path) for name in ggufs]
    return found


def remove_download(name: str, download_dir: str | None = None) -> int:
    """Deletes a model that `list_downloads` names, or a whole repository. Returns the bytes that are free now. Raises ModelError if it
    is not here."""
    alias = _alias(name.lower(), download_dir) if name.lower() in ALIASES else None
    if alias is not None:
        shutil.rmtree(alias.path.parent)
        return alias.num_bytes
    hub = parse_hub_name(name)
    repo = next((r for r in _repositories(download_dir) if hub is not None and r.repo_id == hub.repo), None)
    if repo is None or hub is None:
        raise ModelError(f"{name!r} is not downloaded: sglang list says what is")
    if hub.file is None and hub.tag is None:
        shutil.rmtree(repo.repo_path)
        return int(repo.size_on_disk)
    files = [file for revision in repo.revisions for file in revision.files]
    ggufs = {str(_inside(file)) for file in files if file.file_name.endswith(".gguf")}
    gone = {hub.file} if hub.file is not None else set(choose_gguf(hub.repo, sorted(ggufs), hub.tag))
    if not gone <= ggufs:
        raise ModelError(f"{name!r} is not downloaded: sglang list says what is")
    if gone == ggufs:
        shutil.rmtree(repo.repo_path)
        return int(repo.size_on_disk)
    return _unlink([file for file in files if str(_inside(file)) in gone], [f for f in files if str(_inside(f)) not in gone])


def _alias(name: str, download_dir: str | None) -> Download | None:
    folder = Path(download_dir).expanduser() if download_dir else default_cache_dir() / "models"
    path = folder / name / ALIASES[name].file.file_name
    return Download(name, path.stat().st_size, path) if path.is_file() else None


def _repositories(download_dir: str | None) -> list[Any]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(download_dir).repos
    except CacheNotFound:
        return []
    return sorted((repo for repo in found if repo.repo_type == "model"), key=lambda repo: str(repo.repo_id))


def _inside(file: Any) -> Path:
    """The file's path in its repository: .../snapshots/REVISION/PATH."""
    parts = file.file_path.parts
    at = len(parts) - 1 - parts[::-1].index("snapshots")
    return Path(*parts[at + 2 :])


def _unlink(files: Iterable[Any], others: Iterable[Any]) -> int:
    """Links, and contents that no other link leads to."""
    kept, freed = {file.blob_path for file in others}, 0
    for file in files:
        file.file_path.unlink(missing_ok=True)
        if file.blob_path not in kept and file.blob_path.exists():
            freed += file.blob_path.stat().st_size
            file.blob_path.unlink()
    return freed
