"""Starts a server: opens its address, finds the model and checks that it fits in memory, then imports and runs the rest.

A busy port, a wrong name and a model that is too large are reported within a second or two: HTTP, tokenizers and the scheduler, which
take longer to import, come afterwards (launch.py).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial

from sglang.common.install import needs_extra
from sglang.srt.checkpoint.resolve import with_files
from sglang.srt.config import RuntimeConfig
from sglang.srt.process.endpoint import close_endpoint, open_endpoint, tls_context
from sglang.srt.process.logs import configure_access_log, configure_logging
from sglang.srt.process.secret_values import hide_secrets
from sglang.srt.server_args import ServerArgs

logger = logging.getLogger("sglang")


def launch_server(args: ServerArgs, on_ready: Callable[[], None] | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM; with --node-rank 1 and on, computes for node 0. Raises SglangError when the server cannot start or cannot be kept up,
    MissingPackage where the extra [srt] is not installed."""
    configure_logging(args.log_level, args.log_level_http, args.log_format)
    configure_access_log(args.log_level_http or args.log_level, args.log_format)
    for note in args.notes():
        logger.warning("%s", note)
    config = args.resolve()
    hide_secrets(args.secrets())
    if config.nodes is not None and config.nodes.rank > 0:
        run_node(config)
        return
    tls = tls_context(config.http)
    listener = open_endpoint(config.http)
    try:
        config = with_files(config)
        check_model(config)
        logger.info("server_args=%s", args.given())
        logger.debug("all of them: %s", args.without_secrets())
        with needs_extra("srt"):
            from sglang.srt.process.launch import run_server

        run_server(config, listener, on_ready, tls, lambda: args.resolve().http)
    finally:
        close_endpoint(listener, config.http.uds)


def run_node(config: RuntimeConfig) -> None:
    """Raises ConfigError."""
    with needs_extra("srt"):
        from sglang.srt.model.distributed import node
        from sglang.srt.process.ending import when_stdin_ends
    if config.http.stop_with_stdin:
        stop = partial(os.kill, os.getpid(), signal.SIGTERM)
        threading.Thread(target=when_stdin_ends, args=(stop,), name="life-line", daemon=True).start()
    node.run_node(config)


def check_model(config: RuntimeConfig) -> None:
    """Raises ModelError for a model that cannot be read, CapacityError for one that is too large, from the headers of its files. On a
    GPU the scheduler's process does this, since asking for its memory takes a part of it."""
    device = config.device
    if "cuda" in (device.device, device.kernels) or config.model.is_embedding:
        return
    with needs_extra("srt"):
        from sglang.srt.model.embedder import embeds_by_itself
        from sglang.srt.model.worker import check_fit

    if not embeds_by_itself(config.model):
        check_fit(config.model, config.device, config.memory, config.draft.model if config.draft is not None else None)
