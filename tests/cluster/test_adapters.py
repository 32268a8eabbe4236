"""Adapters behind a gateway: by bare name, loaded while it runs, and still there when a model's server has died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from sglang.cluster.adapters import ServedAdapters
from sglang.common.server_process import end_process
from sglang.srt.errors import NoSuchModelError
from tests.cluster.conftest import CHAT, SEED, start_several
from tests.cluster.test_several import states, wait_for

USER, ADMIN = "user-key", "admin-key"


def write_adapter(folder: Path, seed: int) -> Path:
    """For the models of conftest.make_model, with random weights."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.mlp.{module}.lora_{side}.weight": rng.standard_normal(shape).astype(np.float32)
        for layer in range(3)
        for module, sizes in (("gate_proj", (96, 64)), ("down_proj", (64, 96)))
        for side, shape in (("A", (4, sizes[1])), ("B", (sizes[0], 4)))
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["gate_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def url(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        write_adapter(root / name, seed)
    listed = root / "models.yaml"
    listed.write_text(
        f"alpha:\n  model-path: {models['alpha']}\n  lora-paths: first={root}/one\nbeta: {models['beta']}\n", encoding="utf-8"
    )
    keys = ("--api-key", USER, "--admin-api-key", ADMIN)
    server = start_several(root / "log", "--models", str(listed), "--lora-root", str(root), *keys, *SEED)
    yield server.url
    end_process(server.process)


@pytest.fixture
def user(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers={"Authorization": f"Bearer {USER}"}) as client:
        yield client


@pytest.fixture
def admin(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        yield client


def said(client: httpx.Client, model: str) -> str:
    reply = client.post("/v1/chat/completions", json=CHAT | {"model": model, "temperature": 0})
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def change(client: httpx.Client, verb: str, model: str, **body: Any) -> httpx.Response:
    return client.post(f"/models/{model}/{verb}_lora_adapter", json=body)


def listed(client: httpx.Client) -> set[str]:
    return {card["id"] for card in client.get("/v1/models").json()["data"]}


def kill(admin: httpx.Client, model: str) -> None:
    pid = states(admin)[model]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: states(admin)[model].get("pid") not in (None, 0, pid))


@pytest.mark.cluster
def test_adapters_by_name_through_deaths(user: httpx.Client, admin: httpx.Client) -> None:
    plain, first = said(user, "alpha"), said(user, "first")
    assert first == said(user, "alpha:first") != plain
    assert change(user, "load", "alpha", lora_name="late", lora_path="two").status_code in (401, 403)
    assert states(user)["alpha"].keys() == {"name", "state"} < states(admin)["alpha"].keys(), (
        "a process is the operator's to know"
    )
    assert change(admin, "load", "alpha", lora_name="late", lora_path="two").status_code == 200
    late = said(user, "late")
    assert late == said(user, "alpha:late") not in (plain, first)
    assert {"alpha:first", "alpha:late"} <= listed(user) and user.get("/v1/models/late").json()["parent"] == "alpha"
    assert change(admin, "load", "alpha", lora_name="late", lora_path="one").status_code == 400
    assert change(admin, "load", "alpha", lora_name="bad", lora_path="none").status_code == 400
    kill(admin, "alpha")
    assert (said(user, "late"), said(user, "first"), said(user, "alpha")) == (late, first, plain)
    reply = user.post("/v1/chat/completions", json=CHAT | {"model": "lat"})
    assert reply.status_code == 404 and "'late'" in reply.text
    # the same name on another model
    assert change(admin, "load", "beta", lora_name="late", lora_path="two").status_code == 200
    reply = user.post("/v1/chat/completions", json=CHAT | {"model": "late"})
    assert reply.status_code == 404 and "alpha:late or beta:late" in reply.text
    assert said(user, "beta:late") != said(user, "beta")
    # what is unloaded stays so, one of the start's too
    for name in ("late", "first"):
        assert change(admin, "unload", "alpha", lora_name=name).status_code == 200
        assert change(admin, "unload", "alpha", lora_name=name).status_code == 404
    kill(admin, "alpha")
    assert said(user, "late") == said(user, "beta:late") and said(user, "alpha") == plain
    assert user.post("/v1/chat/completions", json=CHAT | {"model": "alpha:first"}).status_code == 404
    assert listed(user) == {"alpha", "beta", "beta:late"}
    assert admin.post("/v1/load_lora_adapter", json={"lora_name": "first", "lora_path": "two"}).status_code == 200
    kill(admin, "alpha")
    assert said(user, "first") == late


class Told:
    """A server that notes what it is asked, and answers with `status`."""

    def __init__(self, pid: int, status: int = 200) -> None:
        self.pid, self.replica, self.status = pid, "", status
        self.upstream: Any = self
        self.asked: list[tuple[str, bytes]] = []

    async def ask(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        self.asked.append((path, body))
        return type("Head", (), {"status": self.status}), b""


async def test_each_server_is_told_once_and_of_the_last_word_only() -> None:
    adapters = ServedAdapters({"m": {"lora_paths": "old=/x"}, "n": {}}, list)
    first = Told(1)
    adapters.heard("m", first, "/load_lora_adapter", "a", b"1")
    adapters.heard("m", first, "/v1/unload_lora_adapter", "a", b"2")
    adapters.heard("m", first, "/load_lora_adapter", "a", b"3")
    adapters.heard("m", first, "/unload_lora_adapter", "old", b"4")
    adapters.heard("m", first, "/load_lora_adapter", "b", b"5")
    adapters.heard("m", first, "/unload_lora_adapter", "b", b"6")

    assert adapters.names("m") == ["a"] and adapters.model_of("a") == "m" and adapters.model_of("old") is None
    second = Told(2, 400)
    for server in (first, second, second):
        await adapters.tell("m", server)
    assert first.asked == [] and second.asked == [("/load_lora_adapter", b"3"), ("/unload_lora_adapter", b"4")]
    await adapters.tell("n", second)
    adapters.heard("n", second, "/load_lora_adapter", "a", b"1")
    with pytest.raises(NoSuchModelError, match="m:a or n:a"):
        adapters.model_of("a")
