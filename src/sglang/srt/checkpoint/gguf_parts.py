"""Names of GGUF files: the parts that a large one is split into (model-00001-of-00003.gguf, llama-gguf-split)."""

from __future__ import annotations

import re

from sglang.srt.errors import ModelError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL)


def part_names(name: str) -> list[str]:
    """The names of all parts of the file that `name` is a part of, in order; [name] if it is a whole file."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match.group(2)) <= int(match.group(3)):
        return [name]
    stem, count = match.group(1), int(match.group(3))
    return [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def model_name(name: str) -> str:
    """The model's name: the file name without the ending and without the number of a part."""
    match = _PART.fullmatch(name)
    return match.group(1) if match else name.removesuffix(".gguf")


def with_gguf_file(model_path: str, file: str | None) -> str:
    """The model argument for one file of a folder or of a repository."""
    if file is None:
        return model_path
    if not file.endswith(".gguf"):
        raise ModelError(f"--gguf-file {file!r} is not a .gguf file")
    return f"{model_path.rstrip('/')}/{file}"
