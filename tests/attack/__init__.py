"""Attacks on a real server in its own process. After each one it serves others as before, in the memory it had before.

The short form is part of the suite; `make attack` runs the long form.
"""
