"""Constraints on the output.

compiler.py         texts -> grammars on side threads, with a cache and limits
lanes.py            whose text is next, and a lane for those that take long
trial.py            a text compiles in a child first, and is stepped through
journal.py          which texts are in native code now: after a crash the culprit is known
masks.py            masks of all constrained rows, filled on a side thread
aside.py            long calls of the engines, at the lowest priority
encoder.py          forced text to canonical tokens
structural_tags.py  structural tags: their form
engines/            the engines and their registry
schema/             JSON schemas: built anew out of checked parts
regex/              Python's regular expressions in the engines' dialects
"""
