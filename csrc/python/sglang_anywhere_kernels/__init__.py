"""The extension `_cpu`, where it could be built. `sglang.srt.model.kernels.cpu` gives it its Python side."""

from importlib.metadata import version

__version__ = version("sglang-anywhere-kernels")
