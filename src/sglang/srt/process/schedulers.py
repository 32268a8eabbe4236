"""The schedulers of a server: one, or several that share its requests (--replicas), each in its own process with its share of the cores.

    server --send--> Router --> scheduler 0, 1, ...      one of them has a request (routing.py)
    server <--handle-- Router <-- all of them

One that dies is restarted. Its requests are continued from the tokens already sent: by the others at once, or by the next one if there
are no others. Which scheduler computes a request changes no bit of its answer, and one whose model has changed on disk is not let in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.fingerprint import code_digest, fingerprint
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import NamedAdapter, RuntimeConfig
from sglang.srt.errors import ConfigError
from sglang.srt.messages import LoadAdapterReq, StateReq, ToScheduler, UnloadAdapterReq
from sglang.srt.process.routing import Router
from sglang.srt.process.scheduler_child import SchedulerProcess
from sglang.srt.server.tokenizer_manager import TokenizerManager

logger = logging.getLogger("sglang")

MAX_RESTARTS = 5
"""deaths of a scheduler within RESTART_WINDOW seconds after which the server gives up"""
RESTART_WINDOW = 120.0
MAX_REFUSED = 256
"""grammars that killed a scheduler, the newest ones"""
HEARTBEAT_SECONDS = 5.0


class _Replica:
    """One scheduler after the other at one place."""

    def __init__(self, index: int, process: SchedulerProcess) -> None:
        self.index = index
        self.process = process
        self.receiver: asyncio.Task[None] | None = None
        self.deaths: list[float] = []
        self.last_sign = time.monotonic()
        self.is_up = True


class Schedulers:
    """Owner of the processes. `give_up` is told why they cannot be kept up any more."""

    def __init__(self, config: RuntimeConfig, give_up: Callable[[str], None]) -> None:
        self._config = config
        self._give_up = give_up
        self._count = config.device.replicas
        self._replicas = [_Replica(0, SchedulerProcess(self._config_of(0), _devices(config, 0)))]
        self._router: Router | None = None
        self._manager: TokenizerManager
        self._identity = ""
        self._stopping = False

    async def ready(self) -> dict[str, Any]:
        """ModelInfo as a dict, once all have loaded the model. Raises ConfigError if one cannot."""
        info = await self._replicas[0].process.ready()
        if self._count == 1:
            if self._config.http.behind_gateway:  # another server may have to go on with its answers
                info["fingerprint"] = await asyncio.to_thread(self._fingerprint, info)
            return info
        if info.get("embedding_dim"):
            raise ConfigError("--replicas: models that embed run on one scheduler")
        self._take_plan(info)
        self._identity = info["fingerprint"] = await asyncio.to_thread(self._fingerprint, info)
        for index in range(1, self._count):
            self._replicas.append(_Replica(index, SchedulerProcess(self._config_of(index), _devices(self._config, index))))
        await asyncio.gather(*(replica.process.ready() for replica in self._replicas[1:]))
        self._router = Router(self._count, int(info["max_total_tokens"]))
        return info

    def _config_of(self, index: int) -> RuntimeConfig:
        """With its share of the cores; the first one plans for as many as there are to be."""
        config = self._config
        if self._count == 1 or _is_on_gpu(config):
            return config
        from sglang.srt.model.kernels.cpu import default_threads

        threads = config.device.threads or default_threads()
        share = max(threads // self._count + (index < threads % self._count), 1)
        return dataclasses.replace(config, device=dataclasses.replace(config.device, threads=share))

    def _take_plan(self, info: dict[str, Any]) -> None:
        """All have the KV pool of the first one, now and after a restart."""
        plan = {"max_total_tokens": info["max_total_tokens"], "max_running_requests": info["max_running_requests"], "copies": 1}
        self._config = dataclasses.replace(self._config, memory=dataclasses.replace(self._config.memory, **plan))

    def _fingerprint(self, info: dict[str, Any]) -> str:
        """Whether a scheduler that is started now would compute the same bits as those that run."""
        config, model = self._config, Path(__file__).parents[1] / "model"
        code = code_digest(model.rglob("*.py"))
        return fingerprint(config.model, find_files(config.model), config.device, str(info["kernels"]), code)

    # --- messages -----------------------------------------------------------------------------------------------------------

    def send(self, message: ToScheduler) -> None:
        """Queues it for those whom it concerns."""
        if self._router is None:
            self._replicas[0].process.link.send(message)
        else:
            for index in self._router.targets(message):
                self._replicas[index].process.link.send(message)

    async def run(self, manager: TokenizerManager) -> None:
        """Hands their messages to the manager, and keeps them up."""
        self._manager = manager
        for replica in self._replicas:
            self._listen(replica)
        await asyncio.gather(*(self._supervise(replica) for replica in self._replicas), self._heartbeat())

    def _listen(self, replica: _Replica) -> None:
        replica.last_sign = time.monotonic()
        replica.receiver = asyncio.ensure_future(self._receive(replica))

    async def _receive(self, replica: _Replica) -> None:
        link = replica.process.link
        while True:
            message = await link.receive()
            replica.last_sign = time.monotonic()
            heard = message if self._router is None else self._router.heard(replica.index, message)
            if heard is not None:
                self._manager.handle(heard)

    # --- deaths -------------------------------------------------------------------------------------------------------------

    async def _supervise(self, replica: _Replica) -> None:
        """Starts another scheduler when one dies, and has its requests continued."""
        while True:
            await replica.process.wait()
            if self._stopping:
                return
            if replica.receiver is not None:  # nothing of the old one may come once its requests are sent to another
                replica.receiver.cancel()
            how = replica.process.how_it_ended()
            self._lost(replica, how, is_explained=self._refuse(replica.process.blamed_grammars()))
            logger.error("The scheduler %s; starting another one.", how)
            if not self._may_restart(replica):
                return
            await self._restart(replica)

    def _lost(self, replica: _Replica, how: str, is_explained: bool) -> None:
        """Its requests go to the others, if there are any."""
        if not replica.is_up:  # it died while it loaded
            return
        replica.is_up = False
        names: list[str] = []
        if self._router is not None:
            names, news = self._router.lost(replica.index)
            for message in news:
                self._manager.handle(message)
        if any(other.is_up for other in self._replicas):
            self._manager.replica_lost(names, is_explained)
        else:
            if self._router is not None:
                self._router.forget_all()
            self._manager.scheduler_lost(f"the scheduler {how}; it is being restarted", is_explained=is_explained)

    async def _restart(self, replica: _Replica) -> None:
        replica.process.link.close()
        self._keep_adapters()
        given = self._config.adapters
        replica.process = SchedulerProcess(self._config_of(replica.index), _devices(self._config, replica.index))
        try:
            info = await replica.process.ready()
            if self._router is not None:
                await self._check_same(replica, info)
                if given is not None:
                    info["adapters"] = await self._catch_up(replica, given.adapters, info["adapters"] or {})
        except ConfigError as error:  # it has ended, or is about to: the next round counts and reports it
            logger.error("%s", error)
            if self._config.nodes is not None:  # they had their time, and trying again would be another such time
                self._end(str(error))
            return
        was_alone = not any(other.is_up for other in self._replicas)
        replica.is_up = True
        self._listen(replica)
        if self._router is not None:
            self._router.back(replica.index)
        if was_alone:
            self._manager.scheduler_restarted(info)
        else:
            self._manager.replica_back(info.get("adapters"))
        logger.info("The scheduler is back.")

    def _keep_adapters(self) -> None:
        """The next scheduler begins with those that are loaded now."""
        if (adapters := self._config.adapters) is not None:
            loaded = dataclasses.replace(adapters, adapters=self._manager.adapters.current())
            self._config = dataclasses.replace(self._config, adapters=loaded)

    async def _catch_up(self, replica: _Replica, given: Sequence[NamedAdapter], loaded: Mapping[Any, Any]) -> dict[int, Any]:
        """Has a scheduler that was started with the adapters `given`, and could load those in `loaded`, load and unload what the others
        were told of since. Returns what it has then, by uid; nothing is being loaded at that moment. Raises ConfigError if it ends
        meanwhile."""
        adapters, known = self._manager.adapters, {adapter.uid: adapter for adapter in given}
        has = {int(uid): info for uid, info in loaded.items()}
        while True:
            await adapters.loads_end()
            now = {adapter.uid: adapter for adapter in adapters.current()}
            if now.keys() == known.keys():
                return has
            for uid in known.keys() - now.keys():
                await replica.process.ask(UnloadAdapterReq(-uid, uid))
                has.pop(uid, None)
            for uid in now.keys() - known.keys():
                reply = await replica.process.ask(LoadAdapterReq(-uid, uid, now[uid].path, now[uid].pinned))
                if reply.ok and reply.adapter is not None and reply.adapter.digest == now[uid].digest:
                    has[uid] = reply.adapter
            known = now

    async def _check_same(self, replica: _Replica, info: dict[str, Any]) -> None:
        """Raises ConfigError for one that would compute other bits than those before it: then it is ended."""
        if await asyncio.to_thread(self._fingerprint, info) != self._identity:
            replica.process.kill()
            raise ConfigError(
                "the files of the model have changed since the server was started; restart the server to serve them"
            )

    def _refuse(self, grammars: set[bytes]) -> bool:
        """Makes the next schedulers refuse these grammars. False if there are none. Other schedulers that run do not know of it: each
        of them may die of a grammar once."""
        if not grammars:
            return False
        logger.error("%d grammars were being worked on when the scheduler died; they are refused from now on.", len(grammars))
        refused = dict.fromkeys((*self._config.grammar.refused, *sorted(digest.hex() for digest in grammars)))
        grammar = dataclasses.replace(self._config.grammar, refused=tuple(refused)[-MAX_REFUSED:])
        self._config = dataclasses.replace(self._config, grammar=grammar)
        return True

    def _may_restart(self, replica: _Replica) -> bool:
        """Whether it has died seldom enough to be restarted. Otherwise the server ends."""
        now = time.monotonic()
        replica.deaths = [t for t in replica.deaths if now - t < RESTART_WINDOW] + [now]
        if len(replica.deaths) <= MAX_RESTARTS:
            return True
        self._end(f"the scheduler died {len(replica.deaths)} times within {RESTART_WINDOW:g} s")
        return False

    def _end(self, failure: str) -> None:
        """Requests that wait get errors, and the server ends."""
        self._stopping = True
        logger.error("Giving up: %s.", failure)
        self._manager.scheduler_died(failure)
        self._give_up(failure)

    async def _heartbeat(self) -> None:
        """The watchdog: a scheduler that is silent for too long is killed, and so restarted. One that loads is left alone."""
        limit = self._config.schedule.watchdog_timeout
        pause = min(HEARTBEAT_SECONDS, limit / 4)
        while True:
            lay_down = time.monotonic()
            await asyncio.sleep(pause)
            # while this process was blocked it received nothing; that does not count as the schedulers' silence
            blocked = max(time.monotonic() - lay_down - 2 * pause, 0.0)
            for replica in self._replicas:
                replica.last_sign += blocked
            if self._manager.is_alive:
                self.send(StateReq(call_id=0))
            for replica in self._replicas:
                silent = time.monotonic() - replica.last_sign
                if replica.is_up and silent > limit:
                    logger.error("The scheduler has sent nothing for %.0f s; killing it.", silent)
                    replica.last_sign = time.monotonic()
                    replica.process.kill()

    async def stop(self, timeout: float) -> None:
        """Ends all of them."""
        self._stopping = True
        for replica in self._replicas:
            if replica.receiver is not None:
                replica.receiver.cancel()
        await asyncio.gather(*(replica.process.stop(timeout) for replica in self._replicas))


def _is_on_gpu(config: RuntimeConfig) -> bool:
    return "cuda" in (config.device.device, config.device.kernels)


def _devices(config: RuntimeConfig, index: int) -> dict[str, str]:
    """Variables of the process: the CUDA devices of this replica, of those that there are."""
    if config.device.replicas == 1 or not _is_on_gpu(config):
        return {}
    size = config.device.tp_size
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    wanted = range(index * size, (index + 1) * size)
    if visible and len(visible) < wanted.stop:
        raise ConfigError(
            f"--replicas {config.device.replicas} needs {config.device.replicas * size} CUDA devices, and there are {len(visible)}"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[i] if visible else str(i) for i in wanted)}
