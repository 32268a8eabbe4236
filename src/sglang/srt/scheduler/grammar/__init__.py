"""Constraints on the output.

    registry.py             the engines by name: one line each
    masks.py                masks of all constrained rows, filled on a side thread
    compiler.py             texts -> grammars on side threads, with a cache and limits
    llguidance_backend.py   the default engine
    json_schema.py          schemas whose objects have no properties but the listed ones
    regex_syntax.py         Python's regular expressions in the engines' dialect
    base.py                 what an engine is
"""
