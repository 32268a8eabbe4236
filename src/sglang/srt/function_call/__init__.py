"""A path of the original: see sglang.compat.function_calls."""
