"""The scheduler's process: loads the model, then runs steps until it is told to stop or the server has ended.

    python -m sglang.srt.process.scheduler_process SOCKET_DIRECTORY      started by launch.py; the configuration comes on stdin

Standard input stays open: when it closes, the server has died, and this process ends too.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import os
import re
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.fingerprint import code_digest, code_files, fingerprint
from sglang.srt.checkpoint.kept_images import KeptImages
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import AdapterInfo, AdapterOptions, DraftOptions, HostCacheOptions, ModelOptions, RuntimeConfig
from sglang.srt.config_codec import decode_config, encode_config
from sglang.srt.errors import CapacityError, ConfigError, ModelError, SglangError
from sglang.srt.forward_batch import KVRuns, ModelInfo, ModelWorker
from sglang.srt.messages import Inbox, Outbox, SchedulerFailed, SchedulerReady
from sglang.srt.model.capacity import host_memory
from sglang.srt.model.distributed.leader import create_parallel_worker
from sglang.srt.model.embedder import create_embedder, embeds_by_itself
from sglang.srt.model.weights.loader import read_config
from sglang.srt.model.worker import LocalWorker, create_draft_worker, create_worker
from sglang.srt.process.heap import limit_arenas, release_freed_memory
from sglang.srt.process.logs import configure_logging
from sglang.srt.process.transport import SocketSchedulerEnd
from sglang.srt.scheduler.adapters import Adapters
from sglang.srt.scheduler.cache.disk.host_store import HostStore
from sglang.srt.scheduler.cache.disk.records import KEY_BYTES, RecordFormat, layout_fingerprint
from sglang.srt.scheduler.cache.disk.store import DiskRoom, RecordStore
from sglang.srt.scheduler.cache.disk.tier import DiskTier, OpenTier
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.embedding import EmbeddingScheduler
from sglang.srt.scheduler.grammar.journal import GrammarJournal, read_journal
from sglang.srt.scheduler.scheduler import Scheduler
from sglang.srt.scheduler.speculation.draft.lengths import DraftLengths
from sglang.srt.scheduler.speculation.draft.model import DraftModel
from sglang.srt.server.tokenization.tokenizer import Tokenizer, open_tokenizer
from sglang.srt.vocabulary import Vocabulary

logger = logging.getLogger("sglang")

DRAFT_FLAG = "--speculative-draft-model-path"
LIFE_LINE = 0
"""standard input, as a file descriptor"""
JOURNAL, DUMP = "grammars", "crash"
"""files of the socket directory: what native grammar code works on (scheduler/grammar/journal.py), and where the process was
when a signal of native code ended it"""


def build_scheduler(
    config: RuntimeConfig,
    tokenizer: Future[Tokenizer | None],
    inbox: Inbox,
    outbox: Outbox,
    on_rank_death: Callable[[str], None] | None = None,
    journal: GrammarJournal | None = None,
) -> tuple[Scheduler | EmbeddingScheduler, ModelInfo]:
    """Loads the model, while the tokenizer is read on another thread, and puts a scheduler around both. `on_rank_death` is
    called from a side thread when the model is shared by several processes and one of them dies. `journal`: where native
    grammar code leaves its traces. Raises SglangError."""
    logger.info("Load weight begin. avail mem=%.2f GB", _free_gb())
    if config.model.is_embedding or embeds_by_itself(config.model):
        if config.device.tp_size > 1:
            raise ConfigError("--tp-size: models that embed run on one rank")
        if config.adapters is not None:
            raise ConfigError("--enable-lora: models that embed take no adapters")
        if config.disk_cache is not None or config.host_cache is not None:
            flag = "--cache-dir" if config.disk_cache is not None else "--enable-hierarchical-cache"
            raise ConfigError(f"{flag}: models that embed have no prefix cache; leave the flag out")
        if config.draft is not None:
            raise ConfigError("--speculative-draft-model-path: models that embed draft nothing; leave the flag out")
        embedder = create_embedder(config.model, config.device)
        _log_model(embedder.info, config)
        return EmbeddingScheduler(embedder, inbox, outbox, config.schedule.max_queued_requests), embedder.info
    worker: ModelWorker
    if config.device.tp_size > 1:
        worker = create_parallel_worker(
            config.model, config.device, config.memory, on_rank_death, config.adapters, config.nodes
        )
    else:
        draft = config.draft.model if config.draft is not None else None
        worker = create_worker(config.model, config.device, config.memory, config.adapters, draft)
    _log_model(worker.info, config)
    draft_model = create_draft_model(config, worker, tokenizer)
    text = tokenizer.result()
    vocabulary = text.vocabulary if text is not None else None
    release_freed_memory()
    tier = prefix_tiers(config, worker)
    scheduler = Scheduler(
        *(config.schedule, config.grammar, worker, vocabulary, inbox, outbox, journal), open_tier=tier, draft_model=draft_model
    )
    if config.adapters is None:
        return scheduler, worker.info
    return scheduler, dataclasses.replace(worker.info, adapters=_load_adapters(scheduler.adapters, config.adapters))


def _load_adapters(adapters: Adapters, options: AdapterOptions) -> dict[int, AdapterInfo]:
    """Those that the server has when the scheduler starts. One that is loaded again after a crash, and is not what it was, is left
    out. Raises ModelError."""
    loaded: dict[int, AdapterInfo] = {}
    for adapter in options.adapters:
        try:
            info = adapters.load_now(adapter.uid, adapter.path, adapter.pinned, adapter.digest)
        except ModelError as error:
            if not adapter.digest:
                raise ModelError(f"adapter {adapter.name!r}: {error}") from error
            logger.error("Adapter %r is gone: %s", adapter.name, error)
        else:
            loaded[adapter.uid] = info
    return loaded


def prefix_tiers(config: RuntimeConfig, worker: object) -> OpenTier | None:
    """What opens the tiers behind the pool (--enable-hierarchical-cache, --cache-dir); None without. Raises ConfigError for a model whose
    prefixes are not kept, and CapacityError."""
    disk, host = config.disk_cache, config.host_cache
    if disk is None and host is None:
        return None
    flag = "--cache-dir" if disk is not None else "--enable-hierarchical-cache"
    runs = worker.kv_runs if isinstance(worker, LocalWorker) else None
    if runs is None or not isinstance(worker, LocalWorker):
        raise ConfigError(f"{flag}: prefixes are kept for models in one process")
    if worker.info.cross_attention:
        raise ConfigError(f"{flag}: {worker.info.architecture} attends to images by cross-attention, and is not kept yet")
    states = worker.state_bytes
    if worker.info.state_slots and (states is None or disk is None):
        raise ConfigError(
            f"{flag}: {worker.info.architecture} has recurrent layers, whose states are kept on the disk of a CPU alone"
        )
    layout = runs.layout if states is None else f"{runs.layout}; {states.layout}"
    name = layout_fingerprint(model_fingerprint(config, worker), layout) if disk is not None else bytes(KEY_BYTES)
    form = RecordFormat(name, runs.run, runs.run_bytes)
    about = {"model": config.model.model_path, "kernels": worker.info.kernels, "layout": layout}
    arena = host_arena(host, runs, worker.info.max_total_tokens) if host is not None else None

    if disk is not None and worker.info.media_kinds and not worker.info.kernels.startswith("cuda"):
        worker.keep_images(KeptImages(Path(disk.folder), model_fingerprint(config, worker), disk.max_bytes))

    def open_tier(memory: KvMemory, finish: Callable[[], None], runs: KVRuns = runs) -> DiskTier:
        records = RecordStore(Path(disk.folder), form, DiskRoom(disk.max_bytes), about) if disk is not None else None
        shared = disk is not None and disk.shared
        if arena is None or host is None:
            assert records is not None
            return DiskTier(records, runs, memory, finish, shared, states=states)
        store = HostStore(form, arena, records, host.policy != "write_back")
        return DiskTier(store, runs, memory, finish, shared, policy=host.policy)

    return open_tier


def host_arena(options: HostCacheOptions, runs: KVRuns, pool_tokens: int) -> npt.NDArray[np.uint8]:
    """Memory for the records of the tier in host memory. Raises CapacityError."""
    wanted = options.num_bytes or int(options.ratio * pool_tokens) // runs.run * runs.run_bytes
    num_bytes, free = wanted // runs.run_bytes * runs.run_bytes, host_memory().available
    if num_bytes > free:
        raise CapacityError(
            f"--enable-hierarchical-cache wants {num_bytes / 2**30:.1f} GiB of host memory, and {free / 2**30:.1f} GiB are available: "
            "lower --hicache-ratio or --hicache-size"
        )
    return runs.arena(num_bytes)


def model_fingerprint(config: RuntimeConfig, worker: LocalWorker) -> str:
    """Of what computes in this process (checkpoint/fingerprint.py). Raises ModelError if the weights cannot be read."""
    code = code_digest(code_files())
    return fingerprint(config.model, find_files(config.model), config.device, worker.info.kernels, code)


# --- the draft model --------------------------------------------------------------------------------------------------------


def create_draft_model(config: RuntimeConfig, worker: ModelWorker, tokenizer: Future[Tokenizer | None]) -> DraftModel | None:
    """None without the flag. Raises ConfigError, ModelError or CapacityError."""
    if config.draft is None:
        return None
    if not isinstance(worker, LocalWorker):
        raise ConfigError(f"{DRAFT_FLAG}: a model that several processes share has no draft model yet")
    text = tokenizer.result()
    check_vocabulary(config, config.draft, text.vocabulary if text is not None else None)
    draft = create_draft_worker(config.draft.model, worker, config.device, config.memory)
    for each in (worker.info, draft.info):
        if each.state_slots:
            raise ConfigError(
                f"{DRAFT_FLAG}: {each.architecture} has recurrent layers, and such models neither draft nor take drafts yet"
            )
    _check_columns(config, config.draft, worker.info, draft.info, text is not None)
    share = draft.info.weight_bytes / max(worker.info.weight_bytes, 1)
    logger.info(
        "Draft model: %s, type=%s, mem usage=%.2f GB, %.0f %% of the model's weights.",
        *(config.draft.model.model_path, draft.info.architecture, draft.info.weight_bytes / 1e9, 100 * share),
    )
    return DraftModel(draft, worker.info.vocab_size, DraftLengths(config.draft.num_steps, share))


def check_vocabulary(config: RuntimeConfig, draft: DraftOptions, own: Vocabulary | None) -> None:
    """Raises ConfigError where ids do not mean the same tokens; a few that only one of the two knows do no harm."""
    if own is None:
        return
    path, files = draft.model.model_path, draft.model.files
    text = dataclasses.replace(config.text, tokenizer_path=path, revision=draft.model.revision, chat_template=None, files=files)
    try:
        tokenizer = open_tokenizer(text)
    except ModelError as error:
        raise ConfigError(f"{DRAFT_FLAG}: the vocabulary of {path} cannot be read: {error}") from error
    assert tokenizer is not None
    other = tokenizer.vocabulary
    at = first_other_meaning(own, other)
    if at is not None:
        ours, theirs = (v.token_bytes[at] if at < v.size else None for v in (own, other))
        raise ConfigError(
            f"{DRAFT_FLAG}: the vocabularies of {config.model.model_path} ({own.size} tokens) and {path} ({other.size} tokens) differ: "
            f"token {at} is {_show(ours)} in the first and {_show(theirs)} in the second; a draft model needs the same tokenizer"
        )


def first_other_meaning(own: Vocabulary, other: Vocabulary) -> int | None:
    """The first id that means something else, special tokens that only one of the two has left aside."""
    for i, (ours, theirs) in enumerate(zip(own.token_bytes, other.token_bytes, strict=False)):
        if ours != theirs and not (i in own.special_ids and i in other.special_ids):
            return i
    longer = max(own, other, key=lambda vocabulary: vocabulary.size)
    return next((i for i in range(min(own.size, other.size), longer.size) if i not in longer.special_ids), None)


def _check_columns(config: RuntimeConfig, draft: DraftOptions, own: ModelInfo, other: ModelInfo, has_tokenizer: bool) -> None:
    """Without tokenizers, the number of columns must do."""
    if not has_tokenizer and own.vocab_size != other.vocab_size:
        raise ConfigError(
            f"{DRAFT_FLAG}: {config.model.model_path} has a vocabulary of {own.vocab_size} tokens and {draft.model.model_path} one of "
            f"{other.vocab_size}; a draft model needs the same"
        )


def _show(token: bytes | None) -> str:
    return "missing" if token is None else repr(token.decode(errors="replace"))


# --- the process ------------------------------------------------------------------------------------------------------------


def check_model(options: ModelOptions) -> None:
    """Raises ModelError for a model whose config alone says that it cannot be loaded."""
    if not embeds_by_itself(options):
        read_config(find_files(options), options)


def read_tokenizer(config: RuntimeConfig) -> Future[Tokenizer | None]:
    """Starts to read the tokenizer on its own thread."""
    return ThreadPoolExecutor(1, "sglang-tokenizer").submit(open_tokenizer, config.text)


def _free_gb() -> float:
    return host_memory().available / 1e9


def _log_model(info: ModelInfo, config: RuntimeConfig) -> None:
    """The lines that operators of the original know."""
    kind, kv_gb = info.architecture, info.kv_bytes_per_token * info.max_total_tokens / 1e9
    logger.info(
        "Load weight end. type=%s, dtype=%s, kernels=%s, avail mem=%.2f GB, mem usage=%.2f GB.",
        *(kind, info.dtype, info.kernels, _free_gb(), info.weight_bytes / 1e9),
    )
    logger.info(
        "KV Cache is allocated. #tokens: %d, K size: %.2f GB, V size: %.2f GB", info.max_total_tokens, kv_gb / 2, kv_gb / 2
    )
    logger.info(
        "max_total_num_tokens=%d, chunked_prefill_size=%d, max_prefill_tokens=%d, max_running_requests=%d, context_len=%d",
        *(info.max_total_tokens, config.schedule.chunked_prefill_size, config.schedule.max_prefill_tokens),
        *(info.max_running_requests, info.context_len),
    )
    if info.state_slots:
        logger.info(
            "States of recurrent layers: %d places of %.2f MB. Without drafts and overlap of steps (docs/states.md)",
            info.state_slots,
            info.state_bytes / 1e6,
        )


def write_config(stream: IO[bytes], config: RuntimeConfig) -> None:
    """The server's half of the hand-over."""
    data = encode_config(config)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def _read_config(pipe: int) -> RuntimeConfig:
    (size,) = struct.unpack("<I", _read_exactly(pipe, 4))
    return decode_config(_read_exactly(pipe, size), RuntimeConfig)


def _read_exactly(pipe: int, size: int) -> bytes:
    """Without a buffer of Python's: a thread that waits in one holds its lock, and an interpreter that ends then aborts. Ends
    the process if the server has gone."""
    data = b""
    while len(data) < size:
        part = os.read(pipe, size - len(data))
        if not part:
            os._exit(1)
        data += part
    return data


def _die_with_the_server(pipe: int, directory: str) -> None:
    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        shutil.rmtree(directory, ignore_errors=True)  # nobody else is left to do it
        os._exit(1)

    threading.Thread(target=watch, name="life-line", daemon=True).start()


def blamed_grammars(directory: Path, status: int) -> set[bytes]:
    """Digests of the grammars of which the process with these files died, if it was grammars. `status`: its exit status. An error
    is that of the call that raised it, a crash that of the thread that crashed. Where that is one of the threads that compile for
    others (grammar/low_priority.py), or none of Python's, or where it hung, all grammars that were worked on are to blame."""
    entries = read_journal(directory / JOURNAL)
    crashed = re.search(rb"Current thread 0x([0-9a-f]+).*?\n((?:  .*\n)*)", _dump(directory))
    if status >= 0:
        entries = [entry for entry in entries if entry.raised]
    elif crashed is not None and not re.search(rb"grammar.low_priority\.py", crashed[2]):
        entries = [entry for entry in entries if entry.thread == int(crashed[1], 16)]
    return {digest for entry in entries for digest in entry.digests}


def _dump(directory: Path) -> bytes:
    try:
        return (directory / DUMP).read_bytes()
    except OSError:
        return b""


def _die_with_a_rank(reason: str) -> None:
    """Ends the process at once, wherever the scheduler is: it may wait for data that the dead rank will never send. The server
    restarts all ranks."""
    sys.stderr.flush()
    os._exit(1)


def main() -> int:
    """Exit status: 0 after a shutdown, 1 when the model could not be loaded or the scheduler failed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    limit_arenas()
    config = _read_config(LIFE_LINE)
    directory = sys.argv[1]
    _die_with_the_server(LIFE_LINE, directory)
    configure_logging(config.http.log_level, log_format=config.http.log_format)
    try:
        dump = (Path(directory) / DUMP).open("wb")
        link = SocketSchedulerEnd(directory)
        journal = GrammarJournal(Path(directory) / JOURNAL)
    except OSError as error:  # as when the server has ended meanwhile, and its folder with it
        logger.error("the scheduler cannot open the files that it shares with the server: %s", error)
        return 1
    faulthandler.enable(dump)
    try:
        return _serve(config, link, journal)
    finally:
        link.close()
        faulthandler.disable()
        dump.close()


def _serve(config: RuntimeConfig, link: SocketSchedulerEnd, journal: GrammarJournal) -> int:
    try:
        scheduler, info = build_scheduler(config, read_tokenizer(config), link, link, _die_with_a_rank, journal)
    except SglangError as error:
        link.send(SchedulerFailed(str(error)))
        return 1
    except Exception as error:  # noqa: BLE001  outermost: the server says it, and the log where
        logger.debug("Loading failed", exc_info=True)
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        link.send(
            SchedulerFailed(f"loading {config.model.model_path} failed unexpectedly ({what}); --log-level debug says where")
        )
        link.close()
        return 1
    link.send(SchedulerReady(dataclasses.asdict(info)))
    try:
        scheduler.run()
    except Exception:  # noqa: BLE001  one of the two outermost loops; the server starts another scheduler
        logger.exception("the scheduler died")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of native code may still run
