"""What rounding to few bits costs: the distributions of a text's next tokens against those of float32 on the dequantized weights.

    .venv-test/bin/python -m benchmarks.accuracy [--model FILE] [--tokens 4096] [--kv-cache-dtype auto int8 fp8_e4m3]

The text is the repository's own documents, in pieces of --piece tokens, which engines score themselves (the prompt's log
probabilities): the native kernels, once for each --kv-cache-dtype, and the NumPy reference. With `--kernels reference` the cached K and V
are all that is rounded: otherwise int8 activations add what they cost. The Kullback-Leibler divergence is over the whole vocabulary.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers import ROOT
from benchmarks.watched_engine import WatchedEngine

Floats = npt.NDArray[np.float32]


def read_text() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


class Scorer:
    """An engine of which the logits of prompts are seen."""

    def __init__(self, model: str, **flags: Any) -> None:
        self.engine = WatchedEngine(model_path=model, log_level="error", disable_radix_cache=True, **flags)
        ops: Any = self.engine.scheduler._worker.ops
        self._logits: list[Floats] = []
        find_top = ops.top_k

        def top_k(logits: Any, num_rows: int, *rest: Any) -> None:  # asked for every row that is scored
            self._logits.append(np.array(logits[:num_rows]))
            find_top(logits, num_rows, *rest)

        ops.top_k = top_k

    def log_probs(self, ids: list[int]) -> Floats:
        """[len(ids) - 1, vocabulary], of the token after each."""
        self._logits.clear()
        self.engine.generate(
            input_ids=ids,
            sampling_params={"max_new_tokens": 0, "temperature": 0},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=1,
        )
        logits = np.concatenate(self._logits)[: len(ids) - 1]
        assert len(logits) == len(ids) - 1
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return logits


def compare(rounded: Floats, exact: Floats, ids: list[int]) -> npt.NDArray[np.float64]:
    """Of each position: log probability of the token that follows, by both; the divergence; whether both find the same token most
    probable. [positions, 4]"""
    at = np.arange(len(exact)), np.array(ids[1:])
    divergence = (np.exp(exact, dtype=np.float64) * (exact - rounded)).sum(-1)
    return np.stack([rounded[at], exact[at], divergence, rounded.argmax(-1) == exact.argmax(-1)], axis=1)


def show(name: str, found: npt.NDArray[np.float64]) -> None:
    ppl = [math.exp(-found[:, i].mean()) for i in (0, 1)]
    errors = np.abs(found[:, 0] - found[:, 1])
    print(f"K and V {name}:")
    print(f"    perplexity {ppl[0]:.4f}, float32 {ppl[1]:.4f}, {100 * (ppl[0] / ppl[1] - 1):+.2f} %")
    print(f"    |difference| of a token's log probability: mean {errors.mean():.4f}, largest {errors.max():.3f}")
    print(f"    divergence: mean {found[:, 2].mean():.6f}, largest {found[:, 2].max():.4f}")
    print(f"    same most probable token: {100 * found[:, 3].mean():.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--piece", type=int, default=512)
    parser.add_argument("--kernels", default="cpu", choices=("cpu", "reference"))
    parser.add_argument("--kv-cache-dtype", nargs="+", default=["auto"])
    args = parser.parse_args()
    rounded = {name: Scorer(args.model, kernels=args.kernels, kv_cache_dtype=name) for name in args.kv_cache_dtype}
    exact = Scorer(args.model, kernels="reference")
    ids = exact.engine.tokenizer.encode(read_text())[: args.tokens]
    found: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in rounded}
    for at in range(0, len(ids), args.piece):
        piece = ids[at : at + args.piece]
        wanted = exact.log_probs(piece)
        for name, scorer in rounded.items():
            found[name].append(compare(scorer.log_probs(piece), wanted, piece))
    for scorer in (exact, *rounded.values()):
        scorer.engine.shutdown()
    print(f"{args.model}, {len(ids)} tokens in pieces of {args.piece}, {args.kernels} kernels")
    for name, parts in found.items():
        show(name, np.concatenate(parts))


if __name__ == "__main__":
    main()
