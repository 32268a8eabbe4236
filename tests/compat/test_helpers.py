"""Helpers of the original's scripts, one by one, on inputs of every kind."""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import re
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

import sglang as sgl
from sglang.compat import conversation
from sglang.compat.json_regex import build_regex_from_object, convert_json_schema_to_str
from sglang.srt.parser.conversation import (
    Conversation,
    SeparatorStyle,
    chat_template_exists,
    chat_templates,
    generate_chat_conv,
    register_conv_template,
)
from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.test import test_utils
from sglang.utils import (
    dump_state_text,
    encode_image_base64,
    encode_video_base64,
    execute_shell_command,
    read_jsonl,
    stream_and_merge,
    trim_overlap,
)
from tests.lang.native_server import NativeServer

PATHS = {
    "sglang.utils": "read_jsonl dump_state_text download_and_cache_file http_request stream_and_merge async_stream_and_merge "
    "print_highlight launch_server_cmd wait_for_server terminate_process is_in_ci trim_overlap get_exception_traceback "
    "encode_video_base64 execute_shell_command",
    "sglang.test.test_utils": "add_common_sglang_args_and_parse select_sglang_backend add_common_other_args_and_parse "
    "get_call_generate get_call_select dump_bench_raw_result CustomTestCase is_in_ci popen_launch_server DEFAULT_URL_FOR_TEST "
    "run_with_timeout calculate_rouge_l",
    "sglang.test.doc_patch": "launch_server_cmd",
    "sglang.srt.utils": "load_image kill_process_tree is_cuda is_hip kill_child_process get_device",
    "sglang.srt.utils.hf_transformers_utils": "get_tokenizer",
    "sglang.srt.hf_transformers_utils": "get_tokenizer",
    "sglang.srt.constrained": "build_regex_from_object",
    "sglang.srt.constrained.outlines_backend": "build_regex_from_object",
    "sglang.srt.parser.conversation": "Conversation chat_templates generate_chat_conv SeparatorStyle register_conv_template",
    "sglang.srt.conversation": "Conversation chat_templates generate_chat_conv SeparatorStyle register_conv_template",
    "sglang.srt.parser.reasoning_parser": "ReasoningParser",
    "sglang.srt.reasoning_parser": "ReasoningParser",
    "sglang.srt.server_args": "ServerArgs prepare_server_args",
    "sglang.srt.entrypoints.engine": "Engine",
    "sglang.srt.entrypoints.http_server": "launch_server",
    "sglang.version": "__version__",
    "sglang.lang.api": "set_default_backend Engine Runtime",
    "sglang.api": "set_default_backend Engine Runtime gen",
    "sglang.backend.runtime_endpoint": "Runtime RuntimeEndpoint",
    "sglang.backend.openai": "OpenAI",
    "sglang.backend.anthropic": "Anthropic",
    "sglang.backend.vertexai": "VertexAI",
    "sglang.backend.litellm": "LiteLLM",
    "sglang.backend.base_backend": "BaseBackend",
    "sglang.lang.interpreter": "StreamExecutor ProgramState ProgramStateGroup run_program run_program_batch cache_program",
    "sglang.lang.backend.base_backend": "BaseBackend",
    "sglang.lang.ir": "SglFunction SglGen SglExpr SglVideo REGEX_INT",
    "sglang.lang.tracer": "TracerProgramState extract_prefix_by_tracing trace_program",
    "sglang.srt.function_call.core_types": "ToolCallItem",
    "sglang.srt.function_call_parser": "FunctionCallParser ToolCallItem",
    "sglang.srt.openai_api.protocol": "Function Tool",
    "sglang.lang.backend.runtime_endpoint": "Runtime RuntimeEndpoint",
}


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    module = importlib.import_module(path)
    for name in PATHS[path].split():
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import sglang.lang.compiler", "programs are not compiled"),
        ("from sglang.test.test_programs import test_select", "run it with backend="),
        ("from sglang.test.test_utils import call_select_lightllm", "LightLLM does not tell"),
        ("from sglang.test.test_utils import run_bench_serving", "run_benchmark"),
    ],
)
def test_what_is_missing_says_so(line: str, said: str) -> None:
    with pytest.raises(ImportError, match=f"is not there: .*{said}"):
        exec(line)


def test_the_core_does_without() -> None:
    code = "import sys, sglang, sglang.utils, sglang.srt.server_args, sglang.cli; print('sglang.compat' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


# --- files and streams ------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('# a note\n{"a": "ü"}\n\n[1, 2]\n"text"\n', encoding="utf-8")
    assert list(read_jsonl(str(path))) == [{"a": "ü"}, [1, 2], "text"]
    path.write_text('{"a": 1}\n{"a":\n')
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(ValueError, match="line 2"):
        next(rows)


def test_texts_of_states(tmp_path: Path) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += "one " + sgl.gen("x", max_tokens=2)

    path = tmp_path / "out.txt"
    with NativeServer() as native:
        dump_state_text(str(path), [program.run(backend=sgl.RuntimeEndpoint(native.url)), "two", 3])
    dump_state_text(str(path), ["four"], mode="a")
    text = path.read_text()
    assert "one  answer" in text and text.count("= 0 =") == 2 and "\n3\n" in text and text.index("two") < text.index("four")


@pytest.mark.parametrize(("old", "new", "rest"), [("", "ab", "ab"), ("ab", "abc", "c"), ("ha", "ha", ""), ("xa", "b", "b")])
def test_overlap(old: str, new: str, rest: str) -> None:
    assert trim_overlap(old, new) == rest


class FakeEngine:
    def __init__(self, texts: list[str], disjoint: bool | None) -> None:
        self._texts = texts
        if disjoint is not None:
            self.server_args = argparse.Namespace(stream_output=disjoint)

    def generate(self, prompt: str, params: Any, stream: bool) -> Iterator[dict[str, str]]:
        return iter([{"text": text} for text in self._texts])


@pytest.mark.parametrize(
    ("texts", "disjoint"), [(["ha", "haha", "hahaha"], False), (["ha", "ha", "ha"], True), (["ha", "haha", "hahaha"], None)]
)
def test_streams_are_put_together(texts: list[str], disjoint: bool | None) -> None:
    assert stream_and_merge(FakeEngine(texts, disjoint), "p", None) == "hahaha"


def test_pictures_as_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00\x01")
    assert encode_image_base64(str(tmp_path / "x")) == encode_image_base64(b"\x00\x01") == "AAE="


def test_frames_as_text(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    numpy = pytest.importorskip("numpy")
    path = str(tmp_path / "x.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 5, (16, 16))
    for shade in range(8):
        video.write(numpy.full((16, 16, 3), shade * 20, numpy.uint8))
    video.release()
    kind, _, data = encode_video_base64(path, 3).partition(":")
    assert kind == "video" and base64.b64decode(data).count(b"\x89PNG") == 3
    with pytest.raises(FileNotFoundError):
        encode_video_base64(str(tmp_path / "none"))


# --- processes --------------------------------------------------------------------------------------------------------------


def test_commands_are_started(capfd: pytest.CaptureFixture[str]) -> None:
    process = execute_shell_command(f"{sys.executable} -c \\\n  'import sys; print(\"a b\", file=sys.stderr)'")
    assert process.wait(30) == 0 and capfd.readouterr().out == "a b\n"


def test_children_are_killed() -> None:
    from sglang.srt.utils import kill_child_process

    process = execute_shell_command(f"{sys.executable} -c 'import time; time.sleep(60)'")
    kill_child_process(process.pid)  # it has none
    assert process.poll() is None
    kill_child_process(process.pid, include_self=True)
    assert process.wait(10) != 0


def test_functions_with_a_time_limit() -> None:
    assert test_utils.run_with_timeout(divmod, (7, 2), timeout=30) == (3, 1)
    assert test_utils.run_with_timeout(int, ("12",), {"base": 3}) == 5
    with pytest.raises(ZeroDivisionError):
        test_utils.run_with_timeout(divmod, (7, 0), timeout=30)
    never = threading.Event()
    with pytest.raises(TimeoutError, match="wait has not ended after 0.01 seconds"):
        test_utils.run_with_timeout(never.wait, timeout=0.01)
    never.set()


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.compat import servers

    for is_here, names in ((True, ("cuda", "cuda:0", "cuda:3")), (False, ("cpu", "cpu", "cpu"))):
        monkeypatch.setattr(servers, "is_cuda", lambda is_here=is_here: is_here)
        assert tuple(map(servers.get_device, (None, 0, 3))) == names


@pytest.mark.parametrize(
    ("a", "b", "score"),
    [("abc", "abc", 1.0), ("abcd", "acd", 6 / 7), ("ab", "ba", 0.5), ("ab", "cd", 0.0), ("", "a", 0.0), ("", "", 0.0)],
)
def test_rouge_l(a: str, b: str, score: float) -> None:
    assert test_utils.calculate_rouge_l([a, b], [b, a]) == pytest.approx([score, score])


# --- benchmarks -------------------------------------------------------------------------------------------------------------


def parsed(monkeypatch: pytest.MonkeyPatch, add: Any, *words: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    result: argparse.Namespace = add(argparse.ArgumentParser())
    return result


def test_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(monkeypatch, test_utils.add_common_sglang_args_and_parse)
    assert (args.parallel, args.host, args.port, args.backend) == (64, "http://127.0.0.1", 30000, "srt")
    assert (args.result_file, args.raw_result_file, args.device) == ("result.jsonl", None, "auto")
    ports = {}
    for backend in ("vllm", "outlines", "lightllm", "gserver", "srt-raw", "guidance"):
        ports[backend] = parsed(monkeypatch, test_utils.add_common_other_args_and_parse, "--backend", backend).port
    assert ports == {"vllm": 21000, "outlines": 21000, "lightllm": 22000, "gserver": 9988, "srt-raw": 30000, "guidance": None}


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with NativeServer() as native:
        port = str(native.port)
        for words in (["--host", "http://127.0.0.1"], ["--host", "127.0.0.1", "--backend", "srt-no-parallel"]):
            args = parsed(monkeypatch, test_utils.add_common_sglang_args_and_parse, *words, "--port", port)
            assert isinstance(test_utils.select_sglang_backend(args), sgl.RuntimeEndpoint)
    assert sgl.global_config.enable_parallel_encoding is False
    sgl.global_config.enable_parallel_encoding = True
    monkeypatch.setattr(sgl, "OpenAI", lambda model: f"OpenAI's {model}", raising=False)
    args.backend = "gpt-4o-mini"
    assert test_utils.select_sglang_backend(args) == "OpenAI's gpt-4o-mini"
    args.backend = "nothing"
    for choose in (test_utils.select_sglang_backend, test_utils.get_call_generate, test_utils.get_call_select):
        with pytest.raises(ValueError, match="no backend 'nothing'"):
            choose(args)


def test_raw_results_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test_utils.dump_bench_raw_result(None, [1], [2], [3])
    test_utils.dump_bench_raw_result("", [], [], [])
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_test_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    class Case(test_utils.CustomTestCase):
        def test_second_try(self) -> None:
            tries.append(1)
            assert len(tries) > 1

    def succeeds() -> bool:
        result = unittest.TestResult()
        Case("test_second_try").run(result)
        return result.wasSuccessful()

    monkeypatch.setenv("SGLANG_TEST_MAX_RETRY", "0")
    assert not succeeds() and len(tries) == 1
    tries.clear()
    monkeypatch.setenv("SGLANG_TEST_MAX_RETRY", "1")
    assert succeeds() and len(tries) == 2


# --- JSON as a regular expression ---------------------------------------------------------------------------------------------


class Colour(str, Enum):
    plain = "plain"
    odd = 'a "b" (c) \\ [d]'


class Inner(BaseModel):
    n: int
    xs: list[float] = Field(min_length=1, max_length=2)


class Outer(BaseModel):
    name: str = Field(min_length=1, max_length=4)
    colour: Colour
    inner: Inner
    maybe: int | None = None
    table: dict[str, bool]
    pair: tuple[int, str]
    word: Literal["x", 3, None]


GOOD = {
    "name": "abcd",
    "colour": 'a "b" (c) \\ [d]',
    "inner": {"n": -3, "xs": [1.5, 2e20]},
    "maybe": None,
    "table": {"k": True, "": False},
    "pair": [0, 'q"\n'],
    "word": 3,
}
CHANGES: list[dict[str, Any]] = [
    {"name": "abcde"},
    {"name": ""},
    {"colour": "other"},
    {"inner": {"n": 1.5, "xs": [1]}},
    {"inner": {"n": 1, "xs": []}},
    {"inner": {"n": 1, "xs": [1, 2, 3]}},
    {"maybe": "1"},
    {"table": {"k": 1}},
    {"pair": [0]},
    {"word": "y"},
]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_what_fits_a_class(separators: tuple[str, str]) -> None:
    pattern = re.compile(build_regex_from_object(Outer))

    def fits(value: Any) -> bool:
        return pattern.fullmatch(json.dumps(value, separators=separators)) is not None

    assert fits(GOOD)
    assert fits({key: value for key, value in GOOD.items() if key != "maybe"})
    assert not fits({key: value for key, value in GOOD.items() if key != "inner"})
    for change in CHANGES:
        assert not fits(GOOD | change), change


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"const": 1}}}, ["{}", '{"a":null}', '{"b":1}', '{"a":null,"b":1}'], ['{"b":1,"a":null}', '{"a":null,}']),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]}, ['{"b":2}', '{"a":1,"b":2,"c":3}', '{"b":2,"c":3}'], ['{"a":1}', '{"a":1,"c":3}']),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, ["[1,2]", "[1, 2, -30]"], ["[1]", "[01,2]", "[1,2,]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "boolean"}, "maxItems": 2}, ["[1]", "[1,true]"], ["[]", "[1,true,true]"]),
        ({"type": ["integer", "null"]}, ["0", "-7", "null"], ["1.0", "-", "nul"]),
        ({"type": "number"}, ["1", "-0.5", "1e9", "2.5E-3"], ["1.", ".5", "+1", "01"]),
        ({"type": "string", "pattern": "^[a-c]{2}$"}, ['"ab"'], ['"a"', '"abc"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"24-01-01"']),
        ({"type": "string", "maxLength": 2}, ['""', '"ü\\n"', '"\\u00e9"'], ['"abc"', '"\n"', '"\\x"']),
        ({"oneOf": [{"const": "a+b"}, {"enum": [True, 1.5, [1], {"k": "v"}]}]}, ['"a+b"', "true", "1.5", "[1]".replace("1", "1")], ['"aab"', "false"]),
        ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}}]}, ['{"a":1}', '{"a":1,"b":2}'], ['{"b":2}']),
        ({}, ["1", '"x"', "[1,[2]]", '{"a":{"b":[]}}'.replace("[]", "1")], ["", "[1", "{1:2}"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
        (Colour, ['"plain"', json.dumps(Colour.odd.value)], ['"odd"']),
        (list[Inner], ["[]", '[{"n":1,"xs":[1]}]'], ["[{}]"]),
    ],
)  # fmt: skip
def test_what_fits_a_schema(schema: Any, good: list[str], bad: list[str]) -> None:
    for form in (schema, convert_json_schema_to_str(schema)):
        pattern = re.compile(build_regex_from_object(form))
        assert all(pattern.fullmatch(text) for text in good)
        assert not any(pattern.fullmatch(text) for text in bad)


def test_white_space_of_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert re.fullmatch(build_regex_from_object(schema, whitespace_pattern=r"[\n ]*"), '{\n  "a": 1\n}')
    assert not re.fullmatch(build_regex_from_object(schema, whitespace_pattern=""), '{"a": 1}')


def test_what_no_regular_expression_says() -> None:
    class Node(BaseModel):
        next: Node | None = None

    Node.model_rebuild()
    for schema in (Node, {"$ref": "#/$defs/x"}, {"type": "text"}, False, {"required": ["a"], "properties": {"b": {}}}):
        with pytest.raises(ValueError):
            build_regex_from_object(schema)
    with pytest.warns(UserWarning, match="'maximum'"):
        assert re.fullmatch(build_regex_from_object({"type": "integer", "maximum": 3}), "4")


# --- conversations and reasoning -----------------------------------------------------------------------------------------------


def test_conversations() -> None:
    assert chat_template_exists("llama-3-instruct") and not chat_template_exists("no-such") and "chatml" in chat_templates
    first = chat_templates["qwen2-vl"].copy()
    first.append_message(first.roles[0], f"What is this? {first.image_token}")
    second = first.copy()
    first.append_message(first.roles[1], "")
    prompt = first.get_prompt()
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.") and "<|image_pad|>" in prompt
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") and first.stop_str == ["<|im_end|>"]
    first.update_last_message("A cat.")
    assert first.get_prompt() == prompt + "A cat.<|im_end|>\n" and len(second.messages) == 1
    llama = chat_templates["llama-2-chat"]
    llama.set_system_message("Be kind.")
    llama.append_message("user", "Hi")
    assert llama.get_prompt() == "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]"


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "\nUSER: Hi\nASSISTANT: Yo\nUSER: Bye\nASSISTANT:"),
        ({"sep_style": "ADD_COLON_TWO", "sep": " ", "sep2": "</s>", "system_message": "Be kind."}, "Be kind. USER: Hi ASSISTANT: Yo</s>USER: Bye ASSISTANT:"),
        ({"sep_style": "CHATML", "sep": "<E>", "roles": ("<U>", "<A>"), "system_template": "<S>\n{system_message}"}, "<S>\n<E>\n<U>\nHi<E>\n<A>\nYo<E>\n<U>\nBye<E>\n<A>\n"),
        ({"sep_style": "LLAMA3", "roles": ("u", "a")}, "<|start_header_id|>u<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>a<|end_header_id|>\n\nYo<|eot_id|><|start_header_id|>u<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>a<|end_header_id|>\n\n"),
        ({"sep_style": "NO_COLON_SINGLE", "sep": "|", "system_message": "S", "system_template": "[{system_message}]"}, "[S]USERHi|ASSISTANTYo|USERBye|ASSISTANT"),
        ({"sep_style": "FALCON_CHAT", "sep": "|"}, "USER: Hi|ASSISTANT: Yo|USER: Bye|ASSISTANT:"),
    ],
)  # fmt: skip
def test_conversations_that_programs_register(fields: dict[str, Any], prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_registered", {})
    style = {"sep_style": SeparatorStyle[fields["sep_style"]]} if "sep_style" in fields else {}
    register_conv_template(Conversation(name="mine", stop_str="#", image_token="<i>", **{**fields, **style}))
    assert chat_template_exists("mine") and "mine" in chat_templates and len(chat_templates) == len([*chat_templates])
    made = chat_templates["mine"]
    for role, text in zip((*made.roles, *made.roles), ("Hi", "Yo", "Bye", None), strict=True):
        made.append_message(role, text)
    assert made.get_prompt() == prompt and made.stop_str == ["#"] and not chat_templates["mine"].messages
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "Bye"}]
    assert generate_chat_conv({"messages": turns}, "mine").get_prompt() == prompt
    with pytest.raises(ValueError, match="'mine' already"):
        register_conv_template(made)
    register_conv_template(Conversation(name="mine", sep="~"), override=True)
    assert generate_chat_conv({"messages": turns[:1]}, "mine").get_prompt() == "~USER: Hi~ASSISTANT:"


def test_conversations_that_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="in the style RWKV are not written"):
        Conversation(name="x", sep_style=SeparatorStyle.RWKV)
    with pytest.raises(ValueError, match="no {system_message}"):
        Conversation(name="x", system_template="")
    with pytest.raises(ValueError, match="'chatml' already"):
        register_conv_template(Conversation(name="chatml"))


def test_conversations_of_requests() -> None:
    parts = [{"type": "text", "text": "See "}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": parts}]
    made = generate_chat_conv({"messages": messages}, "chatml")
    assert made.image_data == ["http://x/y.png"]
    assert made.get_prompt() == (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nSee <image><|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(ValueError, match="'audio_url'"):
        generate_chat_conv({"messages": [{"role": "user", "content": [{"type": "audio_url"}]}]}, "chatml")
    with pytest.raises(KeyError, match="no chat template"):
        generate_chat_conv({"messages": []}, "no-such")


@pytest.mark.parametrize(
    ("model", "force", "text", "reasoning", "answer"),
    [
        ("deepseek-r1", None, "I see.</think>\n\nFour", "I see.", "Four"),
        ("deepseek-r1", None, "<think>I see.</think>Four", "I see.", "Four"),
        ("qwen3", None, "<think>a</think>b", "a", "b"),
        ("qwen3", None, "no reasoning", "", "no reasoning"),
        ("qwen3", True, "a</think>b", "a", "b"),
        ("kimi", None, "◁think▷a◁/think▷b", "a", "b"),
        ("deepseek-r1", None, "never closed", "never closed", ""),
    ],
)
def test_reasoning(model: str, force: bool | None, text: str, reasoning: str, answer: str) -> None:
    parser = ReasoningParser(model_type=model, force_reasoning=force)
    assert parser.parse_non_stream(text) == (reasoning, answer)
    for stream_reasoning in (True, False):
        parser = ReasoningParser(model, stream_reasoning=stream_reasoning, force_reasoning=force)
        pieces = [parser.parse_stream_chunk(char) for char in text] + [parser.finish()]
        assert "".join(piece for piece, _ in pieces) == reasoning and "".join(piece for _, piece in pieces) == answer
        if not stream_reasoning:
            assert sum(bool(piece) for piece, _ in pieces) <= 1


@pytest.mark.parametrize("model", [None, "", "no-such"])
def test_reasoning_of_unknown_models(model: str | None) -> None:
    with pytest.raises(ValueError, match="deepseek-r1"):
        ReasoningParser(model)


def test_calls_are_parsed_from_texts() -> None:
    from sglang.srt.entrypoints.openai.protocol import Function, Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [Tool(type="function", function=Function(name="get_weather", parameters=schema))]
    text = 'Well.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    parser = FunctionCallParser(tools=tools, tool_call_parser="qwen25")
    assert parser.has_tool_call(text) and not parser.has_tool_call("It rains.")
    rest, calls = parser.parse_non_stream(text)
    assert rest.strip() == "Well." and [(call.tool_index, call.name) for call in calls] == [(0, "get_weather")]
    assert json.loads(calls[0].parameters) == {"city": "Rome"}
    items, said = [], ""
    for piece in [*(parser.parse_stream_chunk(letter) for letter in text), parser.finish()]:
        said += piece[0]
        items += piece[1]
    assert said.strip() == "Well." and items[0].name == "get_weather" and all(item.name is None for item in items[1:])
    assert json.loads("".join(item.parameters for item in items)) == {"city": "Rome"}
    with pytest.raises(ValueError, match="nonsense"):
        FunctionCallParser(tools, "nonsense")


def test_what_unit_tests_import() -> None:
    from sglang.srt.utils import is_cuda, is_npu, kill_process_tree
    from sglang.test import test_utils
    from sglang.test.ci.ci_register import register_amd_ci, register_cuda_ci

    register_cuda_ci(est_time=60, suite="x")
    register_amd_ci(est_time=60, suite="y", nightly=True)
    assert not is_npu() and isinstance(is_cuda(), bool) and callable(kill_process_tree)
    assert test_utils.DEFAULT_MLA_MODEL_NAME_FOR_TEST == test_utils.DEFAULT_MODEL_NAME_FOR_TEST
    with pytest.raises(AttributeError):
        _ = test_utils.DEFAULT_NOTHING


def test_expressions_have_the_originals_names() -> None:
    from sglang.lang.ir import Gen, SglExpr, SglGen, SglRoleBegin

    assert SglGen is Gen and isinstance(sgl.gen("x"), SglExpr) and issubclass(SglRoleBegin, SglExpr)
    with pytest.raises(ImportError):
        from sglang.lang.ir import SglNothing  # noqa: F401


def test_functions_of_the_interpreter() -> None:
    """They run a program as its methods do: with defaults for its gens, in a batch, its prefix alone."""
    from sglang.lang.interpreter import StreamExecutor, cache_program, run_program, run_program_batch

    @sgl.function
    def program(s: Any, word: str) -> None:
        s += "Say " + word + ":" + sgl.gen("x")

    with NativeServer(lambda prompt, params: f" {params['max_new_tokens']}") as server:
        backend = sgl.RuntimeEndpoint(server.url)
        state = run_program(program, backend, ("a",), {}, {"max_new_tokens": 7}, False, sync=True)
        assert (state["x"], state.text()) == (" 7", "Say a: 7")
        assert isinstance(state.stream_executor, StreamExecutor)
        assert run_program(program, backend, func_kwargs={"word": "b"}, stream=True)["x"] == " 128"
        states = run_program_batch(program, backend, [{"word": "b"}, {"word": "c"}], {"temperature": 0}, 1)
        assert [s.text() for s in states] == ["Say b: 128", "Say c: 128"]
        assert cache_program(program, backend) == "Say "
