"""toy-vlm behind HTTP and in the Engine: images through every field, the prefix cache with images, and invalid images."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import io
import json
import logging
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.conftest import ROOT, RunningServer, start_server

sys.path.insert(0, str(ROOT / "examples"))
from toy_vlm import pictures

TOY = ROOT / "models" / "toy-vlm"
HELD_OUT = 1_000_000_000
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
GREEDY = {"temperature": 0, "max_new_tokens": 24}

pytestmark = pytest.mark.timeout(300)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="module")
def vision(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ["--allow-private-media", "--media-root", str(folder), "--max-media-items", "4", "--max-image-pixels", "1000000"]
    running = start_server(tmp_path_factory.mktemp("log") / "log", *flags, "--chunked-prefill-size", "40", model=str(TOY))
    yield running
    running.process.terminate()
    running.process.wait(30)


@pytest.fixture(scope="module")
def web(vision: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=vision.url, timeout=120, trust_env=False) as client:
        yield client


def png(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def show(seed: int) -> Image.Image:
    return pictures.scene(random.Random(HELD_OUT + seed)).image


def chat_of(dialog: pictures.Dialog, urls: list[str]) -> list[dict[str, Any]]:
    """The first question of a dialog as a message."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    text = {"type": "text", "text": dialog.turns[0][0]}
    return [{"role": "user", "content": [*parts, text] if dialog.image_first else [text, *parts]}]


def prompt_of(dialog: pictures.Dialog) -> str:
    places, question = IMAGE * len(dialog.images), dialog.turns[0][0]
    return TURN.format(places + question if dialog.image_first else question + places)


def generate(web: httpx.Client, text: Any, images: Any, **fields: Any) -> Any:
    body = {"text": text, "image_data": images, "sampling_params": GREEDY} | fields
    reply = web.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def num_encoded(web: httpx.Client) -> int:
    return int(web.get("/get_server_info").json()["internal_states"][0]["num_encoded"])


# --- answers ----------------------------------------------------------------------------------------------------------------


def test_held_out_questions_by_url_and_data_uri(vision: RunningServer, host: str, folder: Path) -> None:
    """At least 95 % right, asked through the openai client, many at once, pictures of mixed sizes."""
    dialogs = [pictures.dialog(random.Random(HELD_OUT + i)) for i in range(400)]
    client = openai.OpenAI(base_url=f"{vision.url}/v1", api_key="none")

    def ask(number: int) -> bool:
        dialog, urls = dialogs[number], []
        for i, image in enumerate(dialog.images):
            image.save(folder / f"{number}-{i}.png")
            urls.append(f"{host}/{number}-{i}.png" if (number + i) % 2 else uri(image))
        answer = client.chat.completions.create(model="toy-vlm", messages=chat_of(dialog, urls), temperature=0, max_tokens=48)
        return answer.choices[0].message.content == dialog.turns[0][1]

    with ThreadPoolExecutor(16) as pool:
        right = sum(pool.map(ask, range(len(dialogs))))
    assert right >= 0.95 * len(dialogs)


def test_answers_are_those_of_transformers(web: httpx.Client) -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    import torch
    from tokenizers import Tokenizer
    from train_toy_vlm import Batcher, answer, make_processor
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(TOY / "tokenizer.json"))
    batcher = Batcher(tokenizer, make_processor())
    for i in range(300, 312):
        dialog = pictures.dialog(random.Random(HELD_OUT + i))
        ours = generate(web, prompt_of(dialog), [uri(image) for image in dialog.images])
        assert ours["text"] == answer(model, batcher, tokenizer, dialog)


# --- the prefix cache -------------------------------------------------------------------------------------------------------


def test_same_picture_again_is_cached_to_the_last_token(web: httpx.Client) -> None:
    text, image = TURN.format(IMAGE + "What is in the image?"), uri(show(400))
    before = num_encoded(web)
    first, again = (generate(web, text, image) for _ in range(2))
    assert num_encoded(web) == before + 1
    assert first["meta_info"]["cached_tokens"] < first["meta_info"]["prompt_tokens"] - 8  # at most the text before the picture
    assert again["meta_info"]["cached_tokens"] == again["meta_info"]["prompt_tokens"] - 1
    assert again["output_ids"] == first["output_ids"]
    # another question about the same picture: cached up to the question, and not encoded again
    other = generate(web, TURN.format(IMAGE + "Describe the image."), image)
    assert num_encoded(web) == before + 1
    assert other["meta_info"]["cached_tokens"] > first["meta_info"]["cached_tokens"] + 4


def test_another_picture_of_the_same_size_shares_nothing_of_it(web: httpx.Client) -> None:
    text = TURN.format(IMAGE + "What is in the image?")
    one, two = Image.new("RGB", (84, 84), (250, 250, 250)), Image.new("RGB", (84, 84), (250, 250, 250))
    one.paste((200, 30, 30), (20, 20, 60, 60))
    two.paste((200, 30, 30), (20, 20, 60, 61))
    generate(web, text, uri(one))
    before_the_picture = len(web.post("/tokenize", json={"text": text.split("<|image_pad|>")[0]}).json()["tokens"])
    assert generate(web, text, uri(two))["meta_info"]["cached_tokens"] == before_the_picture


def test_cached_answers_are_bitwise_those_of_a_cold_cache(web: httpx.Client) -> None:
    """Two pictures, swapped pictures, repeated ones, texts between; all at once, warm; then one by one, each in a cache of its
    own: the log probabilities are equal to the last bit."""
    a, b, c = uri(show(500)), uri(show(501)), uri(show(500).resize((98, 70)))
    cases = [
        (IMAGE + "Describe the image.", [a]),
        (IMAGE + "Describe the image.", [b]),
        (IMAGE + "Describe the image.", [c]),
        (IMAGE * 2 + "Describe both images.", [a, b]),
        (IMAGE * 2 + "Describe both images.", [b, a]),
        (IMAGE * 2 + "Describe both images.", [a, a]),
        (IMAGE + "is one and " + IMAGE + "is two", [a, c]),
        (IMAGE + "is one and " + IMAGE + "is two", [c, a]),
        ("What is in this image?" + IMAGE, [a]),
    ]
    wanted = {"return_logprob": True, "logprob_start_len": 0}

    def ask(case: tuple[str, list[str]], salt: str) -> Any:
        meta = generate(web, TURN.format(case[0]), case[1], cache_salt=salt, **wanted)["meta_info"]
        return meta["input_token_logprobs"][1:], meta["output_token_logprobs"]

    def continued(case: tuple[str, list[str]], salt: str) -> Any:
        return generate(web, TURN.format(case[0]), case[1], cache_salt=salt, return_logprob=True)["meta_info"]

    alone = [ask(case, f"alone {i}") for i, case in enumerate(cases)]
    with ThreadPoolExecutor(18) as pool:
        together = list(pool.map(lambda case: ask(case, "shared"), cases * 2))
        warm = list(pool.map(lambda case: continued(case, "shared"), cases * 2))
    for number, case in enumerate(cases):
        for got in (together[number], together[number + len(cases)]):
            assert got == alone[number], case
        for meta in (warm[number], warm[number + len(cases)]):
            assert meta["cached_tokens"] > 8 and meta["output_token_logprobs"] == alone[number][1], case


def test_a_batch_shares_one_encoding(web: httpx.Client) -> None:
    image, before = uri(show(600)), num_encoded(web)
    texts = [TURN.format(IMAGE + question) for question in pictures.DESCRIBE]
    replies = generate(web, texts, image)
    assert len(replies) == len(texts) and num_encoded(web) == before + 1
    twice = generate(web, texts[0], image, sampling_params=GREEDY | {"n": 2})
    assert [reply["text"] for reply in twice] == [replies[0]["text"]] * 2 and num_encoded(web) == before + 1


def test_streams_and_retractions(web: httpx.Client) -> None:
    whole = generate(web, TURN.format(IMAGE + "Describe the image."), uri(show(610)))["text"]
    body = {
        "messages": chat_of(pictures.Dialog((), (("Describe the image.", ""),)), [uri(show(610))]),
        "temperature": 0,
        "stream": True,
    }
    client = openai.OpenAI(base_url=f"{web.base_url}/v1", api_key="none")
    chunks = client.chat.completions.create(model="toy-vlm", max_tokens=24, **body)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


# --- ways in ----------------------------------------------------------------------------------------------------------------


def test_image_data_in_all_its_forms(web: httpx.Client, folder: Path, host: str) -> None:
    image = show(700)
    image.save(folder / "a picture.png")
    text, bare = TURN.format(IMAGE + "Describe the image."), base64.b64encode(png(image)).decode()
    ways: list[Any] = [
        uri(image),
        bare,
        [bare],
        [[bare]],
        f"{host}/a%20picture.png",
        f"file://{folder}/a%20picture.png",
        "a picture.png",
        base64.b64encode(png(image, "BMP")).decode(),
    ]
    answers = {generate(web, text, way)["text"] for way in ways}
    assert len(answers) == 1
    batch = generate(web, [text, TURN.format("Hello!"), text], [[bare], None, bare])
    assert {batch[0]["text"], batch[2]["text"]} == answers and batch[1]["text"] not in answers
    assert {reply["text"] for reply in generate(web, [text, text], bare)} == answers


def test_images_in_tool_results(web: httpx.Client) -> None:
    """The same conversation by three APIs makes one prompt, with the picture in it."""
    url = uri(show(77))
    arguments = json.dumps({"at": "now"})
    function = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    chat = {
        "messages": [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "a", **function}]},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "image_url", "image_url": {"url": url}}]},
        ]
    }
    output = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image", "image_url": url}]}
    items = [
        {"type": "message", "role": "user", "content": "Look."},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": arguments},
        output,
    ]
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    blocks = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {"at": "now"}}]},
        {"role": "user", "content": [result]},
    ]
    replies = [
        web.post("/v1/chat/completions", json=chat | {"max_tokens": 4, "temperature": 0}),
        web.post("/v1/responses", json={"input": items, "max_output_tokens": 4, "temperature": 0}),
        web.post("/v1/messages", json={"messages": blocks, "max_tokens": 4, "temperature": 0}),
    ]
    assert [reply.status_code for reply in replies] == [200] * 3, [reply.text for reply in replies]
    sizes = [reply.json()["usage"] for reply in replies]
    counts = [
        sizes[0]["prompt_tokens"],
        sizes[1]["input_tokens"],
        sum(v for k, v in sizes[2].items() if k.endswith("input_tokens")),
    ]
    chat["messages"][2]["content"] = "A picture."
    without = web.post("/v1/chat/completions", json=chat | {"max_tokens": 4}).json()["usage"]["prompt_tokens"]
    assert counts[0] == counts[1] == counts[2] > without + 8


def test_frames_are_a_video(web: httpx.Client) -> None:
    frames = [show(710).resize((84, 84)), show(711).resize((84, 84)), show(712).resize((84, 84))]
    gif = io.BytesIO()
    frames[0].save(gif, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    animation = base64.b64encode(gif.getvalue()).decode()
    packed = "video:" + base64.b64encode(b"".join(map(png, frames))).decode()
    place = "<|vision_start|><|video_pad|><|vision_end|>"
    text = TURN.format(place + "Describe the image.")
    first = generate(web, text, None, video_data=animation)
    assert first["meta_info"]["prompt_tokens"] == generate(web, text, packed)["meta_info"]["prompt_tokens"]
    # as the language writes it: the image's placeholder, and a video for it
    assert generate(web, TURN.format(IMAGE + "Describe the image."), packed)["text"] == first["text"]
    for kind in ("video", "image"):
        message = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": f"data:{kind}/webp;base64,{animation}"}},
                                                {"type": "text", "text": "Describe the image."}]}]  # fmt: skip
        reply = web.post("/v1/chat/completions", json={"messages": message, "temperature": 0, "max_tokens": 24}).json()
        assert reply["choices"][0]["message"]["content"] == first["text"]


def test_engine_takes_pictures(web: httpx.Client) -> None:
    import sglang

    image = show(720)
    text = TURN.format(IMAGE + "Describe the image.")
    want = generate(web, text, uri(image))["output_ids"]
    with sglang.Engine(model_path=str(TOY), max_total_tokens=2048, threads=1) as engine:
        for way in (image, png(image), uri(image), [image]):
            assert engine.generate(text, GREEDY, image_data=way)["output_ids"] == want


@pytest.mark.slow  # pytest -m slow tests/server/test_vision_serving.py
def test_a_restart_has_the_rows_of_pictures(tmp_path: Path) -> None:
    """Another process, whose ids of pictures differ, finds on disk what the same picture computed, and of another nothing."""
    import sglang

    flags = {
        "model_path": str(TOY),
        "max_total_tokens": 2048,
        "threads": 1,
        "cache_dir": str(tmp_path / "cache"),
        "random_seed": 1,
    }
    text = TURN.format(IMAGE + "Describe the image. " * 12)
    with sglang.Engine(**flags) as engine:
        cold = engine.generate(text, GREEDY, image_data=png(show(720)))
        elsewhere = engine.generate("Look. " + text, GREEDY, image_data=png(show(720)))
    (rows,) = (tmp_path / "cache" / "images").iterdir()
    used_at = rows.stat().st_mtime_ns
    with sglang.Engine(**flags) as engine:
        other = engine.generate(text, GREEDY, image_data=png(show(721)))
        again = engine.generate(text, GREEDY, image_data=png(show(720)))
        engine.flush_cache()
        moved = engine.generate("See! " + text, GREEDY, image_data=png(show(720)))
        assert engine.generate("Look. " + text, GREEDY, image_data=png(show(720)))["output_ids"] == elsewhere["output_ids"]
    assert len(list(rows.parent.iterdir())) == 2 and rows.stat().st_mtime_ns > used_at, moved
    whole = (cold["meta_info"]["prompt_tokens"] - 1) // 16 * 16
    assert again["output_ids"] == cold["output_ids"]
    assert again["meta_info"]["cached_tokens"] >= whole > 2 * other["meta_info"]["cached_tokens"]


def test_the_language_shows_pictures(vision: RunningServer) -> None:
    import sglang as sgl

    @sgl.function
    def ask(s: Any, images: list[Any], question: str) -> None:
        parts: Any = question
        for image in reversed(images):
            parts = sgl.image(image) + parts
        s += sgl.user(parts)
        s += sgl.assistant(sgl.gen("answer", max_tokens=40, temperature=0))

    backend = sgl.RuntimeEndpoint(vision.url)
    one, two = show(730), show(731)
    with httpx.Client(base_url=vision.url, timeout=60, trust_env=False) as web:
        for images, question in (([one], "Describe the image."), ([one, two], "Describe both images.")):
            want = generate(
                web,
                TURN.format(IMAGE * len(images) + question),
                [uri(i) for i in images],
                sampling_params=GREEDY | {"max_new_tokens": 40},
            )
            state = ask.run(images, question, backend=backend)
            assert state["answer"] == want["text"]
            assert state.get_meta_info("answer")["prompt_tokens"] == want["meta_info"]["prompt_tokens"]


@pytest.mark.parametrize("sizes", [[(64, 48)], [(97, 31), (200, 150)]])
def test_the_tokens_of_images_are_counted(web: httpx.Client, sizes: list[tuple[int, int]]) -> None:
    """As Anthropic's API counts them, before the message is sent."""
    sources = [
        {"type": "base64", "media_type": "image/png", "data": uri(show(7).resize(size)).partition(",")[2]} for size in sizes
    ]
    content = [*({"type": "image", "source": source} for source in sources), {"type": "text", "text": "What is it?"}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    counted = web.post("/v1/messages/count_tokens", json=body)
    assert counted.status_code == 200, counted.text
    usage = web.post("/v1/messages", json={**body, "max_tokens": 1}).json()["usage"]
    assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
    words = {**body, "messages": [{"role": "user", "content": "What is it?"}]}
    assert counted.json()["input_tokens"] > web.post("/v1/messages/count_tokens", json=words).json()["input_tokens"] + 2
    content[0] = {"type": "image", "source": {**sources[0], "data": "aaaa"}}
    refused = web.post("/v1/messages/count_tokens", json=body)
    assert refused.status_code == 400 and refused.json()["type"] == "error"


def test_counted_tokens_are_those_of_the_message(web: httpx.Client) -> None:
    """With all that makes a prompt: system blocks, tools, their results with images, an answer that is begun."""
    source = {"type": "base64", "media_type": "image/png", "data": uri(show(8)).partition(",")[2]}
    tool = {
        "name": "look",
        "description": "Looks",
        "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
    }
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "it"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "So: "}, {"type": "image", "source": source}],
    }
    turns = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "Look."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look. "}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
    ]
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It"}, {"type": "text", "text": " is"}]}
    system = [{"type": "text", "text": "Be brief. "}, {"type": "text", "text": "Be kind."}]
    for more in ({}, {"system": system}, {"tools": [tool]}, {"system": "a", "tools": [tool], "tool_choice": {"type": "none"}}):
        for messages in (turns[:1], turns, [*turns, begun]):
            body = {"model": "m", "messages": messages, **more}
            counted = web.post("/v1/messages/count_tokens", json=body)
            usage = web.post("/v1/messages", json={**body, "max_tokens": 1}).json()["usage"]
            assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_model_info_says_that_it_sees(web: httpx.Client) -> None:
    info = web.get("/get_model_info").json()
    assert info["has_image_understanding"] and info["chat_roles"]["image_token"] == IMAGE
    assert info["chat_roles"]["default_system_prompt"] == "You are a helpful assistant."


# --- invalid images --------------------------------------------------------------------------------------------------------


def test_bad_pictures_get_a_sentence_and_the_server_lives_on(web: httpx.Client, host: str, folder: Path) -> None:
    (folder / "page.html").write_text("<html>no picture</html>")
    good = uri(show(740))
    text = TURN.format(IMAGE + "Describe the image.")
    large = base64.b64encode(png(Image.new("L", (2000, 600)))).decode()
    thin = base64.b64encode(png(Image.new("L", (2, 600)))).decode()
    bad: list[tuple[Any, Any, str]] = [
        (text, "AAAA", "not an image"),
        (text, "not base64 at all!", "neither a URL nor base64"),
        (text, good[:-400], "damaged or cut off"),
        (text, f"{host}/absent.png", "status 404"),
        (text, f"{host}/page.html", "is not an image"),
        (text, "file:///etc/passwd", "below the media root"),
        (text, "ftp://example.org/a.png", "http, https, data or file"),
        (text, large, "at most 1000000 are allowed"),
        (text, thin, "200 times the shorter"),
        (text, [good] * 5, "at most 4 images"),
        (text, [good, good], "the prompt has 1 places"),
        (text, [], "the prompt has 1 places"),
        (TURN.format("Hello!"), good, "the prompt has 0 places"),
        (TURN.format(IMAGE * 3), [good], "the prompt has 3 places"),
        ([text, text], [good], "has 1 entries for 2 prompts"),
        (text, 7, "must hold URLs"),
        (text, {"url": good}, "must hold URLs"),
    ]
    for prompt, images, words in bad:
        reply = web.post("/generate", json={"text": prompt, "image_data": images, "sampling_params": GREEDY})
        assert reply.status_code == 400 and words in reply.json()["error"]["message"], (words, reply.text)
    for part, words in (
        ({"type": "image_url", "image_url": {"url": good, "detail": "huge"}}, "detail must be"),
        ({"type": "image_url", "image_url": {"uri": good}}, "must be an object like"),
        ({"type": "image_url", "image_url": {"url": good, "size": 3}}, "unknown key 'size'"),
        ({"type": "image_url"}, "must be an object like"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "does not read"),
        ({"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}}, "is no image"),
    ):
        reply = web.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})
        assert reply.status_code == 400 and words in reply.json()["error"]["message"], (words, reply.text)
    assert generate(web, text, good)["text"]


def test_places_without_images_are_refused_in_every_route(web: httpx.Client) -> None:
    """An answer would be about nothing. In a batch the prompt that brings none is named by what it lacks."""
    text, video = TURN.format(IMAGE + "Describe the image."), TURN.format("<|vision_start|><|video_pad|><|vision_end|>What?")
    ids = web.post("/tokenize", json={"text": text}).json()["tokens"]
    good = uri(show(790))
    for path, body in (
        ("/generate", {"text": text}),
        ("/generate", {"text": video}),
        ("/generate", {"input_ids": ids}),
        ("/generate", {"text": [text, text], "image_data": [good, None]}),
        ("/generate", {"text": [TURN.format("Hi"), text], "image_data": [None, []]}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/completions", {"prompt": [ids]}),
        ("/score_choices", {"text": text, "choices": ["a", "b"]}),
    ):
        reply = web.post(path, json=body)
        assert reply.status_code == 400 and "the prompt has 1 places" in reply.json()["error"]["message"], (path, reply.text)
    assert generate(web, TURN.format("Hello!"), None)["text"]


def test_how_closely_a_request_looks(web: httpx.Client) -> None:
    image = uri(show(791).resize((400, 300)))
    text = TURN.format(IMAGE + "Describe the image.")

    def tokens(part: dict[str, Any], **fields: Any) -> int:
        content = [{"type": "image_url", **part}, {"type": "text", "text": "Describe the image."}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}
        reply = web.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return int(reply.json()["usage"]["prompt_tokens"])

    whole = tokens({"image_url": {"url": image}})
    small = tokens({"image_url": {"url": image, "max_pixels": 3136}})
    assert whole - small > 20 and tokens({"image_url": {"url": image, "detail": "original"}}) == whole
    assert tokens({"image_url": {"url": image}, "max_pixels": 3136}) == small
    assert tokens({"image_url": {"url": image}}, mm_processor_kwargs={"max_pixels": 3136}) == small
    assert tokens({"image_url": {"url": image, "max_pixels": 28224}}, mm_processor_kwargs={"max_pixels": 3136}) == whole
    native = generate(web, text, image, mm_processor_kwargs={"max_pixels": 3136})["meta_info"]["prompt_tokens"]
    assert native == generate(web, text, image)["meta_info"]["prompt_tokens"] - (whole - small)
    for wrong in ({"fps": 2}, {"max_pixels": "many"}, 5):
        reply = web.post("/generate", json={"text": text, "image_data": image, "mm_processor_kwargs": wrong})
        assert reply.status_code == 400 and "mm_processor_kwargs" in reply.json()["error"]["message"]
    assert web.get("/get_model_info").json()["max_image_tokens"] == 1280


@pytest.fixture
def media_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged of images (the package's logger hands nothing on)."""
    logger = logging.getLogger("sglang.srt.server.multimodal")
    caplog.set_level("INFO", logger=logger.name)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_an_operators_limit_holds_for_all(media_log: pytest.LogCaptureFixture) -> None:
    """The log says what was made of a picture, where that is not what its publisher makes of it; and which file was cut off."""
    import sglang

    text, image = TURN.format(IMAGE + "Describe the image."), show(792).resize((400, 300))
    cut = png(show(794).resize((400, 300)), "JPEG")
    with sglang.Engine(model_path=str(TOY), max_total_tokens=1024, threads=1, max_image_tokens=9) as engine:
        bare = engine.generate(TURN.format("Describe the image."), GREEDY)["meta_info"]["prompt_tokens"]
        for fields in ({}, {"mm_processor_kwargs": {"max_pixels": 28224}}):
            reply = engine.generate(text, GREEDY, image_data=image, **fields)
            assert 4 <= reply["meta_info"]["prompt_tokens"] - bare - 2 <= 9
        said = media_log.messages
        assert said and all("400 x 300, was resized to" in one and "the budget is 9 tokens" in one for one in said)
        media_log.clear()
        engine.generate(text, GREEDY, image_data=show(793).resize((56, 56)))
        assert not media_log.messages
        engine.generate(text, GREEDY, image_data=cut[: int(0.9 * len(cut))])
        assert any("is cut off: the last" in one and "of its 300 rows are grey" in one for one in media_log.messages)


def test_placeholders_typed_as_text_are_text(web: httpx.Client) -> None:
    typed = [{"role": "user", "content": f"Is {IMAGE} a picture?"}]
    reply = web.post("/v1/chat/completions", json={"messages": typed, "temperature": 0, "max_tokens": 4})
    assert reply.status_code == 200
    shown = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f"not {IMAGE} but"},
                {"type": "image_url", "image_url": {"url": uri(show(750))}},
            ],
        }
    ]
    reply = web.post("/v1/chat/completions", json={"messages": shown, "temperature": 0, "max_tokens": 4})
    assert reply.status_code == 200, reply.text


def test_disconnecting_clients_and_many_requests(web: httpx.Client) -> None:
    """Pictures of requests that are gone are not waited for; many at once all get answers; every page comes back."""
    text = TURN.format(IMAGE + "Describe the image.")
    hasty = httpx.Client(base_url=web.base_url, timeout=0.01, trust_env=False)
    with hasty, contextlib.suppress(httpx.TimeoutException):
        hasty.post("/generate", json={"text": text, "image_data": uri(show(760)), "sampling_params": GREEDY})
    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda i: generate(web, text, uri(show(770 + i % 20)))["text"], range(60)))
    assert replies[:20] == replies[20:40] == replies[40:60]
    state = web.get("/get_server_info").json()["internal_states"][0]
    assert state["num_running"] == state["num_waiting"] == 0
    assert state["num_free_tokens"] + state["num_cached_tokens"] == state["max_total_tokens"]


def test_a_model_of_text_says_so(http: httpx.Client) -> None:
    image = uri(show(780))
    reply = http.post("/generate", json={"text": "What is this?", "image_data": image})
    assert reply.status_code == 400 and "reads text only" in reply.json()["error"]["message"]
    message = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]
    reply = http.post("/v1/chat/completions", json={"messages": message})
    assert reply.status_code == 400 and "reads text only" in reply.json()["error"]["message"]


def test_text_is_served_where_packages_for_images_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning names them and how to install them; an image is refused by what is missing."""
    import importlib.util

    import sglang
    from sglang.srt.errors import RequestError
    from sglang.srt.server.multimodal import opening

    said: list[str] = []
    monkeypatch.setattr(opening.logger, "warning", lambda text, *values: said.append(text % values))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "PIL" else find(name, *rest))
    with sglang.Engine(model_path=str(TOY), threads=2) as engine:
        prompt = TURN.format("What color is a banana?")
        assert engine.generate(prompt, {**GREEDY, "max_new_tokens": 2})["meta_info"]["completion_tokens"] > 0
        with pytest.raises(RequestError, match=r"lacks packages .* \[vision\]"):
            engine.generate(TURN.format(IMAGE), GREEDY, image_data=png(show(790)))
    assert len(said) == 1 and "need Pillow: text alone is served" in said[0] and "pip install" in said[0]
