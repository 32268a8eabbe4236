"""Who computes a model: our classes, or the transformers library's."""

from __future__ import annotations

import logging

from sglang.common.install import install_extras
from sglang.srt.config import AdapterOptions, DeviceOptions, ModelFiles, ModelOptions
from sglang.srt.errors import ConfigError, ModelError, UnknownModelError
from sglang.srt.model.foreign.checkpoint import EXTRA, ForeignCheckpoint, is_installed, open_foreign
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.weights.loader import read_config

logger = logging.getLogger(__name__)


def open_model(files: ModelFiles, options: ModelOptions) -> ModelConfig | ForeignCheckpoint:
    """The config of a model that we compute, or a model for transformers: where `--model-impl` asks for it, or where nothing here
    fits and transformers does. Raises ModelError."""
    if options.model_impl == "transformers":
        return open_foreign(files, options)
    try:
        return read_config(files, options)
    except UnknownModelError as error:
        if options.model_impl == "sglang" or files.kind == "gguf":
            raise
        if not is_installed():
            raise ModelError(f"{error}. transformers may compute it: {install_extras('srt', EXTRA)}") from error
        try:
            found = open_foreign(files, options)
        except ModelError as other:
            raise ModelError(f"{error}. {other}") from other
    logger.warning(
        "%s is computed by transformers (there is no class for it here): slower, and answers may depend on the batch",
        files.name,
    )
    return found


def check_foreign(device: DeviceOptions, is_on_gpu: bool, adapters: AdapterOptions | None) -> None:
    """Raises ConfigError for what transformers' models cannot do here."""
    if is_on_gpu:
        raise ConfigError("--model-impl transformers runs on a CPU only: set --device cpu")
    if device.tp_size > 1:
        raise ConfigError("--tp-size: models that transformers computes run on one rank")
    if adapters is not None and (adapters.adapters or adapters.root or adapters.at_run_time):
        raise ConfigError("--lora-paths: models that transformers computes take no adapters")
