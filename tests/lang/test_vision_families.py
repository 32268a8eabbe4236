"""Programs that show pictures to a model of every vision family: what the model reads is what its own template makes of the
program's messages, as in a chat request."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sglang as sgl
from sglang.lang.errors import UnsupportedFeatureError

pytest.importorskip("torch")
from tests.model.mllama import IMAGE as MLLAMA_IMAGE
from tests.model.mllama import save_mllama
from tests.model.test_vision_pictures import CASES, IMAGE, SPECIAL, make_family, picture
from tests.model.vision import save_qwen

_PARTS = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% elif p['type'] == 'image' %}<image>{% endif %}{% endfor %}"
_IDEFICS = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}"
    "{% endif %}" + _PARTS + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_QWEN = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><image><|vision_end|>{% elif 'text' in c %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "llava_onevision": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% for c in m['content'] | selectattr('type', 'equalto', "
        "'image') %}{{ '<image>' }}{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + c['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "smolvlm": "<|im_start|>" + _IDEFICS,
    "idefics3": "<|begin_of_text|>" + _IDEFICS,
    "gemma3": (
        "<bos>{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set rest = "
        "messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ first if loop.first else '' }}"
        "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}"
        "<|vision_start|>{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mllama": (
        "<|begin_of_text|>{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% set ns = namespace(sees=false) %}{% for m in rest %}"
        "{% if m['content'] is not string %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{% set ns.sees = true %}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %}{% if not ns.sees %}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
        "December 2023\n{% if told is string %}{{ told }}{% else %}{{ told[0]['text'] }}{% endif %}<|eot_id|>{% endif %}"
        "{% for m in rest %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{% if m['content'] is string %}"
        "{{ m['content'] | trim }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
        "{{ c['text'] | trim }}{% endif %}{% endfor %}{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}
"""the structure of the published templates, with this file's names for tokens"""
TOLD_BY_ROLES = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
"""the templates in which every turn has the same form, whatever stands around it"""


def save_family(name: str, folder: Path) -> None:
    """A tiny checkpoint whose tokenizer knows the words w0, w1, ... and whose template has the publisher's structure."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    first = MLLAMA_IMAGE if name == "mllama" else IMAGE
    if name == "mllama":
        save_mllama(folder)
    elif name == "qwen2_vl":
        save_qwen(folder, "Qwen2VL")
        settings = {"image_processor_type": "Qwen2VLImageProcessor", "size": {"shortest_edge": 3136, "longest_edge": 12544}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        make_family(CASES[name], folder)
    words = {f"w{i}": i for i in range(first)} | {"<image>": first}
    if name != "mllama":
        more = SPECIAL if name != "qwen2_vl" else SPECIAL[:4]
        words |= {token: first + i for i, token in enumerate(more)} | ({"\n": 230, "\n\n": 231} if len(more) > 4 else {})
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens([token for token in words if token.startswith("<")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATES[name]}))


@dataclass
class Running:
    name: str
    engine: Any
    backend: Any

    def asked(self, messages: list[dict[str, Any]], images: list[Any], **more: Any) -> Any:
        """The answer to a chat request with these messages."""
        tokenizer = self.engine.tokenizer
        ids = tokenizer.encode_chat(messages, **more)
        options = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
        return self.engine.generate(input_ids=ids, sampling_params=options, image_data=images)


@pytest.fixture(scope="module", params=TEMPLATES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from sglang.lang.backend.engine import engine_backend

    folder = tmp_path_factory.mktemp(request.param)
    save_family(request.param, folder)
    with sgl.Engine(model_path=str(folder), kernels="reference", max_total_tokens=2048, threads=1) as engine:
        yield Running(request.param, engine, engine_backend(engine))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


SHOWN = {"type": "image"}
GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
ONE, TWO = (picture(np.random.default_rng(seed), size) for seed, size in ((1, (50, 40)), (2, (30, 60))))


def same(state: Any, name: str, reply: Any) -> None:
    meta = state.get_meta_info(name)
    assert meta["prompt_tokens"] == reply["meta_info"]["prompt_tokens"]
    assert state[name] == reply["text"]


@sgl.function
def ask(s: Any, first: Image.Image, second: Image.Image) -> None:
    s += sgl.system("w3 w4")
    s += sgl.user(sgl.image(first) + "w5 w6")
    s += sgl.assistant(sgl.gen("one", **GREEDY))
    s += sgl.user("w7 " + sgl.image(second) + "w8" + sgl.image(first) + "w9")
    s += sgl.assistant("w10 " + sgl.gen("two", **GREEDY))


def test_who_writes_the_turns(running: Running) -> None:
    told = running.engine.get_chat_roles()
    assert (told["roles"] is not None) == (running.name in TOLD_BY_ROLES)
    assert told["image_token"] == running.backend.get_chat_template().image_token


def test_turns_with_pictures(running: Running) -> None:
    """The order of text and pictures, several turns, and an answer that the program has begun."""
    state = ask.run(ONE, TWO, backend=running.backend)
    system, user = {"role": "system", "content": [text("w3 w4")]}, {"role": "user", "content": [SHOWN, text("w5 w6")]}
    same(state, "one", running.asked([system, user], [ONE]))
    more = {"role": "user", "content": [text("w7 "), SHOWN, text("w8"), SHOWN, text("w9")]}
    answered = [system, user, {"role": "assistant", "content": [text(state["one"])]}, more]
    begun = [*answered, {"role": "assistant", "content": [text("w10 ")]}]
    same(state, "two", running.asked(begun, [ONE, TWO, ONE], continue_final_message=True))


def test_forks_choices_and_streams(running: Running) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(sgl.image(ONE) + "w5 w6")
        forks = s.fork(2)
        forks += sgl.assistant(sgl.gen("answer", **GREEDY))
        forks.join()
        s += sgl.assistant_begin()
        s += sgl.select("choice", ["w11 w12", "w13"])

    state = program.run(backend=running.backend)
    reply = running.asked([{"role": "user", "content": [SHOWN, text("w5 w6")]}], [ONE])
    assert state["answer"] == [reply["text"]] * 2 and state["choice"] in ("w11 w12", "w13")

    @sgl.function
    def streamed(s: Any) -> None:
        s += sgl.user(sgl.image(ONE) + "w5 w6") + sgl.assistant(sgl.gen("answer", **GREEDY))

    pieces = streamed.run(backend=running.backend, stream=True)
    assert "".join(pieces.text_iter("answer")) == reply["text"]


def test_text_outside_of_roles(running: Running) -> None:
    """A prompt without roles is the program's own. Between messages there is no place for text but in templates of fixed turns."""

    @sgl.function
    def plain(s: Any) -> None:
        s += "w5 " + sgl.image(ONE) + " w6" + sgl.gen("answer", **GREEDY)

    token = running.backend.get_chat_template().image_token
    prompt = running.engine.generate(
        f"w5 {token} w6", {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}, image_data=ONE
    )
    assert plain.run(backend=running.backend)["answer"] == prompt["text"]

    @sgl.function
    def mixed(s: Any, shown: bool) -> None:
        s += sgl.user(sgl.image(ONE) + "w5" if shown else "w5")
        s += "w6 w7" + sgl.gen("answer", **GREEDY)

    if running.name in TOLD_BY_ROLES:
        assert mixed.run(True, backend=running.backend)["answer"]
        return
    with pytest.raises(UnsupportedFeatureError, match="outside of roles"):
        mixed.run(True, backend=running.backend)["answer"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert mixed.run(False, backend=running.backend)["answer"]
    assert any("outside of roles" in str(one.message) for one in caught)
