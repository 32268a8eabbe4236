"""Command line flags of benchmark scripts, and the calls that they make to servers."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

CallGenerate = Callable[..., Any]
CallSelect = Callable[..., int]

_PORTS = {"vllm": 21000, "outlines": 21000, "lightllm": 22000, "gserver": 9988, "srt-raw": 30000}


def add_common_sglang_args_and_parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds what benchmarks of programs of the language take, and reads the command line."""
    parser.add_argument("--parallel", type=int, default=64, help="programs at once")
    parser.add_argument("--host", default="http://127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--backend", default="srt", help="srt, srt-no-parallel, or the name of a model of OpenAI")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "rocm", "cpu"])
    parser.add_argument("--result-file", default="result.jsonl")
    parser.add_argument("--raw-result-file")
    return parser.parse_args()


def select_sglang_backend(args: argparse.Namespace) -> Any:
    """The backend that such a command line names. Raises ValueError for a name that is none."""
    import sglang

    if args.backend.startswith("srt"):
        if args.backend == "srt-no-parallel":
            sglang.global_config.enable_parallel_encoding = False
        return sglang.RuntimeEndpoint(_address(args))
    if args.backend.startswith("gpt-"):
        return sglang.OpenAI(args.backend)
    raise ValueError(f"there is no backend {args.backend!r}: srt, srt-no-parallel or gpt-...")


def add_common_other_args_and_parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds what benchmarks of other systems take, and reads the command line."""
    parser.add_argument("--parallel", type=int, default=64, help="requests at once")
    parser.add_argument("--host", default="http://127.0.0.1")
    parser.add_argument("--port", type=int, help="default: that of the backend")
    backends = ["vllm", "outlines", "lightllm", "gserver", "guidance", "srt-raw", "llama.cpp"]
    parser.add_argument("--backend", required=True, choices=backends)
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--model-path", default="meta-llama/Llama-2-7b-chat-hf")
    parser.add_argument("--result-file", default="result.jsonl")
    args = parser.parse_args()
    if args.port is None:
        args.port = _PORTS.get(args.backend)
    return args


def _address(args: argparse.Namespace) -> str:
    host = str(args.host)
    return f"{host if '://' in host else 'http://' + host}:{args.port}"


# --- generating -------------------------------------------------------------------------------------------------------------


def get_call_generate(args: argparse.Namespace) -> CallGenerate:
    """call(prompt, temperature, max_tokens, stop=None, n=1, regex=None) -> text, or a list of n. Raises ValueError for a backend
    that cannot be called."""
    url = f"{_address(args)}/generate"
    if args.backend == "guidance":
        return partial(call_generate_guidance, model=_guidance_model(args))
    calls: dict[str, CallGenerate] = {
        "srt-raw": call_generate_srt_raw,
        "vllm": call_generate_vllm,
        "outlines": call_generate_outlines,
        "lightllm": call_generate_lightllm,
    }
    if args.backend not in calls:
        raise ValueError(f"there is no backend {args.backend!r} to generate with: {', '.join(calls)} or guidance")
    return partial(calls[args.backend], url=url)


def _post(url: str, payload: Mapping[str, Any]) -> Any:
    import httpx

    response = httpx.post(url, json={name: value for name, value in payload.items() if value is not None}, timeout=None)
    if response.status_code != 200:
        raise RuntimeError(f"{url} answered {response.status_code}: {response.text[:500]}")
    return response.json()


def call_generate_srt_raw(
    prompt: str, temperature: float, max_tokens: int, stop: Any = None, n: int = 1, regex: str | None = None, *, url: str
) -> Any:
    """The native API, this server's own."""
    params = {"temperature": temperature, "max_new_tokens": max_tokens, "stop": stop, "n": n, "regex": regex}
    given = {name: value for name, value in params.items() if value is not None}
    reply = _post(url, {"text": prompt, "sampling_params": given})
    return reply["text"] if n == 1 else [one["text"] for one in reply]


def call_generate_vllm(
    prompt: str, temperature: float, max_tokens: int, stop: Any = None, n: int = 1, regex: str | None = None, *, url: str
) -> Any:
    """The demonstration server of vLLM, whose texts begin with the prompt."""
    body = {"prompt": prompt, "temperature": temperature, "max_tokens": max_tokens, "stop": stop, "n": n, "regex": regex}
    texts = [text[len(prompt) :] for text in _post(url, body)["text"]]
    return texts[0] if n == 1 else texts


call_generate_outlines = call_generate_vllm
"""the server of Outlines speaks as that of vLLM does"""


def call_generate_lightllm(prompt: str, temperature: float, max_tokens: int, stop: Any = None, *, url: str) -> Any:
    """LightLLM."""
    parameters = {"temperature": temperature, "max_new_tokens": max_tokens, "stop_sequences": stop}
    return _post(url, {"inputs": prompt, "parameters": parameters})["generated_text"][0]


def _guidance_model(args: argparse.Namespace) -> Any:
    from importlib import import_module

    return import_module("guidance").models.LlamaCpp(args.model_path, n_gpu_layers=-1, n_ctx=args.n_ctx)


def call_generate_guidance(
    prompt: str, temperature: float, max_tokens: int, stop: Any = None, n: int = 1, regex: str | None = None, *, model: Any
) -> Any:
    """The package guidance, in this process."""
    from importlib import import_module

    gen = import_module("guidance").gen
    wanted = {"name": "answer", "max_tokens": max_tokens, "temperature": temperature, "stop": stop, "regex": regex}
    texts = [(model + prompt + gen(**wanted))["answer"] for _ in range(n)]
    return texts[0] if n == 1 else texts


# --- choosing ---------------------------------------------------------------------------------------------------------------


def get_call_select(args: argparse.Namespace) -> CallSelect:
    """call(context, choices) -> index of the likeliest choice. Raises ValueError for a backend that cannot be called."""
    if args.backend == "srt-raw":
        return partial(call_select_srt_raw, url=_address(args))
    if args.backend == "vllm":
        return partial(call_select_vllm, url=f"{_address(args)}/generate")
    if args.backend == "guidance":
        return partial(call_select_guidance, model=_guidance_model(args))
    raise ValueError(f"there is no backend {args.backend!r} to choose with: srt-raw, vllm or guidance")


def call_select_srt_raw(context: str, choices: Sequence[str], *, url: str) -> int:
    """Selects by the mean log probability of each choice's tokens."""
    scores = _post(f"{url}/score_choices", {"text": context, "choices": list(choices)})["choices"]
    return max(range(len(scores)), key=lambda i: float(scores[i]["normalized"]))


def call_select_vllm(context: str, choices: Sequence[str], *, url: str) -> int:
    """Selects through a demonstration server that reports the prompt's score."""
    bodies = [{"prompt": context + choice, "max_tokens": 1, "prompt_logprobs": 1} for choice in choices]
    scores = [float(_post(url, body).get("prompt_score", 0)) for body in bodies]
    return max(range(len(scores)), key=scores.__getitem__)


def call_select_guidance(context: str, choices: Sequence[str], *, model: Any) -> int:
    """The package guidance, in this process."""
    from importlib import import_module

    out = model + context + import_module("guidance").select(choices, name="answer")
    return list(choices).index(out["answer"])


# --- comparing ---------------------------------------------------------------------------------------------------------------


def calculate_rouge_l(output_strs_list1: Sequence[str], output_strs_list2: Sequence[str]) -> list[float]:
    """ROUGE-L of each two texts, letter by letter: the harmonic mean of the shares of both in their longest common subsequence."""
    pairs = zip(output_strs_list1, output_strs_list2, strict=True)
    return [2 * _common(a, b) / (len(a) + len(b)) if a and b else 0.0 for a, b in pairs]


def _common(a: str, b: str) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


# --- results ----------------------------------------------------------------------------------------------------------------


def dump_bench_raw_result(
    path: str | os.PathLike[str] | None, states: Sequence[Any], preds: Sequence[Any], labels: Sequence[Any]
) -> None:
    """Writes a line of JSON for each program: prompt, output (its variable "answer") and whether the prediction is the label.
    Without a path it does nothing."""
    if not path:
        return
    rows = []
    for i, (state, pred, label) in enumerate(zip(states, preds, labels, strict=True)):
        output = state["answer"]
        prompt = state.text().removesuffix(output)
        rows.append({"prompt_id": i, "prompt": prompt, "output": output, "correct": bool(pred == label)})
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"raw results are in {os.fspath(path)}")
