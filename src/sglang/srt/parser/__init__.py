"""Paths of the original: see sglang.compat."""
