"""Ray Serve's request router, in the gateway's process: the replica where a request costs least (cluster/policy.py).

Serve waits for ever for a router that raises: whatever happens here, there is an order of the replicas. Serve calls it on a thread of its
own, and leases.py on the gateway's, for requests that need no call.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from ray.serve.request_router import FIFOMixin, RequestRouter

from sglang.cluster.policy import PrefixPolicy
from sglang.cluster.ray import live

logger = logging.getLogger("sglang")


class PrefixRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Owner of a policy whose replicas come and go."""

    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0
    """replicas are asked how many requests they have when that is not known; Serve's own 0.1 s is too short on a busy machine"""

    def initialize_state(self, pool_tokens: int) -> None:
        """`pool_tokens`: of a replica's KV pool, about."""
        self._policy = PrefixPolicy(0, pool_tokens)
        self._lock = threading.Lock()
        self._numbers: dict[Any, int] = {}
        self._open: dict[int, str] = {}
        """requests of the gateway that are under way, and the replica that was first in the order of each"""
        self._has_complained = False
        live.ROUTERS.add(self)

    # --- the gateway ----------------------------------------------------------------------------------------------------------

    def begin(self, name: int, key: dict[str, Any]) -> str | None:
        """A request has come. Returns the replica where it costs least; None if there is none."""
        with self._lock:
            self._open[name] = ""
        order = self._order(list(self.curr_replicas.values()), key)
        return order[0].replica_id.unique_id if order else None

    def first_choice(self, name: int) -> str:
        """The replica that Serve was told to ask first."""
        return self._open.get(name, "")

    def goes_to(self, name: int, replica: str, key: dict[str, Any]) -> None:
        """It goes to a replica without a call of Serve."""
        found = next((one for one in self.curr_replicas if one.unique_id == replica), None)
        if found is not None:
            self._note(name, found, key)

    def progress(self, name: int, num_outputs: int) -> None:
        """So many outputs of it have come."""
        with self._lock:
            self._policy.progress(name, num_outputs)

    def end(self, name: int) -> None:
        """It has ended, however it did."""
        with self._lock:
            self._open.pop(name, None)
            self._policy.end(name)

    # --- what Serve asks --------------------------------------------------------------------------------------------------------

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """All replicas, the best first, each a rank of its own; for a key with `only` that one alone."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # after all of them, not between
        key = _key_of(pending_request)
        order = self._order(candidate_replicas, key)
        if order and key.get("name") in self._open:
            self._open[key["name"]] = order[0].replica_id.unique_id
        return [[replica] for replica in order]

    def _order(self, replicas: list[Any], key: dict[str, Any]) -> list[Any]:
        try:
            with self._lock:
                return self._ranked(replicas, key)
        except Exception as error:  # noqa: BLE001
            if not self._has_complained:
                self._has_complained = True
                logger.error("The choice of a replica failed, and the least loaded one is taken from now on: %r", error)
            return sorted(replicas, key=self._queue_len)

    def _ranked(self, replicas: list[Any], key: dict[str, Any]) -> list[Any]:
        known = {self._number(replica.replica_id): replica for replica in replicas}
        only, lost = key.get("only"), key.get("lost", ())
        if only is not None:
            return [replica for replica in replicas if replica.replica_id.unique_id == only]
        order = [known[i] for i in self._policy.rank(key.get("blocks", ()), key.get("prompt_len", 1)) if i in known]
        return sorted(order, key=lambda replica: replica.replica_id.unique_id in lost)  # stable

    def _number(self, replica_id: Any) -> int:
        if replica_id not in self._numbers:
            self._numbers[replica_id] = self._policy.add()
        return self._numbers[replica_id]

    def _queue_len(self, replica: Any) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

    # --- what Serve tells ---------------------------------------------------------------------------------------------------

    def update_replicas(self, replicas: list[Any]) -> None:
        super().update_replicas(replicas)
        here = {replica.replica_id for replica in replicas}
        for replica_id in [one for one in self._numbers if one not in here]:
            self._forget(replica_id)

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        key = _key_of(pending_request)
        self._note(key.get("name"), replica_id, key)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id)

    def _note(self, name: int | None, replica_id: Any, key: dict[str, Any]) -> None:
        with self._lock:
            if name in self._open and replica_id in self._numbers and "prompt_len" in key:
                self._policy.end(name)  # it was sent to another one before
                self._policy.send_to(self._numbers[replica_id], name, key["blocks"], key["prompt_len"], key["max_new_tokens"])

    def _forget(self, replica_id: Any) -> None:
        with self._lock:
            if replica_id in self._numbers:
                self._policy.lost(self._numbers.pop(replica_id))


def _key_of(pending_request: Any) -> dict[str, Any]:
    args = pending_request.args if pending_request is not None else ()
    return args[0] if args and isinstance(args[0], dict) else {}
