"""The loaded adapters of one model on one device, and the slots of its layers' banks.

    file --read, on a side thread--> packed matrices --place, between two steps--> a slot of every bank

Adapters are known by numbers that are never given twice (`uid`), slots by 0 .. num_slots - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.config import AdapterInfo, AdapterOptions
from sglang.srt.errors import ConfigError, ModelError
from sglang.srt.model.adapters.reader import Adapter, AdapterBase, rank_of, read_adapter
from sglang.srt.model.distributed.sharding import Shard
from sglang.srt.model.kernels.low_rank import LowRank
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.layers.adapters import AdapterSite
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.weights.shapes import expected_shapes
from sglang.srt.process.heap import release_freed_memory

DEFAULT_RANK = 64
"""of adapters that come later, without --max-lora-rank"""

Cut = Callable[[str, LowRank], LowRank]
"""one rank's part of what an adapter adds to a matrix of this name"""


@dataclass(frozen=True)
class _Loaded:
    """`packed`: for each site what its bank takes."""

    packed: list[Any]
    info: AdapterInfo


class AdapterStore:
    """Owner of the banks and of what is loaded. `sites`: the layers that may be adapted, of this rank's part; `whole`: their matrices in
    the whole model."""

    def __init__(
        self,
        ops: Ops,
        config: ModelConfig,
        sites: Sequence[AdapterSite],
        whole: Mapping[str, tuple[int, int]],
        options: AdapterOptions,
        cut: Cut = lambda name, part: part,
    ) -> None:
        if config.cross_layers:
            raise ConfigError("--enable-lora: models with cross-attention to images take no adapters")
        self.num_slots = options.max_loras_per_batch
        self._ops, self._sites, self._cut = ops, sites, cut
        max_rank = options.max_rank or _largest_rank(options)
        self._base = AdapterBase(config, whole, max_rank)
        self._loaded: dict[int, _Loaded] = {}
        self._readers = ThreadPoolExecutor(1, "adapters")
        for site in sites:
            site.bank = ops.adapter_bank(self.num_slots, max_rank, site.in_features, site.widths, name=site.names[0])

    @property
    def num_bytes(self) -> int:
        """Of the banks."""
        return sum(site.bank.num_bytes for site in self._sites if site.bank is not None)

    def load(self, uid: int, path: str) -> Future[AdapterInfo]:
        """Reads an adapter on a side thread; its result raises ModelError if it cannot be used."""
        return self._readers.submit(self._load, uid, path)

    def _load(self, uid: int, path: str) -> AdapterInfo:
        try:
            adapter = read_adapter(Path(path), self._base)
            packed = [self._packed(site, adapter) for site in self._sites]
        except MemoryError as error:
            raise ModelError(f"the memory of this machine does not suffice for {path}") from error
        info = AdapterInfo(adapter.rank, adapter.invocation, adapter.digest)
        self._loaded[uid] = _Loaded(packed, info)
        return info

    def finish_loading(self) -> None:
        """Waits until everything that was begun is read."""
        self._readers.submit(bool).result()

    def _packed(self, site: AdapterSite, adapter: Adapter) -> Any:
        assert site.bank is not None
        parts = [adapter.parts.get(name) for name in site.names]
        cut = [None if part is None else self._cut(name, part) for name, part in zip(site.names, parts, strict=True)]
        return self._ops.pack_adapter(site.bank, cut)

    def place(self, uid: int, slot: int) -> None:
        """Puts a loaded adapter into a slot, for steps that begin from now on."""
        self._ops.finish()
        for site, packed in zip(self._sites, self._loaded[uid].packed, strict=True):
            assert site.bank is not None
            self._ops.place_adapter(site.bank, slot, packed)

    def forget(self, uid: int) -> None:
        """What lies in slots stays there until something else is placed, or all are forgotten. Its memory goes back to the system."""
        self._loaded.pop(uid, None)
        if not self._loaded:
            self._ops.finish()
            for site in self._sites:
                assert site.bank is not None
                site.bank.empty()
        self._readers.submit(release_freed_memory)  # of many adapters that takes some milliseconds


def create_store(
    ops: Ops, config: ModelConfig, sites: Sequence[AdapterSite], options: AdapterOptions, shard: Shard | None
) -> AdapterStore:
    """For a model whose layers are made. `config`: of the whole model; `shard`: which part of it this rank has."""
    shapes = expected_shapes(config)
    names = [name for site in sites for name in site.names]
    whole = {name: (shapes[f"{name}.weight"][0], shapes[f"{name}.weight"][1]) for name in names}
    if shard is None:
        return AdapterStore(ops, config, sites, whole, options)
    return AdapterStore(ops, config, sites, whole, options, shard.cut_adapter)


def _largest_rank(options: AdapterOptions) -> int:
    """Of the adapters that are loaded at start; where others may come, at least DEFAULT_RANK."""
    ranks = [rank_of(Path(adapter.path)) for adapter in options.adapters]
    return max([*ranks, 1 if ranks and options.root is None and not options.at_run_time else DEFAULT_RANK])
