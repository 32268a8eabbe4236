"""lm-eval-harness: choices scored by log probability (local-completions), and generated answers (local-chat-completions), on
a task of its own without downloads. Usage: lm_eval_client.py URL MODEL"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
ITEMS = [
    ("The capital of France is", [" Paris", " banana", " seventeen", " running"], 0),
    ("One, two, three,", [" purple", " four", " Monday", " sings"], 1),
    ("The sun rises in the", [" keyboard", " seven", " east", " sadly"], 2),
    ("Cats and dogs are", [" equations", " Thursday", " via", " animals"], 3),
    ("Water freezes and becomes", [" ice", " music", " Spain", " loudly"], 0),
    ("A week has seven", [" oceans", " days", " kings", " blue"], 1),
]
TASKS = {
    "choices_here": """
task: choices_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""",
    "words_here": """
task: words_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Continue with one word: {{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, temperature: 0.0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
""",
    "texts_here": """
task: texts_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
""",
}


def write_tasks() -> TaskManager:
    data = Path("items.jsonl").resolve()
    data.write_text("".join(json.dumps({"question": q, "choices": c, "label": n}) + "\n" for q, c, n in ITEMS))
    for name, text in TASKS.items():
        Path(f"{name}.yaml").write_text(text.format(data=data))
    return TaskManager(include_path=str(Path.cwd()), include_defaults=False)


def arguments(path: str, **more: object) -> str:
    given = {"model": MODEL, "base_url": URL + path, "num_concurrent": 4, "max_retries": 1, "tokenized_requests": False, **more}
    return ",".join(f"{name}={value}" for name, value in given.items())


def main() -> None:
    tasks = write_tasks()
    scored = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments("/completions", tokenizer_backend="remote"),
        tasks=["choices_here"],
        task_manager=tasks,
        log_samples=True,
    )
    accuracy = scored["results"]["choices_here"]["acc,none"]
    assert accuracy >= 0.8, scored["results"]
    for sample in scored["samples"]["choices_here"]:
        assert all(float(logprob) < 0 for logprob, _ in sample["filtered_resps"]), sample
    rolled = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments("/completions", tokenizer_backend="remote"),
        tasks=["texts_here"],
        task_manager=tasks,
    )
    assert 0 < rolled["results"]["texts_here"]["bits_per_byte,none"] < 4, rolled["results"]
    answered = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=arguments("/chat/completions"),
        tasks=["words_here"],
        task_manager=tasks,
        apply_chat_template=True,
        log_samples=True,
    )
    assert all(sample["resps"][0][0] for sample in answered["samples"]["words_here"])
    print("all good")


if __name__ == "__main__":
    main()
