"""Command lines: how flags are named, read and shown. The fields themselves are in groups.py."""
