"""Rules about a request that need the model's numbers: ids, lengths, log probabilities."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sglang.srt.errors import RequestError
from sglang.srt.messages import LogprobOptions
from sglang.srt.sampling_params import SamplingParams

MAX_TOP_LOGPROBS = 1024
MAX_LOGPROB_IDS = 4096
MAX_PARAMETER_BYTES = 64 << 20
"""that the sampling parameters of one request take: every sequence has its own"""
ID_BYTES = 128
"""of an id in logit_bias or stop_token_ids, as objects"""


def check_request(
    ids: list[int], sampling: SamplingParams, logprobs: LogprobOptions | None, vocab_size: int, has_text: bool
) -> None:
    """Raises RequestError for ids outside the vocabulary, positions outside the prompt and what needs a tokenizer."""
    check_ids("input_ids", ids, vocab_size)
    if sampling.logit_bias:
        check_ids("logit_bias", list(sampling.logit_bias), vocab_size)
    if len(sampling.stop_token_ids or ()) > MAX_LOGPROB_IDS:
        raise RequestError(f"stop_token_ids may name at most {MAX_LOGPROB_IDS} ids", "stop_token_ids")
    if sampling.stop_token_ids:
        check_ids("stop_token_ids", list(sampling.stop_token_ids), vocab_size)
    if not has_text and (sampling.stop or sampling.stop_regex or sampling.grammar):
        raise RequestError("this server runs without a tokenizer: stop strings and constraints are not possible", "stop")
    if logprobs is None:
        return
    if not -1 <= logprobs.start_len <= len(ids):
        raise RequestError(
            f"logprob_start_len must be between -1 and the prompt's length ({len(ids)}), got {logprobs.start_len}",
            "logprob_start_len",
        )
    if not 0 <= logprobs.top_num <= min(MAX_TOP_LOGPROBS, vocab_size):
        raise RequestError(
            f"top_logprobs_num must be between 0 and {min(MAX_TOP_LOGPROBS, vocab_size)}, got {logprobs.top_num}",
            "top_logprobs_num",
        )
    if len(logprobs.token_ids) > MAX_LOGPROB_IDS:
        raise RequestError(f"token_ids_logprob may name at most {MAX_LOGPROB_IDS} ids", "token_ids_logprob")
    if logprobs.token_ids:
        check_ids("token_ids_logprob", list(logprobs.token_ids), vocab_size)


def check_parameters(samplings: Iterable[SamplingParams]) -> None:
    """Raises RequestError if the parameters of a request's sequences are too much together."""
    size = sum(sampling.n * num_parameter_bytes(sampling) for sampling in samplings)
    if size > MAX_PARAMETER_BYTES:
        raise RequestError(
            f"the sampling parameters take {size >> 20} MiB for all sequences of this request, and {MAX_PARAMETER_BYTES >> 20} are "
            "the most: send fewer prompts at once, or a shorter logit_bias, stop or constraint",
            "sampling_params",
        )


def num_parameter_bytes(sampling: SamplingParams) -> int:
    """Bytes that those parameters take that may be long."""
    if sampling.is_short:
        return 0
    grammar = sampling.grammar
    size = ID_BYTES * (len(sampling.logit_bias or ()) + len(sampling.stop_token_ids))
    return size + sum(map(len, (*sampling.stop, *sampling.stop_regex))) + (len(grammar[1]) if grammar is not None else 0)


class LogprobBudget:
    """The log probabilities that one request of `num_sequences` may ask for: `limit` in all; None: any number."""

    def __init__(self, limit: int | None, num_sequences: int) -> None:
        self._limit = limit
        self._share = (limit or 0) // max(num_sequences, 1)
        self._spent = 0

    def spend(
        self, ids: list[int], sampling: SamplingParams, logprobs: LogprobOptions | None, is_default: bool
    ) -> SamplingParams:
        """Takes what the samples of one prompt ask for, whose `max_new_tokens` is decided: one that nobody gave (`is_default`)
        shrinks to the sequence's share. Raises RequestError when that is more than there may be."""
        limit, tokens = self._limit, sampling.max_new_tokens or 0
        if logprobs is None or limit is None:
            return sampling
        each = 1 + logprobs.top_num + len(logprobs.token_ids)
        num_scored = len(ids) - logprobs.start_len if logprobs.start_len >= 0 else 0
        if is_default:
            tokens = min(tokens, max(self._share // each - num_scored, sampling.min_new_tokens, 1))
        self._spent += sampling.n * (num_scored + tokens) * each
        if self._spent > limit:
            raise RequestError(
                f"the request asks for {self._spent} log probabilities or more ({each} at each position), and {limit} are the most: "
                "lower top_logprobs_num, max_new_tokens or n, or score fewer positions",
                "top_logprobs_num" if logprobs.top_num else "return_logprob",
            )
        return sampling if tokens == sampling.max_new_tokens else msgspec.structs.replace(sampling, max_new_tokens=tokens)


def check_ids(name: str, ids: list[int], vocab_size: int) -> None:
    """Raises RequestError for ids outside the vocabulary. There is at least one."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        raise RequestError(f"{name}: id {low if low < 0 else high} is outside the vocabulary of {vocab_size} tokens", name)


def fit_length(
    ids: list[int], sampling: SamplingParams, context_len: int, is_default: bool, truncate: bool
) -> tuple[list[int], SamplingParams]:
    """The prompt and its parameters with `max_new_tokens` decided: the rest of the context where none was given.

    Raises RequestError if prompt and output do not fit in `context_len`. With `truncate` the prompt loses its end and the
    output shrinks instead; a default number of tokens (`is_default`) shrinks in any case.
    """
    if len(ids) >= context_len:
        if not truncate:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but this server takes fewer than {context_len} (its context length)",
                "input_ids",
            )
        ids = ids[: context_len - 1]
    room = context_len - len(ids)
    wanted = sampling.max_new_tokens
    if wanted is not None and wanted <= room:
        return ids, sampling
    if wanted is not None and not (is_default or truncate):
        raise RequestError(
            f"the prompt's {len(ids)} tokens and max_new_tokens {wanted} exceed the context length {context_len}; "
            f"at most {room} new tokens fit",
            "max_new_tokens",
        )
    if sampling.min_new_tokens > room:
        raise RequestError(f"min_new_tokens is {sampling.min_new_tokens}, but only {room} fit in the context", "min_new_tokens")
    return ids, msgspec.structs.replace(sampling, max_new_tokens=room)
