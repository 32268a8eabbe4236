"""The same for another system's API: plain calls on threads."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sglang.test.test_utils import add_common_other_args_and_parse, get_call_generate, get_call_select
from sglang.utils import dump_state_text


def main(args: argparse.Namespace) -> None:
    call_generate = partial(get_call_generate(args), temperature=0, stop=["\n"])
    call_select = get_call_select(args)
    prompts = [f"{a}, {a + 1}, {a + 2}, {a + 3}," for a in range(4)]
    with ThreadPoolExecutor(args.parallel) as executor:
        answers = list(executor.map(lambda prompt: call_generate(prompt, max_tokens=6), prompts))
    several = call_generate("Once upon a time", max_tokens=4, n=2)
    digits = call_generate("The answer is ", max_tokens=4, regex="[0-9]{2}")
    chosen = call_select("The capital of France is", [" Berlin", " Paris", " Rome"])
    dump_state_text("tmp_output_other.txt", answers)
    with open(args.result_file, "a") as file:
        file.write(json.dumps({"answers": answers, "several": several, "digits": digits, "chosen": chosen}) + "\n")


if __name__ == "__main__":
    main(add_common_other_args_and_parse(argparse.ArgumentParser()))
