"""Python's regular expressions in the dialects of the engines."""
