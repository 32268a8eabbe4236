"""This project with every token computed after the one before: no speculation where a text repeats itself."""

from __future__ import annotations

from benchmarks.drivers.ours import Ours
from benchmarks.drivers.protocol import main


class OursPlain(Ours):
    flags = {"speculative_algorithm": "none"}


if __name__ == "__main__":
    main(OursPlain())
