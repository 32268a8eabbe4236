"""Prepares JSON schemas for an engine. json_schema.py is the entry; every other file is one step or one table of it."""
