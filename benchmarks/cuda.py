"""Everything that needs a GPU, checked and measured in one run of under ten minutes on one H100 or H200.

    pip install ./csrc ".[srt,cuda]" transformers
    python -m benchmarks.cuda [--out cuda_results] [--sections ops,steps] [--resume]
    python -m benchmarks.cuda --interpret --tiny          # no GPU: the same code in Triton's interpreter, nothing is judged fast

    machine        copy bandwidth and matmul rate of this device: the limits of what follows
    ops            every op against the NumPy reference, over types and shapes            (beside it, as neither measures time)
    models         tiny models' greedy tokens against the CPU's in float32; quantized, deterministic, without graphs
    grammars       batches under a JSON schema and an expression: valid, the CPU's tokens, the same with drafts and jumps as without
    images         tiny vision-language models: embeddings and greedy tokens against the CPU's
    checkpoints    tiny AWQ, GPTQ, compressed-tensors and float8 folders against transformers on the same values
    steps          7B shape: host gap at batch 32, decode at 1k context, prefill of 8 x 4096 tokens, 64 requests with 4k tokens
                   in common with the radix cache and without, what deterministic mode costs
    quantized      7B shape: decode with int4 and int8 weights beside bfloat16, batches 1, 16, 64
    ours           offline throughput, 256 requests on a 0.6B shape ...
    transformers   ... and transformers' own continuous batching on the same

Each section is a process of its own with a time limit: one that fails or hangs loses no other, and what it found until then
counts. Results: OUT/<section>.jsonl as they come; OUT/results.json and OUT/results.md with pass or fail, written anew after each
section. `--resume` keeps the sections that were completed. The package need not be installed, but what it needs must be: beside
torch, triton and transformers at least numpy, msgspec, pyzmq, tokenizers, regex, jinja2 and prometheus-client. A check that lacks
more than those (grammars: llguidance) is left out, and the report says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TOTAL_S = 580.0
PATIENCE = 4
"""times as long may everything take in the interpreter"""
ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "triton", "transformers", "numpy", "msgspec", "zmq", "tokenizers", "regex", "jinja2", "prometheus_client")
Finding = dict[str, Any]
Write = Callable[[Finding], None]


@dataclass(frozen=True)
class Run:
    """The objects that a section's process works with."""

    tiny: bool
    device: str
    kernels: str
    out: Path
    limit_s: float
    graphs: bool = True

    @property
    def workers(self) -> int:
        return 1 if self.tiny else max(1, min(12, (os.cpu_count() or 1) - 2))

    def machine(self) -> dict[str, float]:
        """What the section `machine` found. Raises KeyError without it."""
        merged: dict[str, float] = {}
        for finding in read_findings(self.out / "machine.jsonl"):
            merged.update({k: v for k, v in finding.items() if isinstance(v, float)})
        return {name: merged[name] for name in ("copy_bytes_per_s", "matmul_flops_per_s")}


# --- sections -----------------------------------------------------------------------------------------------------------------


def machine(run: Run, write: Write) -> None:
    import torch

    facts: Finding = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    if run.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    import triton

    write({**facts, "triton": triton.__version__})
    write({"copy_bytes_per_s": _copy_rate(run)})
    write({"matmul_flops_per_s": _matmul_rate(run)})


def _copy_rate(run: Run) -> float:
    """Bytes read and written a second."""
    import torch

    num = (1 << 22) if run.tiny else (1 << 32)
    source = torch.ones(num, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    return 2 * num / _best(run, lambda: target.copy_(source))


def _matmul_rate(run: Run) -> float:
    import torch

    n = 256 if run.tiny else 8192
    a, b = (torch.randn(n, n, device=run.device).to(torch.bfloat16) for _ in range(2))
    return float(2 * n**3 / _best(run, lambda: torch.matmul(a, b)))


def _best(run: Run, work: Callable[[], Any]) -> float:
    """Seconds of one `work`: the median of 11 times 10 of them."""
    import torch

    def sync() -> None:
        if run.device == "cuda":
            torch.cuda.synchronize()

    work()
    found = []
    for _ in range(11):
        sync()
        began = time.perf_counter()
        for _ in range(10):
            work()
        sync()
        found.append((time.perf_counter() - began) / 10)
    return sorted(found)[len(found) // 2]


def ops(run: Run, write: Write) -> None:
    from benchmarks.gpu.ops import check_ops

    for finding in check_ops(run.device, run.tiny, run.workers):
        write(finding)


def models(run: Run, write: Write) -> None:
    from benchmarks.gpu.serving import tiny_tokens

    with tempfile.TemporaryDirectory() as folder:
        for finding in tiny_tokens(Path(folder), run.device, run.kernels, run.tiny):
            write(finding)


def checks(which: str) -> Callable[[Run, Write], None]:
    """A section of gpu/checks.py."""

    def section(run: Run, write: Write) -> None:
        from benchmarks.gpu.checks import CHECKS, Where

        with tempfile.TemporaryDirectory() as folder:
            for finding in CHECKS[which](Path(folder), Where(run.device, run.kernels, run.tiny)):
                write(finding)

    return section


def steps(run: Run, write: Write) -> None:
    from benchmarks.gpu.serving import shared_prefix
    from benchmarks.gpu.steps import decode, open_bench, prefill, profiles, scheduler_gap

    limits = run.machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(run.device, run.kernels, run.tiny, run.graphs, Path(folder))
        info = bench.worker.info
        write({"kernels": info.kernels, "weight_bytes": info.weight_bytes, "max_total_tokens": info.max_total_tokens})
        bench.bind()
        for num_reqs in bench.sizes.batches:
            write({"decode": decode(bench, limits, num_reqs)})
        write({"prefill": prefill(bench, limits)})
        for found in profiles(bench):
            write({"profile": found})
        write({"products of few rows": bench.worker.ops._products.measured()})  # type: ignore[attr-defined]
        write({"gap": scheduler_gap(bench)})
        write({"prefix": shared_prefix(bench.worker, run.tiny)})
        bench.use_fixed_order()
        for num_reqs in bench.sizes.batches[:2]:
            write({"fixed order": decode(bench, limits, num_reqs)})
        write({"fixed order prefill": prefill(bench, limits)})


def quantized(run: Run, write: Write) -> None:
    from benchmarks.gpu.quantized import quantized

    with tempfile.TemporaryDirectory() as folder:
        for finding in quantized(run.device, run.tiny, run.graphs, run.machine(), Path(folder)):
            write(finding)


def ours(run: Run, write: Write) -> None:
    from benchmarks.gpu.serving import throughput

    with tempfile.TemporaryDirectory() as folder:
        write(throughput(Path(folder), run.device, run.kernels, run.tiny))


def transformers(run: Run, write: Write) -> None:
    from benchmarks.gpu.serving import transformers_throughput

    with tempfile.TemporaryDirectory() as folder:
        write(transformers_throughput(Path(folder), run.device, run.tiny, run.limit_s * 0.6))


SECTIONS: dict[str, tuple[Callable[[Run, Write], None], float]] = {
    "machine": (machine, 60),
    "ops": (ops, 130),
    "models": (models, 130),
    "grammars": (checks("grammars"), 130),
    "images": (checks("images"), 130),
    "checkpoints": (checks("checkpoints"), 130),
    "tiers": (checks("tiers"), 60),
    "steps": (steps, 190),
    "quantized": (quantized, 90),
    "ours": (ours, 90),
    "transformers": (transformers, 100),
}
"""name: (what it does, seconds at most)"""
TOGETHER = ("ops", "models", "grammars", "images", "checkpoints")
"""run at the same time: they measure none"""
BARS = {
    "ops": "all within 1e-5 (float32), 1e-2 (16 bits)",
    "models": "the CPU's greedy tokens, float32",
    "grammars": "valid, the CPU's tokens in float32, in every round and without jumps",
    "images": "embeddings within 1e-4, the CPU's greedy tokens, float32",
    "checkpoints": "logits and tokens of the very values, as near as the form allows",
    "tiers": "the same tokens from host memory, runs there and back to the bit",
}


def run_section(name: str, run: Run) -> None:
    """In the section's own process: findings go to its file line by line, a last line says that it is complete."""
    with open(run.out / f"{name}.jsonl", "a") as file:

        def write(finding: Finding) -> None:
            file.write(json.dumps(finding) + "\n")
            file.flush()

        began = time.perf_counter()
        SECTIONS[name][0](run, write)
        write({"complete": True, "took_s": time.perf_counter() - began})


# --- all of them --------------------------------------------------------------------------------------------------------------


def read_findings(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off while it was written
            continue
    return found


def is_complete(findings: list[Finding]) -> bool:
    return bool(findings) and bool(findings[-1].get("complete"))


def run_all(args: argparse.Namespace, out: Path) -> dict[str, list[Finding]]:
    """Writes the report after each section."""
    deadline = time.monotonic() + TOTAL_S * (PATIENCE if args.interpret else 1)
    pending = list(args.sections)
    while pending:
        group = [name for name in pending if name in TOGETHER] if pending[0] in TOGETHER else pending[:1]
        pending = [name for name in pending if name not in group]
        try:
            _run_group(args, out, group, deadline)
            if group == ["steps"] and not any("decode" in f for f in read_findings(out / "steps.jsonl")):
                print("steps: again, without graphs", flush=True)
                _run_group(args, out, group, deadline, ["--no-graphs"])
        finally:
            write_report(out, judged=not args.tiny)
    return {name: read_findings(out / f"{name}.jsonl") for name in SECTIONS}


def _run_group(args: argparse.Namespace, out: Path, group: list[str], deadline: float, more: list[str] | None = None) -> None:
    running = []
    for name in group:
        path = out / f"{name}.jsonl"
        if args.resume and is_complete(read_findings(path)):
            print(f"{name}: kept")
            continue
        if more is None:
            path.unlink(missing_ok=True)
        limit_s = min(SECTIONS[name][1] * (PATIENCE if args.interpret else 1), deadline - time.monotonic())
        if limit_s <= 1:
            print(f"{name}: left out, the ten minutes are over; run again with --resume")
            continue
        running.append(Section(args, name, out, limit_s, more or []))
    try:
        for section in running:
            section.wait()
    finally:
        for section in running:
            section.kill()


class Section:
    """A section's process, which leads a group of its own so that whatever it has started ends with it."""

    def __init__(self, args: argparse.Namespace, name: str, out: Path, limit_s: float, more: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.cuda", "--section", name, "--out", str(out), "--limit", str(limit_s)]
        command += ["--tiny"] * args.tiny + ["--interpret"] * args.interpret + more
        self.name, self.limit_s, self._path = name, limit_s, out / f"{name}.jsonl"
        self._began = time.monotonic()
        self._log: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT, env=_environment(),
            start_new_session=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Until it ends or its time is up. What it said, if it failed, becomes a finding."""
        try:
            code: int | None = self.process.wait(max(0.1, self._began + self.limit_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        took = time.monotonic() - self._began
        if code == 0:
            print(f"{self.name}: done ({took:.0f} s)", flush=True)
            return
        how = f"cut off after {took:.0f} s" if code is None else f"failed with status {code}"
        self._log.seek(0)
        said = self._log.read()[-4000:]
        print(f"{self.name}: {how}\n{said[-1500:]}", flush=True)
        with open(self._path, "a") as file:
            file.write("\n" + json.dumps({"failed": how, "said": said}) + "\n")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _environment() -> dict[str, str]:
    """Finds this checkout's package; looks for nothing on the network; one process's sums take few threads."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    few = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**few, **os.environ, "PYTHONPATH": path}


# --- the report ---------------------------------------------------------------------------------------------------------------


def verdicts(results: dict[str, list[Finding]], judged: bool) -> list[tuple[str, str, str, str]]:
    """(what, bar, found, pass or fail or why there is neither) for each thing that must be reached."""
    found: list[tuple[str, str, str, str]] = []

    def add(what: str, bar: str, value: float | None, ok: bool, shown: str, judge: bool = judged) -> None:
        verdict = "missing" if value is None else "not judged" if not judge else "pass" if ok else "FAIL"
        found.append((what, bar, shown or "-", verdict))

    for section in TOGETHER:
        checked = [f for f in results[section] if "ok" in f]
        left_out = [f"{f['check']}: {f['skipped']}" for f in results[section] if "skipped" in f]
        good, whole = sum(f["ok"] for f in checked), is_complete(results[section])
        shown = (
            ", ".join([f"{good} of {len(checked)}", *left_out, *([] if whole else ["not complete"])])
            if results[section]
            else ""
        )
        value = float(good) if checked and not left_out else None
        add(f"every {section[:-1]}", BARS[section], value, whole and good == len(checked), shown, True)
    steps_by = {
        (kind, f[kind].get("batch")): f[kind] for f in results["steps"] for kind in ("decode", "prefill", "gap") if kind in f
    }
    for (kind, batch), f in steps_by.items():
        if kind == "decode":
            bar, share = (0.85 if batch == 1 else 0.75), f["share_of_limit"]
            shown = f"{share:.1%} ({f['step_ms']:.2f} ms, limit {f['limit_ms']:.2f} by {f['limited_by']})"
            add(f"decode, batch {batch}, {f['context']} context", f"{bar:.0%} of the limit", share, share >= bar, shown)
        elif kind == "prefill":
            share = f["share_of_matmul_rate"]
            what = f"prefill {f['prompts']} x {f['prompt_len']}"
            add(what, "65% of the matmul rate", share, share >= 0.65, f"{share:.1%} ({f['tokens_per_s']:.0f} tokens/s)")
        else:
            shown = f"{f['gap_share']:.1%} of {f['step_ms']:.2f} ms"
            add(f"host gap, batch {batch}", "under 5%", f["gap_share"], f["gap_share"] < 0.05, shown)
    rates = [next((f["tokens_per_s"] for f in results[name] if "tokens_per_s" in f), None) for name in ("ours", "transformers")]
    ratio = rates[0] / rates[1] if rates[0] and rates[1] else None
    shown = f"{ratio:.1f}x ({rates[0]:.0f} against {rates[1]:.0f} tokens/s)" if ratio else ""
    add("offline throughput", "5x transformers", ratio, (ratio or 0) >= 5, shown)
    shared = next((f["prefix"]["ratio"] for f in results["steps"] if "prefix" in f), None)
    add("shared prefix", "6x without the cache", shared, (shared or 0) >= 6, f"{shared:.1f}x" if shared else "")
    return found


def report(results: dict[str, list[Finding]], judged: bool) -> str:
    facts: Finding = {}
    for finding in results["machine"]:
        facts |= finding
    lines = ["# CUDA: checks and measurements", ""]
    lines.append(", ".join(f"{name} {facts[name]}" for name in ("device", "torch", "triton", "cuda") if facts.get(name)))
    if "matmul_flops_per_s" in facts:
        lines.append(
            f"Measured: copy {facts['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written), bf16 matmul "
            f"{facts['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s."
        )
    lines += ["", "| what | must reach | found | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in verdicts(results, judged)]
    lines += ["", *_fixed_order(results["steps"]), *_quantized(results["quantized"]), *_profiles(results["steps"])]
    bad = [f for name in TOGETHER for f in results[name] if f.get("ok") is False]
    if bad:
        lines += ["", "What differs:", "", *(f"- {json.dumps(f)}" for f in bad)]
    for name, findings in results.items():
        for finding in findings:
            if "failed" in finding:
                lines += ["", f"{name} {finding['failed']}:", "", "```", finding["said"].strip(), "```"]
    return "\n".join(lines) + "\n"


def _fixed_order(findings: list[Finding]) -> list[str]:
    """The cost of deterministic mode."""
    plain = {f["decode"]["batch"]: f["decode"]["step_ms"] for f in findings if "decode" in f}
    lines = []
    for f in findings:
        if "fixed order" in f:
            batch, took = f["fixed order"]["batch"], f["fixed order"]["step_ms"]
            lines.append(f"Deterministic mode, decode, batch {batch}: {took:.2f} ms, else {plain[batch]:.2f} ms.")
        if "fixed order prefill" in f:
            lines.append(f"Deterministic mode, prefill: {f['fixed order prefill']['tokens_per_s']:.0f} tokens/s.")
    return lines


def _quantized(findings: list[Finding]) -> list[str]:
    """The gain of fewer bits per weight."""
    return [
        f"{f['weights']}, decode, batch {f['batch']}: {f['step_ms']:.2f} ms, {f['share_of_limit']:.1%} of the limit by "
        f"{f['limited_by']}, {f['times_bfloat16']:.2f} times as fast as bfloat16."
        for f in findings
        if "weights" in f
    ]


def _profiles(findings: list[Finding]) -> list[str]:
    """The time of single steps by kernel."""
    lines = []
    for step in (f["profile"] for f in findings if f.get("profile", {}).get("kernels")):
        lines += [
            "",
            f"{step['step']}: {step['us']:.0f} us under the profiler, {step['idle_us']:.0f} us of them in no kernel.",
            "",
        ]
        lines += [f"    {k['us']:9.1f} us in {k['launches']:4} of {k['name']}" for k in step["kernels"][:10]]
    return lines


def write_report(out: Path, judged: bool) -> str:
    results = {name: read_findings(out / f"{name}.jsonl") for name in SECTIONS}
    text = report(results, judged)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    (out / "results.md").write_text(text)
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", default="cuda_results")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, separated by commas")
    parser.add_argument("--resume", action="store_true", help="keep the sections that were completed")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this script")
    parser.add_argument("--interpret", action="store_true", help="no GPU: Triton's interpreter on the CPU")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=TOTAL_S, help=argparse.SUPPRESS)
    parser.add_argument("--no-graphs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.sections = args.sections.split(",")
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
        if not args.tiny:
            parser.error("--interpret runs in small shapes only: add --tiny")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"these packages are missing: {', '.join(missing)}")
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.section:
        device = "cpu" if args.interpret else "cuda"
        kernels = "cuda" if args.interpret else "auto"
        run_section(args.section, Run(args.tiny, device, kernels, out, args.limit, not args.no_graphs))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with it all sections
    results = run_all(args, out)
    print(write_report(out, judged=not args.tiny))
    return 0 if all(verdict in ("pass", "not judged") for *_, verdict in verdicts(results, not args.tiny)) else 1


if __name__ == "__main__":
    sys.exit(main())
