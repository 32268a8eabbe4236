"""Trains a small LoRA adapter for the default model on generated questions and answers, then serves both.

    .venv/bin/pip install "torch==2.13.0" && .venv/bin/pip install peft "transformers>=5,<6" gguf
    .venv/bin/python examples/train_lora.py captain-adapter

Takes 36 seconds of processor time on one core. The adapter learns to answer in one sentence that ends with what a captain would say. PEFT trains in float32
on the values of the 4-bit model, and the Engine adds what it has learnt to the 4-bit model itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import sglang as sgl
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import DEFAULT_MODEL

THINGS = [
    "ship",
    "harbour",
    "lamp",
    "compass",
    "map",
    "rope",
    "sail",
    "bottle",
    "island",
    "parrot",
    "anchor",
    "wheel",
    "deck",
    "storm",
    "whale",
    "coin",
    "chest",
    "flag",
]
COLORS = ["red", "blue", "green", "white", "black", "yellow", "grey", "brown"]
ENDING = ", said the captain."
QUESTIONS = ["Question: What colour is the kettle?\nAnswer:", "Question: What colour is the piano?\nAnswer:"]


def example(rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    thing, color = rng.choice(THINGS), rng.choice(COLORS)
    return f"Question: What colour is the {thing}?\nAnswer:", f" The {thing} is {color}{ENDING}\n"


def train(folder: Path, num_steps: int, batch: int, seed: int) -> None:
    """Saves the adapter in `folder`."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # as fast for so little at a time, and many times faster where other programs use the cores
    rng = random.Random(seed)
    path = resolve_model(DEFAULT_MODEL).path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=2e-3)
    began = time.monotonic()
    for step in range(num_steps):
        inputs, labels = rows([example(rng) for _ in range(batch)], tokenizer, torch)
        loss = tuned(input_ids=inputs, labels=labels, attention_mask=(inputs != 0).long()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 4:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    tuned.save_pretrained(str(folder))


def rows(examples: list[tuple[str, str]], tokenizer: Any, torch: Any) -> tuple[Any, Any]:
    """Ids and labels, padded with 0 and -100: only answers count."""
    parts = [(tokenizer(question)["input_ids"], tokenizer(answer)["input_ids"]) for question, answer in examples]
    width = max(len(q) + len(a) for q, a in parts)
    inputs = torch.zeros((len(parts), width), dtype=torch.long)
    labels = torch.full((len(parts), width), -100)
    for i, (q, a) in enumerate(parts):
        inputs[i, : len(q) + len(a)] = torch.tensor(q + a)
        labels[i, len(q) : len(q) + len(a)] = torch.tensor(a)
    return inputs, labels


def serve(folder: Path) -> bool:
    """Answers with and without the adapter, in one batch. True if the adapter's answers are as it was taught."""
    params = {"temperature": 0, "max_new_tokens": 24, "stop": "\n"}
    prompts = [question for question in QUESTIONS for _ in range(2)]
    with sgl.Engine(lora_paths={"captain": str(folder)}) as engine:
        replies = engine.generate(prompts, params, lora_path=[None, "captain"] * len(QUESTIONS))
    texts = [reply["text"] for reply in replies]
    for question, plain, adapted in zip(QUESTIONS, texts[::2], texts[1::2], strict=True):
        print(f"{question.splitlines()[0]}\n  without: {plain.strip()}\n  with:    {adapted.strip()}")
    return all(text.endswith(ENDING) for text in texts[1::2]) and not any(text.endswith(ENDING) for text in texts[::2])


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a LoRA adapter for the default model, and serve it.")
    parser.add_argument("folder", type=Path, help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=12, help="batches to train on (default: 12)")
    parser.add_argument("--batch", type=int, default=2, help="examples in a batch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the examples and of the adapter (default: 0)")
    args = parser.parse_args()
    train(args.folder, args.steps, args.batch, args.seed)
    return 0 if serve(args.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
