"""Errors in an address or a model are reported before HTTP, tokenizers and the scheduler are imported."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port

HUGE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 4000,  # no machine holds that
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
PROGRAM = """
import json, sys
from sglang.commands.serve import serve
status = serve(sys.argv[1:])
late = ("sglang.srt.process.launch", "sglang.srt.scheduler.scheduler", "starlette", "tokenizers", "torch")
print(json.dumps([status, [name for name in late if name in sys.modules]]))
"""


def serve(*words: str) -> tuple[int, list[str], str]:
    """Exit status, what of the rest was imported, and the error."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], env=environ, capture_output=True, text=True)
    status, late = json.loads(done.stdout)
    return status, late, done.stderr


@pytest.mark.parametrize("flags", [[], ["--kernels", "reference"], ["--quantization", "int4"]])
def test_a_model_that_is_too_large(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGE))
    status, late, error = serve("--model-path", str(tmp_path), "--load-format", "dummy", "--port", str(free_port()), *flags)
    assert (status, late) == (1, [])
    assert "of memory (" in error and "are available; close other programs, or choose a model of at most" in error
    assert "server_args" not in error


def test_a_config_that_contradicts_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**HUGE, "num_key_value_heads": 7}))
    status, late, error = serve("--model-path", str(tmp_path), "--load-format", "dummy", "--port", str(free_port()))
    assert (status, late) == (1, []) and "must be a multiple of num_key_value_heads (7)" in error


def test_a_port_that_is_taken_is_reported_before_the_model_is_searched_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, late, error = serve("--model-path", "/no/such/model", "--port", str(taken.getsockname()[1]))
    assert (status, late) == (1, []) and "cannot listen on 127.0.0.1" in error


@pytest.mark.parametrize(
    "flags",
    [
        ["--model-path", "/no/such/model"],
        ["--model", "a=/no/such/model", "--model", "b=/no/such/model"],
        ["--ray", "local", "--model", "a=/no/such/model"],
    ],
)
def test_errors_are_in_the_format_of_the_log(flags: list[str]) -> None:
    """Of one model, of several, and of replicas on Ray."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, error = serve("--log-format", "json", "--port", str(taken.getsockname()[1]), *flags)
    lines = [json.loads(line) for line in error.splitlines()]
    assert status == 1 and [line["level"] for line in lines] == ["critical"]
