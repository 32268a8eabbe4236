"""The cost of images: how long running text requests wait for others' images, and our speed beside transformers'.

    python benchmarks/vision.py [--model models/toy-vlm] [--questions 64] [--threads 2]

1. Disturbance. Two text requests decode; then 8 others come at once: of text, then of images that take as many tokens. The
   gaps between the first two's tokens are measured before and meanwhile; what images add to texts is what encoding costs them.
   The model has random weights in the shape of a small Qwen2.5-VL: encoding a picture takes many times a decode step.
   Beside the gaps, the scheduler's own clock: what a decode step takes, how long it then waits for the encoder, and the longest
   single chunk of encoding, which that wait should not exceed.
2. Beside transformers. The same questions about the same images of the same checkpoint, one after another and (ours) 8 at
   once: questions a second, and seconds to the first token, images decoded and preprocessed within. Needs torch.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import sglang
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.media_item import MediaItem
from sglang.srt.model.image_queue import EncodeQueue
from sglang.srt.model.models.vision.layers import Encoding
from sglang.srt.model.models.vision.qwen_vl import WindowedQwenVision
from sglang.srt.model.worker import LocalWorker
from sglang.srt.scheduler.media.encoder_gate import ENCODE_SECONDS

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from toy_vlm import pictures

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SMALL_VISION = {"depth": 8, "hidden_size": 512, "intermediate_size": 1376, "num_heads": 8, "fullatt_block_indexes": [3, 7]}
SMALL_TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


# --- disturbance ------------------------------------------------------------------------------------------------------------


def make_small_model(toy: Path, folder: Path) -> None:
    """toy-vlm's files with the numbers of a larger model; weights are made up when it is loaded."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, folder / name)
    config = json.loads((toy / "config.json").read_text())
    config["vision_config"] |= SMALL_VISION | {"out_hidden_size": SMALL_TEXT["hidden_size"], "window_size": 112}
    config["text_config"] |= SMALL_TEXT
    config["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((toy / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"max_pixels": 448 * 448}))


async def text_gaps(engine: Any, seconds: float, gaps: list[float]) -> None:
    """One text request that decodes for so long; the times between its tokens go to `gaps`."""
    options = {"temperature": 0, "max_new_tokens": 3000, "ignore_eos": True}
    end = time.perf_counter() + seconds
    last = None
    async for _ in await engine.async_generate(TURN.format("Hello!"), options, stream=True):
        now = time.perf_counter()
        if last is not None:
            gaps.append(now - last)
        last = now
        if now > end:
            return


async def crowd(engine: Any, prompts: list[str], **media: Any) -> tuple[list[float], float]:
    """Gaps of two text requests while these prompts are answered, and how long that took."""
    gaps: list[float] = []
    running = [asyncio.ensure_future(text_gaps(engine, 1000.0, gaps)) for _ in range(2)]
    await asyncio.sleep(0.5)
    gaps.clear()
    start = time.perf_counter()
    options = {"temperature": 0, "max_new_tokens": 2}
    await engine.async_generate(prompts, options, **media)
    took = time.perf_counter() - start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return gaps, took


class Clock:
    """Times the parts of the scheduler's steps from inside: decode steps (seconds the model took), waits for the encoder between
    two of them, and the encoder's chunks."""

    def __init__(self) -> None:
        self.decodes: list[float] = []
        self.waits: list[float] = []
        self.chunks: list[float] = []

    def clear(self) -> None:
        for times in (self.decodes, self.waits, self.chunks):
            times.clear()

    def install(self) -> None:
        """For all engines of this process that are made from now on."""
        forward, run, begin = LocalWorker.forward, EncodeQueue.run, WindowedQwenVision.encode

        def timed_forward(worker: LocalWorker, batch: ForwardBatch) -> None:
            start = time.perf_counter()
            forward(worker, batch)
            if batch.num_tokens == batch.num_reqs:
                self.decodes.append(time.perf_counter() - start)

        def timed_run(queue: EncodeQueue, seconds: float) -> bool:
            start = time.perf_counter()
            worked = run(queue, seconds)
            if worked and seconds <= ENCODE_SECONDS:  # a step with running requests
                self.waits.append(time.perf_counter() - start)
            return worked

        def timed_encode(encoder: WindowedQwenVision, items: Sequence[MediaItem]) -> Encoding:
            encoding = begin(encoder, items)
            while True:
                start = time.perf_counter()
                try:
                    next(encoding)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                finally:
                    self.chunks.append(time.perf_counter() - start)
                yield

        LocalWorker.forward, EncodeQueue.run, WindowedQwenVision.encode = timed_forward, timed_run, timed_encode  # type: ignore[method-assign]

    def show(self) -> None:
        def text(times: list[float]) -> str:
            ordered = sorted(1e3 * t for t in times)
            return (
                f"{len(ordered):5d} of median {statistics.median(ordered):5.1f}, longest {ordered[-1]:5.1f} ms"
                if ordered
                else "none"
            )

        print(f"      decode steps         {text(self.decodes)}")
        if self.chunks:
            print(f"      waits for encoding   {text(self.waits)}")
            print(f"      encoder's chunks     {text(self.chunks)}")


async def disturb(engine: Any, clock: Clock) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)) for _ in range(8)]
    words = ["".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 256)) for _ in images]  # a token each
    quiet: list[float] = []
    await asyncio.gather(*(text_gaps(engine, 3.0, quiet) for _ in range(2)))
    show_gaps("alone", quiet)
    clock.show()
    clock.clear()
    gaps, took = await crowd(engine, [TURN.format(w) for w in words])
    show_gaps("8 texts at once", gaps, took)
    clock.clear()
    gaps, took = await crowd(engine, [TURN.format(IMAGE)] * 8, image_data=[uri(image) for image in images])
    show_gaps("8 images at once", gaps, took)
    clock.show()


def show_gaps(name: str, gaps: list[float], took: float | None = None) -> None:
    ordered = sorted(1e3 * gap for gap in gaps)
    p99, all_took = ordered[int(0.99 * (len(ordered) - 1))], f", in {took:.2f} s" if took is not None else ""
    middle = statistics.median(ordered)
    print(
        f"  {name:20s} median {middle:6.1f} ms   99 % {p99:6.1f} ms   longest {ordered[-1]:6.1f} ms   ({len(gaps)} tokens{all_took})"
    )


def disturbance(toy: Path, threads: int) -> None:
    print("1. Gaps between tokens of two text requests, prompts in chunks of 64 (random weights; images of 448 x 448)")
    with tempfile.TemporaryDirectory() as folder:
        make_small_model(toy, Path(folder))
        flags: dict[str, Any] = {
            "load_format": "dummy",
            "max_total_tokens": 16384,
            "chunked_prefill_size": 64,
            "threads": threads,
        }
        clock = Clock()
        clock.install()
        with sglang.Engine(model_path=folder, **flags) as engine:
            asyncio.run(disturb(engine, clock))


# --- beside transformers ----------------------------------------------------------------------------------------------------


def ours(toy: Path, dialogs: list[pictures.Dialog], threads: int) -> None:
    prompts = []
    for d in dialogs:
        places, question = IMAGE * len(d.images), d.turns[0][0]
        prompts.append(TURN.format(places + question if d.image_first else question + places))
    images = [[uri(image) for image in d.images] for d in dialogs]
    options = {"temperature": 0, "max_new_tokens": 48}
    with sglang.Engine(model_path=str(toy), max_total_tokens=16384, threads=threads) as engine:
        engine.generate(prompts[0], options, image_data=images[0])
        engine.flush_cache()
        firsts: list[float] = []
        start = time.perf_counter()
        for prompt, given in zip(prompts, images, strict=True):
            begun = time.perf_counter()
            for i, _ in enumerate(engine.generate(prompt, options, image_data=given, stream=True)):
                if i == 0:
                    firsts.append(time.perf_counter() - begun)
        report("ours, one by one", len(dialogs), time.perf_counter() - start, firsts)
        engine.flush_cache()
        start = time.perf_counter()
        for i in range(0, len(prompts), 8):
            engine.generate(prompts[i : i + 8], options, image_data=images[i : i + 8], cache_salt="again")
        report("ours, 8 at once", len(dialogs), time.perf_counter() - start, [])


def theirs(toy: Path, dialogs: list[pictures.Dialog], threads: int) -> None:
    import torch
    from tokenizers import Tokenizer
    from train_toy_vlm import Batcher, answer, make_processor
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(threads)
    tokenizer = Tokenizer.from_file(str(toy / "tokenizer.json"))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(toy, dtype=torch.float32).eval()
    batcher = Batcher(tokenizer, make_processor())
    files = [[uri(image).split(",")[1] for image in d.images] for d in dialogs]

    def ask(number: int, ask_one: Callable[[pictures.Dialog], Any]) -> None:
        images = tuple(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in files[number])
        ask_one(pictures.Dialog(images, dialogs[number].turns, dialogs[number].image_first))

    ask(0, lambda d: answer(model, batcher, tokenizer, d))
    start = time.perf_counter()
    for i in range(len(dialogs)):
        ask(i, lambda d: answer(model, batcher, tokenizer, d))
    took = time.perf_counter() - start
    firsts = []
    for i in range(len(dialogs)):
        begun = time.perf_counter()
        ask(i, lambda d: answer(model, batcher, tokenizer, d, max_new_tokens=1))
        firsts.append(time.perf_counter() - begun)
    report("transformers, one by one", len(dialogs), took, firsts)


def report(name: str, count: int, seconds: float, firsts: list[float]) -> None:
    first = f"   first token after {1e3 * statistics.median(firsts):6.1f} ms" if firsts else ""
    print(f"  {name:26s} {count / seconds:7.1f} questions/s{first}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "models" / "toy-vlm")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    disturbance(args.model, args.threads)
    dialogs = [d for i in range(4 * args.questions) if (d := pictures.dialog(random.Random(3_000_000_000 + i))).images]
    dialogs = dialogs[: args.questions]
    print(f"2. {len(dialogs)} questions about images, {args.model.name}, {args.threads} threads")
    ours(args.model, dialogs, args.threads)
    theirs(args.model, dialogs, args.threads)


if __name__ == "__main__":
    main()
