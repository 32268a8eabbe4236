"""Heads of classifiers: a text, or a pair of them, becomes a score for each label (cross-encoders, arXiv 1908.10084).

    rows -> the first, the last, or the mean of all -> the head's layers -> activation -> [num_labels]

The activation is what sentence-transformers applies: the one that the folder names, else a sigmoid if there is one label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sglang.srt.errors import ModelError
from sglang.srt.model.pooling import DenseModule, NormModule, Pooling, Step, Vector, named_activation
from sglang.srt.model.weights.config_fields import Fields, read_json
from sglang.srt.model.weights.families.encoders import EncoderConfig, HeadStep
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource

_SCORE = HeadStep("score", has_bias=False)


def encoder_head(folder: Path, config: EncoderConfig) -> Pooling:
    """The head of an encoder that classifies. Raises ModelError naming what is missing."""
    sizes = [config.hidden_size] * len(config.head) + [config.num_labels]
    eps = config.norm_eps
    steps = _read_steps(folder, config.head, sizes, config.prefix, eps, config.has_norm_bias)
    return Pooling((config.head_pooling,), (*steps, _score_activation(folder, config.num_labels)), config.num_labels)


def decoder_head(folder: Path, hidden_size: int) -> Pooling:
    """The head of a decoder that classifies: it reads the last row."""
    source = SafetensorsSource(folder)
    num_labels = source.shape("score.weight")[0] if "score.weight" in source.names else 0
    steps = _read_steps(folder, (_SCORE,), [hidden_size, num_labels], "", 0.0, False)
    return Pooling(("lasttoken",), (*steps, _score_activation(folder, num_labels)), num_labels)


def _read_steps(
    folder: Path, head: Sequence[HeadStep], sizes: Sequence[int], prefix: str, eps: float, has_norm_bias: bool
) -> list[Step]:
    source = SafetensorsSource(folder)

    def read(name: str, *shape: int) -> Vector:
        stored = next((each for each in (name, prefix + name) if each in source.names), None)
        if stored is None or source.shape(stored) != shape:
            raise ModelError(f"{source.path} must hold the tensor {name!r} of its head, of shape {list(shape)}")
        return source.read(stored).dequantize().astype(np.float64)

    steps: list[Step] = []
    for step, size_in, size_out in zip(head, sizes, sizes[1:], strict=False):
        activation = named_activation(Fields({}, folder), step.name, step.activation)
        bias = read(f"{step.name}.bias", size_out) if step.has_bias else 0.0
        steps.append(DenseModule(read(f"{step.name}.weight", size_out, size_in), bias, activation))
        if step.norm:
            norm_bias = read(f"{step.norm}.bias", size_out) if has_norm_bias else 0.0
            steps.append(NormModule(read(f"{step.norm}.weight", size_out), norm_bias, eps))
    return steps


def _score_activation(folder: Path, num_labels: int) -> Step:
    """The activation of sentence-transformers, by the names of its versions."""
    path = folder / "config.json"
    fields = Fields(read_json(path), path)
    for key, value in (
        ("sentence_transformers", fields.object("sentence_transformers").get("activation_fn")),
        ("sbert_ce_default_activation_function", fields.get("sbert_ce_default_activation_function")),
    ):
        if value is not None:
            return named_activation(fields, key, value)
    path = folder / "config_sentence_transformers.json"
    fields = Fields(read_json(path) if path.is_file() else {}, path)
    if fields.get("activation_fn") is not None:
        return named_activation(fields, "activation_fn", fields.get("activation_fn"))
    return named_activation(fields, "activation_fn", "Sigmoid" if num_labels == 1 else "Identity")
