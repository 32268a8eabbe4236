"""The fields of ServerArgs, one class for each heading of --help. A field has a default and a help text, and may have `choices`, a
range (`least`, `most`), or `no_effect` if it is accepted and ignored.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from sglang.srt.config import DEFAULT_MODEL, STORED_QUANTIZATIONS, GrammarEngineName, SchedulePolicy

LEVELS = ("debug", "info", "warning", "error", "critical")


def _flag(group: str, default: Any, text: str, **extra: Any) -> Any:
    """`several`: values between commas may also be given as their own words. `is_size`: bytes, also as 64MiB. `secret`: never
    shown, and no child process sees it."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text, **extra})


def _flags_of(group: str) -> Callable[..., Any]:
    return partial(_flag, group)


_model = _flags_of("model")


@dataclass
class ModelFlags:
    """Which model, and how its files are read."""

    model_path: str = _model(DEFAULT_MODEL, "an alias, a local folder, a .gguf file or a hub id")
    tokenizer_path: str | None = _model(None, "folder, file or hub id of the tokenizer; default: the model's")
    tokenizer_mode: str = _model("auto", "tokenizer implementation", choices=("auto",))
    skip_tokenizer_init: bool = _model(False, "load no tokenizer: requests and replies have token ids only")
    load_format: str = _model("auto", "format of the weights", choices=("auto", "safetensors", "gguf", "dummy"))
    model_impl: str = _model(
        "auto",
        "who computes the model: sglang (this program's own classes), or transformers, for decoders that have no class here "
        "(extra [transformers]; slower, and answers may depend on the batch); auto: transformers only where there is no class",
        choices=("auto", "sglang", "transformers"),
    )
    trust_remote_code: bool = _model(False, "accepted; no code of a model repository is ever run", no_effect=True)
    dtype: str = _model("auto", "data type of the weights", choices=("auto", "float32", "float", "bfloat16", "float16", "half"))
    quantization: str | None = _model(
        None,
        "int8, int4: quantize the weights when they are loaded; the others: what the checkpoint must be, else the start fails",
        choices=("int8", "int4", *STORED_QUANTIZATIONS),
    )
    kv_cache_dtype: str = _model(
        "auto",
        "data type of the KV cache; int8 (CPU) and fp8_e4m3 take half the memory, the other types but auto are for CUDA",
        choices=("auto", "float32", "float16", "bfloat16", "int8", "fp8_e4m3"),
    )
    context_length: int | None = _model(None, "maximum sequence length in tokens; default: the model's", least=1)
    revision: str | None = _model(None, "revision on the Hugging Face hub: a branch, tag or commit")
    gguf_file: str | None = _model(None, "the .gguf file of the model's folder or repository")
    mm_quantization: str | None = _model(
        None,
        "int8: quantize the encoder of images when it is loaded, several times as fast; none: leave it as it is; "
        "default: as --quantization says",
        choices=("int8", "none"),
    )
    mmproj: str | None = _model(
        None, "the .gguf file of a model's image encoder, or off; default: the one that lies beside the model's .gguf file"
    )
    download_dir: str | None = _model(None, "folder for downloaded models")
    served_model_name: str | None = _model(None, "id in /v1/models; default: the model path")
    chat_template: str | None = _model(
        None, "a built-in template's name, a Jinja file or a JSON file; default: the model's own"
    )
    json_model_override_args: str = _model("{}", "JSON merged into the model's config")
    is_embedding: bool = _model(False, "serve embeddings; encoders always do")
    enable_multimodal: bool = _model(False, "vision-language models always do", no_effect=True)
    random_seed: int | None = _model(None, "sampling seed of requests without their own seed", least=0, most=2**63 - 1)


_cluster = _flags_of("several models")


@dataclass
class ClusterFlags:
    """Several models behind one port, each in a process of its own."""

    models: str | None = _cluster(
        None, "YAML file of models to serve, with a line for each: its name and its path, or its flags; see scale-out.md"
    )
    max_loaded: int | None = _cluster(
        None, "models in memory at the same time; the one not used for longest is unloaded; default: what fits", least=1
    )
    keep_alive: float | None = _cluster(
        None, "seconds without a request after which a model is unloaded; default: as long as there is room", least=0.0
    )


_batches = _flags_of("batches")


@dataclass
class BatchFlags:
    """Files and batches of OpenAI's API, which run while there are no other requests."""

    batch_dir: str | None = _batches(
        None, "folder for files and batches; without it and --state-dir, /v1/files and /v1/batches are refused"
    )
    state_dir: str | None = _batches(
        None, "folder where stored responses survive the server, and files and batches unless --batch-dir says where"
    )
    batch_disk: int = _batches(8 << 30, "maximum size of all files together", least=1 << 20, is_size=True)
    max_batch_file_bytes: int = _batches(200 << 20, "maximum size of an uploaded file", least=1, is_size=True)
    max_batch_requests: int = _batches(50_000, "maximum number of requests in a batch", least=1, most=1_000_000)
    batch_window: int = _batches(64, "requests of batches that are in the scheduler at the same time", least=1, most=4096)


_device = _flags_of("device and memory")


@dataclass
class DeviceAndMemoryFlags:
    """Where it runs, and how much of the machine it may take."""

    device: str = _device("auto", "device to run on", choices=("auto", "cpu", "cuda"))
    kernels: str = _device("auto", "kernel implementation", choices=("auto", "cpu", "reference", "cuda"))
    threads: int | None = _device(None, "CPU threads; default: physical cores", least=1, most=1024)
    disable_op_tape: bool = _device(False, "call kernels one by one instead of replaying the op tape (for debugging)")
    mem_fraction_static: float | None = _device(None, "fraction of memory for weights and KV pool", least=0.01, most=0.98)
    max_total_tokens: int | None = _device(None, "size of the KV pool in tokens", least=1)
    state_memory: int | None = _device(
        None,
        "memory for the states of models with recurrent layers (states.md); default: an eighth of what is free, at most 4 GB",
        least=1,
        is_size=True,
    )
    max_running_requests: int | None = _device(None, "maximum number of running requests", least=1, most=4096)
    replicas: int = _device(
        1,
        "schedulers of the model that share its requests, each with its share of the cores, or CUDA devices of its own; "
        "with --ray: servers",
        least=1,
        most=64,
    )
    ray: str | None = _device(None, "run the replicas on Ray: auto, or the address of a cluster, such as 10.0.0.1:6379")
    max_replicas: int | None = _device(
        None, "with --ray: as many as the load asks for, between --replicas and this", least=1, most=1024
    )
    target_requests: float = _device(8.0, "with --max-replicas: running requests that a replica is to have", least=0.1)
    replica_idle: float = _device(
        600.0, "with --max-replicas: seconds for which a replica is not needed, until it is removed", least=0.0, most=1e6
    )
    replica_cpus: float = _device(1.0, "with --ray: CPUs that Ray sets aside for a replica", least=0.0)
    replica_wait: float = _device(60.0, "with --ray: seconds that a request waits when no replica is alive", least=0.0)
    reserve_memory: int = _device(0, "memory to leave to other programs, besides what they use already", least=0, is_size=True)
    tp_size: int = _device(1, "tensor parallelism: processes that share the model, each on a CUDA device", least=1, most=64)
    nnodes: int = _device(1, "machines that share the model, each with as many of the --tp-size ranks", least=1, most=64)
    node_rank: int = _device(0, "with --nnodes: which of them this is; node 0 serves, the others compute", least=0, most=63)
    dist_init_addr: str | None = _device(None, "with --nnodes: HOST:PORT of node 0, the same on all nodes")
    dist_token_file: str | None = _device(None, "with --nnodes: a file with a secret, the same on all nodes")
    dist_timeout: float = _device(300.0, "with --nnodes: seconds that nodes wait for each other", least=1.0, most=86400.0)
    enable_deterministic_inference: bool = _device(
        False,
        "batch-invariant results on CUDA, by kernels that reduce in a fixed order; on a CPU they always are",
    )
    attention_backend: str | None = _device(None, "chosen with the kernels", no_effect=True)
    sampling_backend: str | None = _device(None, "chosen with the kernels", no_effect=True)
    mm_attention_backend: str | None = _device(None, "chosen with the kernels", no_effect=True)
    cuda_graph_max_bs: int | None = _device(
        None, "largest batch size at which decode steps are replayed from CUDA graphs (default: 256)", least=1, most=4096
    )
    disable_cuda_graph: bool = _device(False, "no CUDA graphs: launch the kernels of a decode step one by one")
    disable_overlap_schedule: bool = _device(
        False, "no overlap scheduling: begin a step only when the last one's tokens are known"
    )


_schedule = _flags_of("scheduling")


@dataclass
class SchedulingFlags:
    """Which requests run next."""

    schedule_policy: str = _schedule("lpm", "order of the waiting queue", choices=get_args(SchedulePolicy))
    schedule_conservativeness: float = _schedule(1.0, "larger admits fewer requests at once", least=0.0, most=100.0)
    chunked_prefill_size: int | None = _schedule(
        None, "maximum prompt tokens in a step; -1: no chunked prefill (default: 512, on CUDA 8192)"
    )
    max_prefill_tokens: int = _schedule(16384, "maximum prompt tokens in a step without chunked prefill", least=1)
    enable_mixed_chunk: bool = _schedule(False, "prefill and decode always share steps here", no_effect=True)
    page_size: int = _schedule(1, "tokens in a page, the granularity at which the prefix cache matches", least=1, most=4096)
    disable_radix_cache: bool = _schedule(False, "no prefix cache (radix tree)")
    cache_dir: str | None = _schedule(
        None, "folder where the prefix cache survives restarts; prompts can be read from it; default: none"
    )
    cache_disk: int | None = _schedule(
        None,
        "maximum size of --cache-dir and --weights-cache; default: 10 % of the free disk, at most 32 GiB; 5 GiB of the disk always stay free",
        least=1 << 20,
        is_size=True,
    )
    weights_cache: str | None = _schedule(
        None,
        "folder where weights are kept as the kernels need them, so that the next start need not pack them, or off; default: that "
        "of --cache-dir, else the user's cache",
    )
    enable_hierarchical_cache: bool = _schedule(
        False, "keep prefixes that a GPU's pool has no room for in host memory, and read them back when they are asked for"
    )
    hicache_ratio: float = _schedule(
        2.0, "size of the prefix cache in host memory, in tokens, over that of the KV pool", least=0.01, most=1000
    )
    hicache_size: int = _schedule(
        0, "size of the prefix cache in host memory in GiB; 0: by --hicache-ratio", least=0, most=1 << 20
    )
    hicache_write_policy: str = _schedule(
        "write_through_selective",
        "when a prefix is copied to host memory: write_through: as soon as its request ends; write_through_selective: when another "
        "request finds it; write_back: when the pool drops it",
        choices=("write_through", "write_through_selective", "write_back"),
    )
    cache_shared: bool = _schedule(
        False, "API keys share the prefixes in --cache-dir; otherwise each has its own, as with --cache-per-key"
    )
    max_queued_requests: int = _schedule(
        10000, "maximum length of the waiting queue; requests beyond it get status 503", least=1
    )
    speculative_algorithm: str = _schedule(
        "auto",
        "speculative decoding; answers stay the same. NGRAM: drafts from text that repeats itself, from what other requests said "
        "lately and from earlier answers in the prefix cache; STANDALONE: from a draft model as well (default: STANDALONE with a draft model, else NGRAM, on CUDA none)",
        choices=("auto", "NGRAM", "STANDALONE", "none"),
    )
    speculative_draft_model_path: str | None = _schedule(
        None, "draft model: a small model with the same vocabulary; an alias, a local folder, a .gguf file or a hub id"
    )
    speculative_draft_model_revision: str | None = _schedule(None, "revision of the draft model on the Hugging Face hub")
    speculative_draft_model_quantization: str | None = _schedule(
        None, "quantize the weights of the draft model when they are loaded", choices=("int8", "int4")
    )
    speculative_num_steps: int | None = _schedule(
        None,
        "maximum number of tokens that the draft model drafts at once; fewer where that is quicker (default: 8)",
        least=1,
        most=24,
    )
    test_retract_every: int = _schedule(0, argparse.SUPPRESS, least=0)


_grammar = _flags_of("constrained decoding")


@dataclass
class ConstrainedFlags:
    """Answers that follow a JSON schema, a regular expression or a grammar."""

    grammar_backend: str = _grammar("llguidance", "grammar engine", choices=get_args(GrammarEngineName))
    constrained_json_whitespace_pattern: str | None = _grammar(
        None,
        "regex of white space between the parts of JSON; empty: none (default: a blank, or a line break and indentation)",
    )
    disable_jump_forward: bool = _grammar(
        False, "no jump-forward: sample tokens one by one, also where the constraint allows just one"
    )
    disable_json_bounds: bool = _grammar(False, "numbers, formats and nesting without bounds, where the schema sets none")
    grammar_compile_timeout: float = _grammar(10.0, "seconds a constraint may take to compile", least=0.01)
    grammar_cache_bytes: int = _grammar(
        256 << 20, "maximum size of compiled constraints, cached or in use", least=1 << 20, is_size=True
    )


_media = _flags_of("images and videos")


@dataclass
class MediaFlags:
    """Images and videos in requests."""

    allowed_media_domains: str | None = _media(None, "hosts to fetch from, separated by commas; default: any", several=True)
    allow_private_media: bool = _media(False, "fetch from private and loopback addresses too")
    media_root: str | None = _media(None, "folder below which file:// URLs are read; default: none are")
    media_timeout: float = _media(20.0, "seconds that fetching one may take", least=0.01)
    media_decode_timeout: float = _media(
        10.0, "seconds of processor time that decoding one may take; three times as many in all", least=0.01
    )
    max_media_bytes: int = _media(
        64 << 20, "maximum size of all images and videos of a request together", least=1, is_size=True
    )
    max_media_pixels: int = _media(128 << 20, "maximum pixels of all images and frames of a request together", least=1)
    max_image_pixels: int = _media(64 << 20, "maximum pixels of an image or frame", least=1)
    max_media_items: int = _media(64, "maximum number of images and videos in a request", least=1)
    max_video_frames: int = _media(768, "maximum number of frames of a video", least=1)
    max_image_tokens: int | None = _media(
        None, "maximum tokens of an image; 0: as its publisher sets them; default: the model family's, see vision.md", least=0
    )


_adapters = _flags_of("adapters")


@dataclass
class AdapterFlags:
    """LoRA adapters, which requests name."""

    enable_lora: bool = _adapters(False, "serve LoRA adapters, also if none is loaded at start")
    lora_paths: str | None = _adapters(
        None,
        "adapters to load at start: NAME=PATH, a path or hub id alone, or JSON with lora_name, lora_path, pinned",
        several=True,
    )
    lora_root: str | None = _adapters(
        None, "folder below which adapters may be loaded while the server runs; default: none are"
    )
    max_loras_per_batch: int = _adapters(8, "adapters that the requests of one step may have", least=1, most=256)
    max_loaded_loras: int = _adapters(64, "maximum number of loaded adapters", least=1, most=4096)
    max_lora_rank: int | None = _adapters(
        None, "largest rank; default: that of --lora-paths, and 64 where others may come", least=1, most=4096
    )
    lora_eviction_policy: str = _adapters(
        "lru", "which adapter makes room where the requests have more than a step may", choices=("lru", "fifo")
    )


_http = _flags_of("HTTP")


@dataclass
class HttpFlags:
    """Address, authentication and limits."""

    host: str = _http("127.0.0.1", "address to listen on")
    port: int = _http(30000, "port to listen on", least=1, most=65535)
    uds: str | None = _http(
        None, "path of a unix socket to listen on, instead of --host and --port; only its owner may connect"
    )
    root_path: str = _http("", "path below which a proxy shows this server, such as /llm")
    ssl_certfile: str | None = _http(None, "certificate (PEM, with its chain): the server speaks HTTPS")
    ssl_keyfile: str | None = _http(None, "private key of the certificate (PEM); default: it is in --ssl-certfile")
    ssl_keyfile_password: str | None = _http(None, "password of the private key; better in a file", secret=True)
    ssl_keyfile_password_file: str | None = _http(None, "file with the password of the private key")
    api_key: str | None = _http(
        None,
        "API keys (Bearer tokens), separated by commas; better in a file or in SGLANG_API_KEY; default: no authentication",
        several=True,
        secret=True,
    )
    api_key_file: str | None = _http(None, "file with API keys, one a line, besides those of --api-key")
    admin_api_key: str | None = _http(None, "API key for flush, pause and abort; default: the same as --api-key", secret=True)
    admin_api_key_file: str | None = _http(None, "file with the key of --admin-api-key")
    preferred_sampling_params: str = _http("{}", "JSON of default sampling parameters, on all routes")
    sampling_defaults: str = _http(
        "model",
        "sampling defaults of chats and completions: the model's, from its files or alias, or OpenAI's (temperature 1)",
        choices=("model", "openai"),
    )
    allow_auto_truncate: bool = _http(False, "cut prompts that are too long instead of refusing them")
    stream_interval: int = _http(1, "tokens between the chunks of a stream", least=1)
    stream_output: bool = _http(False, "chunks of /generate have only new text, instead of all text so far")
    enable_cache_report: bool = _http(True, "cached tokens are always reported in usage", no_effect=True)
    reasoning_parser: str | None = _http(
        None, "separate reasoning from the answer: deepseek-r1, qwen3, generic, ... or BEGIN,END"
    )
    tool_call_parser: str | None = _http(None, "format of tool calls; default: by the chat template")
    cors_origins: str | None = _http(
        None, "origins of web pages that may send requests (CORS), separated by commas", several=True
    )
    allowed_hosts: str | None = _http(
        None, "values of the Host header to accept, separated by commas; .example.com: its subdomains; *: any", several=True
    )
    no_page: bool = _http(False, "do not serve the web page at /")
    cache_per_key: bool = _http(
        False, "a separate prefix cache for each API key, so that timing tells nothing about other keys' prompts"
    )
    allow_priority: bool = _http(False, "compare priorities between API keys as well, not only among the requests of one key")
    max_body_bytes: int = _http(64 << 20, "maximum size of a request body", least=1, is_size=True)
    max_connections: int = _http(
        4096, "maximum number of connections; beyond it, idle ones are closed, then new ones get status 503", least=1
    )
    max_logprob_values: int = _http(1 << 19, "maximum number of log probabilities in a request", least=1)
    max_sessions: int = _http(1024, "maximum number of sessions (/open_session); 0: none", least=0)
    max_session_tokens: int = _http(4 << 20, "maximum tokens of all sessions together", least=1)
    session_timeout: float = _http(3600.0, "seconds without a request after which a session is closed", least=0.001)
    request_timeout: float | None = _http(
        None, "seconds after which a request ends with status 504; default: no limit", least=0.001
    )


_operation = _flags_of("operation")


@dataclass
class OperationFlags:
    """Watching and stopping the server."""

    skip_server_warmup: bool = _operation(False, "do not send a first request at start")
    watchdog_timeout: float = _operation(
        300.0, "seconds without a message from the scheduler after which it is restarted", least=1.0
    )
    drain_seconds: float = _operation(5.0, "how long running requests may go on after SIGTERM or Ctrl-C", least=0.0)
    stop_with_stdin: bool = _operation(False, "stop when standard input closes (for programs that start a server)")
    behind_gateway: bool = _operation(False, argparse.SUPPRESS)
    listen_fd: int | None = _operation(None, argparse.SUPPRESS)
    gateway_token_file: str | None = _operation(None, argparse.SUPPRESS)
    log_level: str = _operation("info", "log level", choices=LEVELS)
    log_format: str = _operation("text", "lines of text, or one JSON object a line", choices=("text", "json"))
    log_level_http: str | None = _operation(None, "log level of HTTP; default: --log-level", choices=LEVELS)
    log_requests: bool = _operation(False, "log every request")
    log_requests_level: int = _operation(0, "0: sizes, 1: parameters, 2: part of the text, 3: everything", choices=(0, 1, 2, 3))
    enable_metrics: bool = _operation(False, "Prometheus metrics at /metrics")
    otlp_traces_endpoint: str | None = _operation(None, "send OpenTelemetry traces to this OTLP/HTTP address")
    decode_log_interval: int = _operation(40, "decode steps between log lines", least=1)
