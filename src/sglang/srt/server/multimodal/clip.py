"""A decoded file: frames, and their times if the file has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""RGB, [height, width, 3]"""
SECONDS = "Seconds"
"""keyword of the text chunk in which the language's `video()` writes the time of a frame into its PNG"""
MAX_SECONDS = 1e6


@dataclass(frozen=True)
class Clip:
    """An image (one frame) or a video. `times`: seconds of each frame from the beginning; empty: unknown."""

    frames: Sequence[Frame]
    times: Sequence[float] = ()


class Clock:
    """Collects the times of an animation's frames from what Pillow knows of each: how long it is shown, in milliseconds, or for
    PNG files one after another the second that is written in them."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._now = 0.0

    def add(self, info: Mapping[Any, Any]) -> None:
        with suppress(TypeError, ValueError):
            self._now = float(info.get(SECONDS, self._now))
        self._times.append(self._now)
        with suppress(TypeError, ValueError):
            self._now += float(info.get("duration") or 0) / 1000

    @property
    def times(self) -> tuple[float, ...]:
        """Empty where the file tells none, or none that can be."""
        found = self._times
        ascends = all(0 <= a <= b <= MAX_SECONDS for a, b in pairwise(found))
        return tuple(found) if len(found) > 1 and ascends and found[-1] > found[0] else ()
