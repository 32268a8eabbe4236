"""load_image: every source of an image, and values that are no image."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sglang.srt.utils import images, load_image


def png(size: tuple[int, int] = (5, 3)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(out, "PNG")
    return out.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/image.png" else 404)
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_every_source(tmp_path: Path, host: str) -> None:
    path = tmp_path / "an image.png"
    path.write_bytes(png())
    text = base64.b64encode(png()).decode()
    sources = [
        path, str(path), path.as_uri(), png(), bytearray(png()), text, f"data:image/png;base64,{text}",
        Image.open(path), f"{host}/image.png", f"{host}/moved",
    ]  # fmt: skip
    for source in sources:
        image, size = load_image(source)
        assert size == image.size == (5, 3)
        assert image.convert("RGB").getpixel((0, 0)) == (200, 10, 30)


def test_what_is_no_image(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(png((50, 50))[:60])
    wrong: list[Any] = [
        "",
        5,
        None,
        "nowhere.png",
        cut,
        b"text",
        "!" * 100,
        f"{host}/nothing",
        "http://",
        "data:image/png;base64,%%",
        tmp_path,
    ]
    for source in wrong:
        with pytest.raises(ValueError):
            load_image(source)
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        load_image(f"{host}/image.png")
