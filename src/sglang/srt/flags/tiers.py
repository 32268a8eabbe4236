"""The tiers of the prefix cache behind the pool: in host memory (a GPU's), and on disk."""

from __future__ import annotations

import logging
from typing import Protocol

from sglang.srt.config import DiskCacheOptions, HostCacheOptions
from sglang.srt.errors import ConfigError
from sglang.srt.flags.values import parse_folder

logger = logging.getLogger("sglang")


class TierFlags(Protocol):
    """What of ServerArgs matters here."""

    cache_dir: str | None
    cache_disk: int | None
    cache_shared: bool
    cache_per_key: bool
    weights_cache: str | None
    enable_hierarchical_cache: bool
    hicache_ratio: float
    hicache_size: int
    hicache_write_policy: str
    disable_radix_cache: bool
    tp_size: int
    is_embedding: bool

    def named(self, name: str) -> str: ...


def disk_cache(args: TierFlags, on_cuda: bool) -> DiskCacheOptions | None:
    """None without --cache-dir. Raises ConfigError."""
    flag = args.named("cache_dir")
    if args.cache_dir is None:
        off = args.weights_cache == "off" or on_cuda
        for name in ("cache_disk", "cache_shared") if off else ("cache_shared",):
            if getattr(args, name):
                raise ConfigError(f"{args.named(name)} says something of {flag}, which is not given")
        return None
    _check_others(args, flag)
    if args.cache_shared and args.cache_per_key:
        raise ConfigError(
            f"{args.named('cache_shared')} and {args.named('cache_per_key')} contradict each other: leave one out"
        )
    return DiskCacheOptions(parse_folder(flag, args.cache_dir), args.cache_disk, args.cache_shared)


def host_cache(args: TierFlags, has_device_pool: bool) -> HostCacheOptions | None:
    """None without --enable-hierarchical-cache, and where the pool lies in host memory anyway. Raises ConfigError."""
    flag = args.named("enable_hierarchical_cache")
    if not args.enable_hierarchical_cache:
        return None
    _check_others(args, flag)
    if not has_device_pool:
        logger.warning("%s has no effect on a CPU: its KV pool is in host memory; --cache-dir adds a disk", flag)
        return None
    policy = args.hicache_write_policy
    return HostCacheOptions(args.hicache_ratio, args.hicache_size << 30, policy)  # type: ignore[arg-type]


def _check_others(args: TierFlags, flag: str) -> None:
    refused = {
        "disable_radix_cache": (args.disable_radix_cache, "it keeps what the prefix cache holds"),
        "tp_size": (args.tp_size > 1, "the prefix cache of a model that several processes share has one tier"),
        "is_embedding": (args.is_embedding, "a model that embeds has no prefix cache"),
    }
    for name, (is_given, why) in refused.items():
        if is_given:
            raise ConfigError(f"{flag} does not go together with {args.named(name)}: {why}")
