"""Programs in the style of the original, against real servers."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import sglang as sgl
from tests.conftest import DEFAULT_MODEL, RunningServer, free_port, package_environ

PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENT = package_environ(HF_HUB_OFFLINE="1")


def run(tmp_path: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAMS / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def address(server: RunningServer) -> list[str]:
    return ["--host", "http://127.0.0.1", "--port", str(urlsplit(server.url).port)]


@pytest.fixture()
def data_url(tmp_path: Path) -> Iterator[str]:
    """A data set behind HTTP."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"question": f"What is {a} plus 1?", "answer": a + 1} for a in range(5)]
    (folder / "sums.jsonl").write_text("# sums\n" + "".join(json.dumps(row) + "\n" for row in rows) + "\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/sums.jsonl"
        running.shutdown()


def test_a_benchmark_of_a_program(server: RunningServer, tmp_path: Path, data_url: str) -> None:
    words = ["--data-url", data_url, "--parallel", "2", "--raw-result-file", "raw.jsonl", *address(server)]
    done = run(tmp_path, "bench_sglang.py", *words)
    assert "3/3" in done.stderr
    result = json.loads((tmp_path / "result.jsonl").read_text())
    assert result["num_requests"] == 3 and result["backend"] == "srt" and result["tokens"] > 0
    raw = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in raw] == [0, 1, 2] and raw[0]["prompt"].endswith("What is 2 plus 1?\nAnswer:")
    assert all(isinstance(row["correct"], bool) and row["output"] for row in raw)
    assert "What is 4 plus 1?" in (tmp_path / "tmp_output_bench.txt").read_text()
    run(tmp_path, "bench_sglang.py", *words[2:], "--data-url", "http://127.0.0.1:9/none")  # the file is there already
    assert len((tmp_path / "result.jsonl").read_text().splitlines()) == 2


def test_a_benchmark_of_another_system(server: RunningServer, tmp_path: Path) -> None:
    run(tmp_path, "bench_other.py", "--backend", "srt-raw", *address(server))
    result = json.loads((tmp_path / "result.jsonl").read_text())
    assert len(result["answers"]) == 4 and result["answers"][1].startswith(" 5")
    assert len(result["several"]) == 2 and result["digits"].isdigit() and result["chosen"] == 1


def test_forks_and_regular_expressions(server: RunningServer, tmp_path: Path) -> None:
    done = run(tmp_path, "forks.py", server.url)
    assert done.stdout.rstrip().endswith("all good") and "position_ids_offset has no effect" in done.stderr


def test_styles_of_benchmarks(server: RunningServer, tmp_path: Path) -> None:
    done = run(tmp_path, "styles.py", "--parallel", "4", *address(server))
    assert done.stdout.rstrip().endswith("all good") and "2/2" in done.stderr


def test_an_engine_with_flags_of_the_command_line(tmp_path: Path) -> None:
    flags = ["--model", DEFAULT_MODEL, "--tp", "1", "--context-len", "256", "--max-total-tokens", "512", "--dp-size", "1"]
    done = run(tmp_path, "offline.py", *flags, "--moe-runner-backend", "triton", "--log-level", "error")
    assert done.stdout.rstrip().endswith("all good")
    assert "--moe-runner-backend has no effect here" in done.stderr


def test_a_server_of_a_test_case(tmp_path: Path) -> None:
    """As unit tests of the original start one: with a command line from the wild."""
    from sglang.srt.utils import kill_process_tree
    from sglang.test.test_utils import popen_launch_server
    from sglang.utils import http_request

    line = "--tp 1 --dp 1 --mem-frac 0.5 --context-len 128 --max-total-tokens 256 --enable-torch-compile --cuda-graph-bs 1 2 4"
    url = f"http://127.0.0.1:{free_port()}"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        files = (out, err)
        process = popen_launch_server(
            DEFAULT_MODEL, url, 120, api_key="k", other_args=line.split(), env=ENVIRONMENT, return_stdout_stderr=files
        )
        try:
            info = http_request(f"{url}/get_server_info", api_key="k").json()
            assert info["tp_size"] == 1 and info["context_length"] == 128
            assert http_request(f"{url}/get_server_info").status_code == 401
        finally:
            kill_process_tree(process.pid)
        assert process.wait(30) != 0
    said = (tmp_path / "err").read_text()
    assert "warning: --enable-torch-compile has no effect here" in said and "--cuda-graph-bs has no effect here" in said


def check_tokenizer(runtime: sgl.Runtime) -> None:
    """It splits texts as the server does."""
    tokenizer = runtime.get_tokenizer()
    for text in ("The capital of France is Paris.", "  two  spaces\n", "Ünïcödé 你好 🙂"):
        ids = tokenizer.encode(text)
        reply = json.loads(runtime.generate(text, {"max_new_tokens": 0}))
        assert reply["meta_info"]["prompt_tokens"] == len(ids) and tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>assistant\n") and tokenizer.eos_token == "<|im_end|>"


def test_the_tokenizer_of_a_runtime(server: RunningServer) -> None:
    """Of a model that has an alias, which is no name on a hub."""
    pytest.importorskip("transformers")
    runtime = object.__new__(sgl.Runtime)  # around a server that runs already
    runtime.endpoint, runtime._flags = sgl.RuntimeEndpoint(server.url), {}
    check_tokenizer(runtime)
    sgl.set_default_backend(runtime)
    try:
        assert sgl.global_config.default_backend is runtime  # programs read its `endpoint` there
        assert sgl.get_server_info() is not None
    finally:
        sgl.set_default_backend(None)


@pytest.mark.slow
def test_a_runtime_with_keywords_of_the_original() -> None:
    flags = {"tp": 1, "dp_size": 1, "nnodes": 1, "cuda_graph_bs": [1, 2], "enable_memory_saver": True, "lora_paths": None}
    with sgl.Runtime(model_path=DEFAULT_MODEL, context_length=256, max_total_tokens=512, **flags) as runtime:
        check_tokenizer(runtime)
    with pytest.raises(RuntimeError, match="exit code 2"):
        sgl.Runtime(model_path=DEFAULT_MODEL, dp_size=2)
