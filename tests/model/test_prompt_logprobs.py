"""Log probabilities of prompt tokens, against transformers and against themselves in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.forward_batch import LogprobResult
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.sampling_params import SamplingParams
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")

PROMPT = [int(i) for i in np.random.default_rng(8).integers(3, 199, 90)]
IDS = (5, 0, 198)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("model")
    return folder, save_model(folder, "llama")


@pytest.fixture(scope="module")
def exact(saved: tuple[Path, Any]) -> np.ndarray[Any, Any]:
    """transformers' log probabilities after each prefix, [len(PROMPT), vocab]"""
    with torch.no_grad():
        logits = saved[1](torch.tensor([PROMPT])).logits[0].double()
    return torch.log_softmax(logits, dim=-1).numpy()


def check(result: LogprobResult, exact: np.ndarray[Any, Any], first: int, last: int) -> None:
    """Targets at positions first .. last of the prompt."""
    before = exact[first - 1 : last]
    targets = PROMPT[first : last + 1]
    n = len(targets)
    np.testing.assert_allclose(result.logprobs, before[np.arange(n), targets], atol=1e-4)
    assert result.top_ids.shape == result.top_logprobs.shape == (n, 4)
    np.testing.assert_allclose(result.top_logprobs, -np.sort(-before, axis=1)[:, :4], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(before, result.top_ids.astype(np.int64), 1), result.top_logprobs, atol=1e-4)
    np.testing.assert_allclose(result.token_ids_logprobs, before[:, IDS], atol=1e-4)


@pytest.mark.parametrize("start", [1, 40, 89])
def test_whole_prompt(start: int, saved: tuple[Path, Any], exact: np.ndarray[Any, Any]) -> None:
    """90 rows through a head of 16 rows, and the sampled row is not disturbed."""
    driver = Driver(open_worker(saved[0], ReferenceOps(), max_running_requests=2))
    seq = driver.add(PROMPT, want_logprob=True)
    out = driver.step([(seq, 90)], prompt_from=start, top_num=4, token_ids=IDS)
    (result,) = out.prompt_logprobs
    check(result, exact, start, 89)
    assert out.next_ids.tolist() == [int(exact[-1].argmax())] and out.logprobs[0] is not None
    np.testing.assert_allclose(out.logprobs[0].logprobs, exact[-1].max(), atol=1e-4)


def test_chunks_give_the_same_bits(saved: tuple[Path, Any], ops: Ops) -> None:
    driver = Driver(open_worker(saved[0], ops))
    (whole,) = driver.step([(driver.add(PROMPT), 90)], prompt_from=1, top_num=4, token_ids=IDS).prompt_logprobs
    seq, pieces = driver.add(PROMPT), []
    other = driver.add(PROMPT[:20], SamplingParams(temperature=0.7))
    driver.step([(other, 20)])
    for count in (16, 30, 1, 43):
        parts = [(other, 1), (seq, count)]
        out = driver.step(parts, prompt_from=1, top_num=4, token_ids=IDS)
        pieces.append(out.prompt_logprobs[1])
    for name in ("logprobs", "top_logprobs", "top_ids", "token_ids_logprobs"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in pieces]), getattr(whole, name))


def test_no_targets(saved: tuple[Path, Any]) -> None:
    """A request of one token has nothing to score."""
    driver = Driver(open_worker(saved[0], ReferenceOps()))
    (result,) = driver.step([(driver.add([7]), 1)], prompt_from=1, top_num=4, token_ids=IDS).prompt_logprobs
    assert result.logprobs.shape == (0,) and result.top_ids.shape == (0, 4) and result.token_ids_logprobs.shape == (0, 3)


def test_more_top_logprobs_than_there_are_tokens(saved: tuple[Path, Any]) -> None:
    driver = Driver(open_worker(saved[0], ReferenceOps()))
    (result,) = driver.step([(driver.add(PROMPT), 90)], prompt_from=88, top_num=500).prompt_logprobs
    assert result.top_ids.shape == (2, 199)
    assert sorted(result.top_ids[0].tolist()) == list(range(199))
