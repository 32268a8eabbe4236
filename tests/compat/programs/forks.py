"""Branches of a program, and JSON by a regular expression made of a class."""

import json
import sys
from enum import Enum

from pydantic import BaseModel

import sglang as sgl
from sglang.srt.constrained import build_regex_from_object
from sglang.utils import http_request, print_highlight, wait_for_server


class Weapon(str, Enum):
    sword = "sword"
    axe = "axe"


class Character(BaseModel):
    name: str
    age: int
    weapon: Weapon


@sgl.function
def tips(s, topic):
    s += f"Two tips about {topic}:"
    forks = s.fork(2, [0, 0])
    for i in range(2):
        forks[i] += f" Tip {i + 1}:"
        forks[i] += sgl.gen("tip", max_tokens=6, n=2)
    forks.join()
    s += " In short:" + sgl.gen("summary", max_tokens=6)


@sgl.function
def character(s, name):
    s += name + " is a character in a story. As JSON:\n"
    s += sgl.gen("json", max_tokens=96, temperature=0, regex=build_regex_from_object(Character))


@sgl.function
def next_word(s):
    s += "The capital of France is" + sgl.gen("none", max_tokens=0, return_logprob=True, top_logprobs_num=3)
    s += sgl.gen("word", max_tokens=1, temperature=0, return_logprob=True, top_logprobs_num=3)


url = sys.argv[1]
wait_for_server(url)
sgl.set_default_backend(sgl.RuntimeEndpoint(url))
states = tips.run_batch([{"topic": "tea"}, {"topic": "maps"}], progress_bar=True)
assert [[len(samples) for samples in state["tip"]] for state in states] == [[2, 2], [2, 2]]
assert all(state["summary"] for state in states)

answer = json.loads(character.run(name="Hermione")["json"])
assert Character.model_validate(answer)

state = next_word.run()
first, second = state.get_meta_info("none"), state.get_meta_info("word")
assert state["none"] == "" and first["completion_tokens"] == 0 and first["output_token_logprobs"] == []
assert len(first["output_top_logprobs"]) == 1 and first["output_top_logprobs"] == second["output_top_logprobs"]
assert first["output_top_logprobs"][0][0][1] == second["output_token_logprobs"][0][1]

reply = http_request(f"{url}/generate", json={"text": "1, 2, 3,", "sampling_params": {"max_new_tokens": 4, "temperature": 0}})
assert reply.status_code == 200 and len(reply.json()["text"]) > 0
events = http_request(
    f"{url}/generate", json={"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 3}}, stream=True
)
lines = [line.decode() for line in events.iter_lines() if line]
assert lines[-1] == "data: [DONE]" and json.loads(lines[0][6:])["text"]
assert http_request(f"{url}/no-such-path").status_code == 404
print_highlight("all good")
