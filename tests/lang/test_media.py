"""Images in every form, and the bytes that are sent."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl
from sglang import ProgramState, RuntimeEndpoint
from sglang.lang.media import load_image_data

from .native_server import NativeServer

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def decoded(source: Any) -> tuple[bytes, str]:
    data, mime = load_image_data(source)
    return base64.b64decode(data), mime


def test_files_bytes_and_urls(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (path, str(path), f"file://{path}", PNG, bytearray(PNG)):
        assert decoded(source) == (PNG, "image/png")
    assert load_image_data("https://x.org/a.png") == ("https://x.org/a.png", "image/url")
    assert load_image_data("data:image/webp;base64,AAAA") == ("AAAA", "image/webp")
    assert decoded(b"\xff\xd8\xff\xe0abc")[1] == "image/jpeg"


def test_pil_and_arrays() -> None:
    image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    picture = image.fromarray(pixels)
    for source in (picture, pixels, picture.convert("CMYK").convert("RGB")):
        data, mime = decoded(source)
        again = np.asarray(image.open(io.BytesIO(data)))
        assert mime == "image/png" and again.shape == (2, 3, 3)
    assert (np.asarray(image.open(io.BytesIO(decoded(pixels)[0]))) == pixels).all()
    assert image.open(io.BytesIO(decoded(pixels[:, :, 0])[0])).mode == "L"


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    data, _ = decoded(torch.zeros(3, 4, 5, dtype=torch.uint8))
    assert image.open(io.BytesIO(data)).size == (5, 4)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sgl.image(str(tmp_path / "nothing.png"))
    with pytest.raises(TypeError):
        sgl.image(5)
    with pytest.raises(ValueError):
        sgl.image(b"")
    np = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="bytes"):
        sgl.image(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError):
        sgl.image(np.zeros((2, 2, 2), dtype=np.uint8))


def test_one_image_travels_as_a_string_and_several_as_a_list(native: NativeServer) -> None:
    backend = RuntimeEndpoint(native.url, chat_template_name="qwen2-vl")
    token = backend.get_chat_template().image_token

    @sgl.function
    def program(s: ProgramState, count: int) -> None:
        s += sgl.user("".join(["See: "]) + sgl.image(PNG) + "and")
        for _ in range(count - 1):
            s += sgl.user("more " + sgl.image(PNG))
        s += sgl.assistant(sgl.gen("x"))

    state = program.run(1, backend=backend)
    state.sync()
    encoded = base64.b64encode(PNG).decode()
    assert native.generated()[0]["image_data"] == encoded and token in native.generated()[0]["text"]
    assert state.messages()[1]["content"] == [
        {"type": "text", "text": "See: and"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    program.run(2, backend=backend).sync()
    assert native.generated()[1]["image_data"] == [encoded, encoded]


def test_several_images_keep_their_places(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: ProgramState) -> None:
        s += sgl.user("first " + sgl.image(PNG) + " second " + sgl.image("https://x.org/b.png") + " compare")

    kinds = [part["type"] for part in program().messages()[1]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]


def test_data_uris_of_every_form() -> None:
    text = base64.b64encode(PNG).decode()
    for head in ("data:image;base64", "data:;base64", "DATA:image/png;base64", "data:image/png;name=a;base64"):
        assert load_image_data(f"{head},{text}") == (text, "image/png")
    assert base64.b64decode(load_image_data("data:image/gif,GIF89a%00")[0]) == b"GIF89a\0"


def test_pil_images_keep_bits_transparency_and_orientation() -> None:
    image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    samples = np.array([[0, 2570, 51400, 65535]] * 3, dtype=np.int32)
    for mode in ("I", "I;16", "I;16B"):
        wide = (
            image.fromarray(samples)
            if mode == "I"
            else image.frombytes(mode, (4, 3), samples.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
        )
        again = np.asarray(image.open(io.BytesIO(decoded(wide)[0])))
        assert again.astype(int).tolist() == samples.tolist()
    clear = image.new("RGBA", (4, 4), (1, 2, 3, 0)).convert("RGBa")
    assert image.open(io.BytesIO(decoded(clear)[0])).getpixel((0, 0))[3] == 0
    exif = image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert image.open(io.BytesIO(decoded(image.open(buffer))[0])).getexif()[0x0112] == 6
    with pytest.raises(TypeError, match="floating-point"):
        load_image_data(image.new("F", (2, 2)))


def test_frames_say_when_they_are_shown() -> None:
    image = pytest.importorskip("PIL.Image")
    from sglang.lang.media import with_time

    stamped = image.open(io.BytesIO(with_time(PNG, 1.25)))
    assert stamped.info["Seconds"] == "1.250" and stamped.convert("RGBA").size == (1, 1)


def test_video() -> None:
    cv2 = pytest.importorskip("cv2")
    assert cv2
    with pytest.raises(FileNotFoundError):
        sgl.video("/no/such/file.mp4", 3)
