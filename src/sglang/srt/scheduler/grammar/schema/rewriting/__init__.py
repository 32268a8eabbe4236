"""Exact rewrites of keywords to others that engines follow. json_schema.py applies rewrites.py and reductions.py, an engine properties.py."""
