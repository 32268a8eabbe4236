"""Pooling: the sentence-transformers modules that turn a text's rows into its vector.

    modules.json   Transformer -> Pooling -> Dense -> Normalize      each with its own folder, such as 1_Pooling/config.json

Every module that a folder lists is applied, or the folder is refused by the module's name. Arithmetic is in float64 on one text
at a time, so results are batch-invariant. Source of the formats: sentence-transformers, up to version 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_reader import GGUFTensor
from sglang.srt.checkpoint.sentence_files import MODULES_FILE, read_modules, read_sentence_facts
from sglang.srt.errors import ModelError
from sglang.srt.forward_batch import Float32Array
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.config_fields import Fields, read_json
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource

Vector = npt.NDArray[np.float64]
Step = Callable[[Vector], Vector]


def _weighted_mean(rows: Float32Array) -> Vector:
    """Later rows count more: the weights are 1, 2, 3 ..."""
    weights = np.arange(1, len(rows) + 1, dtype=np.float64)
    mean: Vector = weights @ rows / weights.sum()
    return mean


_MODES: dict[str, Callable[[Float32Array], Vector]] = {
    "cls": lambda rows: rows[0].astype(np.float64),
    "max": lambda rows: rows.max(axis=0).astype(np.float64),
    "mean": lambda rows: rows.mean(axis=0, dtype=np.float64),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(axis=0, dtype=np.float64) / math.sqrt(len(rows)),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda rows: rows[-1].astype(np.float64),
}
_OLD_NAMES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""flags of earlier versions, in the order in which several are put together"""
_WIDTHS = ("embedding_dimension", "word_embedding_dimension")
_POOLING_KEYS = {"pooling_mode", "include_prompt", *_WIDTHS, *_OLD_NAMES.values()}
_DENSE_KEYS = {
    *("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"),
    "use_residual",
}
_SENTENCE = "sentence_embedding"
_AFTER_POOLING = frozenset({"Normalize", "Dense"})
_KNOWN_MODULES = _AFTER_POOLING | {"Transformer", "Pooling", "Dropout"}
"""the last one is for training only"""
_GGUF_MODES = {0: "lasttoken", 1: "mean", 2: "cls", 3: "lasttoken"}
"""values of the key pooling_type; 0 leaves it open"""

_gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), otypes=[np.float64])
_ACTIVATIONS: dict[str, Step] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU": _gelu,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Pooling:
    """`modes`: names of _MODES, whose vectors stand one behind the other. `steps`: what follows. `dim`: of the result."""

    modes: tuple[str, ...]
    steps: tuple[Step, ...]
    dim: int

    def apply(self, rows: Float32Array) -> Float32Array:
        """[tokens, hidden] -> [dim]"""
        vector = np.concatenate([_MODES[mode](rows) for mode in self.modes])
        for step in self.steps:
            vector = step(vector)
        result: Float32Array = vector.astype(np.float32)
        return result

    @property
    def keeps_all(self) -> bool:
        """Whether more than one row of a text is looked at."""
        return self.modes not in (("cls",), ("lasttoken",))


def normalize(vector: Vector) -> Vector:
    """Scales vectors to length 1."""
    return vector / max(float(np.sqrt(vector @ vector)), 1e-12)


@dataclass(frozen=True)
class DenseModule:
    """activation(weight @ x + bias), with `residual` @ x added where there is one."""

    weight: Vector  # [out, in]
    bias: Vector | float  # [out]
    activation: Step
    residual: Vector | None = None  # [out, in]

    def __call__(self, vector: Vector) -> Vector:
        result = self.activation(self.weight @ vector + self.bias)
        return result if self.residual is None else result + self.residual @ vector


@dataclass(frozen=True)
class NormModule:
    """Layer norm."""

    weight: Vector  # [n]
    bias: Vector | float  # [n]
    eps: float

    def __call__(self, vector: Vector) -> Vector:
        centred = vector - vector.mean()
        result: Vector = centred / np.sqrt((centred * centred).mean() + self.eps) * self.weight + self.bias
        return result


# --- reading ------------------------------------------------------------------------------------------------------------------


def gguf_pooling(metadata: Mapping[str, Any], hidden_size: int, tensors: Mapping[str, GGUFTensor] | None = None) -> Pooling:
    """Reads pooling from a GGUF file's metadata, and the dense modules among its tensors. Raises ModelError for an unsupported
    mode."""
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if kind not in _GGUF_MODES:
        raise ModelError(f"the GGUF file's pooling_type {shown(kind)} is not supported; mean, cls and last are")
    steps, dim = list[Step](), hidden_size
    for name in ("dense_2.weight", "dense_3.weight"):
        if (tensor := (tensors or {}).get(name)) is not None:
            if len(tensor.shape) != 2 or tensor.shape[1] != dim:
                raise ModelError(f"the GGUF file's {name} has shape {list(tensor.shape)}, and takes vectors of {dim}")
            weight = HostTensor(name, tensor.format, tensor.shape, tensor.data).dequantize().astype(np.float64)
            steps.append(DenseModule(weight, 0.0, _ACTIVATIONS["Identity"]))
            dim = tensor.shape[0]
    return Pooling((_GGUF_MODES[kind],), (*steps, normalize), dim)


def read_pooling(folder: Path, default: str, hidden_size: int) -> Pooling:
    """Reads pooling from a folder's modules.json and the modules' own files; `default`: the mode where they name none. Raises
    ModelError naming what is damaged or not done here."""
    modules = read_modules(folder)
    if modules is None:
        modes = _read_modes(folder / "1_Pooling" / "config.json", default, hidden_size)
        return Pooling(modes, (normalize,), len(modes) * hidden_size)
    listed = _placed(folder, modules)
    path = next((place for name, place in listed if name == "Pooling"), folder / "1_Pooling") / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing: it says how the rows of a text become its vector")
    modes = _read_modes(path, default, hidden_size)
    _check_prompts(path, folder)
    steps: list[Step] = []
    dim = len(modes) * hidden_size
    for name, place in listed:
        if name == "Normalize":
            steps.append(normalize)
        elif name == "Dense":
            step = _read_dense(place, dim)
            steps.append(step)
            dim = len(step.weight)
    return Pooling(modes, tuple(steps), dim)


def _placed(folder: Path, modules: list[tuple[str, str]]) -> list[tuple[str, Path]]:
    """The modules, each with its own folder. Raises ModelError for one that is not done here, or not where it stands."""
    listed = folder / MODULES_FILE
    names = [name for name, _ in modules]
    for at, (name, place) in enumerate(modules):
        if name not in _KNOWN_MODULES:
            raise ModelError(f"{listed} lists a module {shown(name)}, which is not supported")
        if name == "Transformer" and place:
            raise ModelError(f"{listed} keeps the model itself in {shown(place)}: pass that folder, or move its files up")
        if name == "Pooling" and name in names[:at]:
            raise ModelError(f"{listed} lists a second module Pooling, which is not supported")
        if name in _AFTER_POOLING and "Pooling" in names[at:]:
            raise ModelError(f"{listed} lists {name} before Pooling, which is not supported")
    return [(name, folder / place) for name, place in modules]


def _read_modes(path: Path, default: str, hidden_size: int) -> tuple[str, ...]:
    if not path.is_file():
        return (default,)
    fields = _fields(path, _POOLING_KEYS)
    for name in _WIDTHS:
        if fields.raw.get(name) not in (None, hidden_size):
            raise fields.bad(name, f"must be {hidden_size}, the model's size, got {shown(fields.raw[name])}")
    said = fields.raw.get("pooling_mode")
    if said is None:
        said = [mode for mode, name in _OLD_NAMES.items() if fields.flag(name)] or "mean"
    modes = said if isinstance(said, list) else [said]
    if not modes or not all(isinstance(mode, str) and mode in _MODES for mode in modes):
        raise fields.bad("pooling_mode", f"is {shown(said)}; known: {', '.join(_MODES)}")
    return tuple(modes)


def _check_prompts(path: Path, folder: Path) -> None:
    """All rows of a text are pooled here, those of its prompt too. Raises ModelError where that is not what is wanted."""
    fields = _fields(path, _POOLING_KEYS)
    if not fields.flag("include_prompt", default=True) and any(read_sentence_facts(folder).prompts.values()):
        raise fields.bad("include_prompt", "is false beside prompts, which is not supported")


def _read_dense(place: Path, dim: int) -> DenseModule:
    fields = _fields(place / "config.json", _DENSE_KEYS)
    for name in ("module_input_name", "module_output_name"):
        if fields.raw.get(name) not in (None, _SENTENCE):
            raise fields.bad(name, f"is {shown(fields.raw[name])}, and only {_SENTENCE} is supported")
    size_in, size_out = fields.count("in_features"), fields.count("out_features")
    if size_in != dim:
        raise fields.bad("in_features", f"must be {dim}, what stands before, got {size_in}")
    if not (place / "model.safetensors").is_file():
        raise ModelError(f"{place} has no model.safetensors (a pickle is not read): save the module in that format")
    source = SafetensorsSource(place)

    def matrix(name: str, shape: tuple[int, ...]) -> Vector:
        if name not in source.names or source.shape(name) != shape:
            raise ModelError(f"{place / 'model.safetensors'} must hold {name!r} of shape {list(shape)}")
        return source.read(name).dequantize().astype(np.float64)

    residual = None
    if fields.flag("use_residual"):
        residual = np.eye(size_in) if size_in == size_out else matrix("residual.weight", (size_out, size_in))
    return DenseModule(
        weight=matrix("linear.weight", (size_out, size_in)),
        bias=matrix("linear.bias", (size_out,)) if fields.flag("bias", default=True) else 0.0,
        activation=_activation(fields),
        residual=residual,
    )


def _activation(fields: Fields) -> Step:
    """Tanh if nothing is said, none if null is."""
    return named_activation(fields, "activation_function", fields.raw.get("activation_function", "Tanh"))


def named_activation(fields: Fields, key: str, value: Any) -> Step:
    """An activation by its class in torch.nn, none for null. Raises ModelError naming the file and the key."""
    name = "Identity" if value is None else value.rpartition(".")[2] if isinstance(value, str) else ""
    if name not in _ACTIVATIONS:
        raise fields.bad(key, f"is {shown(value)}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _fields(path: Path, known: set[str]) -> Fields:
    fields = Fields(read_json(path), path)
    for name in fields.raw:
        if name not in known:
            raise fields.bad(shown(name), "is not known here, and might change every vector")
    return fields
