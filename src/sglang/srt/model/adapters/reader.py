"""Reads adapters: folders and single files of PEFT, and GGUF files of llama.cpp.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [r, in]       PEFT
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [out, r]
    blk.0.attn_q.weight.lora_a, .lora_b                               the same      GGUF

Modules are named as in the family's own checkpoints. B is renamed, cut into parts and reordered as the rows of such a checkpoint's
matrix are (weights/family_source.py); the parts share A. Every tensor of a file is used, or the adapter is refused with its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from sglang.srt.checkpoint.files import ADAPTER_WEIGHTS, check_regular, shown
from sglang.srt.checkpoint.gguf_reader import GGUFFile, is_gguf
from sglang.srt.errors import ModelError
from sglang.srt.model.adapters.peft_config import MAX_INVOCATION, PeftConfig, read_peft_config
from sglang.srt.model.kernels.low_rank import LowRank
from sglang.srt.model.model_config import ModelConfig, TensorLayout
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.families.table import FAMILIES
from sglang.srt.model.weights.family_source import FamilySource
from sglang.srt.model.weights.gguf_config import BY_ARCHITECTURE, gguf_layout_of
from sglang.srt.model.weights.gguf_source import GGUFSource
from sglang.srt.model.weights.safetensors_reader import SafetensorsFile
from sglang.srt.model.weights.tensor_source import index_of
from sglang.srt.model.weights.vision.vision_shapes import our_name

PICKLED = ("adapter_model.bin", "adapter_model.pt")
SPARE_BYTES = 40 << 20
"""of a file, beside its matrices: the header"""
_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[\w-]+)?\.weight")
_GGUF_NAME = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<side>[ab])")
_OTHER_PARTS = {
    "lora_magnitude_vector": "DoRA is not supported",
    "lora_embedding_": "embeddings are not changed by adapters here",
    ".modules_to_save.": "whole modules are not replaced",
    "token_adapter": "embeddings are not changed by adapters here",
    ".bias": "biases of adapters are not added",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class AdapterBase:
    """The model that adapters are for. `sites`: the decoder's name of each matrix that may be changed -> (out_features,
    in_features), of the whole model."""

    config: ModelConfig
    sites: Mapping[str, tuple[int, int]]
    max_rank: int


@dataclass(frozen=True)
class Adapter:
    """`parts`: by the decoder's names of matrices. `invocation`: PeftConfig.invocation. `digest`: of the file's bytes and what its config says."""

    parts: Mapping[str, LowRank]
    rank: int
    invocation: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class _Pair:
    """A and B of one module, as the file has them, and the scale."""

    a: HostTensor
    b: HostTensor
    scale: float


def read_adapter(path: Path, base: AdapterBase) -> Adapter:
    """An adapter of `base`. `path`: a folder, or a file of one. Raises ModelError with one sentence."""
    try:
        is_folder = path.is_dir()
        file = path / ADAPTER_WEIGHTS if is_folder else path
        if not path.exists():
            raise ModelError(f"there is no adapter at {path}: check the path")
        if is_folder and not file.exists():
            raise _lacking(path)
        if not is_folder and is_gguf(path):
            return _read_gguf(path, base)
        config = read_peft_config(file.parent)
        tensors, digest = _tensors(file, base)
    except (OSError, ValueError) as error:  # removed meanwhile, or a name that no file has
        raise ModelError(f"cannot read the adapter {path}: {error}") from error
    layout = _plain_layout(base.config)
    pairs = _pairs(file, tensors, config, base, layout)
    adapter = _assemble(file, pairs, base, layout, config.invocation, _with_config(digest, config))
    _check_complete(config, pairs, adapter.parts, base, layout)
    return adapter


def _with_config(digest: str, config: PeftConfig) -> str:
    """The same weights under another scale are another adapter."""
    said = [(f.name, getattr(config, f.name)) for f in fields(config) if f.name != "path"]
    return hashlib.sha256(f"{digest} {said!r}".encode()).hexdigest()


def rank_of(path: Path) -> int:
    """The largest rank of an adapter, by its config or headers alone. Raises ModelError."""
    if not path.is_dir() and path.exists() and is_gguf(path):
        shapes = [tensor.shape for name, tensor in GGUFFile(path).tensors.items() if name.endswith(".lora_a")]
        return max((shape[0] for shape in shapes), default=1)
    config = read_peft_config(path if path.is_dir() else path.parent)
    return max(config.rank, *config.rank_pattern.values()) if config.rank_pattern else config.rank


def _lacking(folder: Path) -> ModelError:
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return ModelError(f"{folder} has no {ADAPTER_WEIGHTS}; for its GGUF adapter name the file, {ggufs[0].name}")
    if any((folder / name).exists() for name in PICKLED):
        return ModelError(f"{folder} holds pickled weights, which can run code when read: save them as {ADAPTER_WEIGHTS}")
    return ModelError(f"{folder} has no {ADAPTER_WEIGHTS}: it is not an adapter")


# --- PEFT -----------------------------------------------------------------------------------------------------------------------


def _tensors(file: Path, base: AdapterBase) -> tuple[SafetensorsFile, str]:
    data = _bytes(file, base)
    return SafetensorsFile(file, data), hashlib.sha256(data).hexdigest()


def _bytes(file: Path, base: AdapterBase) -> bytes:
    """The file, read into memory: it may change while it is served."""
    most = 4 * sum(base.max_rank * (rows + width) for rows, width in base.sites.values()) + SPARE_BYTES
    size = check_regular(file)
    if size > most:
        raise ModelError(
            f"{file} has {size} bytes, and an adapter of this model with --max-lora-rank {base.max_rank} at most {most}"
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from error


def _pairs(
    file: Path, tensors: SafetensorsFile, config: PeftConfig, base: AdapterBase, layout: TensorLayout
) -> dict[str, _Pair]:
    """By the modules' names in the family's checkpoints."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors.entries:
        match = _PEFT_NAME.fullmatch(name)
        if match is None:
            why = next((why for part, why in _OTHER_PARTS.items() if part in name), "only lora_A and lora_B are read")
            raise ModelError(f"{file}: the tensor {shown(name)} cannot be used: {why}")
        sides = found.setdefault(match["module"], {})
        if match["side"] in sides:
            raise ModelError(f"{file}: {shown(sides[match['side']])} and {shown(name)} are the same matrix")
        sides[match["side"]] = name
    pairs = {}
    for module, sides in found.items():
        a, b = (tensors.read(name) for name in _both(file, module, sides))
        rank = _rank_of(file, a, b)
        if rank != config.rank_of(module):
            raise ModelError(f"{config.path}: the rank of {module} is {config.rank_of(module)}, and {a.name} has {rank} rows")
        pairs[module] = _Pair(a, b, config.scale_of(module, rank))
    return pairs


def _both(file: Path, module: str, sides: Mapping[str, str]) -> tuple[str, str]:
    if len(sides) < 2:
        raise ModelError(f"{file}: {module} has {next(iter(sides.values()))} and lacks the other of A and B")
    first, second = sorted(sides)
    return sides[first], sides[second]


def _rank_of(file: Path, a: HostTensor, b: HostTensor) -> int:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ModelError(
            f"{file}: {a.name} {list(a.shape)} and {b.name} {list(b.shape)} should be [rank, in] and [out, rank] of one rank"
        )
    return a.shape[0]


def _plain_layout(config: ModelConfig) -> TensorLayout:
    """How checkpoints of Hugging Face name the family's modules."""
    if config.layout.layers != "blk":
        return config.layout
    return next(family.layout for family in FAMILIES if family.architecture == config.architecture)


def _check_complete(
    config: PeftConfig, pairs: Iterable[str], parts: Mapping[str, LowRank], base: AdapterBase, layout: TensorLayout
) -> None:
    """Config and file must mean the same modules. PEFT leaves out what one of them lacks."""
    for module in pairs:
        layer = re.search(r"\.(\d+)\.", module)
        if not config.targets(module, int(layer[1]) if layer else -1):
            raise ModelError(f"{config.path}: target_modules does not mean {module}, of which the file has tensors")
    if config.target_modules is None:
        return
    for module, names in _modules(base, layout).items():
        layer_of = _LAYER.match(names[0])
        assert layer_of is not None
        if config.targets(module, int(layer_of[1])) and names[0] not in parts:
            raise ModelError(f"{config.path}: target_modules means {module}, and the file has no tensors for it")


def _modules(base: AdapterBase, layout: TensorLayout) -> dict[str, tuple[str, ...]]:
    """A family's names of its modules that may be changed -> ours."""
    stored = {
        ours: theirs for theirs, names in layout.modules.items() for ours in ([names] if isinstance(names, str) else names)
    }
    found: dict[str, list[str]] = {}
    for name in base.sites:
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        assert match is not None
        module = f"{layout.root}{layout.layers}.{match[1]}.{stored.get(match[2], match[2])}"
        found.setdefault(module, []).append(name)
    return {module: tuple(names) for module, names in found.items()}


# --- GGUF -----------------------------------------------------------------------------------------------------------------------


def _read_gguf(path: Path, base: AdapterBase) -> Adapter:
    data = _bytes(path, base)
    gguf = GGUFFile(path, data)
    meta = gguf.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
        raise ModelError(
            f"{path}: general.type is {shown(meta.get('general.type'))} and adapter.type {shown(meta.get('adapter.type'))}; "
            "an adapter says adapter and lora"
        )
    family = BY_ARCHITECTURE.get(str(meta.get("general.architecture")))
    if family is None or family.architecture != base.config.architecture:
        raise ModelError(
            f"{path}: it is for {shown(meta.get('general.architecture'))}, and the model is a {base.config.architecture}"
        )
    alpha = meta.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, (int, float)) or not abs(alpha) <= 1e6:
        raise ModelError(f"{path}: adapter.lora.alpha must be a number up to 1e6, got {shown(alpha)}")
    layout = gguf_layout_of(family, base.config)
    pairs = _gguf_pairs(path, GGUFSource(gguf), float(alpha))
    return _assemble(path, pairs, base, layout, _gguf_invocation(path, gguf), hashlib.sha256(data).hexdigest())


def _gguf_pairs(path: Path, source: GGUFSource, alpha: float) -> dict[str, _Pair]:
    found: dict[str, dict[str, str]] = {}
    for name in source.names:
        match = _GGUF_NAME.fullmatch(name)
        if match is None:
            raise ModelError(f"{path}: the tensor {shown(name)} cannot be used: only lora_a and lora_b are read")
        found.setdefault(match["module"], {})[match["side"]] = name
    pairs = {}
    for module, sides in found.items():
        a, b = (source.read(name) for name in _both(path, module, sides))
        rank = _rank_of(path, a, b)
        pairs[module] = _Pair(a, b, alpha / rank if alpha else 1.0)
    return pairs


def _gguf_invocation(path: Path, gguf: GGUFFile) -> tuple[int, ...]:
    found = gguf.metadata.get("adapter.alora.invocation_tokens")
    if found is None:
        return ()
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or not 1 <= len(found) <= MAX_INVOCATION:
        raise ModelError(f"{path}: adapter.alora.invocation_tokens must be 1 to {MAX_INVOCATION} token ids")
    return tuple(found.tolist())


# --- both -----------------------------------------------------------------------------------------------------------------------


class _Matrices:
    """B of each module as a checkpoint's matrix (TensorSource)."""

    def __init__(self, path: Path, pairs: Mapping[str, _Pair]) -> None:
        self.path = path
        self._tensors = {f"{module}.weight": replace(pair.b, name=f"{module}.weight") for module, pair in pairs.items()}

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def format(self, name: str) -> str:
        return self._tensors[name].format

    def where(self, name: str) -> Path:
        return self.path

    def read(self, name: str) -> HostTensor:
        return self._tensors[name]

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index)


def _assemble(
    path: Path, pairs: Mapping[str, _Pair], base: AdapterBase, layout: TensorLayout, invocation: tuple[int, ...], digest: str
) -> Adapter:
    if not pairs:
        raise ModelError(f"{path} has no tensors")
    if any(not 0 <= one < base.config.vocab_size for one in invocation):
        raise ModelError(f"{path}: alora_invocation_tokens has ids outside 0 to {base.config.vocab_size - 1}")
    source = FamilySource(_Matrices(path, pairs), replace(base.config, layout=replace(layout, transposed=False)))
    parts: dict[str, LowRank] = {}
    for name in source.names:
        ours = our_name(name) if base.config.vision is not None else name
        stored = source.stored(name)
        _check_part(path, pairs[stored.removesuffix(".weight")], stored, ours.removesuffix(".weight"), source.shape(name), base)
        if ours.removesuffix(".weight") in parts:
            raise ModelError(f"{path}: {stored} changes a matrix that another tensor changes as well")
        pair = pairs[stored.removesuffix(".weight")]
        parts[ours.removesuffix(".weight")] = LowRank(_values(path, pair.a), _values(path, source.read(name)), pair.scale)
    return Adapter(parts, max(part.rank for part in parts.values()), invocation, digest)


def _check_part(path: Path, pair: _Pair, stored: str, name: str, b_shape: tuple[int, ...], base: AdapterBase) -> None:
    expected = base.sites.get(name)
    if expected is None:
        raise ModelError(
            f"{path}: {pair.b.name} is for {stored.removesuffix('.weight')}, which the model has not or whose matrix no adapter "
            "changes here; the attention and feed-forward matrices of its layers can be"
        )
    if (b_shape[0], pair.a.shape[1]) != expected:
        raise ModelError(
            f"{path}: {pair.a.name} and {pair.b.name} are for a matrix of {[b_shape[0], pair.a.shape[1]]}, and the model's {name} is "
            f"{list(expected)}: the adapter was made for another model"
        )
    if pair.a.shape[0] > base.max_rank:
        raise ModelError(f"{path}: {pair.a.name} has rank {pair.a.shape[0]}, and --max-lora-rank is {base.max_rank}")


def _values(path: Path, tensor: HostTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.ascontiguousarray(tensor.dequantize(), np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{path}: {tensor.name} holds values that are no finite numbers")
    return values
