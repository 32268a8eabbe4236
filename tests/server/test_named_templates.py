"""Values of `--chat-template`: built-in templates, SGLang's names, Jinja files and both kinds of JSON files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from sglang.common.chat_markers import TABLE
from sglang.srt.errors import ConfigError
from sglang.srt.server.openai.protocol import ChatRequest, parse_request, sampling_params
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.model_files import TextFacts, with_template
from sglang.srt.server.tokenization.named_templates import NAMED, REFUSED_NAMES, named_template
from sglang.srt.server_args import ServerArgs

USER = [{"role": "user", "content": "Hi"}]
TURNS = [*USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHATML = {
    "name": "mine",
    "system": "<|im_start|>system",
    "user": "<|im_start|>user",
    "assistant": "<|im_start|>assistant",
    "sep_style": "CHATML",
    "sep": "<|im_end|>",
    "stop_str": ["<|im_end|>", "<|im_start|>"],
}
WORDS = {"system": "S", "user": "U", "assistant": "A", "sep": "/"}


def render(source: str, messages: list[dict[str, Any]]) -> str:
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return ChatTemplate(source).render({"messages": messages, **names})


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_name_renders_a_conversation(name: str) -> None:
    text = render(named_template(name).source, [*SYSTEM, *TURNS])
    positions = [text.index(word) for word in ("Be brief.", "Hi", "Hello", "Bye")]
    assert positions == sorted(positions)
    ServerArgs(chat_template=name).resolve()


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("qwen2-vl", USER, HELPFUL + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("chatml-llava", [*SYSTEM, *USER], HELPFUL.replace("You are a helpful assistant.", "Be brief.") + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("vicuna_v1.1", [*SYSTEM, *TURNS], "Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:"),
        ("mistral", [*SYSTEM, *USER], "[SYSTEM_PROMPT] Be brief. [/SYSTEM_PROMPT][INST] Hi [/INST]"),
        ("llama-2-chat", [*SYSTEM, *TURNS], "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]Hello </s><s>[INST] Bye [/INST]"),
        ("gemma-it", [*SYSTEM, *USER], "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"),
        ("llama_3_vision", [*SYSTEM, {"role": "user", "content": " Hi\n"}], "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
)  # fmt: skip
def test_names_of_sglang(name: str, messages: list[dict[str, Any]], text: str) -> None:
    assert render(named_template(name).source, messages) == text


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("qwen2-vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("chatml-llava", "<image>\n"),
        ("llama_3_vision", "<|image|>"),
        ("gemma-it", "<start_of_image>"),
    ],
)
def test_images_stand_where_the_message_has_them(name: str, image: str) -> None:
    parts = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    for before in ([], SYSTEM):
        template = ChatTemplate(named_template(name).source)
        messages = template.fitted([*before, {"role": "user", "content": parts}], {"image": "?"})
        assert f"See {image} and {image}" in template.render({"messages": messages})


def test_usual_system_messages() -> None:
    assert render(named_template("vicuna_v1.1").source, USER).startswith("A chat between a curious user")
    assert "language and vision assistant" in render(named_template("llava_llama_3").source, USER)


@pytest.mark.parametrize("name", sorted(REFUSED_NAMES))
def test_names_that_are_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--chat-template {name} is not taken: .*model's own template.*Jinja file"):
        ServerArgs(model_path="/no/such/model", chat_template=name).resolve()


def test_every_name_of_the_language_is_known() -> None:
    """Taken or refused, as is every name of SGLang's registry."""
    names = {row.name for row in TABLE} | {
        *("llama-2", "mistral", "devstral", "llama-4", "phi-4-mm", "chatml", "chatml-llava", "vicuna_v1.1", "llama_3_vision"),
        *("llava_llama_3", "internlm2-chat", "internvl-2-5", "qwen2-vl", "deepseek-ocr", "deepseek-vl2", "gemma-it"),
        *("gme-qwen2-vl", "minicpmv", "minicpmo", "janus", "janus-pro", "kimi-vl", "qwen2-audio", "points-v15-chat", "mimo-vl"),
    }
    assert names <= NAMED.keys() | REFUSED_NAMES.keys() and not NAMED.keys() & REFUSED_NAMES.keys()


def test_the_names_need_no_heavy_package() -> None:
    code = "import sys, sglang.srt.server_args; print([n for n in ('jinja2', 'tokenizers', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


# --- files --------------------------------------------------------------------------------------------------------------------


def written(folder: Path, content: Any) -> str:
    path = folder / "template.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_template_files(tmp_path: Path) -> None:
    jinja = tmp_path / "a.jinja"
    jinja.write_text("x{{ messages[0].content }}")
    assert named_template(str(jinja)).source == "x{{ messages[0].content }}"
    assert named_template(written(tmp_path, {"chat_template": "y"})).source == "y"
    for wrong in (written(tmp_path, {}), str(tmp_path / "none"), "no-such-name", "a\0b"):
        with pytest.raises(ConfigError):
            ServerArgs(chat_template=wrong).resolve()
    with pytest.raises(ConfigError, match="did you mean 'qwen2-vl'"):
        named_template("qwen2vl")


def test_a_file_named_as_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("janus-pro").write_text("z")
    assert named_template("janus-pro").source == "z"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (CHATML, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        ({"sep_style": "ADD_COLON_SINGLE"}, "S\nBe brief./U: Hi/A: Hello/U: Bye/A:"),
        ({"sep_style": "ADD_COLON_SPACE_SINGLE"}, "S\nBe brief./U: Hi/A: Hello/U: Bye/A: "),
        ({"sep_style": "ADD_NEW_LINE_SINGLE"}, "S\nBe brief./U\nHi/A\nHello/U\nBye/A\n"),
        ({"sep_style": "NO_COLON_SINGLE", "user": "«\"\\😀", "sep": "{{ x }}\t"}, 'S\nBe brief.«"\\😀Hi{{ x }}\tAHello{{ x }}\t«"\\😀Bye{{ x }}\tA'),
        ({"sep_style": "ADD_COLON_TWO", "sep2": "</s>"}, "S\nBe brief./U: Hi/A: Hello</s>U: Bye/A:"),
        ({"sep_style": "NO_COLON_TWO", "sep2": "#"}, "S\nBe brief.UHi/AHello#UBye/A"),
        ({"sep_style": "DEEPSEEK_CHAT", "sep2": "#"}, "S\nBe brief.U: Hi/A: Hello#U: Bye/A:"),
        ({"sep_style": "MPT"}, "S\nBe brief./UHi/AHello/UBye/A"),
        ({"sep_style": "ROBIN"}, "S\nBe brief./U:\nHi/A:\nHello/U:\nBye/A:\n"),
        ({"sep_style": "LLAMA4"}, "S\nBe brief.<|header_start|>U<|header_end|>\n\nHi<|eot|><|header_start|>A<|header_end|>\n\nHello<|eot|><|header_start|>U<|header_end|>\n\nBye<|eot|><|header_start|>A<|header_end|>\n\n"),
        ({"sep_style": "CHATGLM3", "system": "%}"}, "%}\nBe brief.U\nHiA\nHelloU\nByeA"),
    ],
)  # fmt: skip
def test_conversations_in_json(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = written(tmp_path, WORDS | changes)
    ServerArgs(chat_template=path).resolve()
    assert render(named_template(path).source, [*SYSTEM, *TURNS]) == text


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user"),
        ({"system_message": "Hm."}, "<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user"),
        ({"sep_style": "LLAMA3"}, "<|start_header_id|><|im_start|>user<|end_header_id|>"),
        ({"sep_style": "LLAMA3", "system_message": "Hm."}, "<|im_start|>system\nHm.<|start_header_id|>"),
    ],
)
def test_a_conversation_without_a_system_message(changes: dict[str, Any], begins: str, tmp_path: Path) -> None:
    assert render(named_template(written(tmp_path, CHATML | changes)).source, USER).startswith(begins)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CHATML | {"sep_style": "ADD_COLON_TWO"}, "ADD_COLON_TWO ends the assistant's messages with sep2"),
        (CHATML | {"sep_style": "RWKV"}, "'RWKV' cannot be followed.*Jinja template"),
        (CHATML | {"sep_style": "nonsense"}, "'nonsense' cannot be followed"),
        ({key: CHATML[key] for key in ("system", "sep_style")}, "no text under user, assistant"),
        (CHATML | {"user": 3}, "no text under user"),
        (CHATML | {"sep": 3}, "sep must be a text"),
        (CHATML | {"stop_str": [3]}, "stop_str must be"),
        (CHATML | {"stop_str": 3}, "stop_str must be"),
        ({"chat_template": ["x"]}, "no text under the key 'chat_template'"),
    ],
)
def test_json_files_that_are_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerArgs(chat_template=written(tmp_path, content)).resolve()


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("x", ("x",)), (["a", "", "b"], ("a", "b")), ([], ())])
def test_stop_strings(stop: Any, stops: tuple[str, ...], tmp_path: Path) -> None:
    assert named_template(written(tmp_path, CHATML | {"stop_str": stop})).stops == stops


def test_they_end_an_answer_besides_those_asked_for() -> None:
    for asked, stop in (({}, ("x", "y")), ({"stop": "z"}, ("z", "x", "y")), ({"stop": ["y", "z"]}, ("y", "z", "x"))):
        request = parse_request(ChatRequest, {"messages": USER, **asked})
        assert sampling_params(request, 5, {}, ("x", "y")).stop == stop
        assert sampling_params(request, 5, {"stop": ("d",)}, ("x", "y")).stop == (stop if asked else ("d", *stop))


def core_of(begins: bool) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "<|im_end|>": 2, "?": 3}, unk_token="?"))
    core.add_special_tokens(["<s>", "<|im_end|>"])
    if begins:
        core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return core


@pytest.mark.parametrize("begins", [True, False])
def test_the_tokenizers_beginning_and_ends(begins: bool, tmp_path: Path) -> None:
    facts = TextFacts(names={"bos_token": "<s>"}, bos_token_id=0, eos_token_ids=frozenset({3}))
    for name in (written(tmp_path, CHATML), "qwen", "mistral"):
        source = with_template(name, facts, core_of(begins)).templates["default"]
        assert source.startswith("{{ bos_token }}") is begins
    assert with_template("chatml", facts, core_of(begins)).templates["default"] == NAMED["chatml"].source
    found = with_template(written(tmp_path, CHATML), facts, core_of(begins))
    assert found.eos_token_ids == {3, 2} and found.stops == ("<|im_start|>",)
