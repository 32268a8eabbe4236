"""The table of chat templates."""

from __future__ import annotations

import pytest

from sglang.lang.backend.native import template_of_model
from sglang.lang.chat_template import (
    ChatTemplate,
    get_chat_template,
    get_chat_template_by_model_path,
    register_chat_template,
    register_chat_template_matching_function,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("smollm2-135m-instruct", "smollm2"),
        ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M", "default"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2-vl"),
        ("Qwen/Qwen3-8B", "chatml"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-chat"),
        ("codellama/CodeLlama-7b-Instruct-hf", "llama-2-chat"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3-instruct"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "chatml"),
        ("google/gemma-2-9b-it", "gemma-it"),
        ("google/gemma-3-4b-it", "gemma-it"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3-Base", "default"),
        ("lmsys/vicuna-7b-v1.5", "vicuna_v1.1"),
        ("liuhaotian/llava-v1.5-7b", "vicuna_v1.1"),
        ("ibm-granite/granite-3.1-8b-instruct", "granite-3-instruct"),
        ("THUDM/glm-4v-9b", "glm-4v"),
        ("deepseek-ai/Janus-Pro-7B", "janus-pro"),
        ("CohereForAI/c4ai-command-r-v01", "c4ai-command-r"),
        ("gpt2", "default"),
    ],
)
def test_by_model_path(path: str, name: str) -> None:
    assert get_chat_template_by_model_path(path).name == name


HELLO = [{"role": "system", "content": None}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SPOKEN = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("default", HELLO, "USER:Hi\nASSISTANT:Yo\n"),
        (
            "chatml",
            SPOKEN,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n",
        ),
        (
            "qwen",
            HELLO,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nYo<|im_end|>\n",
        ),
        ("llama-2-chat", SPOKEN, "[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]Yo </s><s>"),
        ("llama-2-chat", HELLO, "[INST] Hi [/INST]Yo </s><s>"),
        ("claude", SPOKEN, "S\n\nHuman: Hi\n\nAssistant:Yo"),
        (
            "llama-3-instruct",
            SPOKEN[1:],
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>",
        ),
        ("gemma-it", SPOKEN[1:], "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"),
    ],
)
def test_whole_conversations(name: str, messages: list[dict[str, str | None]], text: str) -> None:
    assert get_chat_template(name).get_prompt(messages) == text


def test_registering() -> None:
    template = ChatTemplate("mine", None, {"user": ("U>", "\n")})
    register_chat_template(template)

    @register_chat_template_matching_function
    def mine(path: str) -> str | None:
        return "mine" if path == "my/model" else None

    assert get_chat_template("mine") is template
    assert get_chat_template_by_model_path("my/model") is template
    assert template.get_prefix_and_suffix("tool", []) == ("", "")
    with pytest.raises(KeyError, match="no chat template named 'nothing'; there are"):
        get_chat_template("nothing")


def test_a_server_may_tell_its_own() -> None:
    told = {"default_system_prompt": None, "roles": {"user": ["<u>", "</u>"]}, "stop": ["</a>"]}
    template = template_of_model("Qwen/Qwen2.5-VL-7B-Instruct", told)
    assert template.get_prefix_and_suffix("user", []) == ("<u>", "</u>") and template.stop_str == ("</a>",)
    assert template.image_token == "<|vision_start|><|image_pad|><|vision_end|>"
    assert template_of_model("smollm2-135m-instruct", None).name == "smollm2"
    assert template_of_model("smollm2-135m-instruct", 3).name == "smollm2"
