"""The original's benchmark scripts, with its command lines and output lines:

    datasets       the requests: random ids, common prefixes, conversations from files
    serving        python -m sglang.bench_serving             a running server under load
    offline        python -m sglang.bench_offline_throughput  the engine in this process, all requests at once
    one_batch      python -m sglang.bench_one_batch           one batch: prefill, then decode
    rules          how results are written
    evals          python -m sglang.test.run_eval             right answers to multiple-choice questions and sums
    few_shot       python -m sglang.test.few_shot_gsm8k       right answers to sums, by a program of the language
    engines        requests to an engine in this process

Numbers mean what they mean there, so that results can be compared; `sglang bench` is our own.
"""
