"""Measurements. Every figure in docs/benchmarks.md names the command of this package that made it."""
