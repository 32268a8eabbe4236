"""Downloads models from the Hugging Face hub, through huggingface_hub and its cache. Every failure becomes a ModelError of one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.sentence_files import module_folders
from sglang.srt.errors import ModelError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken"]
"""what a model folder may need; never pickled weights"""
MODULE_FILES = ["config.json", "model.safetensors"]
"""what a module of sentence-transformers may need"""


class UnreachableError(ModelError):
    """There is no answer, or none is asked for."""


_UNREACHABLE = "cannot reach the hub for {repo}, and it is not in the local cache: check the network, or pass a local model"


def fetch_repository(repo: str, revision: str | None, cache_dir: str | None, progress: bool) -> Path:
    """Folder of a repository's model files, without subfolders, save for those of the modules of sentence-transformers. Raises
    ModelError."""
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    class SilentBar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    # It tells of repositories without such files, of which there are many that hold a .gguf file.
    logging.getLogger("huggingface_hub._snapshot_download").setLevel(logging.ERROR)
    options: dict[str, Any] = {} if progress else {"tqdm_class": SilentBar}
    places: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, **options}
    folder = _download(repo, lambda: snapshot_download(repo, allow_patterns=PATTERNS, ignore_patterns=["*/*"], **places))
    if modules := [f"{module}/{name}" for module in module_folders(folder) for name in MODULE_FILES]:
        _download(repo, lambda: snapshot_download(repo, allow_patterns=modules, **places))
    return folder


def list_files(repo: str, revision: str | None, cache_dir: str | None) -> list[str]:
    """The files of a repository; without the hub, those of them in the cache. Raises ModelError."""
    from huggingface_hub import HfApi, snapshot_download

    found: list[str] = []

    def ask() -> str:
        found.extend(HfApi().list_repo_files(repo, revision=revision))
        return ""

    try:
        _download(repo, ask)
    except UnreachableError:
        options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
        folder = _download(repo, lambda: snapshot_download(repo, **options))
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return found


def fetch_file(repo: str, file: str, revision: str | None, cache_dir: str | None) -> Path:
    """One file of a repository. Raises ModelError."""
    from huggingface_hub import hf_hub_download

    return _download(repo, lambda: hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir))


def _download(repo: str, fetch: Callable[[], str]) -> Path:
    import httpx  # slow to import, and seldom needed
    from huggingface_hub import errors

    # Some of these exist only in newer versions of the library.
    newer = tuple(getattr(errors, name) for name in ("RevisionResolutionError", "XetDownloadError") if hasattr(errors, name))
    try:
        return Path(fetch())
    except errors.GatedRepoError as error:
        raise ModelError(f"{repo} is gated: accept its terms on huggingface.co and log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no public model {repo}: check the name, or log in with `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub's {repo} has no such revision: check --revision") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError, ConnectionError) as error:
        raise UnreachableError(_UNREACHABLE.format(repo=repo)) from error
    except (errors.EntryNotFoundError, httpx.HTTPError, OSError, ValueError, *newer) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"cannot get {repo} from the hub: {lines[0]}") from error
