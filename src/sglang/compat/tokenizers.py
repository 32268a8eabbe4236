"""The tokenizer of a model that this package serves."""

from __future__ import annotations

from typing import Any


def get_tokenizer(
    tokenizer_name: str,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    tokenizer_revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """A tokenizer of transformers for a model argument: an alias, a folder, a .gguf file or a hub id. Code of a model repository
    is never run, whatever `trust_remote_code` says. `tokenizer_mode` "slow": the one written in Python, where there is one."""
    from sglang.srt.server.tokenization.as_transformers import load_transformers_tokenizer

    if tokenizer_mode == "slow":
        kwargs["use_fast"] = False
    return load_transformers_tokenizer(tokenizer_name, tokenizer_revision, **kwargs)
