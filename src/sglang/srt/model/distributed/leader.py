"""Rank 0: starts the other ranks, sends them every step before computing its own part, and watches them.

    scheduler process      Scheduler -> ParallelWorker -> LocalWorker of rank 0
      |  stdin, or TCP: steps; its end is ours    |  gloo or nccl
      rank 1 .. size - 1   follower.py -> LocalWorker of its rank

Ranks of this machine are children; those of other machines are started there (node.py) and connect to its listener (handshake.py). What a rank
reads from closes when rank 0 dies, however it dies, and the rank ends with it. When another rank dies, `on_death` is called on its own
thread; by default the next step raises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from sglang.srt.checkpoint.fingerprint import code_digest, code_files, weights_digest
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import AdapterOptions, DeviceOptions, MemoryOptions, ModelFiles, ModelOptions, NodeOptions
from sglang.srt.config_codec import encode_config
from sglang.srt.errors import ConfigError, EngineDeadError, SglangError
from sglang.srt.forward_batch import ForwardBatch, ForwardOutput, Int32Array, Loading, VocabMasks
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.model.adapters.store import AdapterStore
from sglang.srt.model.distributed.handshake import NodeListener
from sglang.srt.model.distributed.links import Link, ProcessLink, SocketLink
from sglang.srt.model.distributed.ranks import LOOPBACK, Join, Ranks, host_store, import_torch, join
from sglang.srt.model.distributed.wire import (
    Bind,
    End,
    ForgetAdapter,
    LoadAdapter,
    Message,
    PlaceAdapter,
    TableDiff,
    encode,
    pack_step,
)
from sglang.srt.model.worker import LocalWorker, create_rank

logger = logging.getLogger("sglang")


class RankConfig(msgspec.Struct):
    """The first message to a follower."""

    rank: int
    model: ModelOptions
    device: DeviceOptions
    memory: MemoryOptions
    adapters: AdapterOptions | None = None


class Identity(msgspec.Struct):
    """What must be equal on all machines, or the parts do not fit together."""

    weights: str
    kernels: str
    code: str


class RankStatus(msgspec.Struct):
    """A follower's replies: the first one when it is ready to join the others, the second one when its part is loaded. `error`: why it
    cannot; `identity`: in the first one of another machine."""

    error: str | None = None
    identity: Identity | None = None


def identify(files: ModelFiles, kernels: str) -> Identity:
    """Raises ModelError if the weights cannot be read."""
    return Identity(weights_digest(files), kernels, code_digest(code_files()))


class Followers:
    """The ranks 1 .. size - 1: children of this process, and those of other machines, which come by themselves."""

    def __init__(
        self,
        model: ModelOptions,
        device: DeviceOptions,
        memory: MemoryOptions,
        adapters: AdapterOptions | None = None,
        nodes: NodeOptions | None = None,
    ) -> None:
        """Raises ConfigError when a node does not come."""
        self.directory = Path(tempfile.mkdtemp(prefix="sglang-ranks-"))  # 0700
        self._closing = False
        self.failure: str | None = None
        self._device = device
        self._address = LOOPBACK
        self._spans_machines = nodes is not None
        self._links: list[Link] = []
        self._close_at_exit = weakref.finalize(self, _end, self._links, self.directory, os.getpid())
        if nodes is not None:
            self._let_in(nodes)
        self._links[:0] = [ProcessLink(rank) for rank in range(1, device.ranks_here)]
        for rank, link in enumerate(self._links, start=1):
            with contextlib.suppress(OSError):  # died at once: `meet` tells
                link.send(encode_config(RankConfig(rank, model, device, memory, adapters)))

    def _let_in(self, nodes: NodeOptions) -> None:
        listener = NodeListener(nodes, self._device.tp_size)
        self._address = listener.address
        logger.info("Waiting for %d more nodes at %s:%d.", nodes.count - 1, nodes.host, nodes.port)
        try:
            found = listener.wait()
        finally:
            listener.close()
        self._links += [SocketLink(rank, hello.node, connection) for rank, (hello, connection) in sorted(found.items())]

    @property
    def pids(self) -> list[int]:
        """Of those on this machine."""
        return [link.pid for link in self._links if link.pid is not None]

    def meet(self, device: str, kernels: str, files: ModelFiles) -> Ranks:
        """Waits until every rank is about to join, and joins them. Raises ConfigError with the reason of the first that failed."""
        mine = identify(files, kernels) if self._spans_machines else None
        for link in self._links:
            theirs = self._status(link).identity
            if mine is not None and theirs is not None:
                _check_same(link.name, mine, theirs)
        store, where = None, Join(path=str(self.directory / "ranks"))
        if self._spans_machines:
            store, where = host_store(self._address, self._device.tp_size)
        self.send(where)
        return join(where, 0, self._device.tp_size, device, self._address, self._device.deterministic, store)

    def wait_ready(self) -> None:
        """Waits until every rank has loaded its part. Raises ConfigError likewise."""
        for link in self._links:
            self._status(link)

    def _status(self, link: Link) -> RankStatus:
        data = link.receive()
        if data is None:
            raise ConfigError(f"{link.name} ended while it loaded its part of the model; the log says more")
        status = msgspec.msgpack.decode(data, type=RankStatus)
        if status.error is not None:
            raise ConfigError(f"{link.name}: {status.error}")
        return status

    def watch(self, on_death: Callable[[str], None] | None) -> None:
        """Calls `on_death` from a side thread when a rank ends before `close`."""
        for link in self._links:
            threading.Thread(target=self._watch_one, args=(link, on_death), name=link.name, daemon=True).start()

    def _watch_one(self, link: Link, on_death: Callable[[str], None] | None) -> None:
        how = link.wait()
        if self._closing:
            return
        self.failure = f"{link.name} of the model {how}"
        logger.error("%s.", self.failure)
        if on_death is not None:
            on_death(self.failure)

    def send(self, message: Message) -> None:
        """Raises EngineDeadError when a rank is gone."""
        data = encode(message)
        try:
            for link in self._links:
                link.send(data)
        except (OSError, ValueError) as error:
            raise EngineDeadError(self.failure or "a rank of the model is gone") from error

    def close(self, reason: str = "") -> None:
        """Ends the ranks. `reason`: what is wrong, for those of other machines."""
        self._closing = True
        for link in self._links if reason else ():
            with contextlib.suppress(OSError, ValueError):
                link.send(encode(End(reason)))
        self._close_at_exit()


def _check_same(name: str, mine: Identity, theirs: Identity) -> None:
    """Raises ConfigError."""
    if mine.code != theirs.code:
        raise ConfigError(f"{name} runs another version of this program, or of its kernels: install the same on all nodes")
    if mine.kernels != theirs.kernels:
        raise ConfigError(
            f"{name} computes with kernels {theirs.kernels!r}, and this machine with {mine.kernels!r}: their sums would differ; use machines "
            "of one kind, or --kernels reference on all"
        )
    if mine.weights != theirs.weights:
        raise ConfigError(f"{name} has other files of the model than this machine: copy the same files to all nodes")


def _end(links: list[Link], directory: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that has the ranks
        return
    for link in links:
        link.end()
    for link in links:
        link.join()
    shutil.rmtree(directory, ignore_errors=True)


def create_parallel_worker(
    model: ModelOptions,
    device: DeviceOptions,
    memory: MemoryOptions,
    on_death: Callable[[str], None] | None = None,
    adapters: AdapterOptions | None = None,
    nodes: NodeOptions | None = None,
) -> ParallelWorker:
    """Starts all ranks, or waits for those of other `nodes`, and loads the model in parts. Raises ConfigError, ModelError or CapacityError
    with one sentence."""
    import_torch(device.tp_size)
    model = replace(model, files=find_files(model))  # one downloads, not all
    followers = Followers(model, device, memory, adapters, nodes)
    try:
        local = _load(followers, model, device, memory, adapters)
    except SglangError as error:
        followers.close(str(error))
        raise
    except BaseException:
        followers.close()
        raise
    followers.watch(on_death)
    return ParallelWorker(local, followers)


def _load(
    followers: Followers, model: ModelOptions, device: DeviceOptions, memory: MemoryOptions, adapters: AdapterOptions | None
) -> LocalWorker:
    """The part of rank 0, once all have theirs."""
    try:
        local = create_rank(model, device, memory, 0, followers.meet, adapters)
    except RuntimeError:  # of a collective: another rank has ended, and said why
        followers.wait_ready()
        raise
    followers.wait_ready()
    return local


class ParallelAdapters:
    """Every rank has its part of each adapter (forward_batch.AdapterWorker)."""

    def __init__(self, local: AdapterStore, followers: Followers) -> None:
        self._local, self._followers = local, followers
        self.num_slots = local.num_slots

    def load(self, uid: int, path: str) -> Loading:
        self._followers.send(LoadAdapter(uid, path))
        return self._local.load(uid, path)

    def place(self, uid: int, slot: int) -> None:
        self._followers.send(PlaceAdapter(uid, slot))
        self._local.place(uid, slot)

    def forget(self, uid: int) -> None:
        self._followers.send(ForgetAdapter(uid))
        self._local.forget(uid)


class ParallelWorker:
    """The scheduler's worker when there are several ranks (forward_batch.ModelWorker)."""

    def __init__(self, local: LocalWorker, followers: Followers) -> None:
        self.info = local.info
        self._local = local
        self.followers = followers
        self.adapters = ParallelAdapters(local.adapters, followers) if local.adapters is not None else None
        self._diff: TableDiff | None = None

    def bind(self, req_to_token: Int32Array) -> None:
        self._diff = TableDiff(req_to_token)
        self.followers.send(Bind(*req_to_token.shape))
        self._local.bind(req_to_token)

    def forward(self, batch: ForwardBatch) -> None:
        assert self._diff is not None, "bind comes first"
        if self.followers.failure is not None:
            raise EngineDeadError(self.followers.failure)
        changes = self._diff.changes(batch.req_pool_idx, batch.seq_lens)
        self.followers.send(pack_step(batch, changes, lambda rows: self._local.ops.fetch(rows).result()))
        try:
            self._local.forward(batch)
        except RuntimeError as error:  # of a collective: a rank has gone in the middle of it
            raise EngineDeadError(self.followers.failure or f"the ranks of the model lost each other: {error}") from error

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        return self._local.sample(batch, masks)

    def begin_sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        return self._local.begin_sample(batch, masks)

    def finish(self) -> None:
        self._local.finish()

    def check_item(self, item: MediaItem) -> None:
        self._local.check_item(item)

    def encode(self, item: MediaItem) -> EncodeJob:
        return self._local.encode(item)

    def encode_some(self, seconds: float) -> bool:
        return self._local.encode_some(seconds)

    def get_ready(self, num_used: int) -> bool:
        return self._local.get_ready(num_used)

    def release_kv(self) -> None:
        self._local.release_kv()

    def close(self) -> None:
        self.followers.close()
