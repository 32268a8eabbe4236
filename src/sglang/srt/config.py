"""The configuration of the runtime: small frozen groups of options, one per consumer.

`server_args.ServerArgs.resolve()` builds a RuntimeConfig once; below the entry point nobody sees the flat flags or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DEFAULT_MODEL = "smollm2-135m-instruct"
"""the alias that runs where no model is named"""
GrammarEngineName = Literal["llguidance", "xgrammar", "none"]
"""grammar engines; scheduler/grammar/engines/registry.py says who makes each"""
SchedulePolicy = Literal["lpm", "fcfs", "dfs-weight", "random"]
"""orders of the waiting queue; scheduler/admission/waiting.py has a function for each"""
BACKGROUND = -(1 << 40)
"""the priority of a request of a batch, below all that a client can name: scheduler/admission/background.py"""
OF_BATCHES = "\0batches"
"""how the names of their clients begin, in queues; no API key or address does"""
STORED_QUANTIZATIONS = ("gguf", "awq", "gptq", "fp8", "mxfp4", "compressed-tensors")
"""what --quantization may say of a checkpoint that is quantized already"""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are: a folder with config.json, or a GGUF file, perhaps with the encoder of images in another
    (`projector`). `name` is for log messages."""

    kind: Literal["folder", "gguf"]
    path: Path
    name: str
    sampling: dict[str, Any] = field(default_factory=dict)
    """sampling parameters that suit the model, where its alias has some"""
    system: str = ""
    """the system message of chats in the terminal, where its alias has one"""
    projector: Path | None = None


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of the fields that a request to the OpenAI, Responses and Anthropic routes leaves out, by the names of
    SamplingParams, and whose they are. Without values: those of the API. `system`: the system message with which `sglang chat`
    and `sglang run` begin."""

    values: dict[str, Any] = field(default_factory=dict)
    source: str = "OpenAI"
    system: str = ""


@dataclass(frozen=True)
class WeightsCacheOptions:
    """Repacked weights on disk (consumer: model/weights/repacked)."""

    folder: str
    max_bytes: int | None = None
    """of all that is kept in the folder, prefixes too; None: a share of the free disk"""
    least_bytes: int = 32 << 20
    """smaller models are packed faster than a file is worth"""
    is_mapped: bool = False
    """several processes share the memory of a file; else each has a copy, which the processor reads faster (large pages)"""


@dataclass(frozen=True)
class ModelOptions:
    """Which model and how to load it (consumer: model/weights, model/worker)."""

    model_path: str
    revision: str | None = None
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = "auto"
    model_impl: Literal["auto", "sglang", "transformers"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["int8", "int4"] | None = None
    mm_quantization: Literal["int8", "none"] | None = None
    """of encoders of images; None: as `quantization`"""
    stored_quantization: str | None = None
    """one of STORED_QUANTIZATIONS: how the checkpoint must be quantized"""
    context_length: int | None = None
    download_dir: str | None = None
    mmproj: str | None = None
    """the encoder of images of a .gguf file: its file, "off", or None for the one that lies beside it"""
    json_model_override_args: dict[str, Any] = field(default_factory=dict)
    random_seed: int = 0
    is_embedding: bool = False
    """serve embeddings with a model that could generate"""
    files: ModelFiles | None = None
    """where `model_path` has been found already (checkpoint/resolve.py)"""
    weights_cache: WeightsCacheOptions | None = None
    """where packed weights are kept for the next start; None: nowhere"""


@dataclass(frozen=True)
class DraftOptions:
    """The draft model of speculation (consumers: model/worker, scheduler/speculation/draft)."""

    model: ModelOptions
    num_steps: int = 8
    """tokens that it drafts at most"""


@dataclass(frozen=True)
class TextOptions:
    """Tokenizer and templates (consumer: server/tokenization)."""

    tokenizer_path: str
    revision: str | None = None
    download_dir: str | None = None
    chat_template: str | None = None
    skip_tokenizer_init: bool = False
    files: ModelFiles | None = None
    """where `tokenizer_path` has been found already"""


@dataclass(frozen=True)
class DeviceOptions:
    """Where arithmetic runs (consumer: model/worker)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    kernels: Literal["auto", "cpu", "reference", "cuda"] = "auto"
    threads: int | None = None
    """None: physical cores"""
    use_tape: bool = True
    replicas: int = 1
    """schedulers that share the requests (process/schedulers.py)"""
    tp_size: int = 1
    """ranks that share the model (model/distributed)"""
    num_nodes: int = 1
    """machines that the ranks are on, as many on each"""
    deterministic: bool = False
    """on CUDA: only kernels that reduce in a fixed order (batch-invariant results); elsewhere they always do"""
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8_e4m3"] = "auto"
    graph_max_reqs: int = 256
    """on CUDA: decode steps of up to so many requests are replayed from graphs; 0: none are"""

    @property
    def ranks_here(self) -> int:
        """Of one machine."""
        return self.tp_size // self.num_nodes


@dataclass(frozen=True)
class NodeOptions:
    """One of several machines that share a model (consumer: model/distributed). Node 0 has the server and listens at `host`:`port`."""

    count: int
    rank: int
    host: str
    port: int
    token: str
    """what the nodes know, and nobody else"""
    timeout: float
    """seconds that nodes wait for each other"""


@dataclass(frozen=True)
class MemoryOptions:
    """Memory limits (consumer: model/capacity)."""

    mem_fraction_static: float | None = None
    max_total_tokens: int | None = None
    max_running_requests: int | None = None
    chunked_prefill_size: int = 512
    """tokens of prompts a step may compute; -1 means no chunking"""
    copies: int = 1
    """as many of the model are to be in memory"""
    reserved_bytes: int = 0
    """of the memory that looks free, what other programs are going to take"""
    state_memory: int | None = None
    """bytes for the states of recurrent layers; None: what suits"""
    encoder_cache_bytes: int = 128 << 20
    """size of the cache of image and video embeddings"""
    companion_bytes: int = 0
    companion_token_bytes: int = 0
    """what a model beside this one takes: once, and for each token of the KV pool"""


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter by the name that requests give it. `pinned`: it never makes room for another. `uid`: a number that no other load has
    had. `digest`: of the weights that must be found there, if they are known."""

    name: str
    path: str
    pinned: bool = False
    uid: int = 0
    digest: str = ""


@dataclass(frozen=True)
class AdapterInfo:
    """A loaded adapter. `invocation`: of an activated one (aLoRA), the ids from which on it acts; empty: it acts on every row.
    `digest`: of its weights."""

    rank: int
    invocation: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class AdapterOptions:
    """Adapters of low rank, LoRA (consumers: model/adapters, scheduler/adapters, server/adapters)."""

    adapters: tuple[NamedAdapter, ...] = ()
    """loaded at start"""
    max_loras_per_batch: int = 8
    """adapters that the requests of one step may have"""
    max_loaded_loras: int = 64
    max_rank: int | None = None
    """None: that of the adapters loaded at start, and DEFAULT_RANK where others may come"""
    root: str | None = None
    """folder below which adapters may be loaded while the server runs; None: none are"""
    at_run_time: bool = False
    """the offline Engine: its caller may load adapters from anywhere"""


@dataclass(frozen=True)
class ScheduleOptions:
    """Which requests run next (consumer: scheduler/)."""

    schedule_policy: SchedulePolicy = "lpm"
    schedule_conservativeness: float = 1.0
    chunked_prefill_size: int = 512
    max_prefill_tokens: int = 16384
    page_size: int = 1
    """granularity at which the prefix tree matches"""
    disable_radix_cache: bool = False
    max_queued_requests: int = 10000
    decode_log_interval: int = 40
    random_seed: int = 0
    watchdog_timeout: float = 300.0
    speculation: bool = True
    """draft tokens in free text, from the request's own text and from the prefix tree (scheduler/speculation/)"""
    overlap: bool = True
    """begin a step before the last one's tokens are known, where the worker can (RunningBatch.build_ahead)"""
    lora_eviction_policy: Literal["lru", "fifo"] = "lru"
    """which adapter makes room for another where those of a step are limited"""
    test_retract_every: int = 0
    """for tests: force a retraction every so many decode steps"""


@dataclass(frozen=True)
class DiskCacheOptions:
    """The prefix cache on disk (consumer: scheduler/cache/disk)."""

    folder: str
    max_bytes: int | None = None
    """None: a share of the free disk"""
    shared: bool = False
    """whether all clients share the records that have one salt"""


@dataclass(frozen=True)
class HostCacheOptions:
    """The tier of the prefix cache in host memory, behind a GPU's pool (consumer: scheduler/cache/disk)."""

    ratio: float = 2.0
    """its size, in tokens, over the pool's"""
    num_bytes: int = 0
    """its size, where that is not 0"""
    policy: Literal["write_through", "write_through_selective", "write_back"] = "write_through_selective"


@dataclass(frozen=True)
class BatchOptions:
    """Files and batches (consumer: server/openai/batches)."""

    folder: str
    max_bytes: int = 8 << 30
    """of all files"""
    max_file_bytes: int = 200 << 20
    max_requests: int = 50_000
    """of a batch"""
    window: int = 64
    """requests of all batches that are here at the same time"""
    max_line_bytes: int = 16 << 20


@dataclass(frozen=True)
class GrammarOptions:
    """Constrained decoding (consumer: scheduler/grammar)."""

    backend: GrammarEngineName = "llguidance"
    whitespace_pattern: str | None = None
    compile_timeout: float = 10.0
    max_bytes: int = 256 << 10
    cache_entries: int = 256
    cache_bytes: int = 256 << 20
    """maximum of compiled constraints, cached or in use"""
    jump_forward: bool = True
    bounded: bool = True
    """digits and lengths of formats, where a schema sets no bounds (scheduler/grammar/schema/bounds.py)"""
    refused: tuple[str, ...] = ()
    """digests of grammars that killed a scheduler of this server (scheduler/grammar/journal.py)"""


@dataclass(frozen=True)
class HttpOptions:
    """The HTTP endpoint: address, authentication, limits (consumer: server/http)."""

    host: str = "127.0.0.1"
    port: int = 30000
    uds: str | None = None
    """path of a unix socket, instead of host and port"""
    root_path: str = ""
    """below which clients see the server: empty, or /path"""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None
    served_model_name: str = "default"
    api_keys: tuple[str, ...] = ()
    admin_api_key: str | None = None
    log_level: str = "info"
    log_level_http: str | None = None
    log_format: Literal["text", "json"] = "text"
    log_requests: bool = False
    log_requests_level: int = 0
    enable_metrics: bool = True
    stream_output: bool = False
    """/generate streams disjoint pieces instead of the text so far"""
    stream_interval: int = 1
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    preferred_sampling_params: dict[str, Any] = field(default_factory=dict)
    sampling_defaults: SamplingDefaults | None = None
    """None: the model's, once its files have been found (checkpoint/sampling_defaults.py)"""
    allow_auto_truncate: bool = False
    max_body_bytes: int = 64 << 20
    max_queued_requests: int = 10000
    """the scheduler's (ScheduleOptions): a request for more sequences could never be admitted"""
    max_connections: int = 4096
    max_logprob_values: int | None = 1 << 19
    """log probabilities that one request may ask for; None: any number"""
    max_text_tokens: int | None = 8 << 20
    """tokens that the texts of one request may become, all together; None: any number, and parameters of any size"""
    skip_server_warmup: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """values of the Host header that are accepted besides the server's own names; "*": any"""
    cache_per_key: bool = False
    """a separate prefix cache for each API key"""
    allow_priority: bool = False
    """compare priorities between API keys, too"""
    request_timeout: float | None = None
    """seconds; None: as long as it takes"""
    drain_seconds: float = 5.0
    stop_with_stdin: bool = False
    behind_gateway: bool = False
    """requests come from our own gateway (sglang/cluster), which says where they come from"""
    listen_fd: int | None = None
    """a socket that is bound already"""
    gateway_token: str | None = None
    """what the gateway's requests have to bring, where others could connect, too"""
    max_sessions: int = 1024
    max_session_tokens: int = 4 << 20
    """of all sessions together"""
    session_timeout: float = 3600.0
    """seconds without a request after which a session is closed"""
    page: bool = True
    """serve the web page at /"""
    state_dir: str | None = None
    """folder of stored responses; None: they are in memory only"""
    otlp_traces_endpoint: str | None = None
    random_seed: int = 0
    """from which requests without a seed get theirs"""


@dataclass(frozen=True)
class MediaOptions:
    """Limits and allowed sources of images and videos (consumer: server/multimodal)."""

    allowed_domains: tuple[str, ...] = ()
    """hosts, with their subdomains, from which media are fetched; empty means any public host"""
    allow_private: bool = False
    """whether private, loopback and link-local addresses may be fetched from"""
    root: str | None = None
    """folder below which file:// URLs and paths are read"""
    timeout: float = 20.0
    """seconds, to fetch one"""
    decode_timeout: float = 10.0
    """seconds of processor time, to decode one"""
    max_bytes: int = 64 << 20
    """of all images and videos of a request, as fetched"""
    max_pixels: int = 64 << 20
    """of one image or frame"""
    max_media_pixels: int = 128 << 20
    """of all images and frames of a request"""
    max_items: int = 64
    """images and videos of a request"""
    max_frames: int = 768
    """of one video"""
    max_image_tokens: int | None = None
    """of an image; 0: no limit but its publisher's sizes; None: the default of the family's processor"""
    num_side_threads: int = 2
    """that preprocess"""


@dataclass(frozen=True)
class RuntimeConfig:
    """All groups, and `flags`: the resolved flat values for /get_server_info."""

    model: ModelOptions
    text: TextOptions
    device: DeviceOptions
    memory: MemoryOptions
    schedule: ScheduleOptions
    grammar: GrammarOptions
    http: HttpOptions
    media: MediaOptions = field(default_factory=MediaOptions)
    adapters: AdapterOptions | None = None
    """None: no adapters are served"""
    disk_cache: DiskCacheOptions | None = None
    host_cache: HostCacheOptions | None = None
    draft: DraftOptions | None = None
    """None: no draft model"""
    nodes: NodeOptions | None = None
    """None: the model is on one machine"""
    batches: BatchOptions | None = None
    """None: no files and batches are taken"""
    flags: dict[str, Any] = field(default_factory=dict)
