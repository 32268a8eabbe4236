"""Sizes of the KV pool, of a step and of the context. Decided once, after the weights are in memory.

memory of the machine (or of the container)
|<- weights ->|<- KV pool ->|<- step buffers ->|<- the rest of the machine ->|
|<-- mem_fraction_static -->|
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sglang.srt.config import MemoryOptions
from sglang.srt.errors import CapacityError, ConfigError

GIB = 1 << 30
DEFAULT_RUNNING_REQUESTS = 64
DRAFT_ROWS = 96
"""Rows of logits besides one for each request: to sample after draft tokens."""
PACKED_INT4_BITS = 5
FEWEST_STATES = 4
"""places for states: two of a running request, and two for prefixes"""
STATE_BYTES = 4 * GIB
MOST_KEPT_STATES = 4096
"""of prefixes"""
MIN_POOL_TOKENS = 256
"""A smaller pool could not hold one useful request."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the machine, or of the container where that is less."""

    total: int
    available: int


@dataclass(frozen=True)
class ModelFootprint:
    """Sizes of the model that the memory plan needs."""

    context_len: int
    kv_bytes_per_token: int
    weight_bytes: int
    slot_run: int
    state_bytes: int = 0
    """of a text, in all recurrent layers"""


@dataclass(frozen=True)
class Capacity:
    """The plan."""

    context_len: int
    max_total_tokens: int
    max_running_requests: int
    max_batch_tokens: int
    max_logit_rows: int
    state_slots: int = 0
    """places for the states of texts, where the model has recurrent layers"""


def resolve_batch(options: MemoryOptions, context_len: int) -> tuple[int, int]:
    """(max_running_requests, max_batch_tokens). Raises ConfigError."""
    running = options.max_running_requests
    if running is None:
        running = DEFAULT_RUNNING_REQUESTS
    if running < 1:
        raise ConfigError(f"--max-running-requests must be at least 1, got {running}")
    chunk = options.chunked_prefill_size
    if chunk == 0 or chunk < -1:
        raise ConfigError(f"--chunked-prefill-size must be at least 1, or -1 for no chunking, got {chunk}")
    return running, (context_len if chunk == -1 else chunk) + running


def plan_capacity(
    options: MemoryOptions, model: ModelFootprint, memory: HostMemory, buffer_bytes: int, adapter_bytes: int = 0
) -> Capacity:
    """Fits the KV pool into memory. `memory.available` is what is left with the weights loaded; `buffer_bytes` is still to be
    taken by the step buffers, `adapter_bytes` by the slots of adapters. Raises CapacityError or ConfigError."""
    running, batch_tokens = resolve_batch(options, model.context_len)
    beside = buffer_bytes + adapter_bytes + options.companion_bytes
    slots = _state_slots(options, model, running, memory.available - beside)
    free = memory.available - beside - slots * model.state_bytes
    taken = {
        "buffers": buffer_bytes,
        "the slots of adapters (--max-loras-per-batch, --max-lora-rank)": adapter_bytes,
        "the draft model": options.companion_bytes,
        "states of recurrent layers (--state-memory)": slots * model.state_bytes,
    }
    if options.companion_token_bytes:
        model = replace(model, kv_bytes_per_token=model.kv_bytes_per_token + options.companion_token_bytes)
    if options.max_total_tokens is not None:
        tokens = _asked_tokens(options.max_total_tokens, model, free, taken)
    elif options.mem_fraction_static is not None:
        tokens = _fraction_tokens(options.mem_fraction_static, model, memory, free, options.companion_bytes)
    else:
        tokens = min(_default_tokens(model, free), _round_up(running * model.context_len, model.slot_run))
    useful = _round_up(min(MIN_POOL_TOKENS, model.context_len), model.slot_run)
    if options.max_total_tokens is None and tokens < useful:
        raise CapacityError(
            f"memory suffices for a KV pool of only {max(tokens, 0)} tokens: {_show(memory.available)} of {_show(memory.total)} "
            f"are available{_told(taken)}, and a token takes {model.kv_bytes_per_token} bytes; {_way_out(taken, memory)}"
        )
    return Capacity(model.context_len, tokens, running, batch_tokens, running + DRAFT_ROWS, slots)


def _told(taken: Mapping[str, int]) -> str:
    """What the available memory goes to besides the KV pool."""
    parts = [f"{_show(num_bytes)} for {name}" for name, num_bytes in taken.items() if num_bytes]
    return f", less {', '.join(parts)}" if parts else ""


def _way_out(taken: Mapping[str, int], memory: HostMemory) -> str:
    """What to lower, where one thing alone takes half of the available memory."""
    name, most = max(taken.items(), key=lambda pair: pair[1])
    if most * 2 > memory.available and "--" in name:
        return "lower " + " or ".join(re.findall(r"--[\w-]+", name))
    return "free some memory, raise --mem-fraction-static or choose a smaller model"


def _state_slots(options: MemoryOptions, model: ModelFootprint, running: int, free: int) -> int:
    """Two places for each running request, and as many for prefixes as memory allows: by default an eighth of what is free, or
    STATE_BYTES where that is less and not too little."""
    if not model.state_bytes:
        return 0
    most = 2 * running + MOST_KEPT_STATES
    if options.state_memory is None:
        wanted = max(min(free // 8, STATE_BYTES), FEWEST_STATES * model.state_bytes)
    else:
        wanted = options.state_memory
        if wanted < FEWEST_STATES * model.state_bytes:
            raise ConfigError(
                f"--state-memory {wanted} is too little: the state of one request takes {model.state_bytes} bytes, and room for "
                f"{FEWEST_STATES} is needed"
            )
    if wanted > free:
        raise CapacityError(
            f"states of recurrent layers need {_show(wanted)} (--state-memory), but only {_show(free)} are available"
        )
    return min(wanted // model.state_bytes, most)


@dataclass(frozen=True)
class Needs:
    """Bytes that a model takes at least. `tables`: of the context, in proportion to its length. `kv_tokens`: those that
    were asked for, or the fewest that are of use."""

    weights: int
    buffers: int
    tables: int
    context_len: int
    token_bytes: int
    kv_tokens: int
    companion: int = 0
    """of a model beside it; its share of a token is in `token_bytes`"""
    states: int = 0
    """of recurrent layers"""

    @property
    def total(self) -> int:
        beside = self.companion + self.states
        return self.weights + self.buffers + self.tables + beside + self.kv_tokens * self.token_bytes


def fewest_tokens(options: MemoryOptions, context_len: int) -> int:
    """The least size of the KV pool in tokens, unless more are asked for."""
    return options.max_total_tokens or min(MIN_POOL_TOKENS, context_len)


def check_room(model: str, needs: Needs, memory: HostMemory, quantized: Mapping[str, int]) -> None:
    """Before anything is loaded: raises CapacityError, with what would fit, for a model that needs more than is available.
    `quantized`: bytes of the weights by what --quantization may say."""
    room = memory.available
    if needs.total <= room:
        return
    parts = (
        f"{_show(needs.weights)} for weights, {_show(needs.kv_tokens * needs.token_bytes)} for a KV cache of {needs.kv_tokens} tokens, "
        f"{_show(needs.buffers)} for buffers, {_show(needs.tables)} for tables of {needs.context_len} tokens of context"
    )
    if needs.companion:
        parts += f", {_show(needs.companion)} for the draft model"
    raise CapacityError(
        f"{model} needs {_show(needs.total)} of memory ({parts}), and {_show(room)} of {_show(memory.total)} are available; "
        f"{_what_fits(needs, room, quantized)}"
    )


def _what_fits(needs: Needs, room: int, quantized: Mapping[str, int]) -> str:
    lacking = needs.total - room
    tokens = needs.kv_tokens - (-(-lacking // needs.token_bytes) if needs.token_bytes else needs.kv_tokens)
    if tokens >= MIN_POOL_TOKENS:
        return f"--max-total-tokens {tokens} would fit"
    context = int(needs.context_len * (1 - lacking / needs.tables)) if needs.tables else 0
    if context >= min(MIN_POOL_TOKENS, needs.context_len):
        return f"--context-length {context} would fit"
    for name, weights in quantized.items():
        if weights < needs.weights and needs.total - needs.weights + weights <= room:
            return f"--quantization {name} would fit, with {_show(needs.total - needs.weights + weights)}"
    billions = max(room - needs.buffers - MIN_POOL_TOKENS * needs.token_bytes, 0) * 8 / PACKED_INT4_BITS / 1e9
    size = f"model of at most about {billions:.1f} billion parameters in 4 bits" if billions >= 0.1 else "smaller model"
    return f"close other programs, or choose a {size}"


def _asked_tokens(asked: int, model: ModelFootprint, free: int, taken: Mapping[str, int]) -> int:
    if asked < 1:
        raise ConfigError(f"--max-total-tokens must be at least 1, got {asked}")
    tokens = _round_up(asked, model.slot_run)
    if tokens * model.kv_bytes_per_token > free:
        raise CapacityError(
            f"--max-total-tokens {asked} takes {_show(tokens * model.kv_bytes_per_token)}, but only {_show(max(free, 0))} are available"
            f"{_told(taken)}"
        )
    return tokens


def _fraction_tokens(fraction: float, model: ModelFootprint, memory: HostMemory, free: int, beside: int) -> int:
    """Weights and pool together take `fraction` of all memory, and so does what stands beside the model."""
    if not 0 < fraction < 1:
        raise ConfigError(f"--mem-fraction-static must lie between 0 and 1, got {fraction:g}")
    budget = int(memory.total * fraction) - model.weight_bytes - beside
    if budget < 0:
        raise CapacityError(
            f"--mem-fraction-static {fraction:g} of {_show(memory.total)} is less than the weights, {_show(model.weight_bytes)}"
        )
    return _round_down(min(budget, free) // model.kv_bytes_per_token, model.slot_run)


def _default_tokens(model: ModelFootprint, free: int) -> int:
    """As much as the weights take, but at least 1 GiB and one whole context; never more than half of what is free, since a
    laptop has other things to do."""
    one_context = model.context_len * model.kv_bytes_per_token
    budget = min(free // 2, max(GIB, model.weight_bytes, one_context))
    return _round_down(budget // model.kv_bytes_per_token, model.slot_run)


def _round_up(n: int, run: int) -> int:
    return -(-n // run) * run


def _round_down(n: int, run: int) -> int:
    return n // run * run


def _show(num_bytes: int) -> str:
    return f"{max(num_bytes, 0) / GIB:.2f} GiB"


# --- what the machine has -----------------------------------------------------------------------------------------------------


def shared_memory(options: MemoryOptions) -> HostMemory:
    """The machine's memory, less what is reserved for others, divided among the copies of the model."""
    memory = host_memory(options.reserved_bytes)
    return HostMemory(memory.total, memory.available // options.copies) if options.copies > 1 else memory


def host_memory(reserved: int = 0) -> HostMemory:
    """The machine's memory: on Linux from /proc/meminfo, less if a cgroup limits us; elsewhere from sysconf, of which half
    counts as available. `reserved`: bytes that are free now and are left to others."""
    memory = _meminfo(Path("/proc/meminfo")) or _sysconf()
    for limit, used in _cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        memory = HostMemory(min(memory.total, limit), min(memory.available, max(limit - used, 0)))
    return HostMemory(memory.total, max(memory.available - reserved, 0)) if reserved else memory


def _meminfo(path: Path) -> HostMemory | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return HostMemory(sizes["MemTotal"], sizes["MemAvailable"])


def _sysconf() -> HostMemory:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError) as error:
        raise CapacityError("cannot tell how much memory this machine has: neither /proc/meminfo nor sysconf says") from error
    return HostMemory(total, total // 2)


def _cgroup_limits(own: Path, root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every group we are in, version 2 and then version 1."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return
    for _, controllers, name in entries:
        if controllers == "":
            top, files = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / name.lstrip("/")
        # inside a container the path is the host's and only the top is mounted
        for folder in [group, *(p for p in group.parents if p == top or top in p.parents)]:
            limit, used = _read_int(folder / files[0]), _read_int(folder / files[1])
            if limit is not None and used is not None:
                yield limit, max(used - _read_stat(folder / "memory.stat", files[2]), 0)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _read_stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [key]), 0)
