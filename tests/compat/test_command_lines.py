"""Command lines as they stand in scripts, blogs and issues: taken, taken with a line that says what they do here, or refused with
one line that says why. And the same flags as attributes of ServerArgs."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys

import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, FLAGS
from sglang.srt.server_args import ServerArgs, parse_server_args
from tests.compat.test_programs import ENVIRONMENT
from tests.conftest import free_port

TAKEN = [
    "--model-path M --host 0.0.0.0 --port 30000",
    "--model M -tp 2",
    "--model-path M -dp 8",
    "--model-path M -tp=2 -dp 1 -pp 1",
    "--model_path M --tp_size 1 --mem_fraction_static 0.8",
    "--model-path M --host 0.0.0.0 --reasoning-parser deepseek-r1 --log-level warning --log-level-http error",
    "--model-path M --log-level-http WARN",
    "--model-path M --device cpu --served-model-name gpt-4 --api-key sk-1",
    "--model-path M --trust-remote-code --tp 1 --mem-fraction-static=0.8 --port=30010",
    "--model-path M --disaggregation-mode null --nnodes 1 --node-rank 0",
    "--model-path M --context-len 8192 --chunked-prefill-size -1 --max-running-req 16 --schedule-conserv 0.3",
    "--model-path M --quantization int4 --dtype half --kv-cache-dtype auto",
]
NOTED = {
    "--model-path M --enable-torch-compile --torch-compile-max-bs 8": "--torch-compile-max-bs has no effect here",
    "--model-path M --page-size 64 --enable-hicache --hicache-io-backend direct": "the tiers of the prefix cache are",
    "--model-path M --cuda-graph-bs 1 2 4 --disable-cuda-graph-padding": "--cuda-graph-bs has no effect here",
    "--model-path M --file-storage-path /tmp/x --show-time-cost": "files are not stored",
    "--model-path M --quantization awq_marlin --dist-init-addr 1.2.3.4:5000": "the kernels are chosen for the machine",
    "-moe-runner-backend triton": "--moe-runner-backend has no effect here",
    "--model-path M --enable-flashinfer --model-mode flashinfer --attention-reduce-in-fp32": "--enable-flashinfer has no effect",
    "--model-path M --additional-ports 8001 8002 --port 1": "--additional-ports has no effect here: a server runs on one machine",
    "--model-path M --additional-ports 8001": "--additional-ports has no effect here",
    "--model-path M --disable-penalizer": "--disable-penalizer has no effect here: penalties cost nothing",
    "--model-path M --prefill-only-one-req --tp 1": "--prefill-only-one-req has no effect here: a prefill takes several",
    "--model-path M --file-storage-pth st --return-token-ids --n-share-experts-fusion 8": "always have output_ids",
}
REFUSED = {
    "--model-path M --uno-lora-path /x": "--uno-lora-path /x is not possible here: adapters of this kind",
    "--model-path M --disaggregation-mode prefill": "--disaggregation-mode prefill is not possible here: a server does both",
    "--model-path M --log-level-http nonsense": "--log-level-http: invalid choice: 'nonsense'",
    "--model-path M --load-format jax": "weights are read from safetensors and GGUF files",
    "--model-path M --quantization blockwise_int8": "--quantization int8 or int4 quantizes at load",
    "--model-path M --model-pth X": "unknown flag --model-pth; did you mean --model-path?",
    "--model-path M -xy": "unexpected argument '-xy'",
    "--model M --gpu-memory-utilization 0.9": "unknown flag --gpu-memory-utilization; did you mean --mem-fraction-static?",
    "--model M --max-model-len 4096": "did you mean --context-length?",
    "--model M --max_num_seqs 8": "did you mean --max-running-requests?",
    "--model-path M -tp two": "invalid int value: 'two'",
    "--model-path M --enable-metrics=true": "--enable-metrics takes no value, got 'true'",
    "--model-path M --disable-radix-cache=false": "--disable-radix-cache takes no value, got 'false'",
}


@pytest.mark.parametrize("line", [*TAKEN, *NOTED])
def test_lines_that_are_taken(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    parse_server_args(shlex.split(line), "serve").resolve()
    said = capsys.readouterr().err
    assert NOTED.get(line, "") in said and (line in NOTED or "no effect" not in said)


@pytest.mark.parametrize("line", REFUSED)
def test_lines_that_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_server_args(shlex.split(line), "serve")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("serve: error: ") and said.count("\n") == 1
    assert REFUSED[line] in said


def test_every_flag_is_an_attribute() -> None:
    args = ServerArgs()
    for name in (*FLAGS, *ALIASES):
        neutral = FLAGS[name].neutral if name in FLAGS else (getattr(args, ALIASES[name]),)
        assert getattr(args, name) in (None, False, *neutral)
    assert (args.dp_size, args.tp, args.nnodes, args.lora_paths, args.enable_torch_compile) == (1, 1, 1, None, False)
    given = ServerArgs(enable_torch_compile=True, cuda_graph_bs=[1, 2], dp=1, model="M")
    assert (given.enable_torch_compile, given.cuda_graph_bs, given.dp_size, given.model) == (True, [1, 2], 1, "M")
    line = parse_server_args(shlex.split("--model M --nnodes 1 --hicache-ratio 2 --host 0.0.0.0"), "serve")
    assert (line.nnodes, line.node_rank, line.hicache_ratio) == (1, 0, 2.0)
    assert line.url() == "http://127.0.0.1:30000"
    assert "_others" not in vars(given) and copy.deepcopy(given) == given and copy.copy(given).cuda_graph_bs == [1, 2]


def test_what_is_no_flag_is_no_attribute() -> None:
    assert not hasattr(ServerArgs(), "no_such_flag")
    with pytest.raises(AttributeError, match="did you mean 'model_path'"):
        _ = ServerArgs().model_pth
    with pytest.raises(TypeError, match="did you mean 'mem_fraction_static'"):
        ServerArgs(gpu_memory_utilization=0.9)
    with pytest.raises(ConfigError, match="a server does both"):
        ServerArgs(disaggregation_mode="decode")
    with pytest.raises(ConfigError, match="log-level-http"):
        ServerArgs(log_level_http="nonsense").resolve()


def test_a_wrong_name_of_a_model_is_one_line() -> None:
    """Not behind two kilobytes of flags."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", "smollm2-135m-instruc", "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode == 1 and "smollm2-135m-instruct" in said and "server_args" not in said and said.count("\n") == 0
