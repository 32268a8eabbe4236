"""The loss from the native kernels' integers: log probabilities of a text against float32 on the dequantised weights.

    .venv-test/bin/python -m benchmarks.accuracy [--model FILE] [--tokens 4096]

The text is the repository's own documents, in pieces of 512 tokens. Both engines score it themselves (the prompt's log
probabilities), one after the other: once with the native kernels, once with the NumPy reference.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import sglang
from benchmarks.peers import ROOT

PIECE = 512
Scores = list[tuple[float, int]]
"""per position: log probability of the token that follows, the id that was most probable"""


def read_text() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def score(model: str, kernels: str, text: str, num_tokens: int) -> Scores:
    engine = sglang.Engine(model_path=model, kernels=kernels, log_level="error")
    try:
        ids = engine.tokenizer.encode(text)[:num_tokens]
        pieces = [ids[at : at + PIECE] for at in range(0, len(ids), PIECE)]
        found: Scores = []
        for piece in pieces:
            reply = engine.generate(
                input_ids=piece,
                sampling_params={"max_new_tokens": 0, "temperature": 0},
                return_logprob=True,
                logprob_start_len=0,
                top_logprobs_num=1,
            )
            found += positions(reply["meta_info"])
        return found
    finally:
        engine.shutdown()


def positions(meta: dict[str, Any]) -> Scores:
    """Of every position but the first, about which nothing is said."""
    pairs = zip(meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:], strict=True)
    return [(token[0], top[0][1]) for token, top in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    text = read_text()
    native = score(args.model, "cpu", text, args.tokens)
    exact = score(args.model, "reference", text, args.tokens)
    ppl = [math.exp(-statistics.fmean(p for p, _ in scores)) for scores in (native, exact)]
    errors = [abs(a - b) for (a, _), (b, _) in zip(native, exact, strict=True)]
    same = statistics.fmean(a == b for (_, a), (_, b) in zip(native, exact, strict=True))
    print(f"{args.model}, {len(exact)} positions")
    print(f"perplexity: native {ppl[0]:.4f}, float32 {ppl[1]:.4f}, {100 * (ppl[0] / ppl[1] - 1):+.2f} %")
    print(f"|difference| of a token's log probability: mean {statistics.fmean(errors):.4f}, largest {max(errors):.3f}")
    print(f"same most probable token: {100 * same:.2f} %")


if __name__ == "__main__":
    main()
