"""Checks of whole models on the device beyond plain text, against the NumPy reference in float32: grammars through the scheduler,
images, quantized checkpoints. The models are those of tests/, tiny and random."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.config import DeviceOptions, GrammarOptions, MemoryOptions, ModelOptions, ScheduleOptions
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.media_item import MediaItem
from sglang.srt.messages import TokenizedReq
from sglang.srt.model.worker import LocalWorker, create_worker
from sglang.srt.sampling_params import SamplingParams

Finding = dict[str, Any]
Ids = list[int]
EMBEDDING_BAR = 1e-4
"""of the largest number of an embedding"""
BF16_BAR, F8_BAR = 0.03, 0.15
"""of the largest logit; float8 rounds activations to 3 bits of fraction"""

WAIT_S = 100.0
"""for one batch of requests"""


@dataclass(frozen=True)
class Where:
    """The device under test, and how small everything has to be."""

    device: str
    kernels: str
    tiny: bool

    def open(self, path: Path, dtype: Any = "float32", reqs: int = 8) -> LocalWorker:
        device = DeviceOptions(device=self.device, kernels=self.kernels, graph_max_reqs=reqs)  # type: ignore[arg-type]
        return _open(path, device, dtype, reqs)


def _open(path: Path, device: DeviceOptions, dtype: Any, reqs: int) -> LocalWorker:
    memory = MemoryOptions(max_total_tokens=4096, max_running_requests=reqs, chunked_prefill_size=256)
    return create_worker(ModelOptions(str(path), dtype=dtype), device, memory)


def _reference(path: Path, reqs: int = 8) -> LocalWorker:
    return _open(path, DeviceOptions(device="cpu", kernels="reference"), "float32", reqs)


def _tried(finding: Finding, work: Callable[[], Finding]) -> Finding:
    """One that fails must not hide the others."""
    began = time.perf_counter()
    try:
        found = work()
    except Exception as problem:  # noqa: BLE001
        missing = isinstance(problem, ModuleNotFoundError) and problem.name
        said = f"{type(problem).__name__}: {problem}"[:500]
        found = {"skipped": f"no {missing}"} if missing else {"ok": False, "problem": said}
    return {**finding, **found, "took_s": round(time.perf_counter() - began, 1)}


class Served:
    """A scheduler over a worker, and what its steps were: how many had drafts, how many were begun ahead."""

    def __init__(self, worker: LocalWorker, vocabulary: Any = None, jump_forward: bool = True) -> None:
        from tests.scheduler.toy import Harness

        grammar = GrammarOptions(jump_forward=jump_forward) if vocabulary is not None else GrammarOptions(backend="none")
        self._harness = Harness(worker, ScheduleOptions(), grammar, vocabulary)  # type: ignore[arg-type]
        self._forward, self._num_answered = type(worker).forward, 0
        self.worker = worker
        self.steps = self.drafted = self.ahead = 0
        worker.forward = self._count  # type: ignore[method-assign]

    def _count(self, batch: ForwardBatch) -> None:
        self.steps += 1
        self.drafted += len(batch.samples) > batch.num_reqs
        self.ahead += batch.previous is not None
        self._forward(self.worker, batch)

    def answers(self, reqs: list[dict[str, Any]]) -> list[Any]:
        """tests.scheduler.toy.Answer of each; all run together. `reqs`: fields of TokenizedReq."""
        made = [TokenizedReq(f"r{self._num_answered + i}", **fields) for i, fields in enumerate(reqs)]
        self._num_answered += len(made)
        self._harness.put(*made)
        deadline = time.monotonic() + WAIT_S
        while self._harness.scheduler._live:
            if time.monotonic() > deadline:
                raise TimeoutError("the requests do not end")
            if not self._harness.step():
                time.sleep(0.001)  # grammars compile
        while self._harness.step():  # a step that was begun ahead
            pass
        return [self._harness.answers[req.rid] for req in made]


# --- grammars -----------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["the", "abc"]}, "minItems": 1, "maxItems": 2},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
REGEX = r"(the|an?) [a-z]{2,5}( and [a-z]{2})?, id: [0-9]{1,3}(\.[0-9]{2})?!"
GRAMMARS: dict[str, tuple[dict[str, str], Callable[[str], bool]]] = {
    "json_schema": ({"json_schema": json.dumps(SCHEMA)}, lambda text: _fits_schema(text)),
    "regex": ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text) is not None),
}


def _fits_schema(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    if not isinstance(value, dict) or list(value) != SCHEMA["required"]:
        return False
    name, age, tags = value["name"], value["age"], value["tags"]
    good = isinstance(name, str) and len(name) <= 6 and type(age) is int and 0 <= age <= 150
    return good and type(value["ok"]) is bool and 1 <= len(tags) <= 2 and set(tags) <= {"the", "abc"}


def grammars(folder: Path, where: Where) -> Iterator[Finding]:
    """Batches under a schema and an expression, greedy and sampled, with jump-forward and without, often enough that later rounds
    have drafts: valid, and the same tokens in every round, without jump-forward, and from the reference."""
    yield from _Grammars(folder, where).findings()


class _Grammars:
    def __init__(self, folder: Path, where: Where) -> None:
        self.folder, self.where = folder, where
        self.num = 2 if where.tiny else 8
        kinds = [(name, temperature) for name in GRAMMARS for temperature in (0.0, 1.0)]
        self.kinds = kinds[::3] if where.tiny else kinds

    def findings(self) -> Iterator[Finding]:
        found: dict[tuple[str, float], Finding] = {}
        finding = _tried({"check": "steps with drafts, steps begun ahead"}, lambda: self.run(found))
        for (name, temperature), result in found.items():
            yield {"check": f"{name}, temperature {temperature:g}", **result}
        yield finding

    def run(self, found: dict[tuple[str, float], Finding]) -> Finding:
        import llguidance  # noqa: F401  its absence is said before anything is made

        from tests.model.tiny import save_model
        from tests.scheduler.toy import EOS, MODEL_VOCAB, VOCABULARY

        layers = 1 if self.where.tiny else 2
        save_model(self.folder, "qwen2", vocab_size=MODEL_VOCAB, eos_token_id=EOS, num_hidden_layers=layers)
        worker = self.where.open(self.folder, reqs=self.num)
        jumping = Served(worker, VOCABULARY)
        rounds = [self.tokens(jumping) for _ in range(3)]
        stepping = Served(worker, VOCABULARY, jump_forward=False)
        stepped = self.tokens(stepping)
        reference = self.tokens(Served(_reference(self.folder, self.num), VOCABULARY, jump_forward=False))
        for kind in self.kinds:
            valid = GRAMMARS[kind[0]][1]
            ended = [answer for answer in rounds[0][kind] if answer.finish.type == "stop"]
            same = {
                "rounds": all(_ids(r[kind]) == _ids(rounds[0][kind]) for r in rounds),
                "without_jumps": _ids(stepped[kind]) == _ids(rounds[0][kind]),
                "reference": _ids(reference[kind]) == _ids(rounds[0][kind]),
            }
            num_valid = sum(valid(answer.text().decode()) for answer in ended)
            good = num_valid == len(ended) > 0 and all(same.values())
            found[kind] = {"ended": len(ended), "valid": num_valid, "of": self.num, "same": same, "ok": good}
        return {
            "steps": [jumping.steps, stepping.steps],
            "with_drafts": jumping.drafted,
            "ahead": stepping.ahead,
            "graphs_up_to": worker.info.graph_max_reqs,
            "ok": jumping.drafted > 0 and stepping.ahead > 0 and jumping.steps < 3 * stepping.steps,
        }

    def tokens(self, served: Served) -> dict[tuple[str, float], list[Any]]:
        found = {}
        for name, temperature in self.kinds:
            params = [
                SamplingParams(max_new_tokens=100, temperature=temperature, seed=i, **GRAMMARS[name][0])  # type: ignore[arg-type]
                for i in range(self.num)
            ]
            prompts = [[(7 * i + 3 * j) % 250 + 1 for j in range(5 + 3 * i)] for i in range(self.num)]
            reqs = [{"input_ids": ids, "sampling": p} for ids, p in zip(prompts, params, strict=True)]
            found[name, temperature] = served.answers(reqs)
        return found


def _ids(answers: list[Any]) -> list[Ids]:
    return [answer.ids for answer in answers]


# --- images -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiled:
    """A family whose images are square tiles of 28 x 28 pixels: `rows` ids stand for a tile, `before` and `after` it."""

    save: Callable[[Path], Any]
    rows: int
    row_id: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    facts: Callable[[int], dict[str, Any]] = lambda tiles: {}
    line_end: int = 0
    """ids after all tiles"""

    def show(self, rng: np.random.Generator, parts: list[Any]) -> dict[str, Any]:
        """A request: lists are text, numbers images of so many tiles."""
        ids: Ids = []
        items = []
        for part in parts:
            if isinstance(part, list):
                ids += part
                continue
            spans = []
            for tile in range(part if self.rows else 1):
                ids += self.before
                length = (self.rows or 1) + self.line_end * (tile + 1 == part)
                spans.append((len(ids), length))
                ids += [self.row_id] * length + [*self.after]
            pixels = rng.standard_normal((part * 16, 3 * 7 * 7)).astype(np.float32)
            item = MediaItem(
                "image", rng.bytes(16), tuple(spans), pixels.tobytes(), pixels.shape, (part, 4, 4), self.facts(part)
            )
            items.append(item)
        return {"input_ids": ids, "media": tuple(items)}


def _blended(tiles: int) -> dict[str, Any]:
    """LLaVA-OneVision resamples rows: each of ours is made of four, the last one is the line end alone."""
    rng, rows = np.random.default_rng(tiles), 16 * tiles
    index = rng.integers(0, rows, (rows + 1, 4)).astype(np.int32)
    weight = rng.dirichlet([1.0] * 4, rows + 1).astype(np.float32)
    index[-1], weight[-1] = rows, (1, 0, 0, 0)
    return {"index": index.tobytes(), "weight": weight.tobytes()}


def _families() -> dict[str, tuple[Callable[[Path], Any], Callable[[np.random.Generator, list[Any]], dict[str, Any]]]]:
    """name: (writes the model, makes a request of text and images)"""
    from tests.model import vision_families as make
    from tests.model.mllama import save_mllama
    from tests.model.vision import IMAGE, randomize, save_qwen, show

    def qwen(rng: np.random.Generator, parts: list[Any]) -> dict[str, Any]:
        shown = show(rng, [part if isinstance(part, list) else (1, 4, 4 * part) for part in parts])
        positions = np.ascontiguousarray(shown.positions).tobytes()
        return {"input_ids": shown.ids, "media": shown.items, "rope_positions": positions, "rope_delta": shown.delta}

    def saver(build: Callable[[], Any]) -> Callable[[Path], Any]:
        return lambda folder: randomize(build(), 3).save_pretrained(folder)

    tiled = {
        "Gemma 3": Tiled(saver(make.gemma3), 4, IMAGE, (IMAGE + 2,), (IMAGE + 3,)),
        "SmolVLM": Tiled(saver(make.smolvlm), 4, IMAGE, (IMAGE + 4,)),
        "Idefics3": Tiled(saver(lambda: make.smolvlm("Idefics3")), 4, IMAGE, (IMAGE + 4,)),
        "LLaVA-OneVision": Tiled(saver(make.llava), 16, IMAGE, facts=_blended, line_end=1),
        "Llama 3.2 Vision": Tiled(save_mllama, 0, 3, facts=lambda tiles: {"shape": tiles}),
    }
    every = {name: (family.save, family.show) for name, family in tiled.items()}
    return {"Qwen2.5-VL": (lambda folder: save_qwen(folder, "Qwen2_5_VL"), qwen), **every}


PROMPTS: list[list[Any]] = [
    [[5, 9, 30]],
    [[5], 1, [17, 33, 8]],
    [[3], 2, [7, 8, 9], 1, [11, 4]],
    [2, [60, 21, 90, 6]],
]


def images(folder: Path, where: Where) -> Iterator[Finding]:
    """Embeddings near the reference's, and its greedy tokens, of prompts with one image, several and none, all together."""
    try:
        families = _families()
    except ModuleNotFoundError as problem:
        yield {"check": "images", "skipped": f"no {problem.name}"}
        return
    for name, (save, show) in families.items():
        if where.tiny and name == "Idefics3":  # the interpreter is slow, and SmolVLM is the same with other words
            continue
        yield _tried({"check": name}, lambda save=save, show=show, name=name: _see(folder / name, where, save, show))  # type: ignore[misc]


def _see(path: Path, where: Where, save: Any, show: Any) -> Finding:
    save(path)
    rng = np.random.default_rng(1)
    params = SamplingParams(max_new_tokens=2 if where.tiny else 12, temperature=0.0, ignore_eos=True)
    reqs = [{**show(rng, parts), "sampling": params} for parts in (PROMPTS[2:3] if where.tiny else PROMPTS)]
    items = [item for req in reqs for item in req["media"]]
    embeddings, tokens = [], []
    for worker in (_reference(path, 4), where.open(path, reqs=4)):
        jobs = [worker.encode(item) for item in items]
        while not all(job.is_done for job in jobs):
            worker.encode_some(1.0)
        embeddings.append([_rows_of(worker, job.embedding) for job in jobs])
        tokens.append(_ids(Served(worker).answers(reqs)))
    errors = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*embeddings, strict=True)]
    same = sum(a == b for a, b in zip(*tokens, strict=True))
    good = max(errors) <= EMBEDDING_BAR and same == len(reqs)
    return {"error": max(errors), "bar": EMBEDDING_BAR, "equal": same, "of": len(reqs), "ok": good}


def _rows_of(worker: LocalWorker, embedding: Any) -> np.ndarray[Any, Any]:
    """An embedding's rows; of Llama 3.2 Vision what its layers read."""
    return np.array(worker.ops.fetch(getattr(embedding, "kv", embedding)).result())


# --- quantized checkpoints ----------------------------------------------------------------------------------------------------

TINY_FORMS = ("awq", "gptq act-order", "fp8 tiles")


def checkpoints(folder: Path, where: Where) -> Iterator[Finding]:
    """Each form that a checkpoint may have, as a whole model: logits and greedy tokens near transformers' on the very values."""
    try:
        from tests.model.quantized import FORMS, save_quantized
    except ModuleNotFoundError as problem:
        yield {"check": "checkpoints", "skipped": f"no {problem.name}"}
        return
    for name in TINY_FORMS if where.tiny else FORMS:
        for dtype in ("float32",) if where.tiny else ("float32", "bfloat16"):

            def work(name: str = name, dtype: str = dtype) -> Finding:
                pack, config, bar = FORMS[name]
                path = folder / f"{name}, {dtype}"
                return _load(path, where, save_quantized(path, pack, config), dtype, bar)

            yield _tried({"check": f"{name}, {dtype}"}, work)


def _load(path: Path, where: Where, model: Any, dtype: str, bar: float) -> Finding:
    """Prompt rows together and one row at a time take different kernels: the logits of the one, and tokens sampled in the other,
    which must be the best but for as much."""
    import torch

    from tests.model.quantized import PROMPT
    from tests.model.tiny import Driver

    worker = where.open(path, dtype)
    forms = {weight.form for weight in worker._model.weights if hasattr(weight, "form")}
    driver = Driver(worker)
    seq = driver.add(PROMPT)
    got = driver.logits([(seq, len(PROMPT))])
    again = driver.add(PROMPT)
    driver.generate([again], 2 if where.tiny else 12)
    with torch.no_grad():
        every = model(torch.tensor([again.ids])).logits[0].numpy()
    want, sampled = every[: len(PROMPT)], every[len(PROMPT) - 1 : -1]
    if dtype != "float32":
        bar = (F8_BAR if "f8" in forms else BF16_BAR) * float(np.abs(want).max())
    short = float((sampled.max(-1) - sampled[np.arange(len(sampled)), again.output]).max())
    error = float(np.abs(got - want).max())
    good = error <= bar and short <= 2 * bar
    return {"forms": sorted(forms), "error": error, "bar": bar, "token_short_by": short, "ok": good}


def tiers(folder: Path, where: Where) -> Iterator[Finding]:
    """Prefixes that the pool has dropped come back from host memory, and answers stay the same; what a copy takes."""
    yield _tried({"check": "host memory behind the pool"}, lambda: _come_back(folder / "model", where))
    yield _tried({"check": "copies of runs"}, lambda: _copies(where))


def _come_back(path: Path, where: Where) -> Finding:
    from sglang.srt.engine import Engine
    from tests.model.tiny import save_model

    path.mkdir()
    save_model(path, "qwen2", num_hidden_layers=1)
    flags: dict[str, Any] = {"device": where.device, "kernels": where.kernels, "dtype": "float32", "grammar_backend": "none"}
    flags |= {"max_total_tokens": 128, "context_length": 64, "max_running_requests": 4, "skip_tokenizer_init": True}
    prompts = [[int(i) for i in np.random.default_rng(seed).integers(3, 199, 49)] for seed in range(4)]
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    with Engine(model_path=str(path), enable_hierarchical_cache=True, **flags) as engine:
        answers = [engine.generate(input_ids=prompts[i], sampling_params=sampling) for i in (0, 0, 1, 2, 3, 0)]
    ids, cached = [answer["output_ids"] for answer in answers], [answer["meta_info"]["cached_tokens"] for answer in answers]
    return {"cached": cached, "ok": ids[0] == ids[1] == ids[-1] and cached[-1] >= 48}


def _copies(where: Where) -> Finding:
    """Runs of a pool of the 7B shape, or of a tiny one, there and back."""
    from sglang.srt.model.device import create_ops

    ops = create_ops(DeviceOptions(device=where.device, kernels=where.kernels), "float32" if where.tiny else "bfloat16")  # type: ignore[arg-type]
    runs = ops.kv_runs(ops.kv_layers(2 if where.tiny else 28, 256, 4, 16 if where.tiny else 128))
    assert runs is not None
    arena = runs.arena(16 * runs.run_bytes).reshape(16, -1)
    arena[:] = np.random.default_rng(1).integers(0, 256, arena.shape, dtype=np.uint8)
    found, seconds = np.zeros_like(arena), [0.0, 0.0]
    for i in range(16):
        began = time.perf_counter()
        runs.write(16 * i, arena[i])
        middle = time.perf_counter()
        runs.read(np.arange(16 * i, 16 * i + 16, dtype=np.int32), found[i])
        seconds = [seconds[0] + middle - began, seconds[1] + time.perf_counter() - middle]
    return {
        "write_gb_s": arena.nbytes / seconds[0] / 1e9,
        "read_gb_s": arena.nbytes / seconds[1] / 1e9,
        "ok": bool((found == arena).all()),
    }


CHECKS: dict[str, Callable[[Path, Where], Iterator[Finding]]] = {
    "grammars": grammars,
    "images": images,
    "checkpoints": checkpoints,
    "tiers": tiers,
}
