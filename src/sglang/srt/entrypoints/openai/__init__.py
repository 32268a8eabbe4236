"""A path of the original."""
