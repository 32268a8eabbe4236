"""Tokenizer and picture files changed to what no model has, and whole folders through the real command line."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sglang.srt.checkpoint.sampling_defaults import read_sampling_defaults
from sglang.srt.config import ModelFiles, TextOptions
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.server.tokenization.chat_roles import chat_roles
from sglang.srt.server.tokenization.tokenizer import open_tokenizer
from tests.conftest import ROOT, free_port, package_environ
from tests.model.hostile import dump, gguf_bytes, gguf_mutations, mutations, outcome, tiny_gguf, try_file
from tests.model.tiny import save_model
from tests.server.models import CHATML, train_byte_level

TOY = ROOT / "models" / "toy-vlm"
SHARE = [0.08, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def sentencepiece() -> Tokenizer:
    vocab = {piece: i for i, piece in enumerate(["<unk>", "a", "b", "ab", "▁", *(f"<0x{byte:02X}>" for byte in range(256))])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single=["<unk>", "$A"], special_tokens=[("<unk>", 0)])
    core.add_special_tokens(["<s>", "</s>"])
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer, core.decoder = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    return core


def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0, byte_fallback=False))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return core


KINDS = {
    "byte-level": lambda: train_byte_level(400),
    "sentencepiece": sentencepiece,
    "wordpiece": wordpiece,
    "unigram": unigram,
}
FILES: dict[str, dict[str, Any]] = {
    "config.json": {"architectures": ["LlamaForCausalLM"], "eos_token_id": 2, "text_config": {"eos_token_id": 1}},
    "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1},
    "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["a"]},
    "chat_template.json": {"chat_template": CHATML},
    "tokenizer_config.json": {
        "add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "chat_template": CHATML,
        "model_max_length": 10**30, "added_tokens_decoder": {"0": {"content": "x", "special": True}},
    },
}  # fmt: skip


def write(folder: Path, kind: str = "byte-level") -> None:
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    for name, content in FILES.items():
        (folder / name).write_bytes(dump(content))


def use(path: Path) -> None:
    """Opens the tokenizer and does with it what a server does."""
    tokenizer = open_tokenizer(TextOptions(str(path)))
    assert tokenizer is not None
    read_sampling_defaults(ModelFiles("folder", path, path.name))
    tokenizer.encode("ab <s> hello")
    tokenizer.decode([0, 1, 2])
    if tokenizer.has_chat_template:
        try:
            tokenizer.encode_chat([{"role": "user", "content": "hi <s>"}])
        except RequestError:
            return
        chat_roles(tokenizer)


def some(cases: Iterator[tuple[str, Any]], share: float) -> Iterator[tuple[str, Any]]:
    rng = random.Random(0)
    return (case for case in cases if rng.random() < share)


@pytest.mark.parametrize("share", SHARE)
@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers(tmp_path: Path, kind: str, share: float) -> None:
    write(tmp_path, kind)
    use(tmp_path)
    path = tmp_path / "tokenizer.json"
    cases = some(mutations(json.loads(path.read_text()), ("truncation", "padding")), share)
    assert not try_file(path, ((name, dump(value)) for name, value in cases), lambda: use(tmp_path))


@pytest.mark.parametrize("share", SHARE)
@pytest.mark.parametrize("name", FILES)
def test_files_beside_the_tokenizer(tmp_path: Path, name: str, share: float) -> None:
    write(tmp_path)
    cases = some(mutations(FILES[name], ("sep_token",)), 2 * share)
    assert not try_file(tmp_path / name, ((name, dump(value)) for name, value in cases), lambda: use(tmp_path))


PUBLISHED: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "model" / "facts" / "published.json").read_text())
BESIDE = [(file, name) for file in ("generation_config.json", "tokenizer_config.json") for name in PUBLISHED[file]]
VISION_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>"]
VISION_TOKENS += ["<image_soft_token>", "<|image|>"]


@pytest.mark.parametrize("share", SHARE)
@pytest.mark.parametrize(("file", "name"), BESIDE)
def test_published_files_beside_the_tokenizer(tmp_path: Path, file: str, name: str, share: float) -> None:
    write(tmp_path)
    original = PUBLISHED[file][name]
    (tmp_path / file).write_bytes(dump(original))
    use(tmp_path)
    cases = some(mutations(original, ("chat_template", "bos_token")), share / 4)
    assert not try_file(tmp_path / file, ((what, dump(value)) for what, value in cases), lambda: use(tmp_path))


@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("name", PUBLISHED["preprocessor_config.json"])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
def test_published_settings_for_pictures(tmp_path: Path, file: str, name: str, share: float) -> None:
    pytest.importorskip("transformers")
    from sglang.srt.server.multimodal.processors.base import ModelFolder
    from sglang.srt.server.multimodal.processors.registry import create_processor

    write(tmp_path)
    core = train_byte_level(400)
    core.add_special_tokens(VISION_TOKENS)
    core.save(str(tmp_path / "tokenizer.json"))
    for each in ("config.json", "preprocessor_config.json"):
        (tmp_path / each).write_bytes(dump(PUBLISHED[each][name]))
    tokenizer = open_tokenizer(TextOptions(str(tmp_path)))
    assert tokenizer is not None

    def load() -> None:
        create_processor(ModelFolder(tmp_path, tokenizer))

    load()
    cases = some(mutations(PUBLISHED[file][name], ("size", "crop_size", "resample")), share)
    assert not try_file(tmp_path / file, ((what, dump(value)) for what, value in cases), load)


@pytest.mark.parametrize("share", SHARE)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_gguf_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, share: float) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keys, tensors = tiny_gguf()
    path = tmp_path / "m.gguf"
    cases = some(gguf_mutations(keys | {"tokenizer.ggml.model": (8, model)}, tensors), 2 * share)
    assert not try_file(path, cases, lambda: use(path))


@pytest.mark.parametrize("token_id", [2**24, 2**31, 2**32 - 1])
def test_ids_far_beyond_the_vocabulary(tmp_path: Path, token_id: int) -> None:
    write(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zzz"] = token_id
    path.write_bytes(dump(content))
    with pytest.raises(ModelError, match=f"the id of one is {token_id}"):
        use(tmp_path)


def test_a_pattern_that_gives_up_is_the_requests_error(tmp_path: Path) -> None:
    core = train_byte_level(400)
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), behavior="isolated")
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    tokenizer = open_tokenizer(TextOptions(str(tmp_path)))
    assert tokenizer is not None
    for action in (tokenizer.encode, lambda text: tokenizer.encode_batch([text, text]), tokenizer.encode_ordinary):
        with pytest.raises(RequestError, match="tokenizer fails on this text"):
            action("x" * 40)


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json"])
def test_settings_for_pictures(tmp_path: Path, name: str, share: float) -> None:
    pytest.importorskip("transformers")
    from sglang.srt.server.multimodal.processors.base import ModelFolder
    from sglang.srt.server.multimodal.processors.registry import create_processor

    folder = tmp_path / "toy"
    shutil.copytree(TOY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = open_tokenizer(TextOptions(str(folder)))
    assert tokenizer is not None

    def load() -> None:
        create_processor(ModelFolder(folder, tokenizer))

    load()
    also = ("size", "crop_size", "do_resize", "resample", "rescale_factor", "image_processor_type")
    cases = some(mutations(json.loads((folder / name).read_text()), also), share)
    assert not try_file(folder / name, ((name, dump(value)) for name, value in cases), load)


# --- the command line -------------------------------------------------------------------------------------------------------------


def edit(folder: Path, name: str, **changes: Any) -> None:
    (folder / name).write_bytes(dump(json.loads((folder / name).read_text()) | changes))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def many_blocks(folder: Path) -> None:
    keys, tensors = tiny_gguf()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "m.gguf").write_bytes(gguf_bytes(keys | {"llama.block_count": (4, 2**31 - 1)}, tensors))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (no_config, "config.json is not a regular file"),
    "blocks": (many_blocks, "block_count must be at most 4096"),
    "template": (
        lambda folder: edit(folder, "tokenizer_config.json", chat_template="{{ '%999999999d' | format(1) }}"), "a width in it"),
    "keys": (lambda folder: edit(folder, "tokenizer.json", model={"type": "BPE", "vocab": 5}), "is not a tokenizer that can be read"),
    "layers": (lambda folder: edit(folder, "config.json", num_hidden_layers=3000), "lacks the tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_sentence_on_the_command_line(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    save_model(folder, "llama", vocab_size=400)
    train_byte_level(400).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(dump({"chat_template": CHATML}))
    change, message = BROKEN[case]
    change(folder)
    command = [sys.executable, "-m", "sglang.cli", "serve", str(folder), "--port", "0", "--log-level", "error"]
    command[command.index("0")] = str(free_port())
    environment = package_environ(RUST_BACKTRACE="0")
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr[-3000:]
    assert message in run.stderr and run.stderr.count("\n") == 1, run.stderr[-3000:]


def test_an_outcome_that_is_no_sentence_is_told() -> None:
    """The fuzzer's own judgement."""

    def wrong() -> None:
        raise KeyError("x")

    assert outcome(wrong) == "KeyError: 'x'"
    assert outcome(lambda: None) is None
