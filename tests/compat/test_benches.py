"""The original's measuring scripts: their flags, the lines that scripts search their output for, their result files."""

from __future__ import annotations

import json
import pstats
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from sglang.bench_offline_throughput import main as bench_offline
from sglang.bench_one_batch import main as bench_one_batch
from sglang.bench_serving import main as bench_serving
from sglang.bench_serving import run_benchmark
from sglang.commands.arguments import CommandError
from sglang.compat.bench import profiling
from sglang.compat.bench.evals import chosen_letter, last_number
from sglang.profiler import main as profile
from sglang.test.few_shot_gsm8k import run_eval as few_shot_gsm8k
from sglang.test.run_eval import run_eval
from sglang.test.send_one import BenchArgs, send_one_prompt
from sglang.test.send_one import main as send_one
from tests.compat.test_programs import ENVIRONMENT
from tests.conftest import DEFAULT_MODEL, RunningServer

SERVING_LINES = [
    "Backend:",
    "Traffic request rate:",
    "Max request concurrency:",
    "Successful requests:",
    "Benchmark duration (s):",
    "Total input tokens:",
    "Total generated tokens:",
    "Request throughput (req/s):",
    "Input token throughput (tok/s):",
    "Output token throughput (tok/s):",
    "Total token throughput (tok/s):",
    "Concurrency:",
    "Mean E2E Latency (ms):",
    "Mean TTFT (ms):",
    "P99 TTFT (ms):",
    "Mean TPOT (ms):",
    "Median ITL (ms):",
    "P95 ITL (ms):",
    "Max ITL (ms):",
]


def figure(shown: str, name: str) -> float:
    """The number at the end of a line, as scripts find it."""
    found = re.search(rf"^{re.escape(name)}\s+([\d.]+)\s*$", shown, re.MULTILINE)
    assert found is not None, (name, shown)
    return float(found[1])


def port(server: RunningServer) -> str:
    return str(urlsplit(server.url).port)


def test_a_server_under_load(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = "--dataset-name random --num-prompts 5 --random-input-len 24 --random-output-len 6 --random-range-ratio 0.5"
    assert bench_serving(["--backend", "sglang", "--port", port(server), *shape.split(), "--disable-tqdm"]) == 0
    shown = capsys.readouterr().out
    assert all(any(line.startswith(name) for line in shown.splitlines()) for name in SERVING_LINES)
    (path,) = tmp_path.glob("sglang_*_5_random.jsonl")
    result = json.loads(path.read_text())
    assert figure(shown, "Successful requests:") == result["completed"] == 5
    assert figure(shown, "Total generated tokens:") == result["total_output_tokens"]
    assert 5 * 12 <= result["total_input_tokens"] <= 5 * 24 and 5 * 3 <= result["total_output_tokens"] <= 5 * 6
    assert 0 < result["mean_ttft_ms"] <= result["p99_ttft_ms"] <= result["max_e2e_latency_ms"]
    assert result["request_rate"] == "inf" and result["output_throughput"] > 0


CASES = {
    "chat": "--backend sglang-oai-chat --dataset-name random --num-prompt 3 --random-input 16 --random-output 4 "
    "--max-concurrency 2 --request-rate 50 --return-logprob --top-logprobs-num 1",
    "completions": "--backend vllm --dataset-name random-ids --num-prompts 3 --random-input-len 16 --random-output-len 4 "
    "--random-range-ratio 1.0 --disable-stream --seed 20 --warmup-requests 0",
    "groups": "--backend sglang-oai --dataset-name generated-shared-prefix --gsp-num-groups 2 --gsp-prompts-per-group 2 "
    "--gsp-system-prompt-len 20 --gsp-question-len 4 --gsp-output-len 3 --output-details --tag mine --header X-A=b",
    "conversations": "--backend sglang --dataset-name sharegpt --dataset-path chats.json --num-prompts 2 --sharegpt-output-len 4 "
    '--extra-request-body {"sampling_params":{"top_k":5}} --disable-ignore-eos',
    "lines": "--backend sglang-native --dataset-name custom --dataset-path chats.jsonl --num-prompts 2 --flush-cache",
}


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_ask(name: str, server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "What is the capital of France?"}, {"from": "gpt", "value": "It is Paris."}]
    Path("chats.json").write_text(json.dumps([{"conversations": turns}] * 3 + [{"conversations": turns[:1]}, {"x": 1}]))
    messages = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red, and blue."}]
    Path("chats.jsonl").write_text(2 * (json.dumps({"messages": messages}) + "\n"))
    out = ["--output-file", "out.jsonl", "--disable-tqdm", "--base-url", server.url]
    assert bench_serving([*CASES[name].split(), *out]) == 0
    result = json.loads(Path("out.jsonl").read_text())
    assert result["completed"] == result["num_prompts"] > 1
    if name == "completions":
        assert (result["total_input_tokens"], result["total_output_tokens"]) == (48, 12)
    if name == "groups":
        assert result["input_lens"] == [24] * 4 and len(result["ttfts"]) == 4 and result["tag"] == "mine"
    if name == "conversations":
        assert result["total_output_tokens"] <= 8


def test_a_program_calls_it(server: RunningServer, tmp_path: Path) -> None:
    shape = {"dataset_name": "random", "num_prompts": 2, "random_input_len": 8, "random_output_len": 2, "disable_tqdm": True}
    result = run_benchmark(Namespace(backend="sglang", base_url=server.url, output_file=str(tmp_path / "o"), **shape))
    assert result["completed"] == 2


def test_what_is_not_possible_is_said(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    for line, word in (
        ("--dataset-name mmmu", "--dataset-name mmmu is not possible here"),
        ("--dataset-name random --lora-name a", "adapters"),
        ("--dataset-name sharegpt --dataset-path nowhere.json", "nowhere.json"),
        ("--dataset-name random --extra-request-body {", "--extra-request-body"),
        ("--dataset-name random --num-prompts 1 --random-input-len 99999", "first request failed"),
    ):
        assert bench_serving(["--port", port(server), *line.split()]) == 1
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1, said
    assert bench_serving(["--port", "9", "--dataset-name", "random"]) == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"--model-path {DEFAULT_MODEL} --batch 1 2 --input-len 16 --output-len 4 --tp-size 1 --mem-frac 0.2 --run-name mine"
    flags = "--max-total-tokens 256 --attention-backend triton --log-decode-step 2 --log-level error"
    assert bench_one_batch([*line.split(), *flags.split()]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^Prefill\. latency: [ \d.]+ s, throughput: +[\d.]+ token/s$", shown, re.MULTILINE)) == 3
    assert (
        len(re.findall(r"^Decode\.  median latency: [ \d.]+ s, median throughput: +[\d.]+ token/s$", shown, re.MULTILINE)) == 3
    )
    assert len(re.findall(r"^Total\. latency: [ \d.]+ s, throughput: +[\d.]+ token/s$", shown, re.MULTILINE)) == 3
    rows = [json.loads(row) for row in Path("result.jsonl").read_text().splitlines()]
    assert [row["batch_size"] for row in rows] == [1, 2] and rows[0]["run_name"] == "mine"
    assert rows[1]["prefill_latency"] < rows[1]["total_latency"]


def test_offline_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = "--dataset-name random --num-prompts 3 --random-input-len 16 --random-output-len 4 --random-range-ratio 1"
    path = tmp_path / "result.jsonl"
    line = (
        f"--model {DEFAULT_MODEL} {shape} -tp 1 --max-total-tokens 512 --skip-warmup --log-level error --result-filename {path}"
    )
    assert bench_offline(line.split()) == 0
    shown = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert figure(shown, "Total input tokens:") == 48 and figure(shown, "Total generated tokens:") == 12
    assert figure(shown, "Output token throughput (tok/s):") == pytest.approx(result["output_throughput"], abs=0.01)
    with pytest.raises(SystemExit):
        bench_offline(["--no-such-flag"])
    assert "sglang.bench_offline_throughput: error: unknown flag --no-such-flag" in capsys.readouterr().err


def test_right_answers_are_counted(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "mmlu.csv"
    questions.write_text('Question,A,B,C,D,Answer,Subject\n"2, and 2?",1,2,3,4,D,sums\nFrance?,Rome,Paris,Oslo,Bonn,B,places\n')
    common = {"base_url": server.url, "num_threads": 2, "max_tokens": 4, "model": None}
    metrics = run_eval(SimpleNamespace(eval_name="mmlu", dataset_path=str(questions), num_examples=2, **common))
    assert 0 <= metrics["score"] <= 1 and metrics["num_examples"] == 2
    assert re.search(r"^Score: [\d.]{5}$", capsys.readouterr().out, re.MULTILINE)
    sums = tmp_path / "sums.jsonl"
    rows = [{"question": f"What comes after {n}?", "answer": f"#### {n + 1}"} for n in range(4)]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common["max_tokens"] = 8
    metrics = run_eval(SimpleNamespace(eval_name="gsm8k", dataset_path=str(sums), num_shots=3, num_examples=5, **common))
    assert metrics["num_examples"] == 1
    few = SimpleNamespace(data_path=str(sums), num_shots=2, num_questions=2, max_new_tokens=8, parallel=2, port=port(server))
    monkeypatch.chdir(tmp_path)
    metrics = few_shot_gsm8k(few)
    assert set(metrics) == {"accuracy", "invalid", "latency", "output_throughput"} and metrics["output_throughput"] > 0
    assert "What comes after 3?" in Path("tmp_output_gsm8k.txt").read_text()
    with pytest.raises(CommandError, match="worked examples"):
        few_shot_gsm8k(SimpleNamespace(data_path=str(sums), num_shots=9))
    with pytest.raises(CommandError, match="humaneval is not possible"):
        run_eval(SimpleNamespace(eval_name="humaneval"))
    with pytest.raises(CommandError, match="holds no questions"):
        run_eval(SimpleNamespace(eval_name="mmlu", dataset_path=str(sums)))


@pytest.mark.parametrize(
    ("text", "letter"), [("So the answer is B", "B"), ("Answer: A, no\nAnswer: **C**", "C"), ("Answer: $D$", "D"), ("Alas", "")]
)
def test_the_letter_of_an_answer(text: str, letter: str) -> None:
    assert chosen_letter(text) == letter


def test_the_number_of_an_answer() -> None:
    assert [last_number(text) for text in ("#### 1,234", "3 and -4.5", "none")] == ["1234", "-4.5", ""]


@pytest.mark.parametrize("batch", [1, 3])
def test_one_prompt(batch: int, server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    args = BenchArgs("127.0.0.1", int(port(server)), batch, max_new_tokens=8, prompt="One, two, three,")
    length, speed = send_one_prompt(args)
    shown = capsys.readouterr().out
    assert "four" in shown and f"tokens: {8 * batch} " in shown and 0 < length <= 8 and speed > 0
    assert send_one(["--host", "127.0.0.1", "--port", port(server), "--max-new-tokens", "30", "--json", "--prompt", "A: "]) == 0
    assert send_one(["--host", "127.0.0.1", "--port", port(server), "--temperature", "-1"]) == 1
    assert "answered 400" in capsys.readouterr().err


def test_a_profile_of_some_steps(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps are those of a request that is sent once the profile runs."""
    args = BenchArgs("127.0.0.1", int(port(server)), max_new_tokens=8, prompt="One, two, three,")
    monkeypatch.setattr(profiling.time, "sleep", lambda _: send_one_prompt(args))
    assert profile(["--url", server.url, "--num-steps", "3", "--cpu", "--profile-by-stage"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    path = Path(re.findall(r"\S*/\S+", said)[0].rstrip(".,;"))
    assert pstats.Stats(str(path)).total_calls > 0
    path.unlink()
    assert profile(["--url", server.url, "--num-steps", "0"]) == 1
    assert profile(["--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench_latency", "test.run_eval", "profiler", "test.send_one"])
def test_they_are_modules(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"sglang.{name}", "--help"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and f"python -m sglang.{name.replace('latency', 'one_batch')}" in done.stdout
