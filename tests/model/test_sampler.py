"""The sampler against a straightforward oracle in float64: what is adjusted, what may be sampled, how often, and that samples
depend on (seed, position) alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.forward_batch import SampleSpec, VocabMasks
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.sampling.sampler import Sampled, Sampler, stream_keys, uniforms
from sglang.srt.sampling_params import SamplingParams

VOCAB = 101
Logits = np.ndarray[Any, np.dtype[np.float32]]


def spec(seed: int = 0, prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> SampleSpec:
    extra = {k: params.pop(k) for k in ("eos_ids", "want_logprob", "top_num", "token_ids") if k in params}
    return SampleSpec(SamplingParams(**params), seed, prompt or [5, 6, 7], output if output is not None else [], **extra)


def rows(n: int, seed: int = 0) -> Logits:
    return np.random.default_rng(seed).standard_normal((n, VOCAB), np.float32) * 3


def run(ops: Ops, logits: Logits, specs: list[SampleSpec], masks: VocabMasks | None = None) -> Sampled:
    return Sampler(ops, VOCAB, 64).sample(logits.copy(), specs, masks)


# --- oracle -------------------------------------------------------------------------------------------------------------------


def oracle_adjusted(logits: Logits, s: SampleSpec) -> np.ndarray[Any, Any]:
    p, x = s.params, logits.astype(np.float64)
    for token in set(s.prompt_ids) | set(s.output_ids):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(s.output_ids):
        x[token] -= p.frequency_penalty * s.output_ids.count(token) + p.presence_penalty
    for token, bias in (p.logit_bias or {}).items():
        x[token] += bias
    if len(s.output_ids) < p.min_new_tokens:
        x[list(s.eos_ids)] = -math.inf
    return x


def oracle_probs(x: np.ndarray[Any, Any], p: SamplingParams) -> np.ndarray[Any, Any]:
    """Probability of each id after all filters."""
    if p.is_greedy:
        return np.eye(len(x))[np.argmax(x)]
    order = np.argsort(-x, kind="stable")
    if p.top_k > 0:
        order = order[: p.top_k]
    probs = np.exp((x[order] - x[order[0]]) / p.temperature)
    probs /= probs.sum()
    keep = np.cumsum(probs) - probs < p.top_p
    keep[0] = True
    keep &= probs >= p.min_p * probs[0]
    out = np.zeros(len(x))
    out[order[keep]] = probs[keep] / probs[keep].sum()
    return out


# --- adjusting ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 0.7},
        {"presence_penalty": -1.5},
        {"logit_bias": {3: 5.0, 9: -100.0}},
        {"min_new_tokens": 8, "eos_ids": (2, 11), "logit_bias": {2: 4.0, 11: 3.0}},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": {7: 1.0, 40: 2.0}, "min_new_tokens": 4, "eos_ids": (7, 2)},
    ],
)  # fmt: skip
def test_greedy_with_adjustments_follows_the_oracle(ops: Ops, params: dict[str, Any]) -> None:
    """Step by step, so that the incremental rows are what is tested; logits are close together, so that they matter."""
    sampler, s = Sampler(ops, VOCAB, 4), spec(temperature=0.0, **params)
    plain = spec(temperature=0.0)
    differed = 0
    for step in range(60):
        logits = rows(2, seed=step) * 0.5
        out = sampler.sample(logits.copy(), [plain, s], None)
        assert out.next_ids[0] == np.argmax(logits[0])
        assert out.next_ids[1] == np.argmax(oracle_adjusted(logits[1], s))
        differed += int(out.next_ids[1] != np.argmax(logits[1]))
        s.output_ids.append(int(out.next_ids[1]) if step % 3 else 40)
    assert differed


@pytest.mark.parametrize("least", [1, 2, 5])
def test_no_end_of_text_before_the_last_token_that_must_come(ops: Ops, least: int) -> None:
    """Whenever the batch is made anew, also for the last of them."""
    for num_out in range(least + 2):
        s = spec(output=[40] * num_out, temperature=0.0, min_new_tokens=least, eos_ids=(2, 11))
        logits = rows(1)
        logits[0, [2, 11]] = 50.0, 49.0
        assert run(ops, logits, [s]).next_ids.tolist() == [int(np.argmax(oracle_adjusted(logits[0], s)))]
        assert (run(ops, logits, [s]).next_ids[0] == 2) == (num_out >= least)


def test_adjusted_logits_equal_the_oracle(ops: Ops) -> None:
    s = spec(
        prompt=[1, 2, 3, 500],
        output=[3, 3, 4],
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias={4: 1.0},
    )
    s.prompt_ids.remove(500)
    logits = rows(1)
    changed = logits.copy()
    Sampler(ops, VOCAB, 1).sample(changed, [s], None)
    np.testing.assert_allclose(changed[0], oracle_adjusted(logits[0], s), rtol=1e-6)


PENALTIES = {
    "repetition_penalty": st.sampled_from([1.0, 0.7, 1.3]),
    "frequency_penalty": st.sampled_from([0.0, -0.4, 0.7]),
    "presence_penalty": st.sampled_from([0.0, 1.2, -0.5]),
    "logit_bias": st.none() | st.dictionaries(st.integers(0, 20), st.sampled_from([-100.0, 2.0]), max_size=3),
    "min_new_tokens": st.integers(0, 12),
    "temperature": st.sampled_from([0.0, 0.8]),
    "seed": st.integers(0, 3),
}
FEW_IDS = st.integers(0, 15) | st.just(VOCAB + 5)


@given(
    st.fixed_dictionaries(PENALTIES),
    st.lists(FEW_IDS, max_size=5),
    st.lists(st.lists(FEW_IDS, max_size=6), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_draft_tokens_logits_and_tokens_are_those_after_the_same_output(
    ops: Ops, params: dict[str, Any], prompt: list[int], drafts: list[list[int]]
) -> None:
    """A step for each draft: one sample of the request itself, one after each draft token. Of the draft, half is accepted."""
    sampler, own = Sampler(ops, VOCAB, 8), spec(prompt=[3, *prompt], eos_ids=(2, 9), **params)
    for step, draft in enumerate(drafts):
        ends = range(len(draft) + 1)
        outputs = [own.output_ids + draft[:end] for end in ends]
        samples = [own, *(replace(own, output_ids=ids, state=None, follows=own) for ids in outputs[1:])]
        logits = rows(len(samples), seed=step)
        changed, alone = logits.copy(), logits.copy()
        sampled = sampler.sample(changed, samples, None).next_ids.tolist()
        fresh = [replace(own, output_ids=ids, state=None) for ids in outputs]
        one_by_one = [Sampler(ops, VOCAB, 1).sample(alone[i : i + 1], [s], None).next_ids[0] for i, s in enumerate(fresh)]
        assert sampled == one_by_one
        np.testing.assert_array_equal(changed.view(np.int32), alone.view(np.int32))
        own.output_ids += draft[: len(draft) // 2]


def test_prompt_ids_outside_the_vocabulary_are_left_out(ops: Ops) -> None:
    s = spec(prompt=[1, 10**6, -5], temperature=0.0, repetition_penalty=2.0)
    assert run(ops, rows(1), [s]).bad_rows == []


def test_output_that_is_cut_back(ops: Ops) -> None:
    sampler, s = Sampler(ops, VOCAB, 1), spec(temperature=0.0, frequency_penalty=1.0, output=[9, 9, 8])
    sampler.sample(rows(1), [s], None)
    del s.output_ids[1:]
    logits = rows(1)
    changed = logits.copy()
    sampler.sample(changed, [s], None)
    np.testing.assert_allclose(changed[0], oracle_adjusted(logits[0], s), rtol=1e-6)


# --- masks --------------------------------------------------------------------------------------------------------------------


def bits(*allowed: int) -> np.ndarray[Any, Any]:
    words = np.zeros((1, (VOCAB + 31) // 32), np.uint32)
    for token in allowed:
        words[0, token // 32] |= np.uint32(1 << token % 32)
    return words


def test_mask_keeps_only_allowed_tokens(ops: Ops) -> None:
    logits = rows(3)
    worst = int(np.argmin(logits[1]))
    out = run(ops, logits, [spec(temperature=0.0)] * 3, VocabMasks(np.array([1], np.int32), bits(worst)))
    assert out.next_ids.tolist() == [int(np.argmax(logits[0])), worst, int(np.argmax(logits[2]))]
    for seed in range(30):
        out = run(ops, logits, [spec(seed=seed)] * 3, VocabMasks(np.array([1], np.int32), bits(4, 33, 100)))
        assert out.next_ids[1] in (4, 33, 100)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_and_nan_are_reported(ops: Ops, temperature: float) -> None:
    logits = rows(4)
    logits[2, 50] = np.nan
    masks = VocabMasks(np.array([0], np.int32), bits())
    out = run(ops, logits, [spec(temperature=temperature) for _ in range(4)], masks)
    assert out.bad_rows == [0, 2]


# --- sampling -----------------------------------------------------------------------------------------------------------------

SAMPLED = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 4},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 8, "top_p": 0.7, "min_p": 0.1, "temperature": 1.3},
    {"top_k": 10**6, "top_p": 0.95},
    {"top_p": 1e-6},
    {"top_k": 1},
]


@pytest.mark.parametrize("params", SAMPLED, ids=str)
def test_frequencies(ops: Ops, params: dict[str, Any]) -> None:
    """Chi-square over many seeds against the oracle's probabilities; ids of probability 0 never appear. Seeds are fixed, so
    this passes always or never."""
    logits = rows(1, seed=4)
    probs = oracle_probs(logits[0], SamplingParams(**params))
    n, sampler = 4000, Sampler(ops, VOCAB, 50)
    counts = np.zeros(VOCAB)
    for start in range(0, n, 50):
        out = sampler.sample(np.tile(logits, (50, 1)), [spec(seed=start + i, **params) for i in range(50)], None)
        np.add.at(counts, out.next_ids, 1)
    assert counts[probs == 0].sum() == 0
    common = probs * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * n
    chi = float(((observed - expected)[expected > 0] ** 2 / expected[expected > 0]).sum())
    freedom = int((expected > 0).sum()) - 1
    assert chi <= freedom + 4 * math.sqrt(2 * max(freedom, 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    data=st.integers(0, 1000),
    temperature=st.floats(0.05, 5),
    top_k=st.sampled_from([-1, 1, 3, 20]),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
)
def test_sample_is_the_inverted_sum(seed: int, data: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """The reference's sample is where the cumulated probabilities, best first, pass the uniform number."""
    from sglang.srt.model.kernels.reference import ReferenceOps

    logits = rows(1, seed=data)
    s = spec(seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = int(run(ReferenceOps(), logits, [s]).next_ids[0])
    probs = oracle_probs(logits[0], s.params)
    order = np.argsort(-logits[0], kind="stable")
    place = int(np.flatnonzero(order == token)[0])
    below = probs[order[:place]].sum()
    u = float(uniforms(stream_keys([seed]), np.array([0]))[0])
    assert below - 1e-5 <= u <= below + probs[token] + 1e-5


def test_samples_depend_on_seed_and_position_alone(ops: Ops) -> None:
    """Whatever shares the batch and wherever the row is."""
    logits = rows(16, seed=9)
    specs = [spec(seed=i, output=[1] * (i % 3), temperature=0.5 + i / 10, top_p=0.9) for i in range(16)]
    together = run(ops, logits, specs).next_ids.tolist()
    assert together == [int(run(ops, logits[i : i + 1], [specs[i]]).next_ids[0]) for i in range(16)]
    mixed = [spec(temperature=0.0) if i % 2 else s for i, s in enumerate(specs)]
    order = np.random.default_rng(0).permutation(16)
    shuffled = run(ops, logits[order], [mixed[i] for i in order]).next_ids.tolist()
    assert [shuffled[int(np.flatnonzero(order == i)[0])] for i in range(0, 16, 2)] == together[::2]
    for i in order.tolist():
        if mixed[i].params.is_greedy:
            assert shuffled[int(np.flatnonzero(order == i)[0])] == np.argmax(logits[i])


def test_seeds_and_positions_change_the_sample(ops: Ops) -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    assert len({int(run(ops, logits, [spec(seed=i)]).next_ids[0]) for i in range(60)}) > 30
    assert len({int(run(ops, logits, [spec(output=[1] * i)]).next_ids[0]) for i in range(60)}) > 30


def test_uniform_numbers() -> None:
    """Fixed for ever: a seed must give the same answer on every device and in every version. (First value worked out by hand
    from the definition in sampling/sampler.py.)"""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for seed, counter in ((0, 0), (1, 0), (2**64 - 1, 7), (-3, 1000)):
        expected = (mix((mix(seed % 2**64) + (counter + 1) * 0x9E3779B97F4A7C15) & mask) >> 40) / 2**24
        assert float(uniforms(stream_keys([seed]), np.array([counter]))[0]) == expected
    many = uniforms(np.repeat(stream_keys([123]), 100_000), np.arange(100_000))
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.005 and abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.02


# --- log probabilities --------------------------------------------------------------------------------------------------------


def log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("alike", [True, False])
def test_logprobs_are_the_models_own(ops: Ops, alike: bool) -> None:
    """Before penalties, bias, masks and temperature, also for a token whose logit was changed."""
    logits = rows(4, seed=2)
    wants = {"want_logprob": True, "top_num": 3, "token_ids": (7, 0)}
    changed = dict(temperature=0.0, logit_bias={8: 50.0}, repetition_penalty=1.5, **wants)
    specs = [
        spec(**wants, temperature=0.2),
        spec(**changed),
        spec(temperature=0.0, **wants),
        spec(**wants) if alike else spec(),
    ]
    masks = VocabMasks(np.array([2], np.int32), bits(60))
    out = run(ops, logits, specs, masks)
    assert out.next_ids[1] == 8 and out.next_ids[2] == 60
    for i in range(4 if alike else 3):
        exact, result = log_softmax(logits[i]), out.logprobs[i]
        assert result is not None
        best = np.argsort(-logits[i], kind="stable")[:3]
        np.testing.assert_allclose(result.logprobs, exact[out.next_ids[i : i + 1]], atol=2e-5)
        np.testing.assert_array_equal(result.top_ids, best[None])
        np.testing.assert_allclose(result.top_logprobs, exact[best][None], atol=2e-5)
        np.testing.assert_allclose(result.token_ids_logprobs, exact[[7, 0]][None], atol=2e-5)
    assert alike or out.logprobs[3] is None


def test_no_rows(ops: Ops) -> None:
    out = run(ops, np.empty((0, VOCAB), np.float32), [])
    assert len(out.next_ids) == 0 and out.logprobs == [] and out.bad_rows == []


def test_ties_go_to_the_lower_id(ops: Ops) -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    logits[:, [30, 70]] = 2.0
    out = run(ops, logits, [spec(temperature=0.0, want_logprob=True, top_num=4), spec(top_k=1)])
    assert out.next_ids.tolist() == [30, 30]
    assert out.logprobs[0] is not None and out.logprobs[0].top_ids.tolist() == [[30, 70, 0, 1]]


def test_batch_arrays_are_kept_while_the_specs_are_the_same(ops: Ops) -> None:
    """A changed parameter object is noticed even where it compares equal."""
    sampler = Sampler(ops, VOCAB, 4)
    specs = [spec(temperature=0.0), spec(temperature=0.0)]
    sampler.sample(rows(2), specs, None)
    first = sampler._batch
    sampler.sample(rows(2), list(specs), None)
    assert sampler._batch is first
    sampler.sample(rows(2), [specs[0], spec(temperature=0.0)], None)
    assert sampler._batch is not first
