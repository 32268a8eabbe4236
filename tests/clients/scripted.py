"""A server with scripted answers: the whole application over HTTP, with the scheduler that has no model.

A model of 135M parameters does not call tools on demand, and agents must get through the turns that follow a call.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from sglang.srt.messages import TokenizedReq
from tests.server.conftest import MakeStand

CONTEXT_LEN = 65_536


@contextmanager
def scripted_server(make_stand: MakeStand, script: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Its URL. `script`: (mark, answer); a prompt gets the answer of the first mark that it has."""
    stand = make_stand(tokens_per_step=8, info={"context_len": CONTEXT_LEN, "max_total_tokens": CONTEXT_LEN})
    tokenizer = stand.manager.need_tokenizer()
    end = min(tokenizer.vocabulary.eos_token_ids)
    answers: dict[str, list[int]] = {}

    def next_of(req: TokenizedReq, i: int) -> int:
        if req.rid not in answers:
            prompt = tokenizer.decode(req.input_ids, skip_special_tokens=False)
            text = next((answer for mark, answer in script if mark in prompt), "Nothing.")
            answers[req.rid] = [*tokenizer.encode(text, add_special_tokens=False), end]
        return answers[req.rid][i]

    stand.scheduler.next_of = next_of
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(stand.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
