"""Helpers that programs, benchmarks and tests written for SGLang import besides the language and the engine. The modules at SGLang's paths
(sglang.utils, sglang.test, sglang.srt.parser, ...) only re-export it; the language, the runtime and the commands never import it."""
