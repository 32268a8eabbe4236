"""A benchmark of a program of the language: few-shot sums, from a data set that is fetched first."""

import argparse
import json
import re
import time

import sglang as sgl
from sglang.lang.api import set_default_backend
from sglang.test.test_utils import add_common_sglang_args_and_parse, dump_bench_raw_result, select_sglang_backend
from sglang.utils import download_and_cache_file, dump_state_text, read_jsonl


def shot(row: dict, with_answer: bool) -> str:
    return f"Question: {row['question']}\nAnswer:" + (f" {row['answer']}\n\n" if with_answer else "")


def main(args: argparse.Namespace) -> None:
    set_default_backend(select_sglang_backend(args))
    rows = list(read_jsonl(download_and_cache_file(args.data_url, args.data_path)))
    shots = "".join(shot(row, True) for row in rows[: args.num_shots])
    rest = rows[args.num_shots :]
    labels = [row["answer"] for row in rest]

    @sgl.function
    def few_shot(s, question):
        s += shots + question
        s += sgl.gen("answer", max_tokens=8, stop=["Question", "\n"])

    start = time.perf_counter()
    states = few_shot.run_batch(
        [{"question": shot(row, False)} for row in rest], temperature=0, num_threads=args.parallel, progress_bar=True
    )
    latency = time.perf_counter() - start
    found = [re.findall(r"-?\d+", state["answer"]) for state in states]
    preds = [int(numbers[-1]) if numbers else None for numbers in found]
    dump_state_text("tmp_output_bench.txt", states)
    dump_bench_raw_result(path=args.raw_result_file, states=states, preds=preds, labels=labels)
    tokens = sum(state.get_meta_info("answer")["completion_tokens"] for state in states)
    with open(args.result_file, "a") as file:
        row = {
            "task": "sums",
            "backend": args.backend,
            "num_requests": len(rest),
            "latency": round(latency, 3),
            "tokens": tokens,
        }
        file.write(json.dumps({**row, "other": {"parallel": args.parallel}}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-shots", type=int, default=2)
    parser.add_argument("--data-url")
    parser.add_argument("--data-path", default="data.jsonl")
    main(add_common_sglang_args_and_parse(parser))
