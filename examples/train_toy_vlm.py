"""Trains toy-vlm: a Qwen2.5-VL of toy size that answers questions about generated pictures.

    python examples/train_toy_vlm.py [--out models/toy-vlm]     meant for two idle cores
    python examples/train_toy_vlm.py --check models/toy-vlm                    asks it held-out questions
    python examples/train_toy_vlm.py --start-from models/toy-vlm --seed 1000000 --lr 5e-4 --steps 500      trains it further

Needs torch, transformers, tokenizers and Pillow (`make test`'s environment has them); the result is served without torch.
The model is transformers' own; this file only makes it small, feeds it and saves it. Everything follows from `--seed`, so
the same versions on the same processor give the same weights. Pictures come from `toy_vlm/pictures.py`; those of `--check`
and of the tests have seeds that training never draws.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

sys.path.insert(0, str(Path(__file__).parent))
from toy_vlm.pictures import COLOURS, SHAPES, Dialog, Scene, dialog, scene, two_pictures, words_only

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
HELD_OUT = 1_000_000_000
"""seeds from here on are for tests"""
MAX_PIXELS = 168 * 168
EYES = 500_000_000
"""seeds of the pictures that the encoder learns to see with"""
IGNORED = -100

TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

CARD = """\
# toy-vlm

A Qwen2.5-VL of toy size ({params:.1f} million parameters), trained by `examples/train_toy_vlm.py` on two
processor cores. It knows six colours, four shapes, digits, counts up to five, where things are, and how two pictures
compare; nothing else. It exists so that everything about serving a vision model can be tried and tested without a download:
same architecture, same files, same chat template form as its large relatives. Do not expect it to understand a photograph.

Held-out generated questions answered exactly: {score:.1%} of {asked}.
"""


# --- tokenizer --------------------------------------------------------------------------------------------------------------


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE over the generated language, so that any other text still has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=633, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=4
    )
    texts = [text for i in range(6000) for turn in dialog(random.Random(seed + i), 4).turns for text in turn]
    texts += ["system", "user", "assistant", "You are a helpful assistant.", "\n"] * 100
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


# --- batches ----------------------------------------------------------------------------------------------------------------


class Batcher:
    """Dialogs as padded arrays: ids, labels (answers only), token types and all patches of all pictures."""

    def __init__(self, tokenizer: Tokenizer, processor: Qwen2VLImageProcessorPil) -> None:
        self._tokenizer, self._processor = tokenizer, processor
        self._ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def tokens(self, d: Dialog, counts: list[int]) -> tuple[list[int], list[int]]:
        """Ids and labels of one dialog; picture i takes counts[i] tokens."""
        start, end, newline = self._ids["<|im_start|>"], self._ids["<|im_end|>"], self._text("\n")
        ids = [start, *self._text("system\nYou are a helpful assistant."), end, *newline]
        labels = [IGNORED] * len(ids)
        pictures: list[int] = []
        for n in counts:
            pictures += [self._ids["<|vision_start|>"], *[self._ids["<|image_pad|>"]] * n, self._ids["<|vision_end|>"]]
        for i, (question, answer) in enumerate(d.turns):
            asked = self._text(question)
            if i == 0:
                asked = pictures + asked if d.image_first else asked + pictures
            prompt = [start, *self._text("user\n"), *asked, end, *newline, start, *self._text("assistant\n")]
            reply = [*self._text(answer), end]
            ids += prompt + reply + newline
            labels += [IGNORED] * len(prompt) + reply + [IGNORED] * len(newline)
        return ids, labels

    def __call__(self, dialogs: list[Dialog]) -> dict[str, torch.Tensor]:
        rows, patches, grids = [], [], []
        for d in dialogs:
            counts = []
            for image in d.images:
                out = self._processor(images=image, return_tensors="np")
                patches.append(out["pixel_values"])
                grids.append(out["image_grid_thw"][0])
                counts.append(int(np.prod(grids[-1])) // 4)
            rows.append(self.tokens(d, counts))
        longest = max(len(ids) for ids, _ in rows)
        shape = (len(rows), longest)
        ids_array, labels = np.full(shape, self._ids["<|endoftext|>"]), np.full(shape, IGNORED)
        mask = np.zeros(shape, dtype=np.int64)
        for i, (ids, targets) in enumerate(rows):
            ids_array[i, : len(ids)], labels[i, : len(ids)], mask[i, : len(ids)] = ids, targets, 1
        batch = {"input_ids": ids_array, "labels": labels, "attention_mask": mask}
        batch["mm_token_type_ids"] = (ids_array == self._ids["<|image_pad|>"]).astype(np.int64)
        if grids:
            batch["pixel_values"] = np.concatenate(patches).astype(np.float32)
            batch["image_grid_thw"] = np.stack(grids)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in batch.items()}


# --- model and training -----------------------------------------------------------------------------------------------------


def make_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """Windows are 56 pixels wide, so that even small pictures need windowed and full attention; only the first layer has them,
    since counting and comparing places need the whole picture."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    text = {
        "vocab_size": 640,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 192,
        "window_size": 56,
        "fullatt_block_indexes": [1, 2, 3],
        "tokens_per_second": 2,
        "initializer_range": 0.05,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over an eighth, at most 150 steps, then half a cosine down to a fiftieth."""
    warm = min(150, max(1, steps // 8))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(args: argparse.Namespace) -> None:
    """One worker of one thread per core, each with its share of every batch: that does not suffer, as threads inside an
    operation do, when the machine has other work as well."""
    with tempfile.TemporaryDirectory() as meeting_place:
        torch.multiprocessing.spawn(train_worker, (args, f"{meeting_place}/store"), nprocs=args.workers)  # type: ignore[no-untyped-call]


def train_worker(rank: int, args: argparse.Namespace, store: str) -> None:
    """Trains the same model as the other workers, from the mean of all gradients. Worker 0 reports and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.workers)
    torch.manual_seed(args.seed)
    processor, started = make_processor(), time.monotonic()
    if args.start_from:
        tokenizer = Tokenizer.from_file(str(args.start_from / "tokenizer.json"))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(args.seed)
        model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer)).float()
        train_eyes(rank, args, model, processor, started)
    batcher = Batcher(tokenizer, processor)
    # what the encoder has learnt is not to be thrown over by an untrained decoder
    parts = [(model.model.visual, 0.4), (model.model.language_model, 1.0)]
    optimizer, shown = make_optimizer(parts, args.lr), 0.0
    for step in range(args.steps):
        seeds = range(args.seed + step * args.batch, args.seed + (step + 1) * args.batch)
        batch = batcher([lesson(random.Random(s)) for s in seeds[rank :: args.workers]])
        loss = model.train()(**batch, use_cache=False).loss
        take_step(model, optimizer, loss, learning_rate(step, args.steps, args.lr), args.workers)
        shown += loss.item()
        if rank == 0 and (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {shown / 50:.4f}, {time.monotonic() - started:.0f} s", flush=True)
            shown = 0.0
        if rank == 0 and ((step + 1) % 200 == 0 or step + 1 == args.steps):
            last = step + 1 == args.steps
            report(model, batcher, tokenizer, processor, args.out, args.questions if last else 100)
    dist.destroy_process_group()


def lesson(rng: random.Random) -> Dialog:
    """What is asked in training: as in tests, but more often about two pictures and none, which have one answer a dialog."""
    kind = rng.random()
    if kind < 0.05:
        return words_only(rng)
    return two_pictures(rng) if kind < 0.3 else dialog(rng, 3)


def train_eyes(
    rank: int,
    args: argparse.Namespace,
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2VLImageProcessorPil,
    started: float,
) -> None:
    """First the encoder alone learns to see: for every row that it makes of a picture, throwaway layers must tell what is there
    and which part it has in the whole picture (its place, how many there are). That costs a fraction of a step of the whole
    model, and teaches shapes and counts far sooner than answers do: they are then one look away for the decoder."""
    visual = model.model.visual
    classes = (len(KINDS) + 1, len(COLOURS) + 1, 2, len(ROLES) + 1)
    heads = torch.nn.ModuleList([torch.nn.Linear(192, n) for n in classes])
    both = torch.nn.ModuleList([visual, heads])
    optimizer, shown = make_optimizer([(both, 1.0)], args.lr), 0.0
    for step in range(args.eye_steps):
        first = EYES + args.seed + step * args.eye_batch
        scenes = [scene(random.Random(s)) for s in range(first, first + args.eye_batch)[rank :: args.workers]]
        found = [processor(images=s.image, return_tensors="np") for s in scenes]
        grids = [f["image_grid_thw"][0] for f in found]
        pixels = torch.from_numpy(np.concatenate([f["pixel_values"] for f in found]).astype(np.float32))
        rows = visual.train()(pixels, grid_thw=torch.from_numpy(np.stack(grids))).pooler_output
        labels = torch.from_numpy(
            np.concatenate([what_is_where(s, g[1] // 2, g[2] // 2) for s, g in zip(scenes, grids, strict=True)])
        )
        loss = sum(torch.nn.functional.cross_entropy(head(rows), labels[:, i]) for i, head in enumerate(heads))
        take_step(both, optimizer, loss, learning_rate(step, args.eye_steps, args.lr), args.workers)
        shown += loss.item()
        if rank == 0 and (step + 1) % 100 == 0:
            there = labels[:, 0] > 0
            kinds, roles = ((heads[i](rows).argmax(-1) == labels[:, i])[there].float().mean() for i in (0, 3))
            print(
                f"eyes {step + 1}: loss {shown / 100:.4f}, {kinds:.1%} of shapes, {roles:.1%} of parts, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            shown = 0.0


KINDS = (*SHAPES, *(str(i) for i in range(10)))
ROLES = ("center", "top left", "top right", "bottom left", "bottom right", "left", "right", "upper", "lower", *"2345", "digit")


def role(s: Scene, i: int) -> str:
    """Which part thing i has in its picture: its place, or how many there are."""
    if s.kind == "single":
        return s.facts["place"]
    if s.kind == "group":
        return str(len(s.things))
    if s.kind == "pair":
        return (("upper", "lower") if s.facts["relation"] == "above" else ("left", "right"))[i]
    return "digit"


def what_is_where(s: Scene, down: int, across: int) -> np.ndarray[Any, Any]:
    """For each of down x across cells of a picture: kind and colour of the thing there (0: none), whether its centre is there,
    and its role."""
    labels = np.zeros((down, across, 4), np.int64)
    for i, t in enumerate(s.things):
        kind = s.facts["value"] if t.shape == "digit" else t.shape
        x, y = t.x / s.image.width * across, t.y / s.image.height * down
        reach_x, reach_y = t.r / s.image.width * across, t.r / s.image.height * down
        if t.shape == "digit":
            reach_x *= 0.6
        for row in range(down):
            for column in range(across):
                overlap_x = min(column + 1, x + reach_x) - max(column, x - reach_x)
                overlap_y = min(row + 1, y + reach_y) - max(row, y - reach_y)
                if overlap_x > 0.2 and overlap_y > 0.2:
                    labels[row, column, :2] = KINDS.index(kind) + 1, list(COLOURS).index(t.colour) + 1
                    labels[row, column, 3] = ROLES.index(role(s, i)) + 1
        labels[min(int(y), down - 1), min(int(x), across - 1), 2] = 1
    return labels.reshape(-1, 4)


def take_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float, workers: int) -> None:
    """One step on the mean of the workers' gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients(model, workers)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def make_optimizer(parts: list[tuple[torch.nn.Module, float]], lr: float) -> torch.optim.Optimizer:
    """Each part learns at its share of the rate."""
    groups: list[dict[str, Any]] = []
    for part, share in parts:
        decay = [p for p in part.parameters() if p.ndim > 1]
        plain = [p for p in part.parameters() if p.ndim <= 1]
        groups += [
            {"params": decay, "weight_decay": 0.02, "share": share},
            {"params": plain, "weight_decay": 0.0, "share": share},
        ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def average_gradients(model: torch.nn.Module, workers: int) -> None:
    """Every parameter's gradient becomes the mean over the workers (zero where a worker's share did not use it)."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= workers
    start = 0
    for p in model.parameters():
        p.grad = flat[start : start + p.numel()].view_as(p).clone()
        start += p.numel()


def report(
    model: Qwen2_5_VLForConditionalGeneration,
    batcher: Batcher,
    tokenizer: Tokenizer,
    processor: Qwen2VLImageProcessorPil,
    folder: Path,
    questions: int,
) -> None:
    """Asks held-out questions and saves the model as it is now."""
    score, wrong = evaluate_fast(model, batcher, tokenizer, questions)
    print(f"{score:.1%} of {questions} held-out answers exact", flush=True)
    for line in wrong[:12]:
        print("  " + line, flush=True)
    save(model, tokenizer, processor, folder, score, questions)


# --- asking it --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer(
    model: Qwen2_5_VLForConditionalGeneration, batcher: Batcher, tokenizer: Tokenizer, d: Dialog, max_new_tokens: int = 48
) -> str:
    """Greedy answer to the first question, by transformers' own generate."""
    batch = batcher([Dialog(d.images, ((d.turns[0][0], ""),), d.image_first)])
    end = batch["input_ids"].shape[1] - 1 - len(tokenizer.encode("\n").ids)  # without the empty reply's end
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[name] = batch[name][:, :end]
    del batch["labels"]
    options = {"do_sample": False, "eos_token_id": tokenizer.token_to_id("<|im_end|>"), "pad_token_id": 0}
    out = model.generate(**batch, max_new_tokens=max_new_tokens, **options)
    return tokenizer.decode(out[0, end:].tolist())


def evaluate(
    model: Qwen2_5_VLForConditionalGeneration, batcher: Batcher, tokenizer: Tokenizer, questions: int
) -> tuple[float, list[str]]:
    """Share of exact answers to questions whose seeds training never saw, and what went wrong."""
    model.eval()
    wrong = []
    for i in range(questions):
        d = dialog(random.Random(HELD_OUT + i))
        given = answer(model, batcher, tokenizer, d)
        if given != d.turns[0][1]:
            wrong.append(f"{d.turns[0][0]!r}: {given!r}, not {d.turns[0][1]!r}")
    return 1 - len(wrong) / questions, wrong


@torch.no_grad()
def evaluate_fast(
    model: Qwen2_5_VLForConditionalGeneration, batcher: Batcher, tokenizer: Tokenizer, questions: int
) -> tuple[float, list[str]]:
    """As `evaluate`, twenty questions in one pass: greedy decoding gives the right answer exactly if each of its tokens is the
    likeliest after the right ones before it."""
    model.eval()
    wrong: list[str] = []
    for first in range(0, questions, 20):
        dialogs = [dialog(random.Random(HELD_OUT + i)) for i in range(first, min(first + 20, questions))]
        batch = batcher(dialogs)
        labels = batch.pop("labels")[:, 1:]
        best = model(**batch, use_cache=False).logits[:, :-1].argmax(-1)
        for d, target, given in zip(dialogs, labels, best, strict=True):
            asked = target != IGNORED
            if not torch.equal(target[asked], given[asked]):
                wrong.append(f"{d.turns[0][0]!r}: about {tokenizer.decode(given[asked].tolist())!r}, not {d.turns[0][1]!r}")
    return 1 - len(wrong) / questions, wrong


# --- files ------------------------------------------------------------------------------------------------------------------


def make_processor() -> Qwen2VLImageProcessorPil:
    """The nearly white background becomes nearly zero, so that what stands on it is what the first layer sees."""
    size = {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}
    return Qwen2VLImageProcessorPil(size=size, image_mean=[0.95] * 3, image_std=[0.35] * 3)


def save(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    processor: Qwen2VLImageProcessorPil,
    folder: Path,
    score: float,
    asked: int,
) -> None:
    """The files of a Hugging Face model folder, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = Qwen2_5_VLForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    options = {"tokenizer_class": "Qwen2TokenizerFast", "model_max_length": 4096, "add_prefix_space": False} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    generation = {"do_sample": True, "top_k": 1, "eos_token_id": model.config.text_config.eos_token_id}  # greedy
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": MAX_PIXELS,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    params = sum(p.numel() for p in model.parameters()) / 1e6
    (folder / "README.md").write_text(CARD.format(params=params, score=score, asked=asked), encoding="utf-8")


def check(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.from_file(str(args.check / "tokenizer.json"))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.check, dtype=torch.float32)
    score, wrong = evaluate(model, Batcher(tokenizer, make_processor()), tokenizer, args.questions)
    print(f"{score:.1%} of {args.questions} held-out answers exact")
    for line in wrong:
        print("  " + line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/toy-vlm"))
    parser.add_argument("--check", type=Path, help="only ask the model in this folder")
    parser.add_argument(
        "--start-from", type=Path, help="train the model in this folder further, with pictures of another --seed"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--eye-steps", type=int, default=1000)
    parser.add_argument("--eye-batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each batch; results depend on it")
    parser.add_argument("--questions", type=int, default=400)
    args = parser.parse_args()
    if args.check:
        check(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
