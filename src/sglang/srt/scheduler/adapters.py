"""Adapters of requests: which are loaded, which lie in the model's slots, and what of a request they change.

    load --side thread--> known --admitted with a request--> in a slot --another needs it--> known --unload, its requests ended--> gone

The slots are few (`num_slots`), and the adapters that are loaded may be more: a request waits until a slot is free, or one whose
adapter no request uses. Each load has a number of its own (uid) that is part of the key of whatever its rows leave in the prefix
tree, so that adapters never share, nor meet what was there before.

An activated adapter (aLoRA, arXiv 2504.12397) acts from the last occurrence of its invocation tokens on. Up to there rows are those of
the base model and are shared with it; in the tree the first adapted id is the adapter's own:

    prompt        15  22  31  7  8  40       7, 8: the invocation
    in the tree   15  22  31  m  8  40       m: MARK + uid
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sglang.srt.config import AdapterInfo
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.forward_batch import AdapterWorker, Int32Array, Loading
from sglang.srt.messages import ControlReply, LoadAdapterReq, ToScheduler, UnloadAdapterReq
from sglang.srt.scheduler.cache.radix_cache import MARK, RadixCache
from sglang.srt.scheduler.req import Req

PATIENCE = 64
"""times that a request may be passed over for want of a slot before later ones wait for it"""


@dataclass
class _Known:
    """A loaded adapter. `used`: when a request was last admitted with it; `placed`: when it came into its slot."""

    info: AdapterInfo
    pinned: bool
    slot: int | None = None
    used: int = 0
    placed: int = 0


class Adapters:
    """Owner of the slots. `live`: all requests of the scheduler, by rid. `tree`: the prefix tree, where their rows are kept."""

    def __init__(
        self, worker: AdapterWorker | None, policy: Literal["lru", "fifo"], live: Mapping[str, Req], tree: RadixCache
    ) -> None:
        self._worker, self._policy, self._live, self._tree = worker, policy, live, tree
        self._known: dict[int, _Known] = {}
        self._loading: list[tuple[LoadAdapterReq, Loading]] = []
        self._leaving: list[UnloadAdapterReq] = []
        self._free = list(range(worker.num_slots if worker is not None else 0))[::-1]
        self._clock = 0
        self._starving: Req | None = None
        self.is_busy = False
        """whether `poll` is to be called soon; an attribute, since every step asks"""

    # --- loading and unloading ------------------------------------------------------------------------------------------------

    def load_now(self, uid: int, path: str, pinned: bool, digest: str = "") -> AdapterInfo:
        """Before the first request. `digest`: of the weights that must be there. Raises ModelError."""
        assert self._worker is not None
        info = self._worker.load(uid, path).result()
        if digest and info.digest != digest:
            self._worker.forget(uid)
            raise ModelError(f"{path} has other weights than when it was loaded")
        self._known[uid] = _Known(info, pinned)
        return info

    def handle(self, message: ToScheduler) -> ControlReply | None:
        """Takes a message about adapters; an answer that is not given at once comes from `poll`."""
        if isinstance(message, LoadAdapterReq):
            if self._worker is None:
                return ControlReply(message.call_id, False, "this server was started without adapters")
            if message.pinned and self.num_pinned + 1 >= self._worker.num_slots:
                most = self._worker.num_slots - 1
                return ControlReply(
                    message.call_id, False, f"at most {most} adapters may be pinned (--max-loras-per-batch less one)"
                )
            self._loading.append((message, self._worker.load(message.uid, message.path)))
        elif isinstance(message, UnloadAdapterReq):
            self._leaving.append(message)
        self.is_busy = bool(self._loading or self._leaving)
        return None

    @property
    def num_pinned(self) -> int:
        return sum(known.pinned for known in self._known.values()) + sum(message.pinned for message, _ in self._loading)

    def poll(self) -> list[ControlReply]:
        """Answers to what is done by now."""
        replies: list[ControlReply] = []
        for entry in [entry for entry in self._loading if entry[1].done()]:
            self._loading.remove(entry)
            replies.append(self._finish_load(*entry))
        used = {req.adapter for req in self._live.values()} if self._leaving else set()
        used.update(message.uid for message, _ in self._loading)  # its caller has given it up
        for message in [message for message in self._leaving if message.uid not in used]:
            self._leaving.remove(message)
            self._forget(message.uid)
            replies.append(ControlReply(message.call_id))
        self.is_busy = bool(self._loading or self._leaving)
        return replies

    def _finish_load(self, message: LoadAdapterReq, loading: Loading) -> ControlReply:
        try:
            info = loading.result()
        except ModelError as error:
            assert self._worker is not None
            self._worker.forget(message.uid)
            return ControlReply(message.call_id, False, str(error))
        self._known[message.uid] = _Known(info, message.pinned)
        return ControlReply(message.call_id, adapter=info)

    def _forget(self, uid: int) -> None:
        known = self._known.pop(uid, None)
        if known is None:
            return
        if known.slot is not None:
            self._free.append(known.slot)
        self._tree.forget_adapter(uid)
        assert self._worker is not None
        self._worker.forget(uid)

    def digest_of(self, uid: int) -> str | None:
        """Of the content of an adapter; None for one that is not loaded."""
        known = self._known.get(uid)
        return (known.info.digest or None) if known is not None else None

    # --- requests -------------------------------------------------------------------------------------------------------------

    def enter(self, req: Req) -> None:
        """Has a new request run with its adapter. Raises RequestError if that is not loaded."""
        uid = req.msg.adapter
        known = self._known.get(uid)
        if known is None or any(message.uid == uid for message in self._leaving):
            raise RequestError("the adapter of this request is not loaded any more", "lora_path")
        invocation = known.info.invocation
        if not invocation:
            assert not isinstance(req.salt, tuple)
            req.adapter, req.salt = uid, (uid, req.salt)
            return
        first = last_occurrence(req.msg.input_ids, invocation)
        if first is None:  # nothing calls it: the base model answers
            return
        req.adapter, req.adapted_from, req.has_mark = uid, first, True
        req.prompt = req.prompt.copy()
        req.prompt[first] = MARK + uid

    def take_slot(self, req: Req, running: Iterable[Req]) -> bool:
        """Sees that the adapter of a request that is about to be admitted lies in a slot. False where it has to wait, since those of
        `running` requests take all of them."""
        if self._starving is not None and (self._starving.hold is not None or self._starving.rid not in self._live):
            self._starving = None
        if self._starving is not None and req.arrival > self._starving.arrival:
            return False
        known = self._known[req.adapter]
        if known.slot is None and not self._place(req.adapter, known, {other.adapter for other in running}):
            req.num_blocked += 1
            if req.num_blocked > PATIENCE and self._starving is None:
                self._starving = req
            return False
        self._clock += 1
        known.used = self._clock
        assert known.slot is not None
        req.adapter_slot = known.slot
        return True

    def _place(self, uid: int, known: _Known, in_use: set[int]) -> bool:
        if not self._free:
            idle = [k for u, k in self._known.items() if k.slot is not None and not k.pinned and u not in in_use]
            if not idle:
                return False
            oldest = min(idle, key=lambda k: k.used if self._policy == "lru" else k.placed)
            assert oldest.slot is not None
            self._free.append(oldest.slot)
            oldest.slot = None
        assert self._worker is not None
        known.slot = self._free.pop()
        self._clock += 1
        known.placed = self._clock
        self._worker.place(uid, known.slot)
        return True


def last_occurrence(ids: Iterable[int], part: tuple[int, ...]) -> int | None:
    """Where `part` begins for the last time in `ids`."""
    data, wanted = np.asarray(ids, np.int32).tobytes(), np.asarray(part, np.int32).tobytes()
    at = data.rfind(wanted)
    while at >= 0 and at % 4:
        at = data.rfind(wanted, 0, at + len(wanted) - 1)
    return at // 4 if at >= 0 else None


def rows_of(req: Req, start: int, end: int) -> Int32Array:
    """The slots for positions [start, end) of a request, -1 where no adapter acts."""
    slots = np.full(end - start, req.adapter_slot if req.adapter else -1, np.int32)
    slots[: max(req.adapted_from - start, 0)] = -1
    return slots
