"""The documents' requests with images, against toy-vlm. Replaced are the model path, with the flag that lets a server fetch from
this machine, and the image addresses: a local file server stands in for the remote host. Answers must be what transformers says
with the same weights to the same question about the same pictures, and what the pictures show."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, RunningServer, start_server
from tests.docs.test_tutorial import SEEDS, load_cells
from tests.lang.test_vision_families import TEMPLATES, save_family

sys.path.insert(0, str(ROOT / "examples"))
from toy_vlm import pictures

MODEL_OF_THE_DOCUMENTS = "Qwen/Qwen2.5-VL-7B-Instruct"
TOY = ROOT / "models" / "toy-vlm"
FIRST_URL = "https://github.com/sgl-project/sglang/blob/main/test/lang/example_image.png?raw=true"
SECOND_URL = "https://raw.githubusercontent.com/sgl-project/sglang/main/assets/logo.png"

pytestmark = [
    pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not here ({SEEDS})"),
    pytest.mark.timeout(600),
]


def scene(wanted: str) -> pictures.Scene:
    """A generated picture that shows just this."""
    for seed in range(2_000_000_000, 2_000_100_000):
        found = pictures.scene(random.Random(seed))
        if found.text == wanted:
            return found
    raise AssertionError(wanted)


FIRST, SECOND = "a red circle", "three blue squares"


@pytest.fixture(scope="module")
def says() -> Callable[..., str]:
    """What transformers answers to a question about pictures."""
    import torch
    from tokenizers import Tokenizer
    from train_toy_vlm import Batcher, answer, make_processor
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(TOY / "tokenizer.json"))
    batcher = Batcher(tokenizer, make_processor())

    def say(question: str, *shown: str, image_first: bool = True) -> str:
        dialog = pictures.Dialog(tuple(scene(text).image for text in shown), ((question, ""),), image_first)
        return answer(model, batcher, tokenizer, dialog, max_new_tokens=128)

    return say


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("images")
    scene(FIRST).image.save(folder / "example_image.png")
    scene(SECOND).image.save(folder / "logo.png")
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def local(text: str, host: str) -> str:
    assert FIRST_URL in text or SECOND_URL in text
    return text.replace(FIRST_URL, f"{host}/example_image.png?raw=true").replace(SECOND_URL, f"{host}/logo.png")


def test_tutorial_cells_14_to_17(host: str, says: Callable[..., str]) -> None:
    code = load_cells()
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    out = io.StringIO()
    exec(compile(code[1].split("server_process, port")[0], "<imports>", "exec"), names)
    cells = [
        code[14].replace(MODEL_OF_THE_DOCUMENTS, f"{TOY} --allow-private-media"),
        code[15],
        local(code[16], host),
        code[17],
    ]
    try:
        for number, text in zip(range(14, 18), cells, strict=True):
            with contextlib.redirect_stdout(out):
                exec(compile(text, f"<cell {number}>", "exec"), names)
            if number == 16:
                assert names["state"]["answer"].startswith("The image shows ")  # sampled at temperature 1
                assert out.getvalue().endswith(names["state"]["answer"] + "\n")
                greedy = text.replace("max_tokens=256", "max_tokens=256, temperature=0")
                exec(compile(greedy, "<cell 16 without chance>", "exec"), names)
                assert names["state"]["answer"] == says("What is in the image?", FIRST) == f"The image shows {FIRST}."
        assert names["server_process"].poll() is not None
    finally:
        if "server_process" in names and names["server_process"].poll() is None:
            names["terminate_process"](names["server_process"])
        names["set_default_backend"](None)


@pytest.mark.slow
@pytest.mark.parametrize("family", TEMPLATES)
def test_tutorial_cells_14_to_17_of_every_family(family: str, host: str, tmp_path: Path) -> None:
    """With a tiny random model: the answer is the one that a chat request gets."""
    save_family(family, tmp_path)
    code = load_cells()
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    flags = f"{tmp_path} --allow-private-media --max-total-tokens 2048"
    try:
        exec(compile(code[1].split("server_process, port")[0], "<imports>", "exec"), names)
        for text in (code[14].replace(MODEL_OF_THE_DOCUMENTS, flags), code[15]):
            exec(compile(text, "<cell>", "exec"), names)
        greedy = local(code[16], host).replace("max_tokens=256", "max_tokens=8, temperature=0, ignore_eos=True")
        exec(compile(greedy, "<cell 16>", "exec"), names)
        content = [
            {"type": "image_url", "image_url": {"url": f"{host}/example_image.png?raw=true"}},
            {"type": "text", "text": "What is in the image?"},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        url = f"http://localhost:{names['port']}/v1/chat/completions"
        reply = httpx.post(url, json=body, timeout=60, trust_env=False).json()
        assert names["state"]["answer"] == reply["choices"][0]["message"]["content"]
        meta = names["state"].get_meta_info("answer")
        assert meta["prompt_tokens"] == reply["usage"]["prompt_tokens"]
        exec(compile(local(code[16], host), "<cell 16>", "exec"), names)
        assert isinstance(names["state"]["answer"], str)
        exec(compile(code[17], "<cell 17>", "exec"), names)
    finally:
        if "server_process" in names and names["server_process"].poll() is None:
            names["terminate_process"](names["server_process"])
        names["set_default_backend"](None)


# --- the vision page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> list[str]:
    return (SEEDS / "openai_vision_api.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("vision") / "log", "--allow-private-media", model=str(TOY))
    yield running
    running.process.terminate()
    running.process.wait(30)


@pytest.fixture(scope="module")
def names(vision: RunningServer) -> dict[str, Any]:
    """What the page's snippets have at hand."""
    shown: list[Any] = []
    return {"port": vision.url.rsplit(":", 1)[1], "print_highlight": shown.append, "shown": shown}


def run(text: str, names: dict[str, Any]) -> None:
    exec(compile(text, "<page>", "exec"), names)


def starting(page: list[str], begin: str) -> list[str]:
    """Lines of the page, with the two statements that it prints on one line on two."""
    found = [line for line in page if line.startswith(begin)]
    return [re.sub(r"\) (print_highlight\()", r")\n\1", line) for line in found]


def test_curl(page: list[str], host: str, names: dict[str, Any], says: Callable[..., str]) -> None:
    (command,) = starting(page, "curl_command")
    # the page has lost its line ends: a backslash before one continued the command
    run("import subprocess\n" + local(command, host).replace(" \\ ", " "), names)
    calls = starting(page, "response = subprocess")
    assert len(calls) == 2
    usages = []
    for call in calls:
        run(call, names)
        reply = json.loads(names["shown"][-1])
        content = reply["choices"][0]["message"]["content"]
        assert content == says("What’s in this image?", FIRST, image_first=False) == f"The image shows {FIRST}."
        assert reply["choices"][0]["finish_reason"] == "stop"
        usages.append(reply["usage"])
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached[1] == usages[1]["prompt_tokens"] - 1  # the page's log: 306 of 307


def test_requests(page: list[str], host: str, names: dict[str, Any], says: Callable[..., str]) -> None:
    (data,), (url,) = starting(page, "data = "), starting(page, "url = ")[:1]
    run(f"import requests\n{url}\n{local(data, host)}", names)
    (call,) = starting(page, "response = requests")
    run(call, names)
    content = json.loads(names["shown"][-1])["choices"][0]["message"]["content"]
    assert content == says("What’s in this image?", FIRST, image_first=False) == f"The image shows {FIRST}."


def test_openai_client_one_image_and_two(page: list[str], host: str, names: dict[str, Any], says: Callable[..., str]) -> None:
    clients, calls = starting(page, "client = OpenAI"), starting(page, "response = client.chat")
    assert len(clients) == len(calls) == 2
    wanted = (says("What is in this image?", FIRST, image_first=False), says(pictures.DESCRIBE_BOTH[0], FIRST, SECOND))
    assert wanted == (f"The image shows {FIRST}.", f"The first image shows {FIRST}. The second image shows {SECOND}.")
    for client, call, answer in zip(clients, calls, wanted, strict=True):
        run(f"from openai import OpenAI\n{client}\n{local(call, host)}", names)
        assert names["response"].choices[0].message.content == answer


def test_the_documents_are_for_a_model_that_exists() -> None:
    card = Path(TOY / "README.md").read_text(encoding="utf-8")
    size = sum(path.stat().st_size for path in TOY.iterdir())
    assert "toy" in card and size < 10_000_000
