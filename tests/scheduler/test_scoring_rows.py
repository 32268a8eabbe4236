"""The rows that scoring many continuations of one prompt computes: the prompt once, and each continuation's own tokens."""

from __future__ import annotations

import pytest

from sglang.srt.messages import TokenizedReq
from tests.scheduler.toy import Harness, ToyWorker, logprob_options, make_req

NUM_CHOICES = 300


def choices(prompt: list[int], group: str | None) -> list[TokenizedReq]:
    tails = [[65 + i % 26, 97 + i // 26, *range(i % 5)] for i in range(NUM_CHOICES)]
    ask = logprob_options(len(prompt))
    return [make_req(f"c{i}", prompt + tail, 0, logprobs=ask, group=group) for i, tail in enumerate(tails)]


@pytest.mark.parametrize("prompt_len", [3, 20, 100])
def test_hundreds_of_choices_cost_their_own_rows(prompt_len: int) -> None:
    prompt = [i % 200 for i in range(prompt_len)]
    reqs = choices(prompt, "all")
    harness = Harness(ToyWorker(num_slots=8192, max_running=64, max_batch_tokens=512), check=False)
    answers = harness.run(*reqs)
    own = sum(len(req.input_ids) - prompt_len for req in reqs)
    assert sum(len(answer.input_logprobs or []) for answer in answers) == own
    rows = sum(batch.num_tokens for batch in harness.worker.batches)
    assert rows == prompt_len - 1 + own, "the row that predicts a token is the one before it"
    assert all(answer.finish is not None and answer.finish.type == "length" for answer in answers)
    alone = Harness(ToyWorker(num_slots=8192)).run(choices(prompt, None)[7])[0]
    assert answers[7].input_logprobs == alone.input_logprobs
