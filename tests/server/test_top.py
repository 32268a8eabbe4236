"""`sglang top`: its table from real metrics, rates between two looks, and texts of all kinds."""

from __future__ import annotations

import httpx
import pytest

from sglang.cli import COMMANDS
from sglang.commands import top as command
from sglang.commands.arguments import CommandError
from sglang.commands.top import COLUMNS, parse_metrics, table, top
from tests.conftest import free_port
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of


async def test_a_server_in_numbers(make_stand: MakeStand) -> None:
    async with client_of(make_stand()) as client:
        before = parse_metrics((await client.get("/metrics")).text)
        body = {"model": "default", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 6}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        now = parse_metrics((await client.get("/metrics")).text)
    assert now["test-model"]["num_requests_total"] == before["test-model"]["num_requests_total"] + 1
    head, line = table(now, before, 2.0).splitlines()
    assert head.split()[0] == "model" and line.split()[0] == "test-model"
    cells = line.split()
    assert cells[1] == "0" and cells[-1] == "1" and int(cells[5]) >= 3  # six tokens in two seconds
    assert cells[-2] == "s"  # the first token has come since


def test_rates_are_those_between_two_looks_and_begin_anew_with_a_server() -> None:
    def metrics(tokens: float, count: float, waited: float) -> str:
        name = '{model_name="m"}'
        return (
            f"sglang:num_running_reqs{name} 2.0\nsglang:generation_tokens_total{name} {tokens}\n"
            f"sglang:time_to_first_token_seconds_count{name} {count}\nsglang:time_to_first_token_seconds_sum{name} {waited}\n"
            f'sglang:time_to_first_token_seconds_bucket{{le="0.1",model_name="m"}} 5.0\n'
        )

    first, second, anew = (parse_metrics(metrics(*values)) for values in ((100, 4, 2.0), (300, 6, 3.0), (50, 1, 0.25)))
    assert table(second, first, 2.0).split()[-5:] == ["0%", "100", "0.50", "s", "0"]
    assert table(anew, second, 2.0).split()[-5:] == ["0%", "25", "0.25", "s", "0"]


def test_names_do_not_speak_to_the_terminal_and_models_that_sleep_have_dashes() -> None:
    text = (
        'sglang:gateway_loaded{model_name="a\\u001b[2J\x1b[2J"} 0.0\nnonsense\nsglang:x{model_name="b"} what\n# HELP\nother 3\n'
    )
    shown = table(parse_metrics(text), {}, 0.0)
    assert "\x1b" not in shown and shown.splitlines()[1].split()[1:] == ["-"] * len(COLUMNS)
    assert "no model" in table(parse_metrics(""), {}, 0.0)
    assert max(map(len, table(parse_metrics('sglang:y{model_name="' + "n" * 9000 + '"} 1'), {}, 0.0).splitlines())) < 200


@pytest.mark.parametrize(("status", "words"), [(404, "--enable-metrics"), (401, "answers 401")], ids=range(2))
def test_servers_that_tell_nothing(status: int, words: str) -> None:
    client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(lambda request: httpx.Response(status)))
    with pytest.raises(CommandError, match=words):
        command.look(client, "http://x")


def test_nobody_is_there() -> None:
    assert COMMANDS["top"].endswith("top:top")
    with pytest.raises(CommandError, match="no server answers"):
        top(["--url", f"http://127.0.0.1:{free_port()}", "--once"])
