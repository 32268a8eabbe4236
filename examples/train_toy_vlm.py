"""Trains toy-vlm: a Qwen2.5-VL of toy size that answers questions about generated images.

    .venv-test/bin/python examples/train_toy_vlm.py [--out models/toy-vlm]     half an hour on two idle cores
    .venv-test/bin/python examples/train_toy_vlm.py --check models/toy-vlm     asks it held-out questions

Needs torch, transformers, tokenizers and Pillow (`make test`'s environment has them); the result is served without torch.
The model is transformers' own; this file only makes it small, feeds it and saves it. Everything follows from `--seed`, so
the same versions on the same processor give the same weights. Images come from `toy_vlm/pictures.py`; those of `--check`
and of the tests have seeds that training never samples.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

sys.path.insert(0, str(Path(__file__).parent))
from toy_vlm.lessons import CLASSES, IGNORED, WORDS, Planter, Seen, lesson
from toy_vlm.muon import Optimizer
from toy_vlm.pictures import Dialog, dialog, scene

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
VALIDATION = 900_000_000
"""seeds of the questions that are asked while it trains"""
EYES = 500_000_000
"""seeds of the pictures that the encoder learns to see with"""

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

A Qwen2.5-VL of toy size ({params:.1f} million parameters) for generated images: six colours, four shapes, digits, counts up to five, where
things are, how two pictures compare. It exists so that everything about serving a vision model can be tried and tested without a
download: same architecture, same files, same chat template form as its large relatives. Do not expect it to understand a photograph.

Made by one run of `examples/train_toy_vlm.py`. Of {asked} held-out generated questions it answers {score:.1%} exactly.
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
        "num_key_value_heads": 3,
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
    """Linear warm-up over an eighth, at most 150 steps, then linear down to a hundredth."""
    warm = min(150, max(1, steps // 8))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * (steps - step) / (steps - warm))


def train(args: argparse.Namespace) -> None:
    """One worker of one thread per core, each with its share of every batch: that does not suffer, as threads inside an
    operation do, when the machine has other work as well."""
    with tempfile.TemporaryDirectory() as meeting_place:
        torch.multiprocessing.spawn(train_worker, (args, f"{meeting_place}/store"), nprocs=args.workers)  # type: ignore[no-untyped-call]


def train_worker(rank: int, args: argparse.Namespace, store: str) -> None:
    """Trains the same model as the other workers, from the mean of all gradients. Worker 0 reports and saves.

    First the encoder alone learns to see: for every row that it makes of a picture, throwaway layers must tell what is there and
    which part it has in the whole picture. That costs a fraction of a step of the whole model, and teaches shapes and counts far
    sooner than answers do. Then the whole model learns to answer, while the encoder goes on learning to see."""
    torch.set_num_threads(1)
    patience = timedelta(hours=6)  # the workers may be stopped for a while
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.workers, timeout=patience)
    torch.manual_seed(args.seed)
    processor, tokenizer = make_processor(), train_tokenizer(args.seed)
    model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer)).float()
    AttentionInterface.register("float32", attention_in_float32)
    AttentionMaskInterface.register("float32", sdpa_mask)
    model.set_attn_implementation("float32")
    heads = torch.nn.ModuleList([torch.nn.Linear(model.config.text_config.hidden_size, n) for n in CLASSES])
    word_ids = [[tokenizer.encode(" " + word).ids for word in words] for words in WORDS]
    assert all(len(ids) == 1 for words in word_ids for ids in words), "each is a token"
    names = [torch.tensor(words)[:, 0] for words in word_ids]
    batcher, planter = Batcher(tokenizer, processor), Planter(tokenizer, processor)

    def see(rngs: list[random.Random]) -> list[torch.Tensor]:
        return [encode(model, heads, names, Seen(processor, [scene(rng) for rng in rngs]).arrays)[1]]

    def talk(rngs: list[random.Random]) -> list[torch.Tensor]:
        batch = planter([lesson(rng) for rng in rngs])
        rows, seeing = encode(model, heads, names, batch)
        return [answer_loss(model, batch, rows), 0.1 * seeing]

    def ask() -> None:
        score, wrong = evaluate_fast(model, batcher, tokenizer, VALIDATION, 200)
        print(f"  {score:.1%} of 200 validation answers exact", *wrong[:4], sep="\n    ", flush=True)

    encoder = torch.nn.ModuleList([model.model.visual, heads])
    teach("see", [(encoder, 1.0)], see, EYES + args.seed, args.eye_batch, args.eye_steps, rank, args)
    # what the encoder has learnt is not to be thrown over by an untrained decoder
    parts = [(encoder, 0.2), (model.model.language_model, 1.0)]
    teach("talk", parts, talk, args.seed, args.batch, args.steps, rank, args, ask)
    print(f"worker {rank} took {time.process_time() / 60:.1f} minutes of processor time", flush=True)
    if rank == 0:
        score, wrong = evaluate_fast(model, batcher, tokenizer, HELD_OUT, args.questions)
        print(f"{score:.1%} of {args.questions} held-out answers exact", *wrong, sep="\n    ")
        save(model, tokenizer, processor, args.out, score, args.questions)
    dist.destroy_process_group()


def teach(
    name: str,
    parts: list[tuple[torch.nn.Module, float]],
    losses: Callable[[list[random.Random]], list[torch.Tensor]],
    seed: int,
    batch: int,
    steps: int,
    rank: int,
    args: argparse.Namespace,
    ask: Callable[[], None] | None = None,
) -> None:
    """Steps down the sum of `losses`, which get this worker's share of a batch of seeds."""
    optimizer, shown = Optimizer(parts, rank, args.workers), torch.zeros(2)
    for step in range(steps):
        seeds = range(seed + step * batch, seed + (step + 1) * batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = losses([random.Random(s) for s in seeds[rank :: args.workers]])
        sum(found, torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        optimizer.step(learning_rate(step, steps, args.lr))
        shown[: len(found)] += torch.stack(found).detach() / 100
        if rank == 0 and (step + 1) % 100 == 0:
            values = " + ".join(f"{value:.4f}" for value in shown[: len(found)].tolist())
            print(f"{name} {step + 1}: loss {values}, {time.process_time():.0f} s of processor time", flush=True)
            shown.zero_()
        if rank == 0 and ask and (step + 1) % 500 == 0:
            ask()


def attention_in_float32(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any
) -> Any:
    """The rest is quickest in bfloat16, but torch's attention goes back several times slower then."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, q.float(), k.float(), v.float(), *rest, **options)


def encode(
    model: Qwen2_5_VLForConditionalGeneration,
    heads: torch.nn.ModuleList,
    names: list[torch.Tensor],
    batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The encoder's rows for all pictures, and how badly they tell what is where: by the embeddings of the words for it, where
    there are `names`, so that the decoder reads in pictures what it reads in questions, and by `heads`."""
    if "pixels" not in batch:
        return None, torch.zeros(())
    rows = model.model.visual(batch["pixels"], grid_thw=batch["grids"]).pooler_output
    logits = [head(rows) for head in heads]
    for i, ids in enumerate(names):
        meant = rows @ model.model.language_model.embed_tokens.weight[ids].T
        logits[i] = torch.cat([logits[i], meant * rows.shape[1] ** 0.5], 1)
    wrong = [cross_entropy(given, batch["seen"][:, i]) for i, given in enumerate(logits)]
    return rows, torch.stack(wrong).sum()


def answer_loss(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor], rows: torch.Tensor | None
) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens."""
    decoder = model.model.language_model
    inputs = decoder.embed_tokens(batch["ids"])
    if rows is not None:
        shown = batch["row"] >= 0
        inputs = inputs.index_put((shown,), rows[batch["row"][shown]].float())
    mask = {"full_attention": batch["sees"]}
    out = decoder(inputs_embeds=inputs, position_ids=batch["positions"], attention_mask=mask, use_cache=False)
    targets = batch["labels"][:, 1:]
    asked = targets != IGNORED
    return cross_entropy(model.lm_head(out.last_hidden_state[:, :-1][asked]), targets[asked])


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
    model: Qwen2_5_VLForConditionalGeneration, batcher: Batcher, tokenizer: Tokenizer, first_seed: int, questions: int
) -> tuple[float, list[str]]:
    """As `evaluate`, twenty questions in one pass: greedy decoding gives the right answer exactly if each of its tokens is the
    likeliest after the right ones before it."""
    model.eval()
    wrong: list[str] = []
    for first in range(0, questions, 20):
        dialogs = [dialog(random.Random(first_seed + i)) for i in range(first, min(first + 20, questions))]
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
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--eye-steps", type=int, default=1600)
    parser.add_argument("--eye-batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each batch; results depend on it")
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    if args.check:
        check(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
