"""A draft model beside a model, both real: answers are those without it, whatever it says; what does not fit together is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sglang
from sglang.srt.checkpoint.resolve import with_files
from sglang.srt.errors import CapacityError, ConfigError, ModelError
from sglang.srt.model.worker import check_fit, needs_on_cpu
from sglang.srt.scheduler.speculation.draft.lengths import DraftLengths
from sglang.srt.server_args import ServerArgs
from tests.conftest import DEFAULT_MODEL
from tests.model.tiny import save_model
from tests.server.adapter_files import write_adapter
from tests.server.models import CORPUS, train_byte_level

pytest.importorskip("torch", reason="tiny checkpoints are made by transformers")

VOCAB = 600
TEXTS = ["Paris is the capital city of", "def main() -> None:", "The quick brown fox", "a calculator or"]
FLAGS: dict[str, Any] = {"max_total_tokens": 2048, "context_length": 256, "max_running_requests": 6, "random_seed": 3}


def save_text_model(folder: Path, seed: int, corpus: list[str] = CORPUS, **more: Any) -> Path:
    save_model(folder, "llama", seed, vocab_size=VOCAB, **more)
    train_byte_level(VOCAB, corpus).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, one that says the same, one that says something else, one that reads less at once, and one of another vocabulary."""
    root = tmp_path_factory.mktemp("models")
    return {
        "model": save_text_model(root / "model", 0),
        "same": save_text_model(root / "same", 0),
        "random": save_text_model(root / "random", 5, num_hidden_layers=1),
        "short": save_text_model(root / "short", 0, max_position_embeddings=40),
        "foreign": save_text_model(root / "foreign", 0, ["zebras zigzag zealously"] * 9),
    }


@contextmanager
def engine(model: Path | str, draft: Path | str | None = None, **more: Any) -> Iterator[sglang.Engine]:
    flags = {"speculative_draft_model_path": str(draft)} if draft is not None else {"speculative_algorithm": "none"}
    with sglang.Engine(model_path=str(model), **{**FLAGS, **flags, **more}) as one:
        yield one


def ask(one: sglang.Engine) -> list[Any]:
    """What matters of many answers: at several temperatures, under constraints, with log probabilities, alone and together."""
    found: list[Any] = []
    for temperature in (0.0, 0.8):
        params = {"temperature": temperature, "max_new_tokens": 48, "ignore_eos": True, "sampling_seed": 4}
        found += [reply["output_ids"] for reply in one.generate(TEXTS, params)]
        found.append(one.generate(TEXTS[0] + " all", params)["output_ids"])
    regex = {"regex": "[a-z ]{10,30}\\. [0-9]{3}", "max_new_tokens": 60, "temperature": 0.7, "sampling_seed": 2}
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}, "b": {"type": "integer"}}}
    constrained = {"json_schema": json.dumps(schema), "max_new_tokens": 60, "temperature": 0.5, "sampling_seed": 2}
    for params in (regex, constrained):
        found += [reply["text"] for reply in one.generate(TEXTS[:2], params)]
    reply = one.generate(TEXTS[1], {"temperature": 0, "max_new_tokens": 12}, return_logprob=True)
    found.append(reply["meta_info"]["output_token_logprobs"])
    return found


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[Any]:
    with engine(models["model"]) as one:
        return ask(one)


@pytest.mark.parametrize("draft", ["same", "random", "short"])
def test_answers_are_the_same(models: dict[str, Path], expected: list[Any], draft: str) -> None:
    with engine(models["model"], models[draft], speculative_algorithm="STANDALONE", test_retract_every=9) as one:
        assert ask(one) == expected


def test_right_drafts_are_accepted(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that says the same is right, to the bit; drafts are as long as if steps had always paid."""
    monkeypatch.setattr(DraftLengths, "is_ready", True)
    monkeypatch.setattr(DraftLengths, "is_worth", lambda self, rate, num_reqs: True)
    monkeypatch.setattr(DraftLengths, "lengths", lambda self, rates, num_reqs, behind=0: [3] * len(rates))
    with engine(models["model"], models["same"]) as one:
        replies = one.generate(TEXTS, {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0.7})
    counts = [reply["meta_info"] for reply in replies]
    assert all(c["spec_accept_token_num"] == c["spec_draft_token_num"] >= 20 for c in counts), counts


@pytest.mark.slow
def test_on_the_cuda_op_set(models: dict[str, Path]) -> None:
    """`pytest -m slow tests/server/test_draft_model.py` (two minutes): as far as Triton's interpreter goes."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from sglang.srt.model.kernels.cuda import ops as cuda

    if not cuda.INTERPRETED:
        pytest.skip("Triton compiles here")
    flags: dict[str, Any] = {
        "kernels": "cuda",
        "device": "cpu",
        "dtype": "float32",
        "context_length": 48,
        "max_total_tokens": 128,
    }
    params = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
    with engine(models["model"], None, **flags) as one:
        plain = one.generate(TEXTS[:2], params)
    with engine(models["model"], models["same"], **flags) as one:
        replies = one.generate(TEXTS[:2], params)
    assert [reply["output_ids"] for reply in replies] == [reply["output_ids"] for reply in plain]


def test_another_vocabulary_is_refused_with_both_names(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as raised, engine(models["model"], models["foreign"]):
        pass
    for part in ("--speculative-draft-model-path", str(models["model"]), str(models["foreign"]), "tokens) differ: token "):
        assert part in str(raised.value)


def test_without_tokenizers_the_columns_are_compared(models: dict[str, Path], tmp_path: Path) -> None:
    save_model(tmp_path, "llama", vocab_size=500)
    with pytest.raises(ConfigError, match="600 tokens .* 500"), engine(models["model"], tmp_path, skip_tokenizer_init=True):
        pass


def config_for(model: Path, draft: Path, **more: Any) -> Any:
    return with_files(ServerArgs(model_path=str(model), speculative_draft_model_path=str(draft), **{**FLAGS, **more}).resolve())


def test_memory_is_planned_for_both(models: dict[str, Path]) -> None:
    config = config_for(models["model"], models["same"])
    alone = needs_on_cpu(config.model, config.device, config.memory)
    both = needs_on_cpu(config.model, config.device, config.memory, config.draft.model)
    assert both.companion >= alone.weights and both.token_bytes == 2 * alone.token_bytes
    assert both.total >= 1.9 * alone.total
    huge = config_for(models["model"], models["same"], max_total_tokens=1 << 36)
    with pytest.raises(CapacityError, match="draft model"):
        check_fit(huge.model, huge.device, huge.memory, huge.draft.model)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"speculative_algorithm": "STANDALONE"}, "STANDALONE needs --speculative-draft-model-path"),
        ({"speculative_algorithm": "none", "speculative_draft_model_path": "x"}, "contradict"),
        ({"speculative_algorithm": "NGRAM", "speculative_draft_model_path": "x"}, "contradict"),
        ({"speculative_draft_model_revision": "main"}, "which is not given"),
        ({"speculative_draft_model_quantization": "int8"}, "which is not given"),
        ({"speculative_draft_model_path": "x", "speculative_num_steps": 0}, "between 1 and 24"),
        ({"speculative_draft_model_path": "x", "speculative_num_steps": 25}, "between 1 and 24"),
        ({"speculative_draft_model_path": "x", "tp_size": 2}, "--tp-size"),
        ({"speculative_draft_model_path": "x", "is_embedding": True}, "--is-embedding"),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerArgs(**flags).resolve()


def test_a_draft_model_that_is_not_there(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"), engine(models["model"], tmp_path / "nowhere"):
        pass


@pytest.mark.slow
def test_with_adapters(tmp_path: Path) -> None:
    """`pytest -m slow tests/server/test_draft_model.py` (a minute): the draft model has no adapter, and is right less often."""
    adapters = [f"{name}={write_adapter(tmp_path / name, seed, size=0.2)}" for seed, name in enumerate("ab")]
    params = {"temperature": 0.6, "max_new_tokens": 40, "sampling_seed": 1, "ignore_eos": True}
    found = []
    for draft in (None, DEFAULT_MODEL):
        with engine(DEFAULT_MODEL, draft, lora_paths=adapters, context_length=512) as one:
            replies = one.generate(TEXTS, params, lora_path=["a", "b", None, "a"])
            found.append([reply["output_ids"] for reply in replies])
    assert found[0] == found[1]
