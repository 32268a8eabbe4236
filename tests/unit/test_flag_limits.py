"""Flags with values that no server can use: one sentence each, before anything is loaded."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.model.capacity import HostMemory, ModelFootprint, plan_capacity
from sglang.srt.process.endpoint import listen
from sglang.srt.server_args import ServerArgs

NAN, INF = float("nan"), float("inf")
NUMBERS = [
    *("threads", "tp_size", "cuda_graph_max_bs", "context_length", "max_total_tokens", "max_running_requests", "page_size"),
    *("max_prefill_tokens", "max_queued_requests", "stream_interval", "decode_log_interval", "mem_fraction_static"),
    *("watchdog_timeout", "grammar_compile_timeout", "media_timeout", "max_media_bytes", "max_image_pixels", "max_media_items"),
    *(
        "max_video_frames",
        "request_timeout",
        "max_session_tokens",
        "session_timeout",
        "max_body_bytes",
        "chunked_prefill_size",
        "port",
    ),
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -5, NAN, INF, -INF, 10**30, 2**63])
def test_numbers_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be ") as caught:
        ServerArgs(**{name: value}).resolve()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["schedule_conservativeness", "drain_seconds", "max_sessions", "random_seed"])
@pytest.mark.parametrize("value", [-5, NAN, 10**30, 2**64])
def test_numbers_that_may_be_zero(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="must be (between|at least)"):
        ServerArgs(**{name: value}).resolve()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "nothing", '{"a":', "{" * 5000])
@pytest.mark.parametrize("name", ["json_model_override_args", "preferred_sampling_params"])
def test_json_that_is_none(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} (is not valid JSON|must be a JSON object)") as caught:
        ServerArgs(**{name: text}).resolve()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("host", ["a" * 300, "x y", "300.1.1.1", "\0", "a\0b", "::g", "." * 70])
def test_hosts_that_do_not_exist(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on .* choose another with --host"):
        listen(host, 30000).close()


@pytest.mark.parametrize("tokens", [10**12, 1 << 40])
def test_a_pool_larger_than_the_memory(tokens: int) -> None:
    memory = ServerArgs(max_total_tokens=tokens, device="cpu").resolve().memory
    with pytest.raises(ConfigError, match="only .* are available"):
        plan_capacity(memory, ModelFootprint(100, 1000, 1000, 16), HostMemory(1 << 34, 1 << 33), 0)


@pytest.mark.parametrize(
    "name", ["model_path", "tokenizer_path", "served_model_name", "api_key", "chat_template", "download_dir"]
)
def test_bytes_that_are_no_text(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} holds bytes that are not valid UTF-8"):
        ServerArgs(**{name: "a\udcff"}).resolve()


def test_json_with_half_a_character() -> None:
    with pytest.raises(ConfigError, match="half a character"):
        ServerArgs(json_model_override_args='{"a": "\\ud800"}').resolve()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .* choose another with --port"):
            listen("127.0.0.1", port).close()
