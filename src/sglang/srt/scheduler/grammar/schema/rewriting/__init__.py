"""Keywords said with others that engines follow: exactly, or not at all. json_schema.py applies rewrites.py and reductions.py, an engine wide.py."""
