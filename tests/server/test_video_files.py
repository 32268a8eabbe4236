"""Video files, decoded by PyAV (skipped where it is not installed): the frames of their seconds, limits, damage."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal import video_files
from tests.server.media_tools import frames_of

av = pytest.importorskip("av")


def video(frames: int, rate: int = 10, size: tuple[int, int] = (64, 48), form: str = "mp4") -> bytes:
    """Frame i is grey: 10 + 2 * i."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            grey = np.full((size[1], size[0], 3), 10 + 2 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out.getvalue()


def greys(frames: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame).mean())) for frame in frames]


@pytest.mark.parametrize("form", ["mp4", "mov", "matroska", "avi"])
def test_two_frames_of_every_second(form: str) -> None:
    found = frames_of(video(30, 10, form=form))
    assert {frame.size for frame in found} == {(64, 48)} and all(frame.mode == "RGB" for frame in found)
    assert greys(found) == pytest.approx([10, 20, 30, 40, 50, 60], abs=4)


def test_few_frames_a_second_are_all_taken() -> None:
    assert greys(frames_of(video(4, 1))) == pytest.approx([10, 12, 14, 16], abs=3)


def test_a_long_video_is_taken_more_thinly() -> None:
    found = frames_of(video(100, 10), max_frames=5)
    assert greys(found) == pytest.approx([10, 50, 90, 130, 170], abs=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 1000}, "64 x 48"),
        ({"max_media_pixels": 64 * 48 * 3}, "pixels: 9216 are allowed"),
        ({"decode_timeout": 0.0}, "too long"),
    ],
)
def test_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        frames_of(video(30, 10), **options)


def test_no_more_than_so_many_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_files, "MAX_DECODED", 20)
    with pytest.raises(RequestError, match="too long"):
        frames_of(video(30, 10))


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_cut_off_anywhere(form: str) -> None:
    """One sentence, or the frames that were there (Matroska does not tell how many there should be)."""
    data = video(30, 10, form=form)
    for share in (0.02, 0.2, 0.5, 0.9):
        part = data[: int(share * len(data))]
        try:
            found = frames_of(part)
        except RequestError as error:
            assert "the video" in str(error)
        else:
            assert form != "mp4" and 0 < len(found) <= 6


def test_bytes_changed_anywhere() -> None:
    data, rng = video(20, 10), np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(data)
        for at in rng.integers(12, len(data), 20):
            broken[at] = rng.integers(0, 256)
        try:
            assert frames_of(bytes(broken))
        except RequestError as error:
            assert "the video" in str(error)


def test_sound_alone() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(RequestError, match="no video stream"):
        frames_of(out.getvalue())


def test_a_playlist_is_no_video() -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    for data in (playlist, b"ffconcat version 1.0\nfile /etc/passwd\n", b"\0\0\0\x18ftypisom" + playlist):
        with pytest.raises(RequestError):
            frames_of(data)
