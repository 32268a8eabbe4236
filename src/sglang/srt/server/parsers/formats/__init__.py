"""Formats of tool calls: variants of JSON, of Python, and of tags."""
