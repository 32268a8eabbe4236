"""Flags of the original: each is taken, taken with a line that says what it does here, or refused by name with the reason."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import ConfigError
from sglang.srt.flags.compatible import ALIASES, FLAGS, REFUSED_VALUES, VALUES
from sglang.srt.flags.names import translate
from sglang.srt.flags.parser import FlagParser
from sglang.srt.server_args import ServerArgs, parse_server_args, prepare_server_args


def read_flags() -> dict[str, list[str]]:
    """The names in original_flags.txt, by heading."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in (Path(__file__).parent / "original_flags.txt").read_text().splitlines():
        if line.startswith("["):
            names = found[line.strip("[]")] = []
        elif not line.startswith("#"):
            names += line.split()
    return found


SWITCHES, VALUED, LISTS = read_flags().values()
FIELDS = {f.name: f for f in dataclasses.fields(ServerArgs)}
DEFAULTS = ServerArgs()


def changed(args: ServerArgs) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if value != getattr(DEFAULTS, name)}


def parse(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """What the command line sets, and the lines that it brings."""
    args = parse_server_args(line.split(), "serve")
    return changed(args), capsys.readouterr().err.splitlines()


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_server_args(line.split(), "serve")
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1
    return err


def a_value(name: str) -> str:
    """A word that the flag takes."""
    field = FIELDS.get(ALIASES.get(name, name))
    choices = field.metadata.get("choices") if field is not None else None
    return str(choices[0]) if choices else "1"


def test_every_flag_of_the_original_is_known() -> None:
    parser = FlagParser(prog="serve", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    outcomes = {"taken": 0, "said": 0, "refused": 0}
    for flag in [*SWITCHES, *VALUED, *LISTS]:
        name = flag.replace("-", "_")
        words = [] if flag in SWITCHES else [a_value(name)] if flag in VALUED else ["a", "b"]
        given, unknown = parser.parse_known_args([f"--{flag}", *words])
        assert unknown == [], flag
        only = {k: v for k, v in vars(given).items() if v != getattr(DEFAULTS, k, None)}
        try:
            known, notes = translate(only, FIELDS)
        except ConfigError as error:
            assert str(error).startswith("--") and " is not possible here: " in str(error), flag
            outcomes["refused"] += 1
            continue
        assert all(" has no effect here: " in note and len(note) < 200 for note in notes), flag
        outcomes["said" if notes else "taken"] += 1
    assert sum(outcomes.values()) == len(SWITCHES) + len(VALUED) + len(LISTS) > 550
    assert all(count > 20 for count in outcomes.values()), outcomes


@pytest.mark.parametrize("value", [True, 2, "2", ["2"], None, False])
def test_every_flag_is_a_keyword_of_the_constructor(value: Any) -> None:
    for flag in [*SWITCHES, *VALUED, *LISTS]:
        name = flag.replace("-", "_")
        try:
            args = ServerArgs(**{name: value})
        except ConfigError as error:
            assert f"--{flag}" in str(error) and value not in (None, False)
            continue
        field = ALIASES.get(name, name)
        if field in FIELDS and not (isinstance(value, str) and value in VALUES.get(field, ())):
            expected = getattr(DEFAULTS, field) if value is None else "2" if value == ["2"] else value
            assert getattr(args, field) == expected


def test_the_tables_have_each_name_once() -> None:
    assert not FLAGS.keys() & FIELDS.keys() and not ALIASES.keys() & (FIELDS.keys() | FLAGS.keys())
    assert all(target in FIELDS or target in FLAGS for target in ALIASES.values())
    assert VALUES.keys() | REFUSED_VALUES.keys() <= FIELDS.keys()
    for field, refused in REFUSED_VALUES.items():
        assert not refused.keys() & {*FIELDS[field].metadata["choices"], *VALUES.get(field, ())}
    for field, words in VALUES.items():
        choices = FIELDS[field].metadata["choices"]
        assert all(ours is None or ours in choices for ours, _ in words.values()) and not words.keys() & set(choices)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--tp 2", {"tp_size": 2}),
        ("--tp=4", {"tp_size": 4}),
        ("--tensor-parallel-size 2", {"tp_size": 2}),
        ("--tensor-p 2", {"tp_size": 2}),
        ("--mem-frac 0.8", {"mem_fraction_static": 0.8}),
        ("--mem-fraction 0.8", {"mem_fraction_static": 0.8}),
        ("--context-len 4096", {"context_length": 4096}),
        ("--max-running 3", {"max_running_requests": 3}),
        ("--mem_frac .5 --max_running=3", {"mem_fraction_static": 0.5, "max_running_requests": 3}),
        ("--chunked-prefill -1", {"chunked_prefill_size": -1}),
        ("--trust", {"trust_remote_code": True}),
        ("--model ./m --served name", {"model_path": "./m", "served_model_name": "name"}),
        ("--disable-radix --disable-cuda-graph", {"disable_radix_cache": True, "disable_cuda_graph": True}),
        ("--attention flashinfer --page 16", {"attention_backend": "flashinfer", "page_size": 16}),
        ("--grammar xgrammar", {"grammar_backend": "xgrammar"}),
        ("--allowed-media-domains a.com b.com", {"allowed_media_domains": "a.com,b.com"}),
        ("--incremental-streaming-output", {"stream_output": True}),
        ("--schedule-heuristic fcfs", {"schedule_policy": "fcfs"}),
        ("--kv-cache-dtype bf16", {"kv_cache_dtype": "bfloat16"}),
        ("--kv-cache-dtype fp8", {"kv_cache_dtype": "fp8_e4m3"}),
        ("--kv-cache-dtype int8", {"kv_cache_dtype": "int8"}),
        ("--log-level INFO", {}),
        ("--log-level WARN", {"log_level": "warning"}),
        ("--dp 1 --ep 1 --disaggregation-mode null", {}),
        ("--dp 2", {"replicas": 2}),
        ("--dp-size 3", {"replicas": 3}),
        ("--data-parallel-size 4", {"replicas": 4}),
        ("--nnodes 1 --node-rank 0 --pp-size 1 --cpu-offload-gb 0 --pipeline-parallel-size 1", {}),
        ("--attn-cp-size 1 --moe-dp-size 1 --base-gpu-id 0 --gpu-id-step 1 --model-impl auto", {}),
        ("--log-requests-format text --speculative-accept-threshold-single 1.0", {}),
    ],
)
def test_other_spellings(line: str, wanted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(line, capsys) == (wanted, [])


@pytest.mark.parametrize(
    ("line", "wanted", "said"),
    [
        ("--ep 2", {}, ["--ep-size"]),
        ("--enable-torch-compile --torch-compile-max-bs 8", {}, ["--enable-torch-compile", "--torch-compile-max-bs"]),
        ("--moe-runner-backend triton --tp 2", {"tp_size": 2}, ["--moe-runner-backend"]),
        ("--prefill-attention-backend fa3 --decode-attention-backend fa3", {}, ["--prefill-", "--decode-"]),
        ("--cuda-graph-bs 1 2 4 8 --port 31000", {"port": 31000}, ["--cuda-graph-bs"]),
        ("--scheduler-recv-interval=10 --enable-memory-saver", {}, ["--scheduler-recv-interval", "--enable-memory-saver"]),
        ("--speculative-num-steps 3 --speculative-eagle-topk 1", {"speculative_num_steps": 3}, ["--speculative-eagle"]),
        ("--enable-dp-attention --enable-ep-moe --deepep-mode auto", {}, ["--enable-dp-attention", "--enable-ep", "--deepep"]),
        ("--grammar-backend outlines", {}, ["--grammar-backend outlines"]),
        ("--tokenizer-mode slow", {}, ["--tokenizer-mode slow"]),
        ("--quantization awq_marlin", {"quantization": "awq"}, ["--quantization awq_marlin"]),
        ("--enable-lmcache --hicache-io-backend kernel", {}, ["--enable-lmcache", "--hicache-io-backend"]),
    ],
)
def test_lines_that_say_what_a_flag_does(
    line: str, wanted: dict[str, Any], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args, lines = parse(line, capsys)
    assert args == wanted and len(lines) == len(said)
    for flag in said:
        assert any(one.startswith(f"serve: warning: {flag}") and "has no effect here: " in one for one in lines), flag


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--pp-size 4", "there is no pipeline parallelism: --tp-size"),
        ("--cpu-offload-gb 10", "--cpu-offload-gb 10"),
        ("--uno-lora-path a", "adapters of this kind"),
        ("--lora-eviction-policy random", "invalid choice: 'random'"),
        ("--enable-multi-layer-eagle", "--speculative-draft-model-path"),
        ("--config /no/such/file.yaml", "--config /no/such/file.yaml cannot be read"),
        ("--grpc-mode", "HTTP"),
        ("--torchao-config int8wo", "--quantization int8"),
        ("--speculative-algorithm EAGLE3", "--speculative-algorithm EAGLE3 is not possible here: heads that draft"),
        ("--load-format pt", "--load-format pt is not possible here"),
        ("--quantization mxfp8", "--quantization int8 or int4"),
        ("--kv-cache-dtype fp8_e5m2", "fp8_e4m3"),
        ("--schedule-policy lof", "--schedule-policy lof"),
        ("--device xpu", "cpu and cuda"),
        ("--dtype nonsense", "invalid choice: 'nonsense'"),
        ("--max 3", "--max may mean --max-"),
        ("--treads 3", "did you mean --threads?"),
        ("--moe-runer-backend x", "did you mean --moe-runner-backend?"),
    ],
)
def test_refusals(line: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in refusal(line, capsys)


def test_keywords(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.WARNING, "sglang"):
        args = ServerArgs(model="m", tp=2, dp_size=1, nnodes=1, cuda_graph_bs=[1, 2], enable_torch_compile=True)
    assert changed(args) == {"model_path": "m", "tp_size": 2}
    said = [record.message.split(" has no ")[0] for record in caplog.records]
    assert list(dict.fromkeys(said)) == ["--cuda-graph-bs", "--enable-torch-compile"]  # two loggers may have been listened to
    assert ServerArgs("a-model").model_path == "a-model"
    assert dataclasses.replace(args, tp_size=1).tp_size == 1
    args = ServerArgs(
        grammar_backend=None, speculative_algorithm=None, preferred_sampling_params={"top_k": 3}, schedule_policy=None
    )
    assert changed(args) == {"preferred_sampling_params": '{"top_k": 3}'}
    assert ServerArgs(dp_size=2).replicas == 2
    with pytest.raises(ConfigError, match="--pp-size 2 is not possible here"):
        ServerArgs(pp_size=2)
    with pytest.raises(ConfigError, match="--quantization mxfp8 is not possible here"):
        ServerArgs(quantization="mxfp8")
    with pytest.raises(TypeError, match="did you mean 'threads'"):
        ServerArgs(treads=2)
    with pytest.raises(TypeError, match="another name of 'tp_size'"):
        ServerArgs(tp=2, tp_size=2)


@pytest.mark.parametrize("flags", [{"treads": 2}, {"pp_size": 2}, {"uno_lora_path": "a"}])
def test_the_engine_reads_the_same_table(flags: dict[str, Any]) -> None:
    import sglang as sgl

    with pytest.raises((TypeError, ConfigError), match=next(iter(flags)).split("_")[0]):
        sgl.Engine(**flags)


def test_a_programs_own_parser(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-prompts", type=int, default=10)
    parser.add_argument("--output-file")
    ServerArgs.add_cli_args(parser)
    words = "--num-prompts 3 --tp 2 --mem-fraction-s 0.5 --dp-size 1 --moe-runner-backend triton --grammar-backend outlines"
    args = parser.parse_args(words.split())
    assert args.num_prompts == 3 and args.tp_size == 2
    assert changed(ServerArgs.from_cli_args(args)) == {"tp_size": 2, "mem_fraction_static": 0.5}
    refused = parser.parse_args(["--pp-size", "2"])
    with pytest.raises(ConfigError, match="--pp-size 2"):
        ServerArgs.from_cli_args(refused)
    assert changed(ServerArgs.from_cli_args(argparse.Namespace(model="m", tp=3, mine=1))) == {"model_path": "m", "tp_size": 3}
    assert changed(prepare_server_args(["--tp", "2"])) == {"tp_size": 2}
    assert "--moe" not in parser.format_help() and "--tp-size" in parser.format_help()


def test_flags_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text(
        "model-path: ./m\ntensor-parallel-size: 2\nmem_frac: 0.5\nchunked-prefill-size: -1\nlog-requests: true\nenable-metrics: false\n"
        "api-key: null\npreferred-sampling-params: {top_k: 3}\ncuda-graph-bs: [1, 2]\ncors-origins: http://a.b\nport: 31000\n"
    )
    wanted = {"model_path": "./m", "tp_size": 2, "mem_fraction_static": 0.5, "chunked_prefill_size": -1, "log_requests": True}
    wanted |= {"preferred_sampling_params": '{"top_k": 3}', "cors_origins": "http://a.b"}
    for words in (f"--config {path}", f"--config={path}"):
        args, lines = parse(words, capsys)
        assert args == wanted | {"port": 31000} and len(lines) == 1 and "--cuda-graph-bs" in lines[0]
    del wanted["tp_size"]
    assert parse(f"--port 32000 --config {path} --tp 1", capsys)[0] == wanted | {"port": 32000}
    path.write_text("prot: 3\n")
    assert "did you mean port?" in refusal(f"--config {path}", capsys)
    for text in ("- a\n", "a: [\n", "", "text"):
        path.write_text(text)
        assert f"--config {path}" in refusal(f"--config {path}", capsys)
    assert "--config" in refusal("--config", capsys)
