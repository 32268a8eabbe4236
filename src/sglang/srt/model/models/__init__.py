"""Architectures: one file each, listed in registry.py. See docs/adding-a-model.md."""
