"""Everything that ends under a constraint is valid, with the default model: schemas as people write them and random regular
expressions, sixteen at a time, at temperature 0 and 1. The full runs are slow; short ones belong to every run."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sglang
from tests.scheduler.schemas import SchemaMaker
from tests.scheduler.test_grammar import _REGEXES

BATCH = 16


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    made = sglang.Engine(model_path="smollm2-135m-instruct", random_seed=1)
    yield made
    made.shutdown()


def run(engine: Any, constraints: list[dict[str, Any]], temperature: float, max_new_tokens: int = 200) -> list[dict[str, Any]]:
    params = [{"temperature": temperature, "max_new_tokens": max_new_tokens, **c} for c in constraints]
    replies: list[dict[str, Any]] = engine.generate(["Here is an example of the data:\n"] * len(params), params)
    return replies


def check_schemas(engine: Any, seeds: range, temperature: float) -> int:
    """How many outputs ended; each of them is valid."""
    schemas = [SchemaMaker(seed).make() for seed in seeds]
    ended = 0
    replies = run(engine, [{"json_schema": json.dumps(schema)} for schema in schemas], temperature)
    for schema, reply in zip(schemas, replies, strict=True):
        finish = reply["meta_info"]["finish_reason"]["type"]
        assert finish in ("stop", "length"), reply
        if finish == "stop":
            ended += 1
            validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
            assert validator.is_valid(json.loads(reply["text"])), (schema, reply["text"])
    return ended


def check_regexes(engine: Any, patterns: list[str], temperature: float) -> None:
    for pattern, reply in zip(patterns, run(engine, [{"regex": p} for p in patterns], temperature, 60), strict=True):
        finish = reply["meta_info"]["finish_reason"]["type"]
        assert finish in ("stop", "length"), reply
        if finish == "stop":
            assert re.fullmatch(pattern, reply["text"]), (pattern, reply["text"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_some_schemas(engine: Any, temperature: float) -> None:
    assert check_schemas(engine, range(BATCH), temperature) > 4


@settings(max_examples=1, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(_REGEXES, min_size=BATCH, max_size=BATCH))
def test_some_regexes(engine: Any, patterns: list[str]) -> None:
    check_regexes(engine, patterns, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_two_hundred_schemas(engine: Any, temperature: float) -> None:
    ended = sum(check_schemas(engine, range(at, at + BATCH), temperature) for at in range(0, 208, BATCH))
    assert ended > 80


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@settings(max_examples=32, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(patterns=st.lists(_REGEXES, min_size=BATCH, max_size=BATCH))
def test_five_hundred_regexes(engine: Any, temperature: float, patterns: list[str]) -> None:
    check_regexes(engine, patterns, temperature)


def test_the_same_output_in_a_batch_cached_or_new_and_with_jump_forward_off(engine: Any) -> None:
    rng = random.Random(4)
    constraints = [{"json_schema": json.dumps(SchemaMaker(rng.randrange(500)).make()), "seed": i} for i in range(4)]
    together = [reply["output_ids"] for reply in run(engine, constraints, 0.8, 80)]
    for _ in range(3):  # the later ones are drafts
        assert together == [run(engine, [c], 0.8, 80)[0]["output_ids"] for c in constraints]
    with sglang.Engine(model_path="smollm2-135m-instruct", disable_jump_forward=True) as stepping:
        assert together == [reply["output_ids"] for reply in run(stepping, constraints, 0.8, 80)]
