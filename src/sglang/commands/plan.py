"""How much memory a model is going to take, as one line of JSON: for whoever starts several servers on one machine.

    python -m sglang.commands.plan FLAGS      the flags of a server; {"bytes": N}, N being 0 where that shows only with the model loaded

Reads the headers of the model's files, in a process of its own.
"""

from __future__ import annotations

import json
import sys

from sglang.srt.checkpoint.resolve import with_files
from sglang.srt.config import RuntimeConfig
from sglang.srt.errors import SglangError
from sglang.srt.server_args import parse_server_args


def planned_bytes(config: RuntimeConfig) -> int:
    """At least: with the smallest KV pool that is of use. Raises ModelError for a model that cannot be read."""
    device = config.device
    if "cuda" in (device.device, device.kernels) or config.model.is_embedding:
        return 0
    from sglang.srt.model.embedder import embeds_by_itself
    from sglang.srt.model.worker import needs_on_cpu

    if embeds_by_itself(config.model):
        return 0
    return needs_on_cpu(
        config.model, config.device, config.memory, config.draft.model if config.draft is not None else None
    ).total


def main() -> int:
    try:
        config = with_files(parse_server_args(sys.argv[1:], "plan").resolve())
        print(json.dumps({"bytes": planned_bytes(config)}))
    except SglangError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
