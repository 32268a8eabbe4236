"""What --mm-quantization int8 costs and saves: an encoder of images in int8 beside the same one as its checkpoint has it.

    .venv-test/bin/python -m benchmarks.encoder_rounding [--questions 400] [--depth 4] [--repeats 5]

1. toy-vlm, which is trained: held-out questions about pictures answered by both, and how many are right.
2. The encoder of Qwen2.5-VL-3B with random weights, `--depth` of its 32 layers, the last with full attention: a photo of 1024 x 768, on
   one thread, by processor time, in turns; and how far its rows differ.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import sglang
from benchmarks.peers import ROOT
from benchmarks.vision import IMAGE, TURN, uri
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.media_item import MediaItem
from sglang.srt.model.worker import create_worker

sys.path.insert(0, str(ROOT / "examples"))
from toy_vlm import pictures

TOY = ROOT / "models" / "toy-vlm"
FORMS: tuple[Any, ...] = ("none", "int8")
ENCODER = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112}
GRID = (1, 54, 74)
"""patches of 14 pixels: 1036 x 756, of a photo of 1024 x 768"""


def answers(form: str, dialogs: list[pictures.Dialog]) -> list[str]:
    with sglang.Engine(model_path=str(TOY), max_total_tokens=16384, mm_quantization=form, log_level="error") as engine:
        found: list[str] = []
        for at in range(0, len(dialogs), 16):
            some = dialogs[at : at + 16]
            questions = [(IMAGE * len(d.images), d.turns[0][0]) for d in some]
            prompts = [
                TURN.format(places + text if d.image_first else text + places)
                for d, (places, text) in zip(some, questions, strict=True)
            ]
            images = [[uri(image) for image in d.images] for d in some]
            replies = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 48}, image_data=images)
            found += [reply["text"] for reply in replies]
        return found


def trained(num_questions: int) -> None:
    dialogs = [d for i in range(4 * num_questions) if (d := pictures.dialog(random.Random(3_000_000_000 + i))).images]
    dialogs = dialogs[:num_questions]
    found = {form: answers(form, dialogs) for form in FORMS}
    for form, given in found.items():
        right = sum(answer == d.turns[0][1] for answer, d in zip(given, dialogs, strict=True))
        print(f"toy-vlm, encoder {form}: {right} of {len(dialogs)} right ({100 * right / len(dialogs):.1f} %)")
    same = sum(a == b for a, b in zip(*found.values(), strict=True))
    print(f"the same answer: {same}")


def make_model(folder: Path, depth: int) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(TOY / name, folder / name)
    config = json.loads((TOY / "config.json").read_text())
    config["vision_config"] |= ENCODER | {"depth": depth, "fullatt_block_indexes": [depth - 1]}
    (folder / "config.json").write_text(json.dumps(config))


def encode(worker: Any, item: MediaItem) -> np.ndarray[Any, Any]:
    """The item's rows, by the encoder alone."""
    encoding = worker._encodings._encoder.encode([item])
    while True:
        try:
            next(encoding)
        except StopIteration as end:
            worker.ops.finish()
            return np.array(end.value[0])


def speed(depth: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), depth)
        memory = MemoryOptions(max_total_tokens=2048, max_running_requests=2, chunked_prefill_size=256)
        workers = [
            create_worker(
                ModelOptions(folder, load_format="dummy", dtype="bfloat16", mm_quantization=form),
                DeviceOptions(device="cpu", kernels="cpu", threads=1),
                memory,
            )
            for form in FORMS
        ]
    shape = (int(np.prod(GRID)), 3 * 2 * 14 * 14)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    item = MediaItem("image", b"photo", ((0, shape[0] // 4),), pixels.tobytes(), shape, GRID)
    took: list[list[float]] = [[], []]
    rows: list[Any] = [None, None]
    for _ in range(repeats):
        for i, worker in enumerate(workers):
            start = time.process_time()
            rows[i] = encode(worker, item)
            took[i].append(time.process_time() - start)
    ratio = statistics.median(b / a for a, b in zip(*took, strict=True))
    print(f"{depth} layers of Qwen2.5-VL-3B's encoder, {shape[0]} patches, one thread:")
    print("    " + ", ".join(f"{form} {statistics.median(t):.2f} s" for form, t in zip(FORMS, took, strict=True)), end="")
    print(f", median ratio {ratio:.3f} ({min(took[1]) / min(took[0]):.3f} of the best)")
    error = np.sqrt(np.mean((rows[1] - rows[0]) ** 2) / np.mean(rows[0] ** 2))
    print(f"    difference of the rows: {100 * error:.2f} % (root mean square)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.questions:
        trained(args.questions)
    if args.depth:
        speed(args.depth, args.repeats)


if __name__ == "__main__":
    main()
