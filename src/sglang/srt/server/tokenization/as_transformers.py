"""The tokenizer of a model argument as an object of transformers, for programs that expect one."""

from __future__ import annotations

from typing import Any

from sglang.common.install import needs_extra
from sglang.srt.checkpoint.resolve import default_cache_dir, resolve_model
from sglang.srt.server.tokenization.model_files import read_gguf


def load_transformers_tokenizer(
    tokenizer_path: str, revision: str | None = None, download_dir: str | None = None, **options: Any
) -> Any:
    """The tokenizer of an alias, a folder, a .gguf file or a hub id. `options` go to transformers where it reads a folder.
    Raises ModelError for a model that does not exist, ModuleNotFoundError without transformers (the extra "vision")."""
    with needs_extra("vision"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    files = resolve_model(tokenizer_path, revision=revision, download_dir=download_dir)
    if files.kind == "folder":
        return AutoTokenizer.from_pretrained(files.path, **options)
    core, _, facts = read_gguf(files.path, default_cache_dir() / "tokenizers")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=facts.templates.get("default"),
        clean_up_tokenization_spaces=False,
        **facts.names,
    )
