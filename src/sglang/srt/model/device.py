"""Chooses the device and the kernels, and measures the memory that is available."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, cast

from sglang.common.install import install_compiler, install_extras, install_kernels
from sglang.srt.config import DeviceOptions, MemoryOptions
from sglang.srt.errors import ConfigError
from sglang.srt.model.capacity import HostMemory, host_memory, shared_memory
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps

logger = logging.getLogger("sglang")

DEVICE_FRACTION = 0.88
"""of a GPU's memory, for weights and KV pool; the rest is for step buffers, graphs and the libraries' own"""
KV_BYTES = ("int8", "fp8_e4m3")
"""what K and V may be on a CPU besides the op set's own"""
CUDA_DTYPES = ("float32", "float16", "bfloat16")


def create_ops(device: DeviceOptions, rank: int = 0, dtype: str = "bfloat16") -> Ops:
    """The kernel set the flags ask for; by default our C++, or NumPy with a warning where that cannot be loaded. `rank`: which
    CUDA device, where there are several; `dtype`: what the model computes in there."""
    if device.device == "cuda" or device.kernels == "cuda":
        return _cuda_ops(device, rank, dtype)
    if device.kv_cache_dtype not in ("auto", *KV_BYTES):
        raise ConfigError(
            f"--kv-cache-dtype {device.kv_cache_dtype} is for --device cuda; on a CPU it may be auto, {' or '.join(KV_BYTES)}"
        )
    if device.kernels == "reference":
        return _reference(device)
    try:
        from sglang.srt.model.kernels.cpu import CpuOps, default_threads, missing_isa
    except ImportError as error:
        if device.kernels == "cpu":
            raise ConfigError(
                f"--kernels cpu: the C++ kernels cannot be loaded ({error}); with a C++ compiler: {install_kernels()}"
            ) from error
        commands = [command for command in (install_compiler(), install_kernels()) if command]
        logger.warning(
            "The C++ kernels cannot be loaded (%s). The NumPy reference runs instead: answers are right but 10 to 50 times "
            "slower. To change that:\n\n    %s\n\nand start again.",
            *(error, "\n    ".join(commands)),
        )
        return _reference(device)
    if missing := missing_isa():
        logger.warning(
            "The C++ kernels were compiled for a plainer processor, without %s. For the speed of this one: %s",
            *(missing, install_kernels()),
        )
    ahead = default_threads() > 1  # on one core nothing runs beside anything
    return CpuOps(device.threads, ahead=ahead, kv_form=_kv_form(device, "float16"))


def _reference(device: DeviceOptions) -> ReferenceOps:
    return ReferenceOps(_kv_form(device, "float32"))


def _kv_form(device: DeviceOptions, own: str) -> str:
    return device.kv_cache_dtype if device.kv_cache_dtype in KV_BYTES else own


def create_probe(device: DeviceOptions) -> Ops:
    """The kernel set that `create_ops` would choose on a CPU, on one thread and without a warning: for sizes alone."""
    if device.kernels == "reference":
        return _reference(device)
    try:
        from sglang.srt.model.kernels.cpu import CpuOps
    except ImportError:
        return _reference(device)
    return CpuOps(1, kv_form=_kv_form(device, "float16"))


def _cuda_ops(device: DeviceOptions, rank: int, dtype: str) -> Ops:
    if device.kernels in ("cpu", "reference"):
        raise ConfigError(f"--kernels {device.kernels} does not run on --device cuda; leave one of the two out")
    try:
        from sglang.srt.model.kernels.cuda.ops import create_cuda_ops
    except ImportError as error:
        raise ConfigError(
            f"--device cuda needs torch and Triton ({error}): {install_extras('srt', 'cuda')}; or leave the flag out to run on the "
            "CPU"
        ) from error
    where = "cpu" if device.device == "cpu" else f"cuda:{rank}"
    if where != "cpu":
        _check_count(device.ranks_here)
    return cast(Ops, create_cuda_ops(where, dtype, device.kv_cache_dtype, device.deterministic))


def _check_count(needed: int) -> None:
    """A machine without any device is told so elsewhere."""
    import torch

    found = torch.cuda.device_count()
    if 0 < found < needed:
        raise ConfigError(f"--tp-size needs {needed} CUDA devices on this machine, one for each rank, and torch finds {found}")


def compute_dtype(config_dtype: str, asked: str) -> str:
    """The data type of computation on CUDA: --dtype, else the checkpoint's own, else bfloat16."""
    if asked != "auto":
        return asked
    return config_dtype if config_dtype in CUDA_DTYPES else "bfloat16"


def on_gpu(ops: Any) -> bool:
    """Whether the op set's arrays lie on a GPU."""
    return getattr(getattr(ops, "device", None), "type", "cpu") == "cuda"


def device_memory(ops: Any, options: MemoryOptions | None = None) -> HostMemory:
    """The memory of the GPU if the op set runs on one, else of the machine, less what `options` leave to others there."""
    if not on_gpu(ops):
        return host_memory() if options is None else shared_memory(options)
    import torch

    torch.cuda.empty_cache()  # what loading took beside the weights
    free, total = torch.cuda.mem_get_info(ops.device)
    return HostMemory(total, free)


def device_options(memory: MemoryOptions, ops: Any) -> MemoryOptions:
    """A GPU is there for the model: unless the flags say otherwise, the pool takes what is left of it."""
    if on_gpu(ops) and memory.mem_fraction_static is None and memory.max_total_tokens is None:
        return replace(memory, mem_fraction_static=DEVICE_FRACTION)
    return memory
