"""Helpers that the documents import."""
