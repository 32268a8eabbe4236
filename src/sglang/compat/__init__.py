"""What programs, benchmarks and tests written for the original import besides the language and the engine.

Nothing else in this package needs any of it: the language, the runtime and the commands never import `sglang.compat`. The
modules at the original's paths (sglang.utils, sglang.test, sglang.srt.parser, ...) only name what lies here:

    files            data sets and result files              sglang.utils
    requests         plain HTTP calls, streams put together  sglang.utils
    benchmarks       command lines and calls of benchmarks   sglang.test.test_utils
    servers          servers for unit tests and documents    sglang.test.test_utils, sglang.test.doc_patch
    tokenizers       the tokenizer of a served model         sglang.srt.utils.hf_transformers_utils
    json_regex       a JSON schema as a regular expression   sglang.srt.constrained
    conversation     conversations as prompts                sglang.srt.parser.conversation
    reasoning        thoughts told from answers              sglang.srt.parser.reasoning_parser
"""
