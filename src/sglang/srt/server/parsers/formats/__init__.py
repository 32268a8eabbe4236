"""Formats of tool calls: JSON in its varieties, Python in its varieties."""
