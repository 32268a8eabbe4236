"""The prefix cache on disk with a real model: answers are the same bits, wherever the prefix came from."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import sglang
from sglang import cli
from sglang.srt.config import HostCacheOptions
from sglang.srt.errors import CapacityError, ConfigError
from sglang.srt.messages import SchedulerStats
from sglang.srt.model.kernels.kv_runs import ReferenceRuns
from sglang.srt.process.routing import total
from sglang.srt.process.scheduler_process import host_arena
from sglang.srt.server_args import ServerArgs
from tests.conftest import DEFAULT_MODEL, RunningServer, start_server
from tests.server.test_processes import wait_dead

PROMPT = random.Random(11).choices(range(1000, 40000), k=150)
SAMPLING = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}


def ask(url: str, ids: list[int] = PROMPT, **more: Any) -> dict[str, Any]:
    """An answer: its tokens with log probabilities, and how much was cached."""
    body = {"input_ids": ids, "sampling_params": SAMPLING, "return_logprob": True, "logprob_start_len": -1} | more
    reply = httpx.post(f"{url}/generate", json=body, timeout=300, trust_env=False)
    assert reply.status_code == 200, reply.text
    meta = reply.json()["meta_info"]
    return {"logprobs": meta["output_token_logprobs"], "cached": meta["cached_tokens"]}


def start(tmp_path: Path, name: str, folder: Path) -> RunningServer:
    return start_server(tmp_path / name, "--random-seed", "1", "--cache-dir", str(folder), "--enable-metrics")


def kill(server: RunningServer) -> None:
    """kill -9 of the server and of its scheduler."""
    pids = [server.scheduler(), server.process.pid]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.process.wait(30)
    wait_dead(pids[:1])


def test_cold_warm_killed_restarted_and_moved_are_the_same_bits(tmp_path: Path, server: RunningServer) -> None:
    folder = tmp_path / "cache"
    plain = ask(server.url)["logprobs"]
    first = start(tmp_path, "first", folder)
    cold, warm = ask(first.url), ask(first.url)
    assert (cold["cached"], warm["cached"]) == (0, len(PROMPT) - 1)
    with httpx.Client(base_url=first.url, trust_env=False, timeout=60) as http:
        while "sglang:cache_disk_records_written_total" not in (page := http.get("/metrics").text) or _written(page) < 9:
            pass
    kill(first)
    second = start(tmp_path, "second", folder)
    restarted = ask(second.url)
    page = httpx.get(f"{second.url}/metrics", trust_env=False, timeout=60).text
    assert 'sglang:cached_tokens_by_tier_total{model_name="smollm2-135m-instruct",tier="disk"} 144.0' in page
    other = random.Random(12).choices(range(1000, 40000), k=100)
    fresh = ask(second.url, other)
    assert second.stop() == 0  # and drains
    moved = shutil.copytree(folder, tmp_path / "moved")
    for name in ("one", "two"):
        path = next(moved.glob("*/*.kv"))
        data = path.read_bytes()
        if name == "two":
            path.write_bytes(data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :])
        with sglang.Engine(model_path=DEFAULT_MODEL, cache_dir=str(moved), max_total_tokens=1024, random_seed=1) as engine:
            for ids, expected in ((PROMPT, plain), (other, fresh["logprobs"])):
                answer = engine.generate(input_ids=ids, sampling_params=SAMPLING, return_logprob=True, logprob_start_len=-1)
                meta = answer["meta_info"]
                assert [list(row) for row in meta["output_token_logprobs"]] == [list(row) for row in expected]
                assert name == "two" or meta["cached_tokens"] == (len(ids) - 1) // 16 * 16
    assert restarted["cached"] == 144
    assert cold["logprobs"] == warm["logprobs"] == restarted["logprobs"] == plain


def _written(page: str) -> float:
    return next(
        float(line.split()[-1]) for line in page.splitlines() if line.startswith("sglang:cache_disk_records_written_total")
    )


def test_other_weights_never_match(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    flags: dict[str, Any]
    for flags in ({}, {"quantization": "int8"}, {"kv_cache_dtype": "int8"}, {}):
        with sglang.Engine(
            model_path=DEFAULT_MODEL, cache_dir=str(folder), weights_cache="off", max_total_tokens=512, random_seed=1, **flags
        ) as engine:
            cached = engine.generate(input_ids=PROMPT[:40], sampling_params={"max_new_tokens": 1})["meta_info"]["cached_tokens"]
        assert cached == (32 if not flags and len(list(folder.iterdir())) == 3 else 0)


@pytest.mark.parametrize("kv_form", ["int8", "fp8_e4m3"])
def test_kv_in_8_bits_is_the_same_bits_from_disk_in_chunks_and_alone(tmp_path: Path, kv_form: str) -> None:
    found: dict[str, Any] = {}
    kept: dict[str, Any] = {"cache_dir": str(tmp_path)}
    for name, flags in {"cold": kept, "disk": kept, "alone": {"disable_radix_cache": True, "chunked_prefill_size": 37}}.items():
        with sglang.Engine(
            model_path=DEFAULT_MODEL, kv_cache_dtype=kv_form, weights_cache="off", max_total_tokens=512, **flags
        ) as engine:
            answer = engine.generate(input_ids=PROMPT, sampling_params=SAMPLING, return_logprob=True, logprob_start_len=-1)
            assert engine.get_server_info()["kv_bytes_per_token"] == 30 * 2 * 3 * (64 + 4)
        found[name] = answer["meta_info"]["output_token_logprobs"]
        assert answer["meta_info"]["cached_tokens"] == (144 if name == "disk" else 0)
    assert found["cold"] == found["disk"] == found["alone"]


def test_the_command_shows_and_prunes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["sglang", "cache", *words])
        assert cli.main() == 0
        return capsys.readouterr().out

    flags = {"cache_dir": str(folder), "weights_cache": "off", "max_total_tokens": 512}
    with sglang.Engine(model_path=DEFAULT_MODEL, **flags) as engine:
        for _ in range(2):
            engine.generate(input_ids=PROMPT[:40], sampling_params={"max_new_tokens": 1})
        assert "0.0 MB deleted" in run("prune", str(folder), "--all")  # it is in use
    assert DEFAULT_MODEL in run("show", str(folder)) and "cpu " in run("show", str(folder))
    assert "0.0 MB deleted" in run("prune", str(folder), "--unused-for", "1")
    assert "0.0 MB are left" in run("prune", str(folder), "--all")
    assert "nothing is kept" in run("show", str(folder))
    monkeypatch.setattr("sys.argv", ["sglang", "cache", "show", str(tmp_path / "none")])
    assert cli.main() == 1 and "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"cache_disk": 1 << 30, "weights_cache": "off"}, "--cache-disk says something of --cache-dir"),
        ({"cache_shared": True}, "--cache-shared says something of --cache-dir"),
        ({"cache_dir": "x", "disable_radix_cache": True}, "does not go together with --disable-radix-cache"),
        ({"cache_dir": "x", "tp_size": 2}, "does not go together with --tp-size"),
        ({"cache_dir": "x", "is_embedding": True}, "does not go together with --is-embedding"),
        ({"enable_hierarchical_cache": True, "tp_size": 2}, "does not go together with --tp-size"),
        ({"enable_hierarchical_cache": True, "disable_radix_cache": True}, "--disable-radix-cache"),
        ({"cache_dir": "x", "cache_shared": True, "cache_per_key": True}, "contradict each other"),
        ({"cache_dir": ""}, "needs the name of a folder"),
        ({"cache_dir": "x", "cache_disk": 5}, "--cache-disk must be at least"),
    ],
    ids=["size", "shared", "no tree", "ranks", "embeds", "host, ranks", "host, no tree", "per key", "empty", "tiny"],
)
def test_what_does_not_go_together_is_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerArgs(**flags).resolve()


def test_counts_of_several_schedulers() -> None:
    here = {"records": 5, "bytes": 50}
    one = SchedulerStats(cached_tokens={"memory": 3, "disk": 4}, disk={**here, "written": 5, "read": 1, "damaged": 0})
    two = SchedulerStats(cached_tokens={"memory": 1, "disk": 0}, disk={**here, "written": 0, "read": 2, "damaged": 1})
    both = total([one, two, SchedulerStats(disk={"written": 7})])
    assert both.cached_tokens == {"memory": 4, "disk": 4}
    assert both.disk == {**here, "written": 12, "read": 3, "damaged": 1}
    assert total([SchedulerStats()]) == SchedulerStats()


def test_tenants_are_kept_apart_unless_shared() -> None:
    assert ServerArgs(cache_dir="x").resolve().http.cache_per_key
    assert not ServerArgs(cache_dir="x", cache_shared=True).resolve().http.cache_per_key
    assert not ServerArgs().resolve().http.cache_per_key


def test_a_tier_in_host_memory_is_for_pools_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    args: dict[str, Any] = {"enable_hierarchical_cache": True, "hicache_ratio": 3.0, "hicache_write_policy": "write_back"}
    assert ServerArgs(**args).resolve().host_cache is None
    assert "has no effect on a CPU" in caplog.text
    assert ServerArgs(**args, device="cuda").resolve().host_cache == HostCacheOptions(3.0, 0, "write_back")
    assert ServerArgs(**args, device="cuda", hicache_size=2).resolve().host_cache == HostCacheOptions(
        3.0, 2 << 30, "write_back"
    )
    assert ServerArgs(device="cuda").resolve().host_cache is None
    runs = ReferenceRuns([np.zeros((64, 2, 4), np.float32)] * 2, 16)
    assert len(host_arena(HostCacheOptions(0.5), runs, 64)) == 2 * runs.run_bytes
    assert len(host_arena(HostCacheOptions(num_bytes=3 * runs.run_bytes + 1), runs, 64)) == 3 * runs.run_bytes
    with pytest.raises(CapacityError, match="lower --hicache-ratio"):
        host_arena(HostCacheOptions(num_bytes=1 << 50), runs, 64)
