"""Paths of older releases of the original: see sglang.lang.backend."""
