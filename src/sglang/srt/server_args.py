"""The flags: one flat dataclass, from which the command line is made (flags/parser.py), and `resolve`, which turns it into config
groups. What the original's command lines say besides is in flags/compatible.py.

Each field carries its help text and its heading. Only launch.py, engine.py and cli.py import this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.config import (
    DeviceOptions,
    GrammarOptions,
    HttpOptions,
    MediaOptions,
    MemoryOptions,
    ModelOptions,
    RuntimeConfig,
    ScheduleOptions,
    TextOptions,
)
from sglang.srt.devices import cuda_is_here
from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, FLAGS
from sglang.srt.flags.names import OtherFlags, keep_others, option, takes_other_names, translate
from sglang.srt.flags.parser import FlagParser, add_fields, check_unknown, spell_out, with_file
from sglang.srt.flags.values import parse_hosts, parse_key, parse_keys, parse_origins, split_names

logger = logging.getLogger("sglang")

LARGEST = 1 << 40
"""where a flag has no limit of its own: a terabyte, or thousands of years"""
GRAPH_MAX_REQS = 256
CHUNK, CUDA_CHUNK = 512, 8192
CUDA_RUNNING = 256
DEFAULT_MODEL = "smollm2-135m-instruct"
LEVELS = ("debug", "info", "warning", "error", "critical")


def _flag(default: Any, group: str, text: str, **extra: Any) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": text, **extra})


@takes_other_names
@dataclass
class ServerArgs(OtherFlags):
    """Flags of the server and keyword arguments of the Engine. None means: decided from the model and the machine. The names of
    flags/compatible.py are keyword arguments, too; the constructor raises ConfigError for those that are refused."""

    # model
    model_path: str = _flag(DEFAULT_MODEL, "model", "an alias, a local folder, a .gguf file or a hub id")
    tokenizer_path: str | None = _flag(None, "model", "folder, file or hub id of the tokenizer; default: the model's")
    tokenizer_mode: str = _flag("auto", "model", "tokenizer implementation", choices=("auto",))
    skip_tokenizer_init: bool = _flag(False, "model", "load no tokenizer: requests and replies have token ids only")
    load_format: str = _flag("auto", "model", "format of the weights", choices=("auto", "safetensors", "gguf", "dummy"))
    trust_remote_code: bool = _flag(False, "model", "accepted; no code of a model repository is ever run", no_effect=True)
    dtype: str = _flag(
        "auto", "model", "data type of the weights", choices=("auto", "float32", "float", "bfloat16", "float16", "half")
    )
    quantization: str | None = _flag(
        None, "model", "quantise the weights when they are loaded", choices=("int8", "int4", "gguf")
    )
    kv_cache_dtype: str = _flag(
        "auto",
        "model",
        "data type of the KV cache; other than auto on CUDA only",
        choices=("auto", "float32", "float16", "bfloat16", "fp8_e4m3"),
    )
    context_length: int | None = _flag(None, "model", "maximum sequence length in tokens; default: the model's")
    revision: str | None = _flag(None, "model", "revision on the Hugging Face hub: a branch, tag or commit")
    download_dir: str | None = _flag(None, "model", "folder for downloaded models")
    served_model_name: str | None = _flag(None, "model", "id in /v1/models; default: the model path")
    chat_template: str | None = _flag(None, "model", "a built-in template's name or a Jinja file; default: the model's own")
    json_model_override_args: str = _flag("{}", "model", "JSON merged into the model's config")
    is_embedding: bool = _flag(False, "model", "serve embeddings; encoders (BERT) always do")
    enable_multimodal: bool = _flag(False, "model", "vision-language models always do", no_effect=True)
    random_seed: int | None = _flag(None, "model", "sampling seed of requests without a seed of their own")
    # device and memory
    device: str = _flag("auto", "device and memory", "device to run on", choices=("auto", "cpu", "cuda"))
    kernels: str = _flag("auto", "device and memory", "kernel implementation", choices=("auto", "cpu", "reference", "cuda"))
    threads: int | None = _flag(None, "device and memory", "CPU threads; default: physical cores")
    disable_op_tape: bool = _flag(
        False, "device and memory", "call kernels one by one instead of replaying the op tape (for debugging)"
    )
    mem_fraction_static: float | None = _flag(None, "device and memory", "fraction of memory for weights and KV pool")
    max_total_tokens: int | None = _flag(None, "device and memory", "size of the KV pool in tokens")
    max_running_requests: int | None = _flag(None, "device and memory", "maximum number of running requests")
    tp_size: int = _flag(1, "device and memory", "tensor parallelism: processes that share the model, each on a CUDA device")
    enable_deterministic_inference: bool = _flag(
        False,
        "device and memory",
        "batch-invariant results on CUDA, by kernels that reduce in a fixed order; on a CPU they always are",
    )
    attention_backend: str | None = _flag(None, "device and memory", "chosen with the kernels", no_effect=True)
    sampling_backend: str | None = _flag(None, "device and memory", "chosen with the kernels", no_effect=True)
    mm_attention_backend: str | None = _flag(None, "device and memory", "chosen with the kernels", no_effect=True)
    cuda_graph_max_bs: int | None = _flag(
        None, "device and memory", "largest batch size at which decode steps are replayed from CUDA graphs (default: 256)"
    )
    disable_cuda_graph: bool = _flag(
        False, "device and memory", "no CUDA graphs: launch the kernels of a decode step one by one"
    )
    disable_overlap_schedule: bool = _flag(
        False, "device and memory", "no overlap scheduling: begin a step only when the last one's tokens are known"
    )
    # scheduling
    schedule_policy: str = _flag(
        "lpm", "scheduling", "order of the waiting queue", choices=("lpm", "fcfs", "dfs-weight", "random")
    )
    schedule_conservativeness: float = _flag(1.0, "scheduling", "larger admits fewer requests at once")
    chunked_prefill_size: int | None = _flag(
        None, "scheduling", "maximum prompt tokens in a step; -1: no chunked prefill (default: 512, on CUDA 8192)"
    )
    max_prefill_tokens: int = _flag(16384, "scheduling", "maximum prompt tokens in a step without chunked prefill")
    enable_mixed_chunk: bool = _flag(False, "scheduling", "prefill and decode always share steps here", no_effect=True)
    page_size: int = _flag(1, "scheduling", "tokens in a page, the granularity at which the prefix cache matches")
    disable_radix_cache: bool = _flag(False, "scheduling", "no prefix cache (radix tree)")
    max_queued_requests: int = _flag(
        10000, "scheduling", "maximum length of the waiting queue; requests beyond it get status 503"
    )
    speculative_algorithm: str = _flag(
        "auto",
        "scheduling",
        "NGRAM: speculative decoding with drafts from text that repeats itself; answers stay the same (default: NGRAM, on "
        "CUDA none)",
        choices=("auto", "NGRAM", "none"),
    )
    test_retract_every: int = _flag(0, "scheduling", argparse.SUPPRESS)
    # constrained decoding
    grammar_backend: str = _flag(
        "llguidance", "constrained decoding", "grammar engine", choices=("llguidance", "xgrammar", "none")
    )
    constrained_json_whitespace_pattern: str | None = _flag(
        None,
        "constrained decoding",
        "regex of white space between the parts of JSON; empty: none (default: a blank, or a line break and indentation)",
    )
    disable_jump_forward: bool = _flag(
        False, "constrained decoding", "no jump-forward: sample tokens one by one, also where the constraint allows just one"
    )
    disable_json_bounds: bool = _flag(
        False, "constrained decoding", "numbers and formats of any length, where the schema sets no bounds"
    )
    grammar_compile_timeout: float = _flag(10.0, "constrained decoding", "seconds a constraint may take to compile")
    grammar_cache_bytes: int = _flag(
        256 << 20, "constrained decoding", "maximum bytes of compiled constraints, cached or in use"
    )
    # images and videos
    allowed_media_domains: str | None = _flag(
        None, "images and videos", "hosts to fetch from, separated by commas; default: any", several=True
    )
    allow_private_media: bool = _flag(False, "images and videos", "fetch from private and loopback addresses too")
    media_root: str | None = _flag(None, "images and videos", "folder below which file:// URLs are read; default: none are")
    media_timeout: float = _flag(20.0, "images and videos", "seconds that fetching one may take")
    media_decode_timeout: float = _flag(
        10.0, "images and videos", "seconds of processor time that decoding one may take; three times as many in all"
    )
    max_media_bytes: int = _flag(64 << 20, "images and videos", "maximum bytes of all images and videos of a request together")
    max_media_pixels: int = _flag(
        128 << 20, "images and videos", "maximum pixels of all images and frames of a request together"
    )
    max_image_pixels: int = _flag(64 << 20, "images and videos", "maximum pixels of an image or frame")
    max_media_items: int = _flag(64, "images and videos", "maximum number of images and videos in a request")
    max_video_frames: int = _flag(768, "images and videos", "maximum number of frames of a video")
    max_image_tokens: int | None = _flag(
        None,
        "images and videos",
        "maximum tokens of an image; 0: as its publisher sets them; default: the model family's, see vision.md",
    )
    # HTTP
    host: str = _flag("127.0.0.1", "HTTP", "address to listen on")
    port: int = _flag(30000, "HTTP", "port to listen on")
    api_key: str | None = _flag(None, "HTTP", "API keys (Bearer tokens), separated by commas; default: no authentication")
    admin_api_key: str | None = _flag(None, "HTTP", "API key for flush, pause and abort; default: the same as --api-key")
    preferred_sampling_params: str = _flag("{}", "HTTP", "JSON of default sampling parameters for /generate")
    allow_auto_truncate: bool = _flag(False, "HTTP", "cut prompts that are too long instead of refusing them")
    stream_interval: int = _flag(1, "HTTP", "tokens between the chunks of a stream")
    stream_output: bool = _flag(False, "HTTP", "chunks of /generate have only new text, instead of all text so far")
    enable_cache_report: bool = _flag(True, "HTTP", "cached tokens are always reported in usage", no_effect=True)
    reasoning_parser: str | None = _flag(
        None, "HTTP", "separate reasoning from the answer: deepseek-r1, qwen3, generic, ... or BEGIN,END"
    )
    tool_call_parser: str | None = _flag(None, "HTTP", "format of tool calls; default: by the chat template")
    cors_origins: str | None = _flag(None, "HTTP", "origins of web pages that may send requests (CORS), separated by commas")
    allowed_hosts: str | None = _flag(
        None, "HTTP", "values of the Host header to accept, separated by commas; .example.com: its subdomains; *: any"
    )
    cache_per_key: bool = _flag(
        False, "HTTP", "a separate prefix cache for each API key, so that timing tells nothing about other keys' prompts"
    )
    allow_priority: bool = _flag(
        False, "HTTP", "compare priorities between API keys as well, not only among the requests of one key"
    )
    max_body_bytes: int = _flag(64 << 20, "HTTP", "maximum bytes of a request body")
    max_connections: int = _flag(
        4096, "HTTP", "maximum number of connections; beyond it, idle ones are closed, then new ones get status 503"
    )
    max_logprob_values: int = _flag(1 << 19, "HTTP", "maximum number of log probabilities in a request")
    max_sessions: int = _flag(1024, "HTTP", "maximum number of sessions (/open_session); 0: none")
    max_session_tokens: int = _flag(4 << 20, "HTTP", "maximum tokens of all sessions together")
    session_timeout: float = _flag(3600.0, "HTTP", "seconds without a request after which a session is closed")
    request_timeout: float | None = _flag(None, "HTTP", "seconds after which a request ends with status 504; default: no limit")
    # operation
    skip_server_warmup: bool = _flag(False, "operation", "do not send a first request at start")
    watchdog_timeout: float = _flag(
        300.0, "operation", "seconds without a message from the scheduler after which it is restarted"
    )
    drain_seconds: float = _flag(5.0, "operation", "how long running requests may go on after SIGTERM or Ctrl-C")
    stop_with_stdin: bool = _flag(False, "operation", "stop when standard input closes (for programs that start a server)")
    log_level: str = _flag("info", "operation", "log level", choices=LEVELS)
    log_level_http: str | None = _flag(None, "operation", "log level of HTTP; default: --log-level", choices=LEVELS)
    log_requests: bool = _flag(False, "operation", "log every request")
    log_requests_level: int = _flag(
        0, "operation", "0: sizes, 1: parameters, 2: part of the text, 3: everything", choices=(0, 1, 2, 3)
    )
    enable_metrics: bool = _flag(False, "operation", "Prometheus metrics at /metrics")
    otlp_traces_endpoint: str | None = _flag(None, "operation", "send OpenTelemetry traces to this OTLP/HTTP address")
    decode_log_interval: int = _flag(40, "operation", "decode steps between log lines")

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
        """Where the server is, for a client on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def resolve(self) -> RuntimeConfig:
        """Checks the flags against each other and groups them. Raises ConfigError with one sentence."""
        self._check()
        on_cuda = self._runs_on_cuda()
        chunk = self.chunked_prefill_size or (CUDA_CHUNK if on_cuda else CHUNK)
        running = self.max_running_requests or (CUDA_RUNNING if on_cuda else None)
        seed = self.random_seed if self.random_seed is not None else random.SystemRandom().randrange(2**31)
        return RuntimeConfig(
            model=ModelOptions(
                model_path=self.model_path,
                revision=self.revision,
                load_format=self.load_format,  # type: ignore[arg-type]
                dtype={"float": "float32", "half": "float16"}.get(self.dtype, self.dtype),  # type: ignore[arg-type]
                quantization=None if self.quantization == "gguf" else self.quantization,  # type: ignore[arg-type]
                context_length=self.context_length,
                download_dir=self.download_dir,
                json_model_override_args=_json_object("json_model_override_args", self.json_model_override_args),
                random_seed=seed,
                is_embedding=self.is_embedding,
            ),
            text=TextOptions(
                tokenizer_path=self.tokenizer_path or self.model_path,
                revision=self.revision,
                download_dir=self.download_dir,
                chat_template=self.chat_template,
                skip_tokenizer_init=self.skip_tokenizer_init,
            ),
            device=DeviceOptions(
                device="cuda" if on_cuda else "cpu",
                kernels=self.kernels,  # type: ignore[arg-type]
                threads=self.threads,
                use_tape=not self.disable_op_tape,
                tp_size=self.tp_size,
                deterministic=self.enable_deterministic_inference,
                kv_cache_dtype=self.kv_cache_dtype,  # type: ignore[arg-type]
                graph_max_reqs=0 if self.disable_cuda_graph else self.cuda_graph_max_bs or GRAPH_MAX_REQS,
            ),
            memory=MemoryOptions(
                mem_fraction_static=self.mem_fraction_static,
                max_total_tokens=self.max_total_tokens,
                max_running_requests=running,
                chunked_prefill_size=chunk,
            ),
            schedule=ScheduleOptions(
                schedule_policy=self.schedule_policy,  # type: ignore[arg-type]
                schedule_conservativeness=self.schedule_conservativeness,
                chunked_prefill_size=chunk,
                max_prefill_tokens=self.max_prefill_tokens,
                page_size=self.page_size,
                disable_radix_cache=self.disable_radix_cache,
                max_queued_requests=self.max_queued_requests,
                decode_log_interval=self.decode_log_interval,
                random_seed=seed,
                watchdog_timeout=self.watchdog_timeout,
                prompt_lookup=self.speculative_algorithm == "NGRAM" or (self.speculative_algorithm == "auto" and not on_cuda),
                overlap=not self.disable_overlap_schedule,
                test_retract_every=self.test_retract_every,
            ),
            grammar=GrammarOptions(
                backend=self.grammar_backend,  # type: ignore[arg-type]
                whitespace_pattern=self.constrained_json_whitespace_pattern,
                bounded=not self.disable_json_bounds,
                compile_timeout=self.grammar_compile_timeout,
                cache_bytes=self.grammar_cache_bytes,
                jump_forward=not self.disable_jump_forward,
            ),
            http=HttpOptions(
                host=self.host,
                port=self.port,
                served_model_name=self.served_model_name or self.model_path,
                api_keys=parse_keys("--api-key", self.api_key),
                admin_api_key=parse_key("--admin-api-key", self.admin_api_key),
                log_level=self.log_level,
                log_level_http=self.log_level_http,
                log_requests=self.log_requests,
                log_requests_level=self.log_requests_level,
                enable_metrics=self.enable_metrics,
                stream_output=self.stream_output,
                stream_interval=self.stream_interval,
                random_seed=seed,
                reasoning_parser=self.reasoning_parser,
                tool_call_parser=self.tool_call_parser,
                preferred_sampling_params=_json_object("preferred_sampling_params", self.preferred_sampling_params),
                allow_auto_truncate=self.allow_auto_truncate,
                max_body_bytes=self.max_body_bytes,
                max_queued_requests=self.max_queued_requests,
                max_connections=self.max_connections,
                max_logprob_values=self.max_logprob_values,
                skip_server_warmup=self.skip_server_warmup,
                cors_origins=parse_origins(self.cors_origins),
                allowed_hosts=parse_hosts(self.allowed_hosts),
                cache_per_key=self.cache_per_key,
                allow_priority=self.allow_priority,
                request_timeout=self.request_timeout,
                drain_seconds=self.drain_seconds,
                stop_with_stdin=self.stop_with_stdin,
                max_sessions=self.max_sessions,
                max_session_tokens=self.max_session_tokens,
                session_timeout=self.session_timeout,
                otlp_traces_endpoint=self.otlp_traces_endpoint,
            ),
            media=MediaOptions(
                allowed_domains=tuple(name.lower().rstrip(".") for name in split_names(self.allowed_media_domains)),
                allow_private=self.allow_private_media,
                root=self.media_root,
                timeout=self.media_timeout,
                decode_timeout=self.media_decode_timeout,
                max_bytes=self.max_media_bytes,
                max_media_pixels=self.max_media_pixels,
                max_pixels=self.max_image_pixels,
                max_items=self.max_media_items,
                max_frames=self.max_video_frames,
                max_image_tokens=self.max_image_tokens,
            ),
            flags=self.public(seed),
        )

    def _runs_on_cuda(self) -> bool:
        """--device auto takes a GPU where there is one and what its kernels need."""
        if self.device != "auto":
            return self.device == "cuda"
        return self.kernels == "cuda" or (self.kernels == "auto" and cuda_is_here())

    def public(self, seed: int) -> dict[str, Any]:
        """The flags as shown to clients: secrets are hidden."""
        values = dataclasses.asdict(self) | {"random_seed": seed}
        for name in ("api_key", "admin_api_key"):
            values[name] = "***" if values[name] else None
        return values

    def _check(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            given = value != f.default
            if isinstance(value, str) and not _is_text(value):
                raise ConfigError(f"{option(f.name)} holds bytes that are not valid UTF-8")
            if choices and value is not None and value not in choices:
                raise ConfigError(f"{option(f.name)} must be one of {', '.join(map(str, choices))}, got {value!r}")
            if f.metadata.get("no_effect") and given:
                logger.warning("%s has no effect here: %s", option(f.name), f.metadata["help"])
        for name in ("cuda_graph_max_bs", "disable_cuda_graph"):
            if self.device == "cpu" and getattr(self, name):
                logger.warning("%s has no effect on a CPU", option(name))
        self._check_range("port", 1, 65535)
        self._check_range("threads", 1, 1024)
        self._check_range("tp_size", 1, 64)
        self._check_range("cuda_graph_max_bs", 1, 4096)
        self._check_range("context_length", 1, None)
        self._check_range("max_total_tokens", 1, None)
        self._check_range("max_running_requests", 1, 4096)
        self._check_range("page_size", 1, 4096)
        self._check_range("max_prefill_tokens", 1, None)
        self._check_range("max_queued_requests", 1, None)
        self._check_range("stream_interval", 1, None)
        self._check_range("decode_log_interval", 1, None)
        self._check_range("mem_fraction_static", 0.01, 0.98)
        self._check_range("schedule_conservativeness", 0.0, 100.0)
        self._check_range("watchdog_timeout", 1.0, None)
        self._check_range("grammar_compile_timeout", 0.01, None)
        self._check_range("grammar_cache_bytes", 1 << 20, None)
        self._check_range("media_timeout", 0.01, None)
        self._check_range("media_decode_timeout", 0.01, None)
        for name in ("max_media_bytes", "max_media_pixels", "max_image_pixels", "max_media_items", "max_video_frames"):
            self._check_range(name, 1, None)
        self._check_range("max_image_tokens", 0, None)
        if self.media_root is not None and not Path(self.media_root).is_dir():
            raise ConfigError(f"--media-root {self.media_root} is not a folder")
        self._check_range("request_timeout", 0.001, None)
        self._check_range("drain_seconds", 0.0, None)
        self._check_range("max_sessions", 0, None)
        self._check_range("max_session_tokens", 1, None)
        self._check_range("session_timeout", 0.001, None)
        self._check_range("max_body_bytes", 1, None)
        self._check_range("random_seed", 0, 2**63 - 1)
        self._check_range("test_retract_every", 0, None)
        self._check_range("max_connections", 1, None)
        self._check_range("max_logprob_values", 1, None)
        if self.chunked_prefill_size not in (None, -1):
            self._check_range("chunked_prefill_size", 1, 1 << 20)

    def _check_range(self, name: str, low: float, high: float | None) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= (LARGEST if high is None else high):  # so that NaN is refused too
            span = f"between {low} and {high}" if high is not None or value > low else f"at least {low}"
            raise ConfigError(f"{option(name)} must be {span.replace('None', str(LARGEST))}, got {shown(value)}")


def _is_text(value: str) -> bool:
    """Whether it can be sent to another process: bytes of a command line that are no UTF-8 arrive as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option(name)} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option(name)} must be a JSON object")
    if not _is_text(json.dumps(value, ensure_ascii=False)):
        raise ConfigError(f"{option(name)} holds half a character (a lone surrogate)")
    return value


def parse_server_args(argv: list[str], prog: str) -> ServerArgs:
    """Flags of a command line. Exits with status 2 and one line for a bad one."""
    parser = FlagParser(
        prog=prog,
        usage=f"{prog} [--model-path MODEL] [FLAG ...]",
        description="Serve a model over HTTP.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
    )
    add_fields(parser, ServerArgs)
    given, unknown = parser.parse_known_args(spell_out(with_file(argv, parser), parser, ServerArgs))
    check_unknown(parser, unknown, ServerArgs)
    try:
        known, notes = translate(vars(given), [f.name for f in dataclasses.fields(ServerArgs)])
    except ConfigError as error:
        parser.error(str(error))
    for note in notes:
        print(f"{prog}: warning: {note}", file=sys.stderr)
    args = ServerArgs(**known)
    keep_others(args, vars(given))
    return args


def prepare_server_args(argv: list[str]) -> ServerArgs:
    """`parse_server_args` by the name that programs of the original call."""
    return parse_server_args(argv, "sglang")
