"""Loads a checkpoint: one interface over safetensors folders, GGUF files and dummy weights.

    files + options -> source (tensors as stored, Hugging Face's names) -> Checkpoint (checked, converted, quantized)

A checkpoint is checked against its config when it is opened, from its headers alone, so that a contradiction is one clear error
before anything is allocated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.gguf_reader import open_gguf
from sglang.srt.checkpoint.projector import open_projector
from sglang.srt.config import ModelFiles, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import PLAIN_LAYOUT, ModelConfig
from sglang.srt.model.quant.blocks import packable_format
from sglang.srt.model.quant.formats import FORMATS, HostTensor, dense, quantize_q4_1, quantize_q8_0
from sglang.srt.model.weights.config_reader import read_model_config
from sglang.srt.model.weights.dummy import DummySource
from sglang.srt.model.weights.family_source import FamilySource
from sglang.srt.model.weights.gguf_config import ROPE_DIVISORS, read_gguf_config
from sglang.srt.model.weights.gguf_source import GGUFSource
from sglang.srt.model.weights.progress import LoadProgress
from sglang.srt.model.weights.quantized_source import QuantizedSource
from sglang.srt.model.weights.repacked.session import Repacked
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource
from sglang.srt.model.weights.shapes import Shapes, expected_shapes
from sglang.srt.model.weights.tensor_source import RenamedSource, TensorSource
from sglang.srt.model.weights.vision.gguf_vision import ProjectorSource
from sglang.srt.model.weights.vision.vision_families import find_vision_family
from sglang.srt.model.weights.vision.vision_reader import with_vision
from sglang.srt.model.weights.vision.vision_shapes import our_name

DENSE_FORMATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""config.json's dtype -> format"""

ROUTERS = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")
"""matrices that choose: small, and a row whose experts are others is another"""

QUANTIZE_VALUES = 1 << 20
"""values quantized at a time"""

_ENCODER = re.compile(r"(visual|vision_tower|vision_model|multi_modal_projector|connector|embed_vision)\.")
_TABLE = re.compile(r"embed|patch_conv")
"""in an encoder: what is looked up or added, and the first layer, which reads pixels"""
_SECOND = re.compile(r"\.(mlp|feed_forward)\.(fc2|linear_fc2|down_proj)\.weight$")
"""in an encoder: what reads rows that may be made wider (models/vision/layers.py)"""
_KEPT = re.compile(r"\.(k_proj|v_proj|k_norm|v_norm)\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Conversion:
    """How matrices change on their way in.

    `dense_format`: dense tensors (f32, f16, bf16) become this; None leaves them. f8 becomes bf16, and matrices whose columns are
    out of order are put in order, unless the kernels take ("keep") them. `kept`: block formats that they take as they are. `quantization`: "int8" makes q8_0 of every matrix but routers; "int4" makes q4_1 of the layers' matrices and q8_0 of the embedding and the head, whose errors reach every token.
    Blocks of the file that are no larger than that stay as they are, as do matrices whose rows are no multiple of 32 values.
    `encoder`, unless it is None, says for encoders of images what `quantization` says for the rest: "int8", where columns of zeros may
    make multiples of 32, or "none".
    """

    dense_format: str | None = None
    quantization: str | None = None
    encoder: str | None = None
    keep_f8: bool = False
    keep_order: bool = False
    kept: frozenset[str] = frozenset()

    def format_of(self, name: str, shape: tuple[int, ...], stored: str) -> str:
        """The format that a tensor has after `apply`."""
        stored = stored if stored in self.kept else packable_format(stored)
        target = self._block_format(name, shape, stored)
        if target is not None or stored not in ("f8", *DENSE_FORMATS.values()):
            return target or stored
        if stored == "f8":
            return "f8" if self.keep_f8 else self.dense_format or "bf16"
        return self.dense_format or stored

    def apply(self, tensor: HostTensor) -> HostTensor:
        tensor = tensor if tensor.format in self.kept else tensor.packable()
        target = self._block_format(tensor.name, tensor.shape, tensor.format)
        if target is not None:
            return _quantize(tensor, target)
        if tensor.format == "f8":
            return tensor if self.keep_f8 else dense(tensor.name, tensor.dequantize(), self.dense_format or "bf16")
        if not self.keep_order:
            tensor = tensor.in_order()
        if self.dense_format is None or not tensor.is_dense or tensor.format == self.dense_format:
            return tensor
        return dense(tensor.name, tensor.dequantize(), self.dense_format)

    def _block_format(self, name: str, shape: tuple[int, ...], stored: str) -> str | None:
        if len(shape) != 2 or stored not in FORMATS or name.endswith(ROUTERS):
            return None
        if self.encoder is not None and _ENCODER.match(name):
            if self.encoder == "none" or _TABLE.search(name) or (shape[1] % 32 and not _SECOND.search(name)):
                return None
        elif self.quantization is None or shape[1] % 32:
            return None
        target = "q4_1" if self.quantization == "int4" and _LAYER.match(name) else "q8_0"
        bits = 16 if stored == "f8" and not self.keep_f8 else _bits(stored)
        return target if bits > _bits(target) else None


def _quantize(tensor: HostTensor, target: str) -> HostTensor:
    """The matrix in blocks of `target`, with columns of zeros up to a multiple of 32. Rows go a few at a time: the float32 values of a
    large vocabulary take gigabytes."""
    quantize = quantize_q8_0 if target == "q8_0" else quantize_q4_1
    num_rows = tensor.shape[0]
    more = -tensor.shape[1] % 32
    width = tensor.shape[1] + more
    data = np.empty((num_rows, width // FORMATS[target].block_len * FORMATS[target].block_bytes), np.uint8)
    step = max(1, QUANTIZE_VALUES // width)
    for start in range(0, num_rows, step):
        part = tensor.slice_rows(start, min(start + step, num_rows))
        values = part.dequantize()
        data[start : start + step] = quantize(tensor.name, np.pad(values, ((0, 0), (0, more))) if more else values).data
    return HostTensor(tensor.name, target, (num_rows, width), data)


def _bits(format_name: str) -> float:
    """Bits a value."""
    return 8 * FORMATS[format_name].block_bytes / FORMATS[format_name].block_len


class Checkpoint:
    """The weights of one model, read tensor by tensor.

    Raises ModelError when opened if a tensor is missing, has another shape than `config` says, or belongs to a layer of the
    model and would not be used.
    """

    def __init__(self, config: ModelConfig, source: TensorSource, conversion: Conversion | None = None) -> None:
        self._source = source
        self._conversion = conversion or Conversion()
        self.kept: Repacked | None = None
        """packed weights of an earlier start, which make reading unnecessary"""
        self._progress: LoadProgress | None = None
        self._seen: set[str] = set()
        self._stored = {(our_name(name) if config.vision is not None else name): name for name in source.names}
        self.config = _with_head(config, self._stored)
        self._shapes = expected_shapes(self.config)
        _check(self._shapes, self._stored, source, self.config)

    @property
    def names(self) -> list[str]:
        """Names of the tensors that the model needs."""
        return list(self._shapes)

    @property
    def num_params(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

    def packed_bytes(self, packed_bits: Callable[[str], float], quantization: str | None = None) -> int:
        """Bytes of the packed weights. `packed_bits`: of a value, by the format of its tensor. `quantization`: as if this were
        asked for."""
        conversion = replace(self._conversion, quantization=quantization or self._conversion.quantization)
        total = 0.0
        for name, shape in self._shapes.items():
            form = conversion.format_of(name, shape, self._source.format(self._stored[name]))
            total += math.prod(shape) * (packed_bits(form) if len(shape) == 2 else 32)
        return int(total / 8)

    def has(self, name: str) -> bool:
        return name in self._shapes

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        """A tensor, converted and quantized as the options ask. `shape`, if given, must be what the file holds."""
        if name not in self._shapes:
            raise ModelError(f"{self.config.architecture} with this config has no tensor {name!r}")
        if self.kept is None:
            return self._converted(name, shape)
        self._count(name)
        return self.kept.tensor(name, lambda: self._converted(name, shape))

    def _converted(self, name: str, shape: tuple[int, ...] | None) -> HostTensor:
        tensor = self._read(name)
        if shape is not None and tensor.shape != tuple(shape):
            raise ModelError(_contradiction(self._source.where(self._stored[name]), name, tensor.shape, tuple(shape)))
        return self._conversion.apply(tensor)

    def vector(self, name: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
        """A norm weight, with the config's `norm_offset` added, or a bias: float32, contiguous, never quantized."""
        if name not in self._shapes:
            raise ModelError(f"{self.config.architecture} with this config has no tensor {name!r}")
        values = self._read(name).dequantize()
        if shape is not None and values.shape != tuple(shape):
            raise ModelError(_contradiction(self._source.where(self._stored[name]), name, values.shape, tuple(shape)))
        if name.endswith("norm.weight") and self.config.norm_offset:
            values = values + np.float32(self.config.norm_offset)
        return np.ascontiguousarray(values)

    def _read(self, name: str) -> HostTensor:
        self._count(name)
        return replace(self._source.read(self._stored[name]), name=name)

    def _count(self, name: str) -> None:
        if self._progress is None:
            self._progress = LoadProgress(sum(self._stored_bytes(each) for each in self._shapes))
        self._progress.add(0 if name in self._seen else self._stored_bytes(name))
        self._seen.add(name)

    def _stored_bytes(self, name: str) -> int:
        form = self._source.format(self._stored[name])
        return int(math.prod(self._shapes[name]) * (_bits(form) if form in FORMATS else 8) / 8)


def load_checkpoint(files: ModelFiles, options: ModelOptions, kept: Collection[str] = ()) -> Checkpoint:
    """Opens a model. `kept`: what the kernels take as it is stored, "f8", "mxfp4" and "out of order" among it. Raises ModelError for
    whatever is wrong with the model or with the options for it."""
    keep: dict[str, Any] = {
        "keep_f8": "f8" in kept,
        "keep_order": "out of order" in kept,
        "kept": frozenset(kept) & FORMATS.keys(),
    }
    config, source = _open(files, options)
    _check_stored(files, options, config, {source.format(name) for name in source.names} if files.kind == "gguf" else set())
    config = _with_context_length(config, options.context_length)
    if config.bidirectional and not options.is_embedding:
        raise ModelError(f"{files.name} is an encoder (every row sees those that follow it): it embeds, and does not generate")
    if options.is_embedding:  # nobody asks for logits: a head of its own need not be there, and is not read
        config = replace(config, tie_word_embeddings=True, logit_scale=1.0)
    if options.dtype == "auto":
        return Checkpoint(config, source, Conversion(None, options.quantization, options.mm_quantization, **keep))
    if config.dtype in DENSE_FORMATS:
        config = replace(config, dtype=options.dtype)
    return Checkpoint(
        config, source, Conversion(DENSE_FORMATS[options.dtype], options.quantization, options.mm_quantization, **keep)
    )


def read_config(files: ModelFiles, options: ModelOptions) -> ModelConfig:
    """The model's config alone, without opening its weights (of a folder, config.json suffices)."""
    formats = set[str]()
    if files.kind == "gguf":
        file = open_gguf(files.path)
        formats = {tensor.format for tensor in file.tensors.values()}
        config = _gguf_config(files, options.json_model_override_args)
    else:
        config = read_model_config(files.path, options.json_model_override_args)
    _check_stored(files, options, config, formats)
    return _with_context_length(config, options.context_length)


def _open(files: ModelFiles, options: ModelOptions) -> tuple[ModelConfig, TensorSource]:
    if options.load_format in ("safetensors", "gguf") and (options.load_format == "gguf") != (files.kind == "gguf"):
        found = "a GGUF file" if files.kind == "gguf" else "a folder in Hugging Face's format"
        raise ModelError(f"--load-format {options.load_format} does not fit {files.path}, which is {found}: leave the flag out")
    overrides = options.json_model_override_args
    if files.kind == "gguf":
        config = _gguf_config(files, overrides)
        source: TensorSource = FamilySource(GGUFSource(open_gguf(files.path)), config)
        if files.projector is not None:
            projector = open_projector(files.path, files.projector)
            source = ProjectorSource(source, GGUFSource(projector.file), projector)
    else:
        config = read_model_config(files.path, overrides)
        if options.load_format != "dummy":
            tensors = SafetensorsSource(files.path)
            stored = tensors if config.quantization is None else QuantizedSource(tensors, config.quantization)
            return config, _by_family(stored, config)
    if options.load_format == "dummy":
        if config.quantization is not None:
            raise ModelError(
                f"--load-format dummy makes no {config.quantization.name} weights: take the unquantized model's config with "
                "--quantization int4 or int8"
            )
        wanted = config.dtype if options.dtype == "auto" else options.dtype
        source = DummySource(replace(config, dtype=wanted), files.path, options.random_seed)
    return config, source


def _gguf_config(files: ModelFiles, overrides: Mapping[str, Any]) -> ModelConfig:
    """With the encoder of images, where there is one."""
    config = read_gguf_config(open_gguf(files.path), overrides)
    if files.projector is None:
        return config
    raw = open_projector(files.path, files.projector).read().config
    family = find_vision_family(raw["architectures"])
    assert family is not None
    return with_vision(config, raw, raw["text_config"], family, files.projector)


def _by_family(stored: TensorSource, config: ModelConfig) -> TensorSource:
    """A folder's tensors as the decoder reads them. Of vision-language models, some have a decoder whose names need no change."""
    if config.vision is None:
        return FamilySource(stored, config)
    return stored if config.layout == PLAIN_LAYOUT else FamilySource(RenamedSource(stored, our_name), config)


def _check_stored(files: ModelFiles, options: ModelOptions, config: ModelConfig, formats: Collection[str]) -> None:
    """Raises ModelError for a checkpoint that is quantized otherwise than the operator says. `formats`: of a GGUF file's tensors."""
    asked = options.stored_quantization
    if asked is None:
        return
    if files.kind == "gguf":
        if asked == "gguf" or asked in formats:
            return
        found = "a GGUF file of " + ", ".join(sorted(set(formats) - {"f32"}) or ["f32"])
    else:
        method = config.quantization.name if config.quantization is not None else None
        if asked == method or (asked, method) == ("fp8", "fbgemm_fp8"):
            return
        found = "not quantized" if method is None else f"quantized as {method}"
    raise ModelError(f"--quantization {asked}: {files.name} is {found}; leave the flag out, it is read as it is")


def _with_context_length(config: ModelConfig, asked: int | None) -> ModelConfig:
    if asked is None:
        return config
    if not 0 < asked <= config.context_len:
        raise ModelError(
            f"--context-length {asked} is not within 1 to {config.context_len}, what the model was made for; to go beyond, "
            'scale its rope: --json-model-override-args \'{"rope_scaling": {...}, "max_position_embeddings": ...}\''
        )
    return replace(config, context_len=asked)


def _with_head(config: ModelConfig, stored: Mapping[str, str]) -> ModelConfig:
    """The outer part of a config says whether the head is the embedding. transformers before version 5 wrote it into the
    decoder's part; checkpoints of that time bring no head then."""
    is_tied = config.vision is not None and config.vision.tied_without_head and "lm_head.weight" not in stored
    return replace(config, tie_word_embeddings=True) if is_tied else config


def _check(shapes: Shapes, stored: Mapping[str, str], source: TensorSource, config: ModelConfig) -> None:
    for name, shape in shapes.items():
        if name not in stored:
            hint = " (its config says that the head is not tied to the embedding)" if name == "lm_head.weight" else ""
            raise ModelError(
                f"{source.path} lacks the tensor {name!r} that its config asks for{hint}: download or convert it again"
            )
        found = source.shape(stored[name])
        if found != shape:
            raise ModelError(_contradiction(source.where(stored[name]), name, found, shape))
    for name in stored:
        if name not in shapes and _would_matter(name, config):
            raise ModelError(
                f"{source.where(stored[name])}: the tensor {name!r} is not part of {config.architecture} with this config, and "
                "leaving it out would change the model's answers"
            )


def _contradiction(where: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"{where}: tensor {name!r} has shape {list(found)}, and the model's config makes it {list(expected)}; one of them is wrong"


def _would_matter(name: str, config: ModelConfig) -> bool:
    """Whether an unknown tensor belongs to one of the model's layers. Layers beyond the last (cut off by an override, or made
    for speculation), buffers of old transformers and what GGUF keeps for rope do not."""
    if name == ROPE_DIVISORS or name.endswith((".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")):
        return False
    match = _LAYER.match(name) or re.match(r"blk\.(\d+)\.", name)
    if match is None or int(match.group(1)) >= config.num_layers:
        return False
    is_anothers = not config.keeps_kv(int(match.group(1))) and _KEPT.search(name) is not None
    return not is_anothers
