"""A step of the build: the language's extra `srt` asks for the kernels of its own version; no line but one names that version."""

from __future__ import annotations

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

KERNELS = "sglang-anywhere-kernels"


class PinKernels(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        needs = metadata["optional-dependencies"]["srt"]
        position = next(i for i, need in enumerate(needs) if need.startswith(KERNELS))
        needs[position] = needs[position].replace(KERNELS, f"{KERNELS}=={metadata['version']}", 1)
