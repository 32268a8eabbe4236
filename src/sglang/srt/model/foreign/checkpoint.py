"""A model that the transformers library computes: whether it can be served, and its numbers. transformers and torch are imported when
they are needed; code of a model repository is never run.

Needed of a decoder: its only state is K and V of attention that goes through transformers' attention interface, and a row sees what
stands before it, or a window of that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.common.install import install_extras
from sglang.srt.config import ModelFiles, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import ModelConfig, RopeConfig

ARCHITECTURE = "transformers"
EXTRA = "transformers"
CAUSAL_KINDS = ("full_attention", "sliding_attention")


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


@dataclass(frozen=True)
class ForeignCheckpoint:
    """`theirs`: transformers' config. Its part of the decoder decides."""

    path: Path
    config: ModelConfig
    theirs: Any
    num_bytes: int

    def packed_bytes(self, packed_bits: Callable[[str], float], quantization: str | None = None) -> int:
        """Weights are computed with in float32, however they are stored; they are not quantized."""
        return self.num_bytes


def open_foreign(files: ModelFiles, options: ModelOptions) -> ForeignCheckpoint:
    """Reads a folder's config and the headers of its weights. Raises ModelError for a model that cannot be served so."""
    if not is_installed():
        raise ModelError(f"--model-impl transformers needs torch and transformers: {install_extras('srt', EXTRA)}")
    if files.kind == "gguf":
        raise ModelError(f"--model-impl transformers reads folders in Hugging Face's format, and {files.path} is a GGUF file")
    for flag, value in (("--quantization", options.quantization or options.stored_quantization),):
        if value is not None:
            raise ModelError(f"{flag} {value} does not go with --model-impl transformers")
    if options.load_format == "dummy":
        raise ModelError("--load-format dummy does not go with --model-impl transformers")
    if options.is_embedding:
        raise ModelError("--is-embedding does not go with --model-impl transformers")
    theirs = _read(files.path, options.json_model_override_args)
    _check_class(files.path, theirs)
    config = _our_config(files.path, theirs)
    if options.context_length is not None:
        if options.context_length > config.context_len:
            raise ModelError(
                f"--context-length {options.context_length} is more than {config.context_len}, what the model was made for"
            )
        config = _with_context(config, options.context_length)
    return ForeignCheckpoint(files.path, config, theirs, _float32_bytes(files.path))


def _read(folder: Path, overrides: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"transformers cannot read {folder / 'config.json'}: {_first_line(error)}") from error
    for name, value in overrides.items():
        if not hasattr(config, name):
            raise ModelError(f"json_model_override_args: {name!r} means nothing to transformers' {type(config).__name__}")
        setattr(config, name, value)
    return config


def decoder_class(theirs: Any) -> Any:
    """transformers' class for the config; None if it has none that generates text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(theirs), None)


def _check_class(folder: Path, theirs: Any) -> None:
    cls = decoder_class(theirs)
    name = theirs.model_type if cls is None else cls.__name__
    kinds = {str(kind) for kind in getattr(theirs, "layer_types", None) or ()}
    for is_bad, why in (
        (cls is None, "transformers has no class of it that generates text"),
        (getattr(theirs, "is_encoder_decoder", False), "it has an encoder"),
        (getattr(cls, "_is_stateful", False), "it keeps a state besides K and V"),
        (not getattr(cls, "_supports_attention_backend", False), "its attention is not exchangeable in transformers"),
        (not kinds <= set(CAUSAL_KINDS), f"it has layers of the kinds {', '.join(sorted(kinds - set(CAUSAL_KINDS)))}"),
        (getattr(theirs, "quantization_config", None), "its checkpoint is quantized"),
    ):
        if is_bad:
            raise ModelError(f"{folder}: {name} cannot be served with --model-impl transformers: {why}")


def _our_config(folder: Path, theirs: Any) -> ModelConfig:
    """The numbers that the pool and the buffers are made for; what a layer really has is checked when it is loaded."""

    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            value = getattr(theirs, name, None)
            if type(value) is int and value > 0:
                return value
        if default is None:
            raise ModelError(f"{folder / 'config.json'}: {names[0]} is missing, and --model-impl transformers needs it")
        return default

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    head_dim = size("head_dim", default=max(hidden // heads, 1))
    bos = getattr(theirs, "bos_token_id", None)
    return ModelConfig(
        architecture=ARCHITECTURE,
        vocab_size=size("vocab_size"),
        hidden_size=hidden,
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads", default=heads),
        head_dim=head_dim,
        intermediate_size=1,
        context_len=size("max_position_embeddings"),
        norm_eps=1e-6,
        rope=RopeConfig(10000.0, 2),
        eos_token_ids=_end_ids(folder, theirs),
        bos_token_id=bos if type(bos) is int else None,
        dtype="float32",
    )


def _with_context(config: ModelConfig, length: int) -> ModelConfig:
    from dataclasses import replace

    return replace(config, context_len=length)


def _end_ids(folder: Path, theirs: Any) -> tuple[int, ...]:
    from sglang.srt.checkpoint.files import read_object

    found: list[Any] = []
    path = folder / "generation_config.json"
    sources = [read_object(path).get("eos_token_id")] if path.exists() else []
    for value in (*sources, getattr(theirs, "eos_token_id", None)):
        found += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in found if type(i) is int and 0 <= i < theirs.vocab_size))


def _float32_bytes(folder: Path) -> int:
    """Of all weights, by the headers of the files."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no *.safetensors files, and nothing else is read")
    total = 0
    for path in files:
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                count = 1
                for n in tensors.get_slice(name).get_shape():
                    count *= n
                total += 4 * count
    return total


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
