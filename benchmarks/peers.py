"""Compares engines on the same file, interleaved, and writes a table and a chart.

    python -m benchmarks.peers                                    ours and llama.cpp on the default model, W1 to W4
    python -m benchmarks.peers --engines ours,llama_cpp,openvino,transformers --repeats 5 --out results
    python -m benchmarks.peers --env llama_cpp=/path/to/venv      use an environment that exists

Each peer is installed once into an environment of its own. All engines stay loaded; for every repetition each workload runs
on each engine in turn, the order alternating, so that a slow minute of the machine hits all alike. Medians and the spread
(largest over smallest) are reported; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chart import bar_chart
from benchmarks.workloads import SHAPES

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "llama_cpp": ["llama-cpp-python==0.3.36"],
    "openvino": ["openvino-genai==2026.4.1"],
    "transformers": ["torch==2.13.0", "transformers==5.23.0", "gguf"],
}
BUILD_FLAGS = {"llama_cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}}
HIGHER_IS_BETTER = "tok/s"


@dataclass
class Engine:
    """A driver process."""

    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died during {command}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def python_of(name: str, environments: dict[str, Path]) -> Path:
    """The interpreter that has the engine; its environment is made if need be."""
    if name == "ours":
        return Path(sys.executable)
    folder = environments.get(name) or Path.home() / ".cache" / "sglang-anywhere" / "peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists() and name not in environments:
        print(f"installing {', '.join(PACKAGES[name])} into {folder} (minutes) ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        for package in PACKAGES[name]:  # in this order: torch by name before what depends on it
            command = [str(python), "-m", "pip", "install", "--quiet", package]
            subprocess.run(command, check=True, env=os.environ | BUILD_FLAGS.get(name, {}))
        (folder / "installed").touch()
    return python


def start(name: str, python: Path, model: str, threads: int) -> Engine:
    """Starts and loads an engine. The model is a local file for peers."""
    paths = [str(ROOT), str(ROOT / "src")] if name == "ours" else [str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    command = [str(python), "-m", f"benchmarks.drivers.{name}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=ROOT
    )
    engine = Engine(name, process)
    engine.facts = engine.ask({"model": model, "threads": threads})
    return engine


Results = dict[tuple[str, str], list[dict[str, Any]]]


def measure(engines: list[Engine], workloads: list[str], repeats: int) -> Results:
    """Interleaved; repetition 0 warms up and is not counted."""
    results: Results = {}
    for repetition in range(repeats + 1):
        for workload in workloads:
            for engine in engines if repetition % 2 else reversed(engines):
                answer = engine.ask({"workload": workload, "repetition": repetition})
                if repetition:
                    results.setdefault((workload, engine.name), []).append(answer)
            print(f"repetition {repetition}/{repeats} {workload}", file=sys.stderr)
    return results


def figures(workload: str, runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What users feel, by workload: name with unit -> one value a run."""
    count, num_shared, num_own, num_new = SHAPES[workload]
    first = [r["first_token"] for r in runs]
    total = [r["seconds"] for r in runs]
    if workload == "W2":
        return {"prefill tok/s": [num_own / s for s in total]}
    if workload == "W4":
        return {"seconds": total}
    decode = [count * (num_new - 1) / (s - f) for s, f in zip(total, first, strict=True)]
    if workload in ("W1", "LONG"):
        values = {"first token ms": [1000 * f for f in first], "decode tok/s": decode}
        return values | ({"prefill tok/s": [num_own / f for f in first]} if workload == "LONG" else {})
    return {"tok/s": [count * num_new / s for s in total]}


def table(engines: list[Engine], results: Results, workloads: list[str]) -> str:
    """Markdown: a row for each figure, a column for each engine, and our ratio to the best peer (above 1: ahead)."""
    names = [e.name for e in engines]
    lines = ["| workload | figure | " + " | ".join(names) + " | ours / best peer |", "|---|---|" + "--:|" * (len(names) + 1)]
    for workload in workloads:
        columns = {n: figures(workload, results[workload, n]) for n in names}
        for figure in columns[names[0]]:
            medians = {n: statistics.median(columns[n][figure]) for n in names}
            spread = {n: max(columns[n][figure]) / min(columns[n][figure]) for n in names}
            cells = [f"{medians[n]:.4g} (x{spread[n]:.2f})" for n in names]
            lines.append(f"| {workload} | {figure} | " + " | ".join(cells) + f" | {ratio(figure, medians)} |")
    memory = [f"{max(r['rss_mib'] for w in workloads for r in results[w, n]):.0f}" for n in names]
    lines.append("| | resident MiB | " + " | ".join(memory) + " | |")
    lines.append("| | load s | " + " | ".join(f"{e.facts['load_seconds']:.2f}" for e in engines) + " | |")
    return "\n".join(lines)


def ratio(figure: str, medians: dict[str, float]) -> str:
    peers = [v for n, v in medians.items() if n != "ours"]
    if "ours" not in medians or not peers:
        return ""
    if HIGHER_IS_BETTER in figure:
        return f"**{medians['ours'] / max(peers):.2f}**"
    return f"**{min(peers) / medians['ours']:.2f}**"


def machine() -> str:
    """Processor, cores, system: one line for the report."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def local_file(model: str) -> str:
    """Peers want a file: an alias is fetched first."""
    from sglang.srt.checkpoint.resolve import resolve_model

    return str(resolve_model(model).path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="ours,llama_cpp", help=f"of ours,{','.join(PACKAGES)}")
    parser.add_argument("--workloads", default="W1,W2,W3,W4", help=f"of {','.join(SHAPES)}")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--env", action="append", default=[], metavar="ENGINE=FOLDER", help="an environment that exists")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and chart.svg")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    environments = {name: Path(folder) for name, _, folder in (e.partition("=") for e in args.env)}
    workloads, model = args.workloads.split(","), local_file(args.model)
    engines = [start(n, python_of(n, environments), model, args.threads) for n in args.engines.split(",")]
    results = measure(engines, workloads, args.repeats)
    versions = ", ".join(f"{e.name} {e.facts['version']}" for e in engines)
    report = f"{machine()}; {args.threads} threads; {args.model}; {versions}; medians of {args.repeats} (spread)\n\n"
    report += table(engines, results, workloads)
    print(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(report + "\n")
        (args.out / "results.json").write_text(json.dumps({f"{w} {n}": r for (w, n), r in results.items()}, indent=1))
        bars = {w: {e.name: statistics.median(r["seconds"] for r in results[w, e.name]) for e in engines} for w in workloads}
        (args.out / "chart.svg").write_text(bar_chart("Seconds per workload (shorter is better)", bars))


if __name__ == "__main__":
    main()
