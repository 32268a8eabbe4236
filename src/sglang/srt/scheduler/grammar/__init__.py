"""Constraints on the output: a text is tried in a child (trial.py), compiled on a side thread (compiler.py), and its masks are filled on
another while the model computes (masks.py). The import layers are a contract in pyproject.toml ("layers of grammars").

    engines/   llguidance and xgrammar behind one interface
    schema/    JSON schemas: rebuilt from checked parts
    regex/     Python's regular expressions in the engines' dialects
"""
