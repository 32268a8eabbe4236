"""Which models are served, and with which flags: `--models FILE`, and `--model NAME=PATH` any number of times.

    small: smollm2-135m-instruct        a line for each model: its name, and its path
    large:                              or its name and its flags, as in a file of --config
      model-path: ./qwen3-8b
      context-length: 8192
      preload: true                     and two words of its own: loaded at the start, seconds until it is unloaded
      keep-alive: 600

The flags of the command line hold for all of them. The first model is the one that answers requests that name none.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sglang.srt.errors import ConfigError
from sglang.srt.flags.config_file import TRUTHS, Given, flags_among, read_mapping
from sglang.srt.flags.names import option
from sglang.srt.server_args import ServerArgs, read_lines

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9._:@+-]+)*")
MAX_NAME = 200
MAX_MODELS = 1000
OF_THE_GATEWAY = frozenset(
    {
        *("models", "max_loaded", "keep_alive", "model_path", "served_model_name", "host", "port", "uds", "root_path"),
        *("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_keyfile_password_file"),
        *("api_key", "api_key_file", "admin_api_key", "admin_api_key_file"),
        *("batch_dir", "batch_disk", "max_batch_file_bytes", "max_batch_requests", "batch_window"),
        *("cors_origins", "allowed_hosts", "stop_with_stdin", "behind_gateway", "listen_fd", "gateway_token_file"),
        *("ray", "max_replicas", "target_requests", "replica_idle", "replica_cpus", "replica_wait"),
    }
)
"""flags that the server of one model has no part in, or is told otherwise"""


@dataclass(frozen=True)
class ServedModel:
    """`flags`: of its server, by field, as text. `keep_alive`: seconds; None: as long as there is room."""

    name: str
    flags: dict[str, Any] = field(default_factory=dict)
    preload: bool = False
    keep_alive: float | None = None

    @property
    def path(self) -> str:
        return str(self.flags["model_path"])


def list_models(args: ServerArgs, named: Mapping[str, str]) -> list[ServedModel]:
    """All models, those of the file first. `named`: paths by name, of the command line. Raises ConfigError for what cannot be served."""
    common = common_flags(args)
    models: dict[str, ServedModel] = {}
    for name, lines in _entries(args.models, named):
        if name in models:
            raise ConfigError(f"there are two models with the name {name!r}: give one of them another name")
        models[name] = _model(name, lines, common, args.keep_alive)
    if not models:
        raise ConfigError(f"--models {args.models} names no model: a line for each is expected, such as small: ./model.gguf")
    if len(models) > MAX_MODELS:
        raise ConfigError(f"there are {len(models)} models, and {MAX_MODELS} at most can be served")
    return list(models.values())


def _entries(path: str | None, named: Mapping[str, str]) -> list[tuple[str, list[Given]]]:
    """Names and what stands behind them."""
    found = []
    for key, value in (read_mapping("--models", path) or []) if path is not None else []:
        where = f"{path}, line {key.start_mark.line + 1}"
        name = str(key.value)
        _check_name(where, name)
        if value.id == "mapping":
            found.append((name, flags_among(str(path), value.value)))
        elif value.id == "scalar" and value.value:
            found.append((name, [Given(where, "model-path", str(value.value))]))
        else:
            raise ConfigError(f"{where}: {name} needs a path, or flags with a model-path among them")
    for name, model in named.items():
        _check_name("--model", name)
        found.append((name, [Given("--model", "model-path", model)]))
    return found


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME or name == "default":
        raise ConfigError(
            f"{where}: {name[:80]!r} cannot be the name of a model: letters, digits and . _ - : @ + / are expected, at most "
            f"{MAX_NAME} of them, and not 'default'"
        )


def _model(name: str, lines: Sequence[Given], common: dict[str, Any], keep_alive: float | None) -> ServedModel:
    own = {given.name.lower().replace("_", "-"): given for given in lines}
    preload = _truth(own.pop("preload", None))
    limit = own.pop("keep-alive", None)
    args, given = read_lines(list(own.values()), "sglang serve")
    if "model_path" not in given:
        raise ConfigError(f"{lines[0].where if lines else name}: {name} has no model-path")
    for flag in sorted(given & OF_THE_GATEWAY - {"model_path"}):
        raise ConfigError(f"{args.named(flag)} is for all models together: give it on the command line, not to {name}")
    flags = {**common, **{flag: _written(getattr(args, flag)) for flag in sorted(given)}}
    return ServedModel(name, flags, preload, keep_alive if limit is None else _seconds(limit))


def _truth(given: Given | None) -> bool:
    if given is None:
        return False
    truth = TRUTHS.get(given.value.lower()) if isinstance(given.value, str) else None
    if truth is None:
        raise ConfigError(f"{given.where}: {given.name} must be true or false")
    return truth


def _seconds(given: Given) -> float:
    try:
        seconds = float(str(given.value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ConfigError(f"{given.where}: {given.name} must be a number of seconds, at least 0")
    return seconds


def common_flags(args: ServerArgs) -> dict[str, Any]:
    """What the command line gives to all models."""
    values = {f.name: (getattr(args, f.name), f.default) for f in dataclasses.fields(args)}
    return {
        name: _written(value)
        for name, (value, usual) in values.items()
        if value != usual and value is not None and name not in OF_THE_GATEWAY
    }


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_flags(path: str, flags: Mapping[str, Any]) -> None:
    """A file of --config that only the user can read."""
    text = yaml.safe_dump({option(name)[2:]: value for name, value in flags.items()}, default_flow_style=False)
    write_private(path, text)


def write_private(path: str | Path, text: str) -> None:
    """A file that only the user can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
