"""The flags: one flat dataclass, from which the command line is made (flags/parser.py), and `resolve`, which turns it into config
groups. The fields with their help texts are in flags/groups.py; the original's other flags are in flags/compatible.py. Only
process/start.py, engine.py and the commands import this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sglang.common.devices import cuda_is_here
from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_parts import with_gguf_file
from sglang.srt.checkpoint.resolve import weights_cache
from sglang.srt.config import (
    STORED_QUANTIZATIONS,
    AdapterOptions,
    BatchOptions,
    DeviceOptions,
    DraftOptions,
    GrammarOptions,
    HttpOptions,
    MediaOptions,
    MemoryOptions,
    ModelOptions,
    RuntimeConfig,
    SamplingDefaults,
    ScheduleOptions,
    TextOptions,
)
from sglang.srt.errors import ConfigError
from sglang.srt.flags.adapters import parse_adapters
from sglang.srt.flags.compatible import ALIASES, FLAGS
from sglang.srt.flags.config_file import Given
from sglang.srt.flags.groups import (
    AdapterFlags,
    BatchFlags,
    ClusterFlags,
    ConstrainedFlags,
    DeviceAndMemoryFlags,
    HttpFlags,
    MediaFlags,
    ModelFlags,
    OperationFlags,
    SchedulingFlags,
)
from sglang.srt.flags.help import Formatter, asked_for_help, show_help
from sglang.srt.flags.names import OtherFlags, keep_others, option, takes_other_names
from sglang.srt.flags.nodes import node_options
from sglang.srt.flags.parser import FlagParser, add_fields
from sglang.srt.flags.sources import FlagReader
from sglang.srt.flags.tiers import disk_cache, host_cache
from sglang.srt.flags.values import (
    is_text,
    parse_folder,
    parse_hosts,
    parse_key,
    parse_keys,
    parse_object,
    parse_origins,
    parse_root_path,
    parse_size,
    read_keys,
    read_private,
    split_names,
)
from sglang.srt.server.tokenization.named_templates import named_template

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Group = TypeVar("Group", bound="DataclassInstance")

logger = logging.getLogger("sglang")

LARGEST = 1 << 40
"""where a flag has no limit of its own: a terabyte, or thousands of years"""
GRAPH_MAX_REQS = 256
CHUNK, CUDA_CHUNK = 512, 8192
LARGEST_CHUNK = 1 << 20
CUDA_RUNNING = 256


@takes_other_names
@dataclass
class ServerArgs(
    OtherFlags,
    OperationFlags,
    HttpFlags,
    AdapterFlags,
    MediaFlags,
    ConstrainedFlags,
    SchedulingFlags,
    DeviceAndMemoryFlags,
    ClusterFlags,
    BatchFlags,
    ModelFlags,
):
    """Flags of the server and keyword arguments of the Engine. None means: decided from the model and the machine. The names of
    flags/compatible.py are keyword arguments, too; the constructor raises ConfigError for those that are refused."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("is_size") and isinstance(value, str):
                try:
                    setattr(self, f.name, parse_size(value))
                except argparse.ArgumentTypeError as error:
                    raise ConfigError(f"{option(f.name)}: {error}") from None

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        """Adds every flag to a program's own parser."""
        add_fields(parser, ServerArgs)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> ServerArgs:
        """The flags among what such a parser has read."""
        names = {f.name for f in dataclasses.fields(cls)} | ALIASES.keys() | FLAGS.keys()
        return cls(**{name: value for name, value in vars(args).items() if name in names})

    def url(self) -> str:
        """The server's address for a client on this machine: http(s)://HOST:PORT, or unix:PATH."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.ssl_certfile is not None else "http"
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    def resolve(self) -> RuntimeConfig:
        """Checks the flags against each other and groups them. Raises ConfigError with one sentence."""
        self._check()
        on_cuda = self._runs_on_cuda()
        model_path = with_gguf_file(self.model_path, self.gguf_file)
        seed = self.random_seed if self.random_seed is not None else random.SystemRandom().randrange(2**31)
        return RuntimeConfig(
            model=self._model_options(model_path, seed, on_cuda),
            text=group_of(self, TextOptions, tokenizer_path=self.tokenizer_path or model_path),
            device=self._device_options(on_cuda),
            memory=self._memory_options(on_cuda),
            schedule=self._schedule_options(seed, on_cuda),
            grammar=group_of(
                self,
                GrammarOptions,
                backend=self.grammar_backend,
                whitespace_pattern=self.constrained_json_whitespace_pattern,
                bounded=not self.disable_json_bounds,
                compile_timeout=self.grammar_compile_timeout,
                cache_bytes=self.grammar_cache_bytes,
                jump_forward=not self.disable_jump_forward,
            ),
            http=self._http_options(seed),
            media=self._media_options(),
            adapters=self._adapter_options(),
            disk_cache=disk_cache(self, on_cuda),
            host_cache=host_cache(self, on_cuda or self.kernels == "cuda"),
            draft=self._draft_options(seed),
            nodes=node_options(self, self),
            batches=self.batch_options(),
            flags=self.public(seed),
        )

    def _model_options(self, model_path: str, seed: int, on_cuda: bool) -> ModelOptions:
        is_stored = self.quantization in STORED_QUANTIZATIONS
        return group_of(
            self,
            ModelOptions,
            model_path=model_path,
            dtype={"float": "float32", "half": "float16"}.get(self.dtype, self.dtype),
            quantization=None if is_stored else self.quantization,
            stored_quantization=self.quantization if is_stored else None,
            json_model_override_args=parse_object(self.named("json_model_override_args"), self.json_model_override_args),
            random_seed=seed,
            weights_cache=weights_cache(
                self.named("weights_cache"), self.weights_cache, self.cache_dir, self.cache_disk, on_cuda, self.replicas > 1
            ),
        )

    def _device_options(self, on_cuda: bool) -> DeviceOptions:
        return group_of(
            self,
            DeviceOptions,
            device="cuda" if on_cuda else "cpu",
            use_tape=not self.disable_op_tape,
            num_nodes=self.nnodes,
            deterministic=self.enable_deterministic_inference,
            graph_max_reqs=0 if self.disable_cuda_graph else self.cuda_graph_max_bs or GRAPH_MAX_REQS,
        )

    def _memory_options(self, on_cuda: bool) -> MemoryOptions:
        return group_of(
            self,
            MemoryOptions,
            max_running_requests=self.max_running_requests or (CUDA_RUNNING if on_cuda else None),
            chunked_prefill_size=self._chunk(on_cuda),
            reserved_bytes=self.reserve_memory,
            copies=1 if on_cuda else self.replicas,
        )

    def _schedule_options(self, seed: int, on_cuda: bool) -> ScheduleOptions:
        return group_of(
            self,
            ScheduleOptions,
            chunked_prefill_size=self._chunk(on_cuda),
            random_seed=seed,
            speculation=self.speculative_algorithm == "NGRAM" or (self.speculative_algorithm != "none" and not on_cuda),
            overlap=not self.disable_overlap_schedule,
        )

    def _chunk(self, on_cuda: bool) -> int:
        return self.chunked_prefill_size or (CUDA_CHUNK if on_cuda else CHUNK)

    def _http_options(self, seed: int) -> HttpOptions:
        return group_of(
            self,
            HttpOptions,
            root_path=parse_root_path(self.root_path),
            ssl_keyfile_password=self._tls_password(),
            served_model_name=self.served_model_name or self.model_path,
            api_keys=self._api_keys(),
            admin_api_key=self._admin_api_key(),
            random_seed=seed,
            preferred_sampling_params=parse_object(self.named("preferred_sampling_params"), self.preferred_sampling_params),
            sampling_defaults=SamplingDefaults() if self.sampling_defaults == "openai" else None,
            cors_origins=parse_origins(self.cors_origins),
            allowed_hosts=parse_hosts(self.allowed_hosts),
            page=not self.no_page,
            state_dir=self._state_dir(),
            cache_per_key=self.cache_per_key or (self.cache_dir is not None and not self.cache_shared),
            gateway_token=self._gateway_token(),
        )

    def _media_options(self) -> MediaOptions:
        return group_of(
            self,
            MediaOptions,
            allowed_domains=tuple(name.lower().rstrip(".") for name in split_names(self.allowed_media_domains)),
            allow_private=self.allow_private_media,
            root=self.media_root,
            timeout=self.media_timeout,
            decode_timeout=self.media_decode_timeout,
            max_bytes=self.max_media_bytes,
            max_pixels=self.max_image_pixels,
            max_items=self.max_media_items,
            max_frames=self.max_video_frames,
        )

    def _gateway_token(self) -> str | None:
        path = self.gateway_token_file
        return read_private("--gateway-token-file", path) if path is not None else None

    def _adapter_options(self) -> AdapterOptions | None:
        if not self.enable_lora and self.lora_paths is None and self.lora_root is None:
            return None
        flag, root = self.named("lora_paths"), self.lora_root
        adapters = parse_adapters(flag, self.lora_paths, frozenset({self.served_model_name or self.model_path, "default"}))
        if root is not None and not os.path.isdir(root):
            raise ConfigError(f"{self.named('lora_root')} {root} is not a folder")
        if len(adapters) > self.max_loaded_loras:
            raise ConfigError(f"{flag} names {len(adapters)} adapters, and --max-loaded-loras is {self.max_loaded_loras}")
        if sum(adapter.pinned for adapter in adapters) >= self.max_loras_per_batch:
            raise ConfigError(f"{flag}: at most {self.max_loras_per_batch - 1} may be pinned (--max-loras-per-batch less one)")
        return AdapterOptions(adapters, self.max_loras_per_batch, self.max_loaded_loras, self.max_lora_rank, root)

    def _draft_options(self, seed: int) -> DraftOptions | None:
        flag, algorithm = self.named("speculative_draft_model_path"), self.speculative_algorithm
        path = self.speculative_draft_model_path
        if path is None:
            for name in ("speculative_draft_model_revision", "speculative_draft_model_quantization"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{self.named(name)} says something of {flag}, which is not given")
            if self.speculative_num_steps is not None:
                logger.warning("%s has no effect without %s", self.named("speculative_num_steps"), flag)
            if algorithm == "STANDALONE":
                raise ConfigError(
                    f"{self.named('speculative_algorithm')} STANDALONE needs {flag}, a model with the same vocabulary"
                )
            return None
        if algorithm not in ("auto", "STANDALONE"):
            raise ConfigError(
                f"{self.named('speculative_algorithm')} {algorithm} and {flag} contradict each other: leave one out"
            )
        refused = {
            "tp_size": (self.tp_size > 1, "a model that several processes share has no draft model yet"),
            "is_embedding": (self.is_embedding, "a model that embeds drafts nothing"),
        }
        for name, (is_given, why) in refused.items():
            if is_given:
                raise ConfigError(f"{flag} does not go together with {self.named(name)}: {why}")
        model = ModelOptions(
            model_path=path,
            revision=self.speculative_draft_model_revision,
            dtype={"float": "float32", "half": "float16"}.get(self.dtype, self.dtype),  # type: ignore[arg-type]
            quantization=self.speculative_draft_model_quantization,  # type: ignore[arg-type]
            download_dir=self.download_dir,
            mmproj="off",
            random_seed=seed,
        )
        return DraftOptions(model, self.speculative_num_steps or DraftOptions.num_steps)

    def _state_dir(self) -> str | None:
        return parse_folder(self.named("state_dir"), self.state_dir) if self.state_dir is not None else None

    def batch_options(self) -> BatchOptions | None:
        """Behind a gateway, which has its own, only where they are asked for by name."""
        folder = parse_folder(self.named("batch_dir"), self.batch_dir) if self.batch_dir is not None else None
        state = self._state_dir()
        if folder is None and (state is None or self.behind_gateway):
            return None
        folder = folder or os.path.join(str(state), "batches")
        sizes = (self.batch_disk, self.max_batch_file_bytes, self.max_batch_requests, self.batch_window)
        return BatchOptions(folder, *sizes)

    def _tls_password(self) -> str | None:
        path, flag = self.ssl_keyfile_password_file, self.named("ssl_keyfile_password_file")
        if path is None:
            return self.ssl_keyfile_password
        if self.ssl_keyfile_password is not None:
            raise ConfigError(f"{flag} and {self.named('ssl_keyfile_password')} are both given: leave one out")
        return read_private(flag, path).rstrip("\r\n")

    def _runs_on_cuda(self) -> bool:
        """--device auto takes a GPU where there is one and what its kernels need."""
        if self.device != "auto":
            return self.device == "cuda"
        return self.kernels == "cuda" or (self.kernels == "auto" and cuda_is_here())

    def public(self, seed: int) -> dict[str, Any]:
        """The flags as shown to clients: secrets are hidden."""
        return dataclasses.asdict(self.without_secrets()) | {"random_seed": seed}

    def given(self) -> str:
        """The model and the flags that differ from their defaults, as a log may show them."""
        shown = self.without_secrets()
        values = {f.name: (getattr(shown, f.name), f.default) for f in dataclasses.fields(shown)}
        kept = [f"{name}={value!r}" for name, (value, usual) in values.items() if value != usual or name == "model_path"]
        return f"ServerArgs({', '.join(sorted(kept, key=lambda text: not text.startswith('model_path=')))})"

    def without_secrets(self) -> ServerArgs:
        """The flags as a log may show them."""
        hidden: dict[str, Any] = {name: "***" for name, value in self.secrets().items() if value}
        return dataclasses.replace(self, **hidden)

    def secrets(self) -> dict[str, str | None]:
        """The fields with secrets, which are never shown."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("secret")}

    def _api_keys(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                (*parse_keys(self.named("api_key"), self.api_key), *read_keys(self.named("api_key_file"), self.api_key_file))
            )
        )

    def _admin_api_key(self) -> str | None:
        flag = self.named("admin_api_key_file")
        keys = read_keys(flag, self.admin_api_key_file)
        if len(keys) > 1:
            raise ConfigError(f"{flag} {self.admin_api_key_file} holds {len(keys)} keys: there is one admin key")
        if keys and self.admin_api_key is not None:
            raise ConfigError(f"{flag} and {self.named('admin_api_key')} are both given: leave one out")
        return keys[0] if keys else parse_key(self.named("admin_api_key"), self.admin_api_key)

    def _check(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            given = value != f.default
            if isinstance(value, str) and not is_text(value):
                raise ConfigError(f"{self.named(f.name)} holds bytes that are not valid UTF-8")
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{self.named(f.name)} must be one of {', '.join(map(str, choices))}, got {value!r}")
            if f.metadata.get("no_effect") and given:
                logger.warning("%s has no effect here: %s", option(f.name), f.metadata["help"])
        for name in ("cuda_graph_max_bs", "disable_cuda_graph"):
            if self.device == "cpu" and getattr(self, name):
                logger.warning("%s has no effect on a CPU", option(name))
        for f in dataclasses.fields(self):
            if "least" in f.metadata:
                self._check_range(f.name, f.metadata["least"], f.metadata.get("most"))
        for name in ("host", "port"):
            if self.uds is not None and not self.behind_gateway and getattr(self, name) != getattr(type(self), name):
                logger.warning("%s has no effect beside --uds", self.named(name))
        if self.chat_template is not None:
            named_template(self.chat_template)
        if self.media_root is not None and not os.path.isdir(self.media_root):
            raise ConfigError(f"{self.named('media_root')} {self.media_root} is not a folder")
        chunk = self.chunked_prefill_size
        if chunk is not None and chunk != -1 and not 1 <= chunk <= LARGEST_CHUNK:
            allowed = f"between 1 and {LARGEST_CHUNK}, or -1 for no chunking"
            raise ConfigError(f"{self.named('chunked_prefill_size')} must be {allowed}, got {shown(chunk)}")

    def _check_range(self, name: str, low: float, high: float | None) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= (LARGEST if high is None else high):  # so that NaN is refused too
            span = f"between {low} and {high}" if high is not None or value > low else f"at least {low}"
            raise ConfigError(f"{self.named(name)} must be {span.replace('None', str(LARGEST))}, got {shown(value)}")


def group_of(flags: ServerArgs, group: type[Group], **others: Any) -> Group:
    """One of config.py's groups: its fields are `others`, else the flags of the same names, else they keep their defaults."""
    same = {f.name for f in dataclasses.fields(flags)} & {f.name for f in dataclasses.fields(group)} - others.keys()
    return group(**others, **{name: getattr(flags, name) for name in same})


def read_lines(lines: list[Given], prog: str) -> tuple[ServerArgs, frozenset[str]]:
    """Flags that stand in a part of some file, and the fields that are named there. Exits with status 2 and one line for a bad one."""
    flags = FlagReader(_parser(prog), ServerArgs).read_lines(lines)
    args = ServerArgs(**flags.known)
    keep_others(args, flags.others, flags.origins)
    return args, frozenset(flags.known)


def _parser(prog: str) -> FlagParser:
    parser = FlagParser(
        prog=prog,
        usage=f"{prog} [MODEL] [FLAG ...]",
        description="Serve a model over HTTP, to clients of OpenAI's and Anthropic's APIs and to programs of this package.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=Formatter,
    )
    add_fields(parser, ServerArgs)
    return parser


def parse_server_args(argv: list[str], prog: str) -> ServerArgs:
    """Flags of a command line, of the environment and of the file of --config. Exits with status 2 and one line for a bad one."""
    parser = _parser(prog)
    topic = asked_for_help(argv)
    if topic is not None:
        show_help(parser, topic)
    flags = FlagReader(parser, ServerArgs).read(argv, os.environ)
    args = ServerArgs(**flags.known)
    keep_others(args, flags.others, flags.origins)
    if args.log_format == "json":
        args._notes = flags.notes
    for note in flags.notes if args.log_format == "text" else ():
        print(f"{prog}: warning: {note}", file=sys.stderr)
    return args


def prepare_server_args(argv: list[str]) -> ServerArgs:
    """`parse_server_args` by the name that programs of the original call."""
    return parse_server_args(argv, "sglang")
