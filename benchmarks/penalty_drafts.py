"""The gain of speculation in chats with a presence penalty, as the default model's defaults have one.

    .venv-test/bin/python -m benchmarks.penalty_drafts [--penalty 1.2] [--max-tokens 300]

Two engines in turn for each chat, one of them without speculation: tokens a step, and tokens a second of processor time. Fails if an
answer is not the same to the last token.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import sglang as sgl

CHATS = [
    "Write a function in Python that reverses a linked list.",
    "Write a short poem about rain.",
    "List ten animals and one fact about each.",
    "Explain what a radix tree is, with an example in Python.",
    "Write a JSON object with ten people, each with a name, an age and a city.",
    "Write an email to a colleague about a meeting on Monday.",
    "Repeat after me: the quick brown fox jumps over the lazy dog, and then it sleeps, and then it runs.",
    "Translate to French: Good morning. How are you? Where is the station?",
    "Fix this code and give it back whole:\n\ndef area(self):\n    return self.width * self.hight\n\n"
    "def perimeter(self):\n    return 2 * (self.width + self.hight)\n\n"
    "def scale(self, k):\n    self.width *= k\n    self.hight *= k\n",
    "Write a table in Markdown of the planets, with their sizes and distances.",
    "Write an HTML page with a list of five links.",
    "Summarise: The cat sat on the mat. The dog sat on the log. The cat looked at the dog, and the dog looked at the cat. "
    "Then the cat left the mat, and the dog left the log.",
]
TURN = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass
class Total:
    """Of the answers of one engine."""

    tokens: int = 0
    accepted: int = 0
    seconds: float = 0.0
    """of the processor"""

    def ask(self, engine: sgl.Engine, question: str, params: dict[str, object]) -> list[int]:
        """The ids of the answer."""
        began = time.process_time()
        reply = engine.generate(TURN.format(question), params)
        self.seconds += time.process_time() - began
        self.tokens += reply["meta_info"]["completion_tokens"]
        self.accepted += reply["meta_info"].get("spec_accept_token_num", 0)
        ids: list[int] = reply["output_ids"]
        return ids

    def __str__(self) -> str:
        per_step = self.tokens / (self.tokens - self.accepted)
        return f"{self.tokens} tokens, {per_step:.2f} a step, {self.tokens / self.seconds:.0f} a second of processor time"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--penalty", type=float, default=1.2)
    parser.add_argument("--max-tokens", type=int, default=300)
    args = parser.parse_args()
    shared = {"temperature": 0.2, "top_p": 0.5, "presence_penalty": args.penalty, "max_new_tokens": args.max_tokens}
    with sgl.Engine() as with_drafts, sgl.Engine(speculative_algorithm="none") as without:
        engines = [(with_drafts, Total()), (without, Total())]
        for i, question in enumerate(CHATS):
            params = {**shared, "sampling_seed": i}
            answers = [total.ask(engine, question, params) for engine, total in engines[:: 1 if i % 2 else -1]]
            assert answers[0] == answers[1], question
    print(f"with drafts: {engines[0][1]}\nwithout: {engines[1][1]}")


if __name__ == "__main__":
    main()
